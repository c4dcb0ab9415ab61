"""One pod as a queue: align_mask's instances and the later steps share the pod's cores.

A request waits in align_mask's bounded queue, or is refused at once when that is full, which costs nothing.
An idle instance takes all that waits, up to the largest batch. The batch's faces then go on to the later
steps, which batch in the same way and are as many at a time as hog has instances; their queue has no bound,
for align_mask's refuses before. Everything under way shares the cores evenly (processor sharing): with n at
work on c cores each gets on at min(1, c / n) of its speed alone.

Processor sharing is cheap to simulate, for all that is at work gets on equally fast: each has an end in
units of the work that any one of them was given, and these ends keep their order whatever comes.
"""

import collections
import dataclasses
import heapq
from typing import Any, NamedTuple

import numpy as np

MS_PER_SECOND = 1000.0


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the model configurations and the machine give a pod.

    Attributes
    ----------
    instances, later_instances : int
        Of align_mask, and of hog for all later steps.
    batch_faces : int
        The largest batch.
    queue_requests : int
        How many may wait for align_mask.
    cores : int
    """

    instances: int
    later_instances: int
    batch_faces: int
    queue_requests: int
    cores: int = 2


@dataclasses.dataclass(frozen=True)
class Costs:
    """Core milliseconds of one at work alone.

    Attributes
    ----------
    batch, face : float
        Of align_mask's batch, and of each face in it.
    later_request, later_face : float
        Of all other work for a request, which is sent with the same two cores, and for each face in it.
    handover : float
        Until an idle instance has what waits, ms: Triton counts it as queue.
    other : float
        What else a request waits for that takes no core, ms.
    spread : float
        Of the work of a batch, standard deviation over mean (gamma-distributed): 0 for none, 1 for as much
        as an exponential distribution has.
    """

    batch: float
    face: float
    later_request: float = 0.0
    later_face: float = 0.0
    handover: float = 0.0
    other: float = 0.0
    spread: float = 0.0


@dataclasses.dataclass(frozen=True)
class PodRun:
    """What became of the requests of a run. K were answered; times are in milliseconds.

    Attributes
    ----------
    seconds : float
    faces : int
        Of each request.
    arrived, refused, in_system : int
        Requests; the last are those under way at the end.
    batches : int
        Of align_mask.
    answered_at, queue, compute, time : ndarray of float64 [K]
        Moment, wait for an align_mask instance, its work (each request of a batch has the batch's, as in
        Triton's counters), time in the service.
    pending : ndarray of int64 [arrived]
        Requests that waited when another arrived: as arrivals are Poisson, its mean is that over time.
    gauge : ndarray of int64 [seconds]
        Requests that waited at the end of each second, as a scrape sees them.
    """

    seconds: float
    faces: int
    arrived: int
    refused: int
    in_system: int
    batches: int
    answered_at: np.ndarray
    queue: np.ndarray
    compute: np.ndarray
    time: np.ndarray
    pending: np.ndarray
    gauge: np.ndarray

    def summary(self) -> dict[str, float]:
        """Return the figures that were measured of the real server, by the names of `measured.json`."""
        p50, p99 = np.percentile(self.time, (50, 99))
        return {
            "answered": len(self.time) * self.faces / self.seconds,
            "queue_ms": float(self.queue.mean()),
            "compute_ms": float(self.compute.mean()),
            "ratio": float(self.queue.sum() / self.compute.sum()),
            "pending": float(self.pending.mean()),
            "batch_faces": len(self.time) * self.faces / self.batches,
            "p50_ms": float(p50),
            "p99_ms": float(p99),
            "refused_share": self.refused / self.arrived,
        }


def run_pod(limits: Limits, costs: Costs, faces: int, rate: float, seconds: int, seed: int) -> PodRun:
    """Send requests of `faces` faces at random moments, `rate` a second, to an empty pod."""
    generator = np.random.default_rng(seed)
    count = generator.poisson(rate * seconds)
    arrivals = np.sort(generator.uniform(0, MS_PER_SECOND * seconds, count))
    ends = MS_PER_SECOND * np.arange(1, seconds + 1)
    pod = _Pod(limits, costs, faces, generator)
    gauge = []
    # An arrival's number is its place in the array; the end of a second has none.
    moments = heapq.merge(((moment, True) for moment in arrivals), ((moment, False) for moment in ends))
    for moment, is_arrival in moments:
        pod.advance(moment)
        if is_arrival:
            pod.arrive()
        else:
            gauge.append(len(pod.waiting))
    answered = np.array(pod.answered, dtype=np.float64).reshape(-1, 4)
    return PodRun(
        seconds=seconds,
        faces=faces,
        arrived=count,
        refused=pod.refused,
        in_system=pod.under_way(),
        batches=pod.batches,
        answered_at=answered[:, 0],
        queue=answered[:, 1],
        compute=answered[:, 2],
        time=answered[:, 3],
        pending=np.array(pod.seen),
        gauge=np.array(gauge),
    )


class _Request(NamedTuple):
    """A request that align_mask is done with: moment of arrival, wait and work there, ms."""

    arrived: float
    queue: float
    compute: float


class _AtWork(NamedTuple):
    """A batch at work; they sort by their ends, in units of the work that each of all was given, ms."""

    end: float
    number: int
    taken: float
    arrived: list[float]
    """Of align_mask's requests; empty in a later step."""
    later: list[_Request]


class _Pod:
    def __init__(self, limits: Limits, costs: Costs, faces: int, generator: np.random.Generator) -> None:
        self._limits = limits
        self._costs = costs
        self._faces = faces
        self._generator = generator
        self._batch_requests = limits.batch_faces // faces
        self._now = 0.0
        self._given = 0.0
        self._at_work: list[_AtWork] = []
        self._started = 0
        self._idle = limits.instances
        self._later_idle = limits.later_instances
        self._later_waiting: collections.deque[_Request] = collections.deque()
        self.waiting: collections.deque[float] = collections.deque()
        self.answered: list[tuple[float, float, float, float]] = []
        self.seen: list[int] = []
        self.refused = 0
        self.batches = 0

    def under_way(self) -> int:
        """Return how many requests wait or are at work."""
        at_work = sum(len(batch.arrived) + len(batch.later) for batch in self._at_work)
        return len(self.waiting) + len(self._later_waiting) + at_work

    def advance(self, moment: float) -> None:
        """Work until a moment, ms."""
        while self._at_work:
            speed = min(1.0, self._limits.cores / len(self._at_work))
            first = self._at_work[0]
            end = self._now + (first.end - self._given) / speed
            if end > moment:
                self._given += (moment - self._now) * speed
                break
            heapq.heappop(self._at_work)
            self._now, self._given = end, first.end
            self._finish(first)
        self._now = moment

    def arrive(self) -> None:
        """Take a request in, or refuse it."""
        self.seen.append(len(self.waiting))
        if self._idle == 0 and len(self.waiting) >= self._limits.queue_requests:
            self.refused += 1
            return
        self.waiting.append(self._now)
        self._take()

    def _finish(self, batch: _AtWork) -> None:
        if batch.arrived:
            self._idle += 1
            compute = self._now - batch.taken
            self._later_waiting.extend(
                _Request(arrived, batch.taken - arrived + self._costs.handover, compute)
                for arrived in batch.arrived
            )
            self._take()
        else:
            self._later_idle += 1
            unworked = self._costs.handover + self._costs.other
            self.answered.extend(
                (self._now, one.queue, one.compute, self._now - one.arrived + unworked) for one in batch.later
            )
        self._take_later()

    def _take(self) -> None:
        if self._idle == 0 or not self.waiting:
            return
        self._idle -= 1
        self.batches += 1
        arrived = _first(self.waiting, self._batch_requests)
        self._start(self._costs.batch + self._costs.face * self._faces * len(arrived), arrived, [])

    def _take_later(self) -> None:
        while self._later_idle > 0 and self._later_waiting:
            self._later_idle -= 1
            later = _first(self._later_waiting, self._batch_requests)
            request = self._costs.later_request + self._costs.later_face * self._faces
            self._start(request * len(later), [], later)

    def _start(self, work: float, arrived: list[float], later: list[_Request]) -> None:
        self._started += 1
        if self._costs.spread > 0:
            variance = self._costs.spread**2
            work *= self._generator.standard_gamma(1 / variance) * variance
        batch = _AtWork(self._given + work, self._started, self._now, arrived, later)
        heapq.heappush(self._at_work, batch)


def _first(waiting: collections.deque[Any], most: int) -> list[Any]:
    return [waiting.popleft() for _ in range(min(most, len(waiting)))]
