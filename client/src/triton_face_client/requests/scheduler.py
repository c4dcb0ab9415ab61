"""Interleave the generators of concurrent requests in one thread, without I/O."""

import heapq
import itertools
import queue
import time
from collections.abc import Callable
from typing import Any

from triton_face_client.requests.request import ActionGenerator, Send, Wait
from triton_face_client.transports.base import Callback, ManageRegion

Perform = Callable[[Send | ManageRegion, Callback], None]


class Scheduler:
    """Runs the generators of many requests in the caller's thread.

    Parameters
    ----------
    perform : callable of (Send or ManageRegion, callback)
        Starts an action and returns at once. The callback receives the action's result and None, or None and
        its error; it may run in any thread.
    """

    def __init__(self, perform: Perform) -> None:
        self._perform = perform
        self._results: queue.SimpleQueue[tuple[ActionGenerator, Any, Exception | None]] = queue.SimpleQueue()
        self._running: set[ActionGenerator] = set()
        # Heap of (time to resume, tie-breaker, generator).
        self._waiting: list[tuple[float, int, ActionGenerator]] = []
        self._tie_breakers = itertools.count()
        self._completed = 0

    def start(self, generator: ActionGenerator) -> None:
        """Run a generator up to its first action."""
        self._running.add(generator)
        self._resume(generator)

    def run_until_one_completes(self) -> None:
        """Run the started generators until one of them returns or raises an error."""
        while not self._completed:
            if self._waiting and self._waiting[0][0] <= time.monotonic():
                self._resume(heapq.heappop(self._waiting)[2])
                continue
            try:
                generator, result, error = self._results.get(timeout=self._seconds_to_next_wakeup())
            except queue.Empty:
                continue
            self._resume(generator, result, error)
        self._completed -= 1

    def close(self) -> None:
        """Close all generators. Requests that have been sent go on (see `CLOSE_WAIT_SECONDS`)."""
        for generator in self._running:
            generator.close()

    def _seconds_to_next_wakeup(self) -> float | None:
        return max(0.0, self._waiting[0][0] - time.monotonic()) if self._waiting else None

    def _resume(self, generator: ActionGenerator, result: Any = None, error: Exception | None = None) -> None:
        try:
            action = generator.send(result) if error is None else generator.throw(error)
        except StopIteration:
            self._running.discard(generator)
            self._completed += 1
            return
        if isinstance(action, Wait):
            wakeup = time.monotonic() + action.seconds
            heapq.heappush(self._waiting, (wakeup, next(self._tie_breakers), generator))
        else:
            self._perform(action, lambda result, error: self._results.put((generator, result, error)))
