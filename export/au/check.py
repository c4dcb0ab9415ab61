"""Comparison of the ONNX graph with `reference.py`, on inputs that reach all branches of the trees."""

import dataclasses

import numpy as np
import onnx
from numpy.typing import NDArray

from export.au.classifiers import LANDMARK_VALUES, AuCheckpoint, Projection, Region, Trees
from export.au.graph import Precision, build_au_graph
from export.au.reference import reference_action_units
from export.errors import ExportError
from export.onnx_session import run_with_inputs

CLASSIFIER_FACES = 64
"""Faces with equal components in both evaluations."""

PIPELINE_FACES = 192
"""Faces with equal HOG features in both evaluations."""

CLASSIFIER_TOLERANCE = 1e-6
"""Largest accepted difference of an AU on equal components."""

TOLERANCE = 1e-5
"""Largest accepted difference of an AU on equal HOG features, but for `ACCEPTED_FRACTION` of the AUs."""

ACCEPTED_FRACTION = 1e-3
"""Largest accepted fraction of AUs that differ by more than `TOLERANCE`.

The graph's components differ from the reference's by the rounding of float32. If a component is that close to
a threshold, a tree takes another branch.
"""

LARGEST_LANDMARK = 10_000
"""Bound of the check's landmarks, in pixels."""


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Differences between the graph and the reference.

    Attributes
    ----------
    classifiers : float
        Largest difference of an AU on equal components.
    pipeline : float
        Largest difference of an AU on equal HOG features, except those counted in `beyond`.
    beyond, compared : int
        Number of AUs on equal HOG features that differ by more than `TOLERANCE`, and number of all.
    """

    classifiers: float
    pipeline: float
    beyond: int
    compared: int


# Thresholds close to the bounds of float32 give inputs beyond them; NaN counts as a difference.
@np.errstate(over="ignore", invalid="ignore")
def check_au_graph(model: onnx.ModelProto, checkpoint: AuCheckpoint, precision: Precision) -> Agreement:
    """Compare the graph of a checkpoint with the reference.

    Raises
    ------
    ExportError
        If they differ by more than the tolerances.
    """
    classifiers = _classifier_difference(checkpoint)
    if not classifiers <= CLASSIFIER_TOLERANCE:
        raise ExportError(
            f"the AU model differs from the reference by {classifiers:.1e} on equal components, more than "
            f"{CLASSIFIER_TOLERANCE}: nothing was written. Install the version of onnxruntime in "
            "requirements-export.txt"
        )
    differences = _pipeline_differences(model, checkpoint)
    is_beyond = ~(differences <= TOLERANCE)
    if is_beyond.mean() > ACCEPTED_FRACTION:
        remedy = "try --precision float64" if precision == "float32" else "check the checkpoint"
        raise ExportError(
            f"{is_beyond.sum()} of {differences.size} AUs of the model differ from the reference by more "
            f"than {TOLERANCE}: nothing was written; {remedy}"
        )
    within = float(differences[~is_beyond].max(initial=0))
    return Agreement(classifiers, within, int(is_beyond.sum()), differences.size)


def _classifier_difference(checkpoint: AuCheckpoint) -> float:
    """Return the largest difference on equal components, most of them at the thresholds of the trees.

    Projections that copy the components from the HOG features replace the checkpoint's: copies are exact.
    """
    generator = np.random.default_rng(0)
    counts = {region: len(projection.offset) for region, projection in checkpoint.projections.items()}
    total = sum(counts.values())
    copying, first = {}, 0
    for region, count in counts.items():
        copying[region] = Projection(np.eye(total, count, -first), np.zeros(count))
        first += count
    copy = dataclasses.replace(checkpoint, projections=copying)
    components = np.hstack(
        [
            _draw_at(_thresholds(checkpoint, region), count, CLASSIFIER_FACES, generator)
            for region, count in counts.items()
        ]
    )
    landmarks = _landmarks(checkpoint, CLASSIFIER_FACES, generator)
    graph = build_au_graph(copy, total)
    return float(_differences(graph, copy, components, landmarks).max())


def _pipeline_differences(model: onnx.ModelProto, checkpoint: AuCheckpoint) -> NDArray[np.float64]:
    """Return the differences on HOG features, a third of them 0, whose components lie around thresholds."""
    generator = np.random.default_rng(1)
    faces = PIPELINE_FACES // len(checkpoint.projections)
    hog = []
    for region, projection in checkpoint.projections.items():
        components = _draw_around(_thresholds(checkpoint, region), len(projection.offset), faces, generator)
        is_used = generator.random(len(projection.matrix)) < 2 / 3
        matrix = projection.matrix[is_used]
        features = np.zeros((faces, len(is_used)))
        # The smallest features that have these components; the pseudo-inverse of the small square is fast.
        square = np.linalg.pinv(matrix.T @ matrix, hermitian=True)
        features[:, is_used] = (components - projection.offset) @ square @ matrix.T
        hog.append(features)
    landmarks = _landmarks(checkpoint, faces * len(hog), generator)
    return _differences(model, checkpoint, np.vstack(hog).astype(np.float32), landmarks)


def _differences(
    model: onnx.ModelProto,
    checkpoint: AuCheckpoint,
    hog: NDArray[np.float32],
    landmarks: NDArray[np.int64],
) -> NDArray[np.float64]:
    action_units = run_with_inputs(model, {"HOG": hog, "ALIGNED_LANDMARKS": landmarks})[0]
    return np.abs(action_units - reference_action_units(checkpoint, hog, landmarks))


Thresholds = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Input and threshold of each split of some trees, sorted by the input."""


