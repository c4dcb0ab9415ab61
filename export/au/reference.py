"""AU classifiers evaluated in NumPy, to check the ONNX graph; shares no code with graph.py."""

import numpy as np
from numpy.typing import NDArray

from export.au.classifiers import AuCheckpoint, Isotonic, Linear, Sigmoid, Trees


def reference_action_units(
    checkpoint: AuCheckpoint, hog: NDArray[np.float32], landmarks: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the AUs float64 ``[N, units]``, as py-feat's `detect_au` computes them.

    Projections, linear classifiers and calibrators are in float64, trees and probabilities in float32.

    Parameters
    ----------
    checkpoint : AuCheckpoint
    hog : ndarray of float32, shape (N, F)
    landmarks : ndarray of int64, shape (N, 68, 2)
        Aligned landmarks in pixels.
    """
    points = landmarks.reshape(len(landmarks), -1).astype(np.float64)
    inputs = {
        region: np.hstack([hog.astype(np.float64) @ projection.matrix + projection.offset, points])
        for region, projection in checkpoint.projections.items()
    }
    columns = [
        calibrate(unit.calibrator, classify(unit.classifier, inputs[unit.region]))
        for unit in checkpoint.units
    ]
    return np.stack(columns, axis=1)


def classify(classifier: Trees | Linear, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the output ``[N]`` of a classifier for components and landmarks ``[N, components + 136]``."""
    if isinstance(classifier, Linear):
        return (inputs @ classifier.weights + classifier.bias > 0).astype(np.float64)
    return _probabilities(classifier, inputs.astype(np.float32))


def _probabilities(trees: Trees, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
    margins = np.full(len(inputs), trees.base_margin, np.float32)
    rows = np.arange(len(inputs))
    for root in trees.roots:
        node = np.full(len(inputs), root)
        while (is_split := trees.left[node] >= 0).any():
            goes_left = inputs[rows, np.where(is_split, trees.feature[node], 0)] < trees.value[node]
            child = np.where(goes_left, trees.left[node], trees.right[node])
            node = np.where(is_split, child, node)
        margins += trees.value[node]
    if trees.objective == "binary:hinge":
        return (margins > 0).astype(np.float64)
    # XGBoost adds and divides in float32. exp of a large number is inf, the probability 0.
    with np.errstate(over="ignore"):
        power = np.exp(-margins.astype(np.float64)).astype(np.float32)
    return (np.float32(1) / (np.float32(1) + power)).astype(np.float64)


def calibrate(
    calibrator: Isotonic | Sigmoid | None, probabilities: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return calibrated probabilities; unchanged ones without a calibrator."""
    if isinstance(calibrator, Isotonic):
        return np.interp(probabilities, calibrator.x, calibrator.y)
    if isinstance(calibrator, Sigmoid):
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(calibrator.slope * probabilities + calibrator.intercept))
    return probabilities
