"""Seconds by stage of the work on a batch, and progress within it."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator

STAGES = ("tensors", "align", "mask", "warp")
"""Requests to tensors and back; alignment, hulls and checks; masks; pixels."""


class StageClock:
    """Add up the time of stages and report progress at both ends of each.

    Parameters
    ----------
    report_progress : callable, optional
        Called without arguments; by default nothing is reported.

    Attributes
    ----------
    seconds : Counter of str
        Wall-clock seconds of the stages that have run. On a GPU, which works on after a call has come back,
        the pixels' time is that of the stage that waits for them, "tensors".
    """

    def __init__(self, report_progress: Callable[[], None] = lambda: None) -> None:
        self.seconds: Counter[str] = Counter()
        self._report_progress = report_progress

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a `with` block as part of one of `STAGES`; a stage may run many times."""
        self._report_progress()
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start
        self._report_progress()
