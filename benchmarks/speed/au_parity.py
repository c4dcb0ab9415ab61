"""Compare AU of the service with py-feat's, for the faces of `make parity`; the second half of `make parity`.

The checkpoints are synthetic; AU_WEIGHTS=FILE.skops compares another one.

Trees are discontinuous: a component that differs by float32 rounding can cross a threshold. Therefore
py-feat is also compared with itself under noise of HOG.
"""

import dataclasses
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
from tqdm import tqdm

from benchmarks.speed.au_checkpoints import (
    export_checkpoint,
    pyfeat_evaluation,
    selected_checkpoints,
)
from benchmarks.speed.page import table
from benchmarks.speed.parity import SERVED_BATCH, parity_faces
from deploy.local import LocalServer
from export.au.checkpoint import load_au_checkpoint
from export.au.classifiers import LANDMARK_VALUES, ActionUnit, AuCheckpoint, Projection, Trees
from export.au.graph import Precision, build_au_graph
from triton_face_client import FaceFeatureClient

TOLERANCE = 1e-5
MIN_EQUAL_FRACTION = 0.999
"""Least fraction of values within `TOLERANCE`."""

TREE_TOLERANCE = 1e-6
"""Largest accepted difference of trees on equal inputs."""

PRECISIONS: dict[str, tuple[Precision, ...]] = {"xgb": ("float32", "float64"), "svm": ("float64",)}
"""Precisions of the projection by kind; the first is the default. Linear classifiers have no float32."""

Outputs = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Rate:
    """How many values of two sets of AU differ by more than `TOLERANCE`."""

    values: int
    beyond: int
    largest: float

    @classmethod
    def of(cls, output: np.ndarray, expected: np.ndarray) -> "Rate":
        """Count the differing values."""
        difference = np.abs(output.astype(np.float64) - expected)
        return cls(difference.size, int((difference > TOLERANCE).sum()), float(difference.max()))

    @property
    def within(self) -> float:
        """Return the fraction of values within the tolerance."""
        return 1 - self.beyond / self.values

    def __str__(self) -> str:
        """Return the count and the largest difference."""
        return f"{self.beyond} ({self.largest:.1e})"


@dataclasses.dataclass
class Tables:
    """The rows of the three tables, and whether the goals are reached."""

    rates: list[list[object]] = dataclasses.field(default_factory=list)
    faces_beyond: list[list[object]] = dataclasses.field(default_factory=list)
    trees: list[list[object]] = dataclasses.field(default_factory=list)
    passed: bool = True

    def add(self, name: str, path: Path, frames: np.ndarray, landmarks: np.ndarray) -> None:
        """Compare the service with py-feat for one checkpoint."""
        checkpoint = load_au_checkpoint(path)
        pyfeat = pyfeat_evaluation(path, frames, landmarks)
        noise = Rate.of(pyfeat["AU_OF_NOISY_HOG"], pyfeat["AU"])
        with tempfile.TemporaryDirectory() as folder:
            repositories = {precision: Path(folder) / precision for precision in PRECISIONS[checkpoint.kind]}
            for precision, repository in repositories.items():
                export_checkpoint(path, repository, precision)
            served = _served_outputs(next(iter(repositories.values())), frames, landmarks)
            models = {precision: _model(repository) for precision, repository in repositories.items()}
        default = next(iter(models.values()))
        for precision, model in models.items():
            service = served["AU"] if model is default else run_graph(model, served)
            equal_hog = run_graph(model, pyfeat)
            rate = Rate.of(service, pyfeat["AU"])
            self.passed &= rate.within >= MIN_EQUAL_FRACTION
            within = f"{100 * rate.within:.3f} %"
            self.rates.append(
                [name, precision, rate.values, within, rate, Rate.of(equal_hog, pyfeat["AU"]), noise]
            )
            self.faces_beyond += [
                [name, precision, *line]
                for line in _faces_beyond(checkpoint, service, equal_hog, served["HOG"], pyfeat)
            ]
        if checkpoint.kind == "xgb":
            logistic, hinge = _tree_differences(checkpoint, pyfeat)
            self.passed &= logistic <= TREE_TOLERANCE and hinge == 0
            self.trees.append([name, f"{logistic:.1e}", hinge])

    def __str__(self) -> str:
        """Return the tables as Markdown."""
        heads = {
            "rates": "checkpoint, projection, values, within, service, service with py-feat's HOG, "
            "py-feat under HOG noise of 1e-6",
            "beyond": "checkpoint, projection, face, AUs, largest difference, difference of HOG, cause",
            "trees": "checkpoint, largest difference of logistic AUs, differing values of hinge AUs",
        }
        rates, beyond, trees = (head.split(", ") for head in heads.values())
        return "\n\n".join(
            [
                f"## Values of AU that differ from py-feat's by more than {TOLERANCE:g}",
                "In parentheses: the largest difference.",
                table(rates, self.rates),
                "## The faces of these values",
                table(beyond, self.faces_beyond),
                "## Trees alone, on 1,000 equal inputs per AU, against predict_proba",
                table(trees, self.trees),
            ]
        )


