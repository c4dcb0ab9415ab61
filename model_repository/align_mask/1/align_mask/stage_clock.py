"""Timing of the stages of a batch, and progress reports for the heartbeat."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

STAGES = ("io", "align", "mask", "warp")
"""The stages of a batch.

io
    Conversion of requests to tensors and of tensors to responses.
align
    Alignment, convex hulls and face checks.
mask
    Hull masks.
warp
    Sampling of the aligned faces and their product with the masks.
"""


class StageClock:
    """Sum the time of each stage and report progress at its start and end.

    Parameters
    ----------
    report_progress : callable, optional
        Called without arguments; by default progress is not reported.

    Attributes
    ----------
    seconds : dict of str to float
        Wall-clock seconds of each stage so far. A GPU computes asynchronously; most of its time counts in
        "io", the stage that waits for the results.
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
