"""`python -m export update-pose`: rebuild the pose model if it is out of date.

`make models` runs this each time, so torch is imported only for a rebuild.
"""

import argparse
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from export.errors import ExportError
from export.pose.origin import DEFAULT_CHECKPOINT, is_of_project, project_origin
from export.repository import add_repository_argument

REQUIRED_OUTPUT = "LANDMARKS_OUT"
"""The ensemble needs this output; models built by early versions lack it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add_repository_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    """Export the project's checkpoint unless the stored model is current or of other weights."""
    path = arguments.repository / "pose_mlp" / "1" / "model.onnx"
    model = _read_model(path) if path.exists() else None
    if model is None or is_outdated(model):
        from export.pose import command

        built, _ = command.export_pose(arguments.repository, DEFAULT_CHECKPOINT)
        print(f"{built}: built from the project's checkpoint")
    elif REQUIRED_OUTPUT not in _outputs(model):
        weights = _metadata(model).get("weights", "FILE.safetensors")
        print(
            f"{path} has no output {REQUIRED_OUTPUT} and is not of the project's checkpoint, so it was not "
            f"replaced; export it again: python -m export pose --weights {weights}"
        )


def is_outdated(model: onnx.ModelProto) -> bool:
    """Return whether a model of the project's checkpoint differs from a newly built one.

    A model of other weights is never outdated.
    """
    origin = _metadata(model)
    is_current = project_origin().items() <= origin.items() and REQUIRED_OUTPUT in _outputs(model)
    return is_of_project(origin) and not is_current


def _read_model(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise ExportError(
            f"cannot read {path} ({error}). Delete it, or export it again: python -m export pose"
        ) from error
    if not model.graph.node:  # as in an empty file, which is a valid protobuf
        raise ExportError(f"{path} is empty. Delete it, or export it again: python -m export pose")
    return model


def _metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def _outputs(model: onnx.ModelProto) -> set[str]:
    return {output.name for output in model.graph.output}
