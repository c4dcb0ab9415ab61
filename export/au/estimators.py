"""scikit-learn's estimators -> `Projection`, `Linear`, `Isotonic` and `Sigmoid`; each computes in float64."""

import numpy as np
from numpy.typing import NDArray

from export.au.attributes import (
    LARGEST_NUMBER,
    describe,
    get_array,
    get_attribute,
    get_flag,
    get_number,
    is_in_range,
)
from export.au.class_names import ISOTONIC, LINEAR_SVC, SIGMOID, SVC
from export.au.classifiers import Isotonic, Linear, Projection, Sigmoid
from export.au.skops_values import SkopsObject
from export.errors import ExportError, located

MAX_THRESHOLDS = 100_000
"""Bound of an isotonic calibrator. The graph counts the pieces of all calibrators in float32, up to 2**24."""


def fold_projection(scaler: SkopsObject, pca: SkopsObject) -> Projection:
    """Fold StandardScaler and PCA into one matrix and an offset.

    ``pca.transform(scaler.transform(hog)) = ((hog - m) / s - c) @ components.T / w``, where m and s are the
    scaler's mean and scale, c is the PCA's mean, and w is the whitening.
    """
    with located("components_"):
        components = get_array(pca, "components_", dimensions=2)
    features = components.shape[1]
    mean = (
        _get_feature_values(scaler, "mean_", features)
        if get_flag(scaler, "with_mean")
        else np.zeros(features)
    )
    scale = (
        _get_feature_values(scaler, "scale_", features) if get_flag(scaler, "with_std") else np.ones(features)
    )
    if not np.all(scale > 0):
        raise ExportError("scale_ of StandardScaler has values that are not positive")
    has_centre = get_attribute(pca, "mean_") is not None
    centre = _get_feature_values(pca, "mean_", features) if has_centre else np.zeros(features)
    with np.errstate(over="ignore", invalid="ignore"):
        matrix = (components / scale).T / _whitening(pca, len(components))
        offset = -(mean + centre * scale) @ matrix
    if not (is_in_range(matrix) and is_in_range(offset)):
        raise ExportError(
            f"the product of StandardScaler and PCA is not finite or has numbers beyond {LARGEST_NUMBER:g}"
        )
    return Projection(np.ascontiguousarray(matrix), offset)


def _whitening(pca: SkopsObject, components: int) -> NDArray[np.float64]:
    """Return the divisors of the components. scikit-learn bounds them by the epsilon of their dtype."""
    if not get_flag(pca, "whiten"):
        return np.ones(components)
    variance = _get_feature_values(pca, "explained_variance_", components)
    if np.any(variance < 0):
        raise ExportError("explained_variance_ of PCA has negative values")
    dtype = getattr(pca.attributes["explained_variance_"], "dtype", np.float64)
    epsilon = np.finfo(dtype).eps if np.issubdtype(dtype, np.floating) else np.finfo(np.float64).eps
    return np.maximum(np.sqrt(variance), epsilon)


def _get_feature_values(source: SkopsObject, name: str, length: int) -> NDArray[np.float64]:
    values = get_array(source, name, dimensions=1)
    if len(values) != length:
        raise ExportError(f"{name} of {source.class_name} has {len(values)} values, not {length}")
    return values


def parse_linear(source: SkopsObject) -> Linear:
    """Parse a fitted LinearSVC, or an SVC with a linear kernel and dense support vectors.

    Raises
    ------
    ExportError
        If the model has another kernel, or its classes are not 0 and 1.
    """
    check_binary_classes(source)
    if source.class_name == LINEAR_SVC:
        weights = get_array(source, "coef_", dimensions=2)
    elif source.class_name == SVC:
        kernel = get_attribute(source, "kernel")
        if not (isinstance(kernel, str) and kernel == "linear"):
            raise ExportError(f"the SVC has the kernel {describe(kernel)}; only 'linear' is supported")
        dual = get_array(source, "dual_coef_", dimensions=2)
        vectors = get_array(source, "support_vectors_", dimensions=2)
        if dual.shape != (1, len(vectors)):
            raise ExportError(
                f"dual_coef_ has shape {list(dual.shape)}, but there are {len(vectors)} support vectors"
            )
        weights = dual @ vectors
    else:
        raise ExportError(
            f"the classifier is {source.class_name}; an svm checkpoint has {LINEAR_SVC} or {SVC}"
        )
    if len(weights) != 1 or not is_in_range(weights):
        raise ExportError(
            f"the weights, of shape {list(weights.shape)}, must be one row of numbers up to "
            f"{LARGEST_NUMBER:g}"
        )
    return Linear(weights[0], get_number(source, "intercept_"))


def check_binary_classes(source: SkopsObject) -> None:
    """Raise `ExportError` unless `classes_` is 0, 1: py-feat returns the predicted class."""
    classes = source.attributes.get("classes_")
    is_binary = isinstance(classes, np.ndarray) and classes.shape == (2,) and classes.tolist() == [0, 1]
    if not is_binary:
        found = (
            classes.tolist() if isinstance(classes, np.ndarray) and classes.size < 10 else describe(classes)
        )
        raise ExportError(f"the classes are {found}; an AU has the classes 0 and 1")


def parse_calibrator(source: object) -> Isotonic | Sigmoid:
    """Parse a fitted IsotonicRegression or scikit-learn's Platt calibration.

    Raises
    ------
    ExportError
        If the calibrator is of another type or cannot calibrate each probability.
    """
    if isinstance(source, SkopsObject) and source.class_name == ISOTONIC:
        return _parse_isotonic(source)
    if isinstance(source, SkopsObject) and source.class_name == SIGMOID:
        return Sigmoid(get_number(source, "a_"), get_number(source, "b_"))
    raise ExportError(f"the calibrator is {describe(source)}; {ISOTONIC} and {SIGMOID} are supported")


def _parse_isotonic(source: SkopsObject) -> Isotonic:
    """Parse an IsotonicRegression; its output is constant outside the thresholds for any `out_of_bounds`.

    scikit-learn clips only for "clip". For "nan" it returns NaN, for "raise" it fails. Both would depend on
    the last bit of a probability, because the lowest and the highest of the training recur.
    """
    x = get_array(source, "X_thresholds_", dimensions=1)
    if len(x) > MAX_THRESHOLDS:
        raise ExportError(f"X_thresholds_ has {len(x):,} values, more than {MAX_THRESHOLDS:,}")
    y = _get_feature_values(source, "y_thresholds_", len(x))
    if np.any(np.diff(x) <= 0):
        raise ExportError("X_thresholds_ does not increase strictly")
    if (get_number(source, "X_min_"), get_number(source, "X_max_")) != (x[0], x[-1]):
        raise ExportError("X_min_ and X_max_ are not the first and last value of X_thresholds_")
    return Isotonic(x, y)
