"""Read the configurations of a model repository, and store models that match them."""

import argparse
import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
from google.protobuf import text_format
from onnx import TensorProto
from tritonclient.grpc import model_config_pb2

from export.atomic import replacing
from export.errors import ExportError

DEFAULT_REPOSITORY = Path(__file__).resolve().parent.parent / "model_repository"

_ONNX_TYPES = {
    "TYPE_FP32": TensorProto.FLOAT,
    "TYPE_INT64": TensorProto.INT64,
    "TYPE_BOOL": TensorProto.BOOL,
}

Interface = dict[str, tuple[int, list[int]]]
"""Tensor name -> ONNX element type and shape without the batch dimension."""


def add_repository_argument(
    parser: argparse.ArgumentParser, summary: str = "the model repository to write to"
) -> None:
    """Declare the option `--repository`, which `summary` describes."""
    parser.add_argument(
        "--repository",
        type=Path,
        default=DEFAULT_REPOSITORY,
        metavar="DIR",
        help=f"{summary} (default: %(default)s)",
    )


@contextlib.contextmanager
def locked(repository: Path) -> Iterator[None]:
    """Hold the lock of a model repository: two commands that change the same files run one after the other.

    Raises
    ------
    ExportError
        If the folder cannot be read.
    """
    try:
        folder = os.open(repository, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ExportError(
            f"cannot read {repository}: {error.strerror}. --repository must name a folder like "
            "model_repository/"
        ) from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def read_config(repository: Path, model_name: str) -> model_config_pb2.ModelConfig:
    """Parse ``config.pbtxt`` of a model."""
    return read_config_file(repository / model_name / "config.pbtxt")


def read_config_file(path: Path) -> model_config_pb2.ModelConfig:
    """Parse a model configuration.

    Raises
    ------
    ExportError
        If the file is missing or not a model configuration.
    """
    try:
        return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise ExportError(
            f"cannot read {path}: {error}. --repository must name a folder like model_repository/"
        ) from error


def configured_face_size(repository: Path) -> int:
    """Return the side of the aligned face in pixels, the parameter face_size of align_mask."""
    text = read_config(repository, "align_mask").parameters["face_size"].string_value
    if not text.isdecimal():
        raise ExportError(
            f"face_size in {repository / 'align_mask' / 'config.pbtxt'} must be a number, it is {text!r}"
        )
    return int(text)


def store_model(
    model: onnx.ModelProto,
    facts: dict[str, str],
    repository: Path,
    model_name: str,
    configs: Mapping[Path, str] | None = None,
) -> Path:
    """Write a checked model to ``<repository>/<model_name>/1/model.onnx`` atomically.

    Parameters
    ----------
    model : ModelProto
        The model; its metadata is replaced by `facts`.
    facts : dict of str to str
        Origin of the model and results of its check.
    repository : Path
        The model repository.
    model_name : str
        Folder of the model in the repository.
    configs : mapping of Path to str, optional
        Configurations to replace together with the model, with their new text.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ExportError
        If the model's tensors differ from those of its ``config.pbtxt``, or a file cannot be written.
    """
    configs = configs or {}
    config_path = repository / model_name / "config.pbtxt"
    if config_path in configs:
        config = text_format.Parse(configs[config_path], model_config_pb2.ModelConfig())
    else:
        config = read_config_file(config_path)
    _check_interface(model, config, config_path)
    onnx.helper.set_model_props(model, facts)
    path = repository / model_name / "1" / "model.onnx"
    originals = {file: file.read_text() for file in configs}
    try:
        with _restoring(originals), contextlib.ExitStack() as stack:
            temporary = stack.enter_context(replacing(path))
            for replaced, text in configs.items():
                stack.enter_context(replacing(replaced)).write_text(text)
            # Write the model last, because make rebuilds a model that is older than its configuration.
            temporary.write_bytes(model.SerializeToString())
    except OSError as error:
        failed = error.filename2 or error.filename or path
        raise ExportError(f"cannot write {failed}: {error.strerror}") from error
    return path


@contextlib.contextmanager
def _restoring(originals: Mapping[Path, str]) -> Iterator[None]:
    """Restore the text of files if the block raises: a file may be replaced before another one fails."""
    try:
        yield
    except BaseException:
        for path, text in originals.items():
            if path.read_text() != text:
                with replacing(path) as temporary:
                    temporary.write_text(text)
        raise


def _check_interface(model: onnx.ModelProto, config: model_config_pb2.ModelConfig, config_path: Path) -> None:
    for kind, graph_side, config_side in (
        ("input", model.graph.input, config.input),
        ("output", model.graph.output, config.output),
    ):
        built, configured = _graph_interface(graph_side), _config_interface(config_side)
        if built != configured:
            raise ExportError(
                f"the {kind} of the built model is {_describe(built)}, but {config_path} says "
                f"{_describe(configured)}; correct the configuration"
            )


def _graph_interface(values: list[onnx.ValueInfoProto]) -> Interface:
    return {
        value.name: (
            value.type.tensor_type.elem_type,
            [dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]],
        )
        for value in values
    }


def _config_interface(
    values: list[model_config_pb2.ModelInput] | list[model_config_pb2.ModelOutput],
) -> Interface:
    return {
        value.name: (
            _ONNX_TYPES.get(model_config_pb2.DataType.Name(value.data_type), TensorProto.UNDEFINED),
            list(value.dims),
        )
        for value in values
    }


def _describe(interface: Interface) -> str:
    return ", ".join(
        f"{name} {TensorProto.DataType.Name(element_type)} {dims}"
        for name, (element_type, dims) in interface.items()
    )
