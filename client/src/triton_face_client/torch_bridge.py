"""Conversion between NumPy arrays and torch tensors. This module never imports torch itself."""

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray


def is_tensor(values: Any) -> bool:
    """Return whether `values` is a torch tensor."""
    # A tensor can only exist if the caller has imported torch.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(values, torch.Tensor)


def as_array(values: Any) -> NDArray[Any]:
    """Convert a tensor on any device, an array or a nested sequence to an array.

    Raises
    ------
    ValueError
        If `values` is a masked array with masked elements, whose values are undefined.
    """
    if isinstance(values, np.ma.MaskedArray) and np.any(values.mask):
        raise ValueError("the array has masked elements: fill them, missing landmarks with NaN")
    if not is_tensor(values):
        return np.asarray(values)
    tensor = values.detach().cpu()
    # NumPy has no bfloat16.
    array: NDArray[Any] = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    return array


def as_type_of(example: Any, values: NDArray[Any]) -> Any:
    """Return `values`; if `example` is a tensor or a list of tensors, as a tensor on its device."""
    if isinstance(example, list | tuple) and example:
        example = example[0]
    if not is_tensor(example):
        return values
    return sys.modules["torch"].from_numpy(values).to(example.device)
