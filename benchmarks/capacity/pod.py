"""Discrete-event model of one pod: `align_mask`'s queue and instances, then `hog`'s, on the pod's cores."""

import collections
import dataclasses
import heapq
import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from export.repository import DEFAULT_REPOSITORY, read_config

MEASURED = Path(__file__).parent / "measured.json"
WINDOW_SECONDS, WINDOWS = 5, 6
"""Length of a measurement and of each of its simulations; number of simulations of each measurement."""

SPREAD = 0.7
"""`PodModel.spread`. Of 0.3, 0.5, 0.7 and 1.0 this value fits the measured ratio and p99 best."""


@dataclasses.dataclass(frozen=True)
class PodModel:
    """Limits and service times of a pod; `hog` includes all work after `align_mask`.

    Attributes
    ----------
    align_instances, hog_instances : int
        Model instances.
    batch_faces, queue_requests : int
        Largest batch, and largest queue of `align_mask`.
    align_batch, align_face, hog_request, hog_face : float
        Core time of each batch, face or request, ms.
    handover : float
        Time until an idle instance has a waiting request, ms; needs no core. Triton counts it as queue time.
    fixed : float
        Other latency of a request that needs no core, ms.
    spread : float
        Relative standard deviation of a batch's core time (gamma distribution).
    cores : int
        Cores of the pod.
    """

    align_instances: int
    hog_instances: int
    batch_faces: int
    queue_requests: int
    align_batch: float
    align_face: float
    hog_request: float
    hog_face: float
    handover: float = 0.0
    fixed: float = 0.0
    spread: float = 0.0
    cores: int = 2


class Clock:
    """Simulated time in ms, and the future events."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()

    def after(self, delay: float, action: Callable[..., None], *arguments: object) -> None:
        """Call an action `delay` ms from now."""
        heapq.heappush(self._events, (self.now + delay, next(self._numbers), action, arguments))

    def run(self, until: float) -> None:
        """Advance to a moment."""
        while self._events and self._events[0][0] <= until:
            self.now, _, action, arguments = heapq.heappop(self._events)
            action(*arguments)
        self.now = until


class Pod:
    """A running pod; its queues hold the arrival times of requests.

    An idle instance batches all waiting requests, up to the largest batch, then waits for a core; cores serve
    batches in the order in which they were formed. The pod appends each completed request's latency to
    `latencies`. `queue_ms` and `compute_ms` are sums of `align_mask`'s times over requests, like Triton's
    counters.
    """

    def __init__(
        self, model: PodModel, faces: int, clock: Clock, rng: random.Random, latencies: list[float]
    ) -> None:
        self.queue_ms = self.compute_ms = 0.0
        self._model, self._faces, self._clock, self._rng = model, faces, clock, rng
        self._latencies = latencies
        self._waiting = {"align": collections.deque[float](), "hog": collections.deque[float]()}
        self._idle = {"align": model.align_instances, "hog": model.hog_instances}
        self._free_cores = model.cores
        self._batches: collections.deque[tuple[str, list[float], float]] = collections.deque()

    @property
    def pending(self) -> int:
        """Requests in `align_mask`'s queue."""
        return len(self._waiting["align"])

    def offer(self) -> bool:
        """Accept a request, or reject it when the queue is full."""
        if not self._idle["align"] and self.pending >= self._model.queue_requests:
            return False
        self._waiting["align"].append(self._clock.now)
        self._start("align")
        return True

    def _start(self, stage: str) -> None:
        waiting = self._waiting[stage]
        while waiting and self._idle[stage]:
            self._idle[stage] -= 1
            size = min(len(waiting), self._model.batch_faces // self._faces)
            self._batches.append((stage, [waiting.popleft() for _ in range(size)], self._clock.now))
        while self._batches and self._free_cores:
            self._free_cores -= 1
            batch = self._batches.popleft()
            self._clock.after(self._work(batch[0], len(batch[1])), self._finish, *batch)

    def _finish(self, stage: str, batch: list[float], batched_at: float) -> None:
        self._free_cores += 1
        self._idle[stage] += 1
        handover, now = self._model.handover, self._clock.now
        if stage == "align":
            self.queue_ms += sum(batched_at - arrived + handover for arrived in batch)
            self.compute_ms += (now - batched_at) * len(batch)
            self._waiting["hog"].extend(batch)
        else:
            self._latencies.extend(now - arrived + handover + self._model.fixed for arrived in batch)
        self._start("align")
        self._start("hog")

    def _work(self, stage: str, requests: int) -> float:
        model, faces = self._model, self._faces * requests
        align = model.align_batch + model.align_face * faces
        work = align if stage == "align" else model.hog_request * requests + model.hog_face * faces
        return work * self._rng.gammavariate(model.spread**-2, model.spread**2) if model.spread else work


def simulate_load(model: PodModel, faces: int, rate: float, seconds: int, seed: int) -> dict[str, float]:
    """Send `rate` requests per second with Poisson arrivals to an empty pod; names as in `measured.json`."""
    clock, rng, latencies = Clock(), random.Random(seed), list[float]()
    pod, pending, rejected = Pod(model, faces, clock, rng, latencies), list[int](), 0
    while (wait := rng.expovariate(rate / 1e3)) + clock.now < 1e3 * seconds:
        clock.run(clock.now + wait)
        pending.append(pod.pending)
        rejected += not pod.offer()
    clock.run(1e3 * seconds)
    return {
        "answered": len(latencies) * faces / seconds,
        "ratio": pod.queue_ms / pod.compute_ms,
        "pending": float(np.mean(pending)),
        "p99_ms": float(np.percentile(latencies, 99)),
        "rejected_share": rejected / len(pending),
    }


def simulate_row(model: PodModel, row: dict[str, Any], seed: int) -> dict[str, float]:
    """Simulate a measured row at its request rate; return the means of `WINDOWS` runs."""
    rate = row["offered" if row["rejected"] else "answered"] / row["faces"]
    runs = [simulate_load(model, row["faces"], rate, WINDOW_SECONDS, seed + run) for run in range(WINDOWS)]
    return {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}


def derive_model(rows: list[dict[str, Any]], faces: int, cores: int = 2) -> PodModel:
    """Derive a pod from the model configurations and measured rows.

    At the lowest loads each batch is one request on an idle core, so `align_mask`'s compute times are core
    times. At the highest throughput all cores are busy: `hog` uses the core time that `align_mask` does not.
    The rows with `faces` faces per request give `handover` and `fixed`.
    """
    align, hog = (read_config(DEFAULT_REPOSITORY, name) for name in ("align_mask", "hog"))
    instances = [config.instance_group[0].count for config in (align, hog)]
    queue = align.dynamic_batching.default_queue_policy.max_queue_size
    ordered = sorted(rows, key=lambda row: row["answered"])
    high, low = ({row["faces"]: row for row in rows} for rows in (ordered, reversed(ordered)))
    sizes = sorted(high)
    align_face, align_batch = np.polyfit(sizes, [low[size]["compute_ms"] for size in sizes], 1)
    hog_times = [
        1e3 * cores * size / high[size]["answered"]
        - size * (align_face + align_batch / high[size]["batch_faces"])
        for size in sizes
    ]
    hog_face, hog_request = np.polyfit(sizes, hog_times, 1, w=1 / np.array(hog_times))
    handover = low[faces]["queue_ms"]
    fixed = low[faces]["p50_ms"] - handover - align_batch - hog_request - faces * (align_face + hog_face)
    costs = map(float, (align_batch, align_face, hog_request, hog_face, handover, fixed))
    return PodModel(*instances, align.max_batch_size, queue, *costs, spread=SPREAD, cores=cores)
