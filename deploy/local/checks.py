"""Checks before a server starts. Their messages are shorter than the server's log."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from deploy.local.errors import ServerError
from export.errors import ExportError
from export.hog.settings import PYFEAT_COMMAND, HogSettings

Configs = dict[str, model_config_pb2.ModelConfig]
"""Model name -> its configuration."""

ALIGN_MODEL, HOG_MODEL, AU_MODEL = "align_mask", "hog", "au"


def read_configs(repository: Path) -> Configs:
    """Parse the configuration of every model of a repository.

    Raises
    ------
    ServerError
        If there is no model, or a file is not a model configuration.
    """
    paths = sorted(repository.glob("*/config.pbtxt"))
    if not paths:
        raise ServerError(f"{repository} is not a model repository: no model in it has a config.pbtxt")
    configs = {}
    for path in paths:
        try:
            configs[path.parent.name] = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
        except (text_format.ParseError, UnicodeDecodeError) as error:
            raise ServerError(f"{path} is not a model configuration: {error}") from error
    return configs


def read_all_configs(repositories: Sequence[Path]) -> Configs:
    """Parse the configurations of several repositories that are served together, and check their ONNX files.

    Raises
    ------
    ServerError
        If `read_configs` or `check_onnx_files` raises one, or two repositories have a model of the same name.
    """
    configs: Configs = {}
    folders: dict[str, Path] = {}
    for repository in repositories:
        found = read_configs(repository)
        for name in found:
            if name in folders:
                raise ServerError(
                    f"the model {name} is in both {folders[name]} and {repository}: serve only one of them"
                )
            folders[name] = repository
        check_onnx_files(repository, found)
        configs |= found
    return configs


def check_onnx_files(repository: Path, configs: Configs) -> None:
    """Raise a ServerError if a model's ONNX file is missing."""
    missing = []
    for name, config in configs.items():
        file_name = config.default_model_filename or "model.onnx"
        if config.backend == "onnxruntime" and not (repository / name / "1" / file_name).is_file():
            missing.append(name)
    if missing:
        commands = (
            f"build it with `python -m export au --weights FILE.skops --out {repository}`"
            if missing == [AU_MODEL]
            else "build them with `make models`, or `python -m export hog` and `python -m export pose` with "
            "--repository"
        )
        raise ServerError(f"no ONNX file for {' and '.join(missing)} in {repository}: {commands}")


def check_hog_of_au(configs: Configs) -> None:
    """Raise a ServerError if `au` was built for other HOG features than `hog` computes."""
    if AU_MODEL not in configs or HOG_MODEL not in configs:
        return
    expected, returned = (
        [list(tensor.dims) for tensor in tensors if tensor.name == "HOG"]
        for tensors in (configs[AU_MODEL].input, configs[HOG_MODEL].output)
    )
    if expected != returned:
        raise ServerError(
            f"au needs HOG with dims {_dims(expected)}, but hog returns {_dims(returned)}: build hog "
            f"with the settings that the AU classifiers were trained for; py-feat's need `{PYFEAT_COMMAND}`"
        )
    if ALIGN_MODEL not in configs:
        return
    configured = _hog_options(configs)
    if (exported_for := _parameters(configs[AU_MODEL]).get("hog_options", configured)) != configured:
        raise ServerError(
            f"au was exported for hog with `{exported_for}`, but hog has `{configured}`: build hog with the "
            "settings that the AU classifiers were trained for (`python -m export hog`), or export au again"
        )


def _hog_options(configs: Configs) -> str:
    """Return the configured face size and HOG settings as options of `python -m export hog`."""
    try:
        settings = HogSettings.from_parameters(_parameters(configs[HOG_MODEL]))
        return settings.as_options(int(_parameters(configs[ALIGN_MODEL])["face_size"]))
    except (ExportError, KeyError, ValueError) as error:
        raise ServerError(f"a parameter of {ALIGN_MODEL} or {HOG_MODEL} is invalid: {error}") from error


def _parameters(config: model_config_pb2.ModelConfig) -> dict[str, str]:
    return {key: value.string_value for key, value in config.parameters.items()}


def _dims(tensors: list[list[int]]) -> str:
    return str(tensors[0]) if tensors else "none"


def check_temporary_folder() -> None:
    """Raise a ServerError if the temporary folder's path has characters that a shell interprets.

    Triton puts this path unquoted into the shell command that starts a stub process.
    """
    if not re.fullmatch(r"[\w./-]+", tempfile.gettempdir()):
        raise ServerError(
            f"Triton cannot start from the temporary folder {tempfile.gettempdir()}: set TMPDIR to a path of "
            "letters, digits, and the characters _ . / -"
        )
