"""The result of a call."""

from collections.abc import Mapping
from typing import Any


class Answers(dict[str, Any]):
    """Output names and their arrays, with one row for each face of the call, in its order.

    Attributes
    ----------
    refused : dict of int to str
        With ``on_invalid="nan"``, the index of each invalid face and the reason. Rows of invalid faces are
        NaN, False in MASK, and the smallest int64 in ALIGNED_LANDMARKS.
    """

    def __init__(self, arrays: Mapping[str, Any], refused: Mapping[int, str]) -> None:
        super().__init__(arrays)
        self.refused = dict(refused)
