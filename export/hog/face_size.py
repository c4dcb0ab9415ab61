"""Change of the face size in all model configurations.

The parameter `face_size` of `align_mask` determines dims in the configurations of `align_mask`, `hog` and
`ensemble` and in their profiles. `python -m export hog --face-size PIXELS` updates all of them.
"""

import re
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from export.errors import ExportError
from export.hog.graph import feature_length
from export.repository import read_config_file


def dims_by_tensor(face_size: int) -> dict[str, list[int]]:
    """Return the dims of all tensors that depend on the face size."""
    return {
        "ALIGNED_FACES": [3, face_size, face_size],
        "MASKED_FACES": [3, face_size, face_size],
        "MASK": [face_size, face_size],
        "HOG": [feature_length(face_size)],
    }


def outdated_configs(repository: Path, face_size: int) -> dict[Path, str]:
    """Return the configurations, profiles included, that do not fit a face size, with their new text.

    The new text keeps comments and layout.

    Raises
    ------
    ExportError
        If a configuration is invalid or has a layout that this function cannot change.
    """
    paths = [*repository.glob("*/config.pbtxt"), *repository.glob("*/configs/*.pbtxt")]
    outdated = {}
    for path in sorted(paths):
        # A run that was killed may have left a temporary file.
        if path.name.startswith(".") or _fits(read_config_file(path), face_size):
            continue
        outdated[path] = _with_face_size(path.read_text(), face_size)
        if not _fits(text_format.Parse(outdated[path], model_config_pb2.ModelConfig()), face_size):
            raise ExportError(
                f"cannot change the face size in {path}: give each tensor's name, data_type and dims in this "
                'order, and the parameter as `key: "face_size" value: { string_value: "112" }`'
            )
    return outdated


def _with_face_size(text: str, face_size: int) -> str:
    """Replace the parameter face_size and the dims of inputs, outputs and warm-up requests."""
    text = re.sub(r'(key: "face_size"\s+value:? \{ string_value: ")[^"]*', rf"\g<1>{face_size}", text)
    for tensor, dims in dims_by_tensor(face_size).items():
        pattern = rf'((?:name|key): "{tensor}"\s+(?:value:? \{{ )?data_type: \w+\s+dims: )\[[^\]]*\]'
        text = re.sub(pattern, rf"\g<1>[ {', '.join(map(str, dims))} ]", text)
    return text


def _fits(config: model_config_pb2.ModelConfig, face_size: int) -> bool:
    tensors = [(tensor.name, tensor.dims) for tensor in [*config.input, *config.output]]
    tensors += [(name, item.dims) for warmup in config.model_warmup for name, item in warmup.inputs.items()]
    expected = dims_by_tensor(face_size)
    if "face_size" in config.parameters and config.parameters["face_size"].string_value != str(face_size):
        return False
    return all(list(dims) == expected.get(name, list(dims)) for name, dims in tensors)
