"""Seconds by stage of the work on a batch."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator

STAGES = ("tensors", "align", "mask", "warp")
"""Requests to tensors and back; alignment, hulls and checks; masks; pixels."""


class StageClock:
    """Add up the time of stages.

    Attributes
    ----------
    seconds : Counter of str
        Wall-clock seconds of the stages that have run. On a GPU, which works on after a call has come back,
        the pixels' time is that of the stage that waits for them, "tensors".
    """

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a `with` block as part of one of `STAGES`."""
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start
