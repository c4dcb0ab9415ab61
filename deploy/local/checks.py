"""Checks before a server starts. Their messages are shorter than the server's log."""

import re
import tempfile
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from deploy.local.errors import ServerError

Configs = dict[str, model_config_pb2.ModelConfig]
"""Model name -> its configuration."""


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


def check_onnx_files(repository: Path, configs: Configs) -> None:
    """Raise a ServerError if a model's ONNX file is missing."""
    missing = []
    for name, config in configs.items():
        file_name = config.default_model_filename or "model.onnx"
        if config.backend == "onnxruntime" and not (repository / name / "1" / file_name).is_file():
            missing.append(name)
    if missing:
        raise ServerError(
            f"no ONNX file for {' and '.join(missing)} in {repository}: build them with `make models`, or "
            "`python -m export hog` and `python -m export pose` with --repository"
        )


def check_temporary_folder() -> None:
    """Raise a ServerError if the temporary folder's path has characters that a shell interprets.

    Triton puts this path unquoted into the shell command that starts a stub process.
    """
    if not re.fullmatch(r"[\w./-]+", tempfile.gettempdir()):
        raise ServerError(
            f"Triton cannot start from the temporary folder {tempfile.gettempdir()}: set TMPDIR to a path of "
            "letters, digits, and the characters _ . / -"
        )
