"""Change of the face size and the HOG settings in all model configurations.

The parameter `face_size` of `align_mask` and the parameters of `hog` (`HogSettings`) determine dims in the
configurations of `align_mask`, `hog` and `ensemble` and in their profiles. `python -m export hog` with
options updates all of them.
"""

import re
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from export.errors import ExportError
from export.hog.settings import HogSettings
from export.repository import read_config, read_config_file


def configured_settings(repository: Path) -> HogSettings:
    """Return the settings in the parameters of hog's ``config.pbtxt``.

    Raises
    ------
    ExportError
        If a parameter is invalid.
    """
    parameters = read_config(repository, "hog").parameters
    try:
        return HogSettings.from_parameters(
            {name: parameter.string_value for name, parameter in parameters.items()}
        )
    except ExportError as error:
        raise ExportError(f"{repository / 'hog' / 'config.pbtxt'}: {error}") from error


def outdated_configs(repository: Path, face_size: int, settings: HogSettings) -> dict[Path, str]:
    """Return the configurations, profiles included, that do not fit face size and settings, with new text.

    The new text keeps comments and layout.

    Raises
    ------
    ExportError
        If a configuration is invalid or has a layout that this function cannot change.
    """
    dims = _dims_by_tensor(face_size, settings)
    paths = [*repository.glob("*/config.pbtxt"), *repository.glob("*/configs/*.pbtxt")]
    outdated = {}
    for path in sorted(paths):
        # A run that was killed may have left a temporary file.
        if path.name.startswith("."):
            continue
        config = read_config_file(path)
        parameters = _parameters(config.name, face_size, settings)
        if _fits(config, parameters, dims):
            continue
        outdated[path] = _updated(path.read_text(), parameters, dims)
        if not _fits(text_format.Parse(outdated[path], model_config_pb2.ModelConfig()), parameters, dims):
            raise ExportError(
                f"cannot change the face size and the HOG settings in {path}: give each tensor's name, "
                f"data_type and dims in this order, and the parameters {', '.join(parameters)} as "
                '`key: "face_size" value: { string_value: "112" }`'
            )
    return outdated


def _dims_by_tensor(face_size: int, settings: HogSettings) -> dict[str, list[int]]:
    """Return the dims of all tensors that depend on the face size and the settings."""
    return {
        "ALIGNED_FACES": [3, face_size, face_size],
        "MASKED_FACES": [3, face_size, face_size],
        "MASK": [face_size, face_size],
        "HOG": [settings.feature_length(face_size)],
    }


def _parameters(model: str, face_size: int, settings: HogSettings) -> dict[str, str]:
    """Return the parameters that a model's configuration must have."""
    return {"align_mask": {"face_size": str(face_size)}, "hog": settings.as_parameters()}.get(model, {})


def _updated(text: str, parameters: dict[str, str], dims_by_tensor: dict[str, list[int]]) -> str:
    """Replace parameters and the dims of inputs, outputs and warm-up requests."""
    for key, value in parameters.items():
        text = re.sub(rf'(key: "{key}"\s+value:? \{{ string_value: ")[^"]*', rf"\g<1>{value}", text)
    for tensor, dims in dims_by_tensor.items():
        pattern = rf'((?:name|key): "{tensor}"\s+(?:value:? \{{ )?data_type: \w+\s+dims: )\[[^\]]*\]'
        text = re.sub(pattern, rf"\g<1>[ {', '.join(map(str, dims))} ]", text)
    return text


def _fits(
    config: model_config_pb2.ModelConfig, parameters: dict[str, str], dims_by_tensor: dict[str, list[int]]
) -> bool:
    tensors = [(tensor.name, tensor.dims) for tensor in [*config.input, *config.output]]
    tensors += [(name, item.dims) for warmup in config.model_warmup for name, item in warmup.inputs.items()]
    return all(
        key in config.parameters and config.parameters[key].string_value == value
        for key, value in parameters.items()
    ) and all(list(dims) == dims_by_tensor.get(name, list(dims)) for name, dims in tensors)
