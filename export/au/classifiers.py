"""The parts of py-feat's AU classifiers, as plain arrays: projections, trees, linear models and calibrators.

`checkpoint.py` reads them from a file, `graph.py` builds the ONNX graph from them, and `reference.py`
evaluates them in NumPy.
"""

import dataclasses
from typing import Literal

import numpy as np
from numpy.typing import NDArray

LANDMARK_VALUES = 136
"""Coordinates of the 68 aligned landmarks, (x, y) interleaved, which follow a region's components."""

Region = Literal["upper", "lower", "full"]
Objective = Literal["binary:logistic", "binary:hinge"]


@dataclasses.dataclass(frozen=True)
class Projection:
    """StandardScaler and PCA of a face region, folded: ``components = hog @ matrix + offset``.

    Attributes
    ----------
    matrix : ndarray of float64, shape (features, components)
        Derived from the scaler's scale and the PCA's components.
    offset : ndarray of float64, shape (components,)
        Derived from the means of both.
    """

    matrix: NDArray[np.float64]
    offset: NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Trees:
    """Gradient-boosted trees of XGBoost for two classes.

    A split sends a row to `left` if its feature is less than `value`, else to `right`. The margin is the sum
    of `base_margin` and of each tree's leaf, in float32, in this order.

    Attributes
    ----------
    objective : {"binary:logistic", "binary:hinge"}
        The output is the logistic function of the margin, or 1 for a margin above 0, else 0.
    base_margin : float
        Margin before the first tree.
    roots : ndarray of int64, shape (trees,)
        Index of each tree's root in the arrays of the nodes.
    feature : ndarray of int64, shape (nodes,)
        Input of each split: components of the region, then landmarks. -1 at leaves.
    value : ndarray of float32, shape (nodes,)
        Threshold of a split, output of a leaf.
    left, right : ndarray of int64, shape (nodes,)
        Indices of a split's children; -1 at leaves.
    """

    objective: Objective
    base_margin: float
    roots: NDArray[np.int64]
    feature: NDArray[np.int64]
    value: NDArray[np.float32]
    left: NDArray[np.int64]
    right: NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Linear:
    """A linear support vector machine: 1 if ``inputs @ weights + bias > 0``, else 0.

    Attributes
    ----------
    weights : ndarray of float64, shape (components + 136,)
    bias : float
    """

    weights: NDArray[np.float64]
    bias: float


@dataclasses.dataclass(frozen=True)
class Isotonic:
    """scikit-learn's IsotonicRegression: linear interpolation, constant outside the thresholds.

    Attributes
    ----------
    x, y : ndarray of float64, shape (K,)
        Thresholds, strictly increasing, and their outputs.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Sigmoid:
    """Platt's calibration: ``1 / (1 + exp(slope * p + intercept))``."""

    slope: float
    intercept: float


@dataclasses.dataclass(frozen=True)
class ActionUnit:
    """The classifier of one AU.

    Attributes
    ----------
    name : str
        py-feat's column, for example "AU01".
    region : {"upper", "lower", "full"}
        The projection whose components the classifier reads.
    classifier : Trees or Linear
    calibrator : Isotonic, Sigmoid or None
        Applied to the classifier's probability.
    """

    name: str
    region: Region
    classifier: Trees | Linear
    calibrator: Isotonic | Sigmoid | None = None


@dataclasses.dataclass(frozen=True)
class AuCheckpoint:
    """A checkpoint of py-feat's AU classifiers.

    Attributes
    ----------
    kind : {"xgb", "svm"}
        py-feat's class.
    projections : dict of Region to Projection
        The regions upper, lower and full.
    units : tuple of ActionUnit
        In py-feat's order of columns.
    origin : dict of str to str
        File name, SHA-256 of the file and other facts for the metadata of the ONNX file.
    """

    kind: Literal["xgb", "svm"]
    projections: dict[Region, Projection]
    units: tuple[ActionUnit, ...]
    origin: dict[str, str]