def main() -> int:
    """Print the tables; return 1 when a goal is missed."""
    frames, landmarks = parity_faces()
    tables = Tables()
    for name, path in tqdm(selected_checkpoints().items(), unit="checkpoint"):
        tables.add(name, path, frames, landmarks)
    print(f"{len(frames)} faces\n\n{tables}")
    return 0 if tables.passed else 1


def _served_outputs(repository: Path, frames: np.ndarray, landmarks: np.ndarray) -> Outputs:
    """Return AU, HOG and ALIGNED_LANDMARKS of a server with the models of `repository`."""
    batches = []
    with LocalServer(au_repository=repository) as server, FaceFeatureClient(server.grpc_url) as client:
        for first in range(0, len(frames), SERVED_BATCH):
            batch = frames[first : first + SERVED_BATCH], landmarks[first : first + SERVED_BATCH]
            batches.append(client.features(*batch, ("AU", "HOG", "ALIGNED_LANDMARKS")))
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _model(repository: Path) -> bytes:
    return (repository / "au" / "1" / "model.onnx").read_bytes()


def run_graph(model: bytes, inputs: Outputs) -> np.ndarray:
    """Return AU of an `au` model in this process, for HOG and ALIGNED_LANDMARKS."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # as served: several threads add the trees in another order
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(["AU"], {name: inputs[name] for name in ("HOG", "ALIGNED_LANDMARKS")})[0]


def _faces_beyond(
    checkpoint: AuCheckpoint, service: np.ndarray, equal_hog: np.ndarray, hog: np.ndarray, pyfeat: Outputs
) -> Iterator[list[object]]:
    """Yield a row for each face with values beyond the tolerance, and for each of its causes.

    The row has the face, the AUs, their largest difference, the difference of HOG and the cause. `equal_hog`
    is the service's AU of py-feat's HOG.
    """
    hog_difference = np.abs(hog - pyfeat["HOG"]).max(axis=1)
    difference = np.abs(service - pyfeat["AU"])
    by_cause: dict[tuple[int, str], list[int]] = {}
    for face, column in np.argwhere(difference > TOLERANCE):
        if hog_difference[face] > TOLERANCE:
            cause = "a gradient in another bin of HOG"
        elif abs(equal_hog[face, column] - pyfeat["AU"][face, column]) > TOLERANCE:
            cause = "rounding of the projection"
        else:
            cause = "rounding of HOG"
        by_cause.setdefault((int(face), cause), []).append(int(column))
    for (face, cause), columns in by_cause.items():
        names = ", ".join(checkpoint.units[column].name for column in columns)
        largest = f"{difference[face, columns].max():.1e}"
        yield [face, names, largest, f"{hog_difference[face]:.1e}", cause]


def _tree_differences(checkpoint: AuCheckpoint, pyfeat: Outputs) -> tuple[float, int]:
    """Return the largest difference of logistic AUs and the number of differing values of hinge AUs."""
    logistic, hinge = 0.0, 0
    for unit in checkpoint.units:
        key = f"AU{int(unit.name[2:])}"
        inputs, expected = pyfeat[f"inputs/{key}"], pyfeat[f"outputs/{key}"]
        components = inputs.shape[1] - LANDMARK_VALUES
        model = build_au_graph(_trees_alone(checkpoint, unit, components), hog_features=components)
        landmarks = inputs[:, components:].astype(np.int64).reshape(-1, 68, 2)
        graph_inputs = {"HOG": inputs[:, :components].copy(), "ALIGNED_LANDMARKS": landmarks}
        output = run_graph(model.SerializeToString(), graph_inputs)[:, 0]
        assert isinstance(unit.classifier, Trees)
        if unit.classifier.objective == "binary:hinge":
            hinge += int((output != expected).sum())
        else:
            logistic = max(logistic, float(np.abs(output - expected).max()))
    return logistic, hinge


def _trees_alone(checkpoint: AuCheckpoint, unit: ActionUnit, components: int) -> AuCheckpoint:
    """Return a checkpoint of one AU without calibrator, whose projection is the identity."""
    identity = Projection(np.eye(components), np.zeros(components))
    return dataclasses.replace(
        checkpoint,
        projections={unit.region: identity},
        units=(dataclasses.replace(unit, calibrator=None),),
    )


if __name__ == "__main__":
    sys.exit(main())