def _thresholds(checkpoint: AuCheckpoint, region: Region) -> Thresholds:
    """Return the splits of the trees of a region; no splits for linear classifiers."""
    inputs, values = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for unit in checkpoint.units:
        if unit.region == region and isinstance(unit.classifier, Trees):
            is_split = unit.classifier.left >= 0
            inputs.append(unit.classifier.feature[is_split])
            values.append(unit.classifier.value[is_split])
    order = np.argsort(np.concatenate(inputs), kind="stable")
    return np.concatenate(inputs)[order], np.concatenate(values)[order]


def _draw_threshold(
    thresholds: Thresholds, columns: NDArray[np.int64], faces: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Draw a threshold of each input and face; from the standard normal distribution if there is none."""
    inputs, values = thresholds
    first, end = (np.searchsorted(inputs, columns, side) for side in ("left", "right"))
    shape = (faces, len(columns))
    drawn = generator.normal(size=shape)
    index = (first + generator.random(shape) * (end - first)).astype(np.int64)
    has_threshold = np.broadcast_to(end > first, shape)
    drawn[has_threshold] = values[index[has_threshold]]
    return drawn


def _draw_at(
    thresholds: Thresholds, count: int, faces: int, generator: np.random.Generator
) -> NDArray[np.float32]:
    """Draw components ``[faces, count]`` that equal a threshold or are the next smaller number."""
    drawn = _draw_threshold(thresholds, np.arange(count), faces, generator).astype(np.float32)
    smaller = np.nextafter(drawn, np.float32(-np.inf))
    return np.where(generator.random(drawn.shape) < 0.5, drawn, smaller)


def _draw_around(
    thresholds: Thresholds, count: int, faces: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Draw components ``[faces, count]`` around a threshold, as far from it as thresholds are from 0."""
    centre, spread = (_draw_threshold(thresholds, np.arange(count), faces, generator) for _ in range(2))
    return centre + spread * generator.normal(size=centre.shape)


def _landmarks(checkpoint: AuCheckpoint, faces: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Draw landmarks ``[faces, 68, 2]`` at the thresholds of the trees; near 0 if there is none."""
    drawn = []
    columns = np.arange(LANDMARK_VALUES)
    for region, projection in checkpoint.projections.items():
        inputs, values = _thresholds(checkpoint, region)
        drawn.append(_draw_threshold((inputs - len(projection.offset), values), columns, faces, generator))
    chosen = np.choose(generator.integers(len(drawn), size=drawn[0].shape), drawn)
    bounded = np.clip(np.ceil(chosen), -LARGEST_LANDMARK, LARGEST_LANDMARK)
    below = generator.integers(2, size=bounded.shape)
    return (bounded.astype(np.int64) - below).reshape(faces, -1, 2)
