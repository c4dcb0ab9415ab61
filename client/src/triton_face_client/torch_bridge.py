"""torch tensors in and out, for callers who have torch. Nothing here imports it for those who have not."""

import sys
from typing import Any

import numpy as np


def is_tensor(values: Any) -> bool:
    """Tell whether `values` is a torch tensor; it cannot be one where torch has not been imported."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(values, torch.Tensor)


def as_array(values: Any) -> np.ndarray:
    """Return an array of what a tensor on any device, an array or a nested sequence holds.

    Raises
    ------
    ValueError
        For a masked array: what is to stand in the masked places is not ours to say.
    """
    if np.ma.isMaskedArray(values) and np.ma.is_masked(values):
        raise ValueError("a masked array is given: fill it, with NaN for landmarks that are missing")
    if not is_tensor(values):
        return np.asarray(values)
    tensor = values.detach().cpu()
    # NumPy has no bfloat16.
    return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()


def like(values: np.ndarray, example: Any) -> Any:
    """Return `values` as a tensor on the device of `example` where that is one or a list of them."""
    if isinstance(example, list | tuple) and example:
        example = example[0]
    if not is_tensor(example):
        return values
    return sys.modules["torch"].from_numpy(values).to(example.device)
