"""Input and output of the steps: the job with its size and model repository, the rows of the tables."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from export.hog.command import export_hog
from export.hog.settings import HogSettings
from export.pose.command import export_pose
from export.pose.origin import DEFAULT_CHECKPOINT
from export.repository import DEFAULT_REPOSITORY

Row = dict[str, str | int | float | bool | None]
"""Column -> value. Rows with the same columns form a table of the page; those of `check` have its columns."""

Rows = Iterator[Row]

TOLERANCE = 1e-5
"""Largest difference between features that count as equal."""

SEED = 2026


@dataclasses.dataclass(frozen=True)
class Size:
    """Amount of work of the steps.

    Attributes
    ----------
    faces : int
        Faces compared with the CPU path.
    oracle_faces : int
        Number of these faces that are also compared with scipy and scikit-image.
    planes : int
        Planes of 112 x 112 gradients at each border of the HOG bins.
    requests : int
        Requests of each concurrent comparison.
    batches : tuple of int
        Faces per request in the measurements.
    clients : tuple of int
        Client processes in the measurements.
    seconds : float
        Length of a measurement.
    rounds : int
        Rounds in which py-feat and the service alternate.
    """

    faces: int
    oracle_faces: int
    planes: int
    requests: int
    batches: tuple[int, ...]
    clients: tuple[int, ...]
    seconds: float
    rounds: int


SIZES = {
    "tiny": Size(24, 8, 1, 16, (8,), (2,), 0.2, 1),
    "quick": Size(64, 32, 8, 200, (), (), 0, 0),
    "full": Size(512, 128, 80, 2000, (1, 8, 32, 64, 128), (1, 8), 1.5, 5),
}


@dataclasses.dataclass(frozen=True)
class Job:
    """Input of every step: device ("cuda" or "cpu"), amount of work, repository with built models."""

    device: str
    size: Size
    repository: Path

    def config(self, model: str) -> model_config_pb2.ModelConfig:
        """Read a model's configuration: the profile `gpu` on a GPU, else config.pbtxt."""
        name = "configs/gpu.pbtxt" if self.device == "cuda" else "config.pbtxt"
        return text_format.Parse((self.repository / model / name).read_text(), model_config_pb2.ModelConfig())

    def instances(self, model: str) -> int:
        """Return how many instances of a model its configuration starts."""
        return sum(group.count for group in self.config(model).instance_group)


def check(what: str, measured: str | float, goal: str | None = None, reached: bool | None = None) -> Row:
    """Make a row of a table of checks; `reached` is None for a value without a goal."""
    return {"what": what, "measured": measured, "goal": goal, "reached": reached}


def build_repository(target: Path) -> Path:
    """Copy the project's repository to a folder and build its models there."""
    shutil.copytree(DEFAULT_REPOSITORY, target, ignore=shutil.ignore_patterns("*.onnx", "__pycache__"))
    export_hog(target, **vars(HogSettings()))
    export_pose(target, DEFAULT_CHECKPOINT)
    return target
