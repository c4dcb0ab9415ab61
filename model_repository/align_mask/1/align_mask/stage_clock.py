"""Timing of the stages of a batch, and progress reports for the heartbeat."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

STAGES = ("io", "align", "mask", "warp")
"""Requests to tensors and tensors to responses; alignment, hulls and checks; masks; pixels."""


class StageClock:
    """Sum the time of each stage and report progress at its start and end.

    Parameters
    ----------
    report_progress : callable, optional
        Called without arguments; by default progress is not reported.

    Attributes
    ----------
    seconds : dict of str to float
        Wall-clock seconds of each stage so far. A GPU computes asynchronously, so the time of its pixels
        counts for the stage that waits for them, "io".
    """

    def __init__(self, report_progress: Callable[[], None] = lambda: None) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._report_progress = report_progress

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a `with` block as part of one of `STAGES`; a stage may run many times."""
        self._report_progress()
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start
        self._report_progress()
