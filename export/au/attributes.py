"""Checked access to the attributes of an object that skops stored."""

import numpy as np
from numpy.typing import NDArray

from export.au.quoting import quote
from export.au.skops_values import SkopsObject
from export.errors import ExportError

LARGEST_NUMBER = 1e30
"""Bound of the numbers in a checkpoint: sums of their products with 30,000 features fit into float32."""


def get_attribute(source: SkopsObject, name: str) -> object:
    """Return an attribute; raise `ExportError` if it is missing."""
    if name not in source.attributes:
        raise ExportError(f"{source.class_name} lacks the attribute {name}; was it fitted?")
    return source.attributes[name]


def get_object(source: SkopsObject, name: str, *class_names: str) -> SkopsObject:
    """Return an attribute that is an object of one of the classes."""
    value = get_attribute(source, name)
    if not isinstance(value, SkopsObject) or value.class_name not in class_names:
        raise ExportError(f"{name} is {describe(value)}, not {' or '.join(class_names)}")
    return value


def get_flag(source: SkopsObject, name: str) -> bool:
    """Return an attribute that is True or False."""
    value = get_attribute(source, name)
    if isinstance(value, np.ndarray) and value.shape == () and value.dtype == np.bool_:
        return bool(value)
    if not isinstance(value, bool):
        raise ExportError(f"{name} is {describe(value)}, not True or False")
    return value


def get_number(source: SkopsObject, name: str) -> float:
    """Return an attribute that is a finite number: Python's, NumPy's, or an array with a single element."""
    value = get_attribute(source, name)
    number = (
        np.asarray(value) if type(value) in (int, float) or isinstance(value, np.ndarray) else np.empty(0)
    )
    if number.dtype.kind not in "iuf" or number.size != 1 or not np.isfinite(number).all():
        raise ExportError(f"{name} is {describe(value)}, not a finite number")
    _check_range(name, number)
    return float(number.item())


def get_array(source: SkopsObject, name: str, dimensions: int) -> NDArray[np.float64]:
    """Return an attribute that is a non-empty array of finite numbers, in float64."""
    value = get_attribute(source, name)
    if not isinstance(value, np.ndarray) or value.ndim != dimensions or value.dtype.kind not in "iuf":
        raise ExportError(
            f"{name} is {describe(value)}, not an array of numbers with {dimensions} dimensions"
        )
    if value.size == 0:
        raise ExportError(f"{name} is empty")
    if not np.isfinite(value).all():
        raise ExportError(f"{name} has values that are not finite")
    _check_range(name, value)
    return value.astype(np.float64)


def _check_range(name: str, value: NDArray[np.generic]) -> None:
    if not is_in_range(value.astype(np.float64)):
        raise ExportError(f"{name} has numbers beyond {LARGEST_NUMBER:g}, which do not fit the computation")


def is_in_range(values: NDArray[np.float64]) -> bool:
    """Return whether all values are finite and at most `LARGEST_NUMBER` from 0."""
    return bool((np.abs(values) <= LARGEST_NUMBER).all())


def describe(value: object) -> str:
    """Return a short description of a value for an error message."""
    if isinstance(value, SkopsObject):
        return value.class_name
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} of shape {list(value.shape)}"
    return quote(value)
