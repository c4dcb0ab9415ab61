"""The result of a call."""

from collections.abc import Mapping
from typing import Any


class Answers(dict[str, Any]):
    """Arrays (or torch tensors) by output name. Each has one row per face, in the order of the call's faces.

    Attributes
    ----------
    refused : dict of int to str
        With ``on_invalid="nan"``, the index of each invalid face and the reason. The rows of these faces are
        NaN in floating outputs, False in MASK, and the smallest int64 in ALIGNED_LANDMARKS.
    """

    def __init__(self, arrays: Mapping[str, Any], refused: Mapping[int, str]) -> None:
        super().__init__(arrays)
        self.refused = dict(refused)
