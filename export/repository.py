"""The model repository: its configs, and built models stored in it."""

import argparse
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


def add_repository_argument(parser: argparse.ArgumentParser) -> None:
    """Declare the option ``--repository``."""
    parser.add_argument(
        "--repository",
        type=Path,
        default=DEFAULT_REPOSITORY,
        metavar="DIR",
        help="the model repository to write to (default: %(default)s)",
    )


def read_config(repository: Path, model_name: str) -> model_config_pb2.ModelConfig:
    """Parse ``config.pbtxt`` of a model.

    Raises
    ------
    ExportError
        When the file is missing or not a model configuration.
    """
    path = repository / model_name / "config.pbtxt"
    try:
        return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise ExportError(
            f"cannot read {path}: {error}. --repository takes a folder like model_repository/"
        ) from error


def configured_face_size(repository: Path) -> int:
    """Return the side of the aligned face, pixels, that align_mask is configured for."""
    text = read_config(repository, "align_mask").parameters["face_size"].string_value
    if not text.isdecimal():
        raise ExportError(
            f"face_size in {repository / 'align_mask' / 'config.pbtxt'} must be a number, it is {text!r}"
        )
    return int(text)


def store_model(model: onnx.ModelProto, facts: dict[str, str], repository: Path, model_name: str) -> Path:
    """Write a checked model to ``<repository>/<model_name>/1/model.onnx`` atomically.

    Parameters
    ----------
    model : ModelProto
        The model; its metadata is replaced by `facts`.
    facts : dict of str to str
        The model's origin and the result of its check.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ExportError
        When the model's tensors differ from those in its ``config.pbtxt``, or the file cannot be written.
    """
    _check_interface(model, repository, model_name)
    onnx.helper.set_model_props(model, facts)
    path = repository / model_name / "1" / "model.onnx"
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(model.SerializeToString())
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror}") from error
    return path


def _check_interface(model: onnx.ModelProto, repository: Path, model_name: str) -> None:
    config = read_config(repository, model_name)
    for kind, graph_side, config_side in (
        ("input", model.graph.input, config.input),
        ("output", model.graph.output, config.output),
    ):
        built, configured = _graph_interface(graph_side), _config_interface(config_side)
        if built != configured:
            raise ExportError(
                f"the {kind} of the built model is {_describe(built)}, but "
                f"{repository / model_name / 'config.pbtxt'} says {_describe(configured)}; "
                "change the dims there (and align_mask's face_size and outputs) or the --face-size"
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
        f"{name} {TensorProto.DataType.Name(kind)} {dims}" for name, (kind, dims) in interface.items()
    )
