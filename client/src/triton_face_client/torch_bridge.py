"""torch tensors in and out, for callers who have torch. Nothing here imports it for those who have not."""

import sys
from typing import Any

import numpy as np


def is_tensor(values: Any) -> bool:
    """Tell whether `values` is a torch tensor; it cannot be one where torch has not been imported."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(values, torch.Tensor)


def as_array(values: Any) -> np.ndarray:
    """Return an array of what a tensor on any device, an array or a nested sequence holds."""
    return values.detach().cpu().numpy() if is_tensor(values) else np.asarray(values)


def like(values: np.ndarray, example: Any) -> Any:
    """Return `values` as a tensor on the device of `example` if that is a tensor, else as they are."""
    if not is_tensor(example):
        return values
    return sys.modules["torch"].from_numpy(values).to(example.device)
