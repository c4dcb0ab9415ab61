"""Batch size, outputs and parameters of a model, read from the server's configuration."""

import dataclasses
from collections.abc import Collection

import numpy as np
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import triton_to_np_dtype

from triton_face_client.transports.base import TensorSpec

DEFAULT_BATCH_SIZE = 32
"""Faces per request, unless the server's maximum is smaller. Larger requests were no faster when measured."""

ACTION_UNIT_MODELS = ("action_units", "au")
"""The optional models. A server has both or neither."""

ENSEMBLE_OUTPUTS = ("HOG", "POSE", "ALIGNED_LANDMARKS", "AFFINE", "MASK")
ALIGN_MASK_OUTPUTS = ("MASKED_FACES", "ALIGNED_FACES", "ALIGNED_LANDMARKS", "AFFINE", "MASK")


@dataclasses.dataclass(frozen=True)
class Model:
    """A model of the service.

    Attributes
    ----------
    name : str
        Name of the model.
    batch_size : int
        Maximum number of faces per request.
    inputs, outputs : dict of str to (numpy.dtype, tuple of int)
        Type and shape of each tensor, without the first dimension (the faces).
    parameters : dict of str to str
        Parameters of the model's configuration.
    """

    name: str
    batch_size: int
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    parameters: dict[str, str]

    @classmethod
    def from_config(cls, config: model_config_pb2.ModelConfig, batch_size: int | None) -> "Model":
        """Read a configuration. `batch_size` overrides the default, up to the server's maximum."""
        server_maximum = max(config.max_batch_size, 1)
        return cls(
            name=config.name,
            batch_size=min(server_maximum, batch_size or DEFAULT_BATCH_SIZE),
            inputs={tensor.name: _tensor_spec(tensor) for tensor in config.input},
            outputs={tensor.name: _tensor_spec(tensor) for tensor in config.output},
            parameters={key: value.string_value for key, value in config.parameters.items()},
        )

    @property
    def action_units(self) -> tuple[str, ...]:
        """Names of the columns of the output AU, for example ``("AU01", "AU02")``."""
        return tuple(self.parameters["action_units"].split(","))

    def check_outputs(self, outputs: tuple[str, ...]) -> None:
        """Raise a ValueError if `outputs` is empty or names an output that the model lacks."""
        available = ", ".join(self.outputs)
        if not outputs:
            raise ValueError(f"no output is requested: {self.name} has {available}")
        unknown = ", ".join(name for name in outputs if name not in self.outputs)
        if unknown:
            raise ValueError(f"{self.name} has no output {unknown}: it has {available}")


def features_model(outputs: Collection[str]) -> str:
    """Return the name of the ensemble that computes `outputs`: `action_units` if AU is one of them."""
    return "action_units" if "AU" in outputs else "ensemble"


def _tensor_spec(tensor: model_config_pb2.ModelInput | model_config_pb2.ModelOutput) -> TensorSpec:
    datatype = model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_")
    return np.dtype(triton_to_np_dtype(datatype)), tuple(tensor.dims)
