"""What a model of the service takes and gives, read from the server's own configuration."""

import dataclasses

import numpy as np
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import triton_to_np_dtype

BATCH_SIZE = 32
"""Faces a request, where the server takes as many; larger ones were not faster when measured."""

ENSEMBLE_OUTPUTS = ("HOG", "POSE", "ALIGNED_LANDMARKS", "AFFINE", "MASK")
ALIGN_MASK_OUTPUTS = ("MASKED_FACES", "ALIGNED_FACES", "ALIGNED_LANDMARKS", "AFFINE", "MASK")


@dataclasses.dataclass(frozen=True)
class Model:
    """A model of the service.

    Attributes
    ----------
    name : str
        Its name.
    batch_size : int
        Most faces of a request.
    outputs : dict of str to (numpy.dtype, tuple of int)
        Type and shape, without the faces' dimension, of each output.
    parameters : dict of str to str
        The parameters of its configuration.
    """

    name: str
    batch_size: int
    outputs: dict[str, tuple[np.dtype, tuple[int, ...]]]
    parameters: dict[str, str]

    @classmethod
    def from_config(cls, config: model_config_pb2.ModelConfig, batch_size: int | None) -> "Model":
        """Read a configuration; `batch_size`, where given, is the caller's choice within it."""
        most = max(config.max_batch_size, 1)
        return cls(
            name=config.name,
            batch_size=min(most, batch_size or BATCH_SIZE),
            outputs={output.name: _type_and_shape(output) for output in config.output},
            parameters={key: value.string_value for key, value in config.parameters.items()},
        )

    def check_outputs(self, outputs: tuple[str, ...]) -> None:
        """Raise a ValueError for outputs that the model has not."""
        unknown = [name for name in outputs if name not in self.outputs]
        if unknown or not outputs:
            raise ValueError(
                f"{self.name} has no output {', '.join(unknown) or 'without a name'}: ask for any of "
                f"{', '.join(self.outputs)}"
            )


def _type_and_shape(output: model_config_pb2.ModelOutput) -> tuple[np.dtype, tuple[int, ...]]:
    datatype = model_config_pb2.DataType.Name(output.data_type).removeprefix("TYPE_")
    return np.dtype(triton_to_np_dtype(datatype)), tuple(output.dims)
