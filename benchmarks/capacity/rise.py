"""Simulation of a fleet while its load rises suddenly: every request, with the client's retries."""

import collections
import dataclasses
import random
from typing import Any

import numpy as np

from benchmarks.capacity.autoscaler import SYNC_SECONDS, Autoscaler
from benchmarks.capacity.pod import Clock, Pod, PodModel

RATIO, PENDING = "triton_face_queue_compute_ratio", "triton_face_pending_requests"
RISE_AT, HOLD_AT, END = 300, 900, 1500
"""Seconds: the load rises, the last period begins, in which no fleet should reject requests, and the end."""

RAMP_SECONDS = 60
"""Time until a ready pod gets its full share of the load: connections and DNS caches last 30 s each."""

RETRY_SECONDS, RETRY_LIMIT_SECONDS = 1, 60
"""Mean backoff of the client; time after which the client gives up, so that the request is lost."""

SCRAPES = 4
"""Number of scrapes, one every `SYNC_SECONDS`, within the minute over which both metrics are averaged."""


@dataclasses.dataclass(frozen=True)
class Member:
    """A pod of a fleet, the second at which it is ready, and its scrapes (queue ms, compute ms, pending)."""

    pod: Pod
    ready: float
    scrapes: collections.deque[tuple[float, float, int]]


class Fleet:
    """Pods and clients that send each request to a random pod."""

    def __init__(self, model: PodModel, faces: int, pods: int, seed: int) -> None:
        self.clock, self.latencies, self.members = Clock(), list[float](), list[Member]()
        self.attempts = self.rejections = self.lost = 0
        self.rejecting_seconds: set[int] = set()
        self._rng = random.Random(seed)
        self._pod = model, faces, self.clock, self._rng, self.latencies
        self.scale(pods, ready=-RAMP_SECONDS)

    def scale(self, pods: int, ready: float) -> None:
        """Add pods that are ready at second `ready`, or remove the newest, which finish their requests."""
        del self.members[pods:]
        while len(self.members) < pods:
            self.members.append(Member(Pod(*self._pod), ready, collections.deque(maxlen=SCRAPES)))

    def load(self, rate: float, until: float) -> None:
        """Send `rate` requests per second with Poisson arrivals until the second `until`."""
        while (wait := self._rng.expovariate(rate / 1e3)) + self.clock.now < 1e3 * until:
            self.clock.run(self.clock.now + wait)
            self._attempt(self.clock.now)
        self.clock.run(1e3 * until)

    def metrics(self) -> dict[str, list[float]]:
        """Return the autoscaler's metrics over the last minute, one value for each scraped pod."""
        scraped = [member.scrapes for member in self.members if member.scrapes]
        increases = [np.subtract(scrapes[-1], scrapes[0]) for scrapes in scraped]
        return {
            RATIO: [queue / compute for queue, compute, _ in increases if compute > 0],
            PENDING: [float(np.mean([pending for _, _, pending in scrapes])) for scrapes in scraped],
        }

    def scrape(self) -> None:
        """Scrape the pods that are ready."""
        for member in self.members:
            if member.ready <= self.clock.now / 1e3:
                member.scrapes.append((member.pod.queue_ms, member.pod.compute_ms, member.pod.pending))

    def _attempt(self, sent: float) -> None:
        now = self.clock.now
        self.attempts += 1
        if self._random_pod().offer():
            return
        self.rejections += 1
        self.rejecting_seconds.add(int(now / 1e3))
        if now - sent < 1e3 * RETRY_LIMIT_SECONDS:
            self.clock.after(1e3 * RETRY_SECONDS, self._attempt, sent)
        else:
            self.lost += 1

    def _random_pod(self) -> Pod:
        # A new pod gets a share of the load that grows from 0 during `RAMP_SECONDS`.
        while True:
            member = self._rng.choice(self.members)
            if self._rng.random() * RAMP_SECONDS < self.clock.now / 1e3 - member.ready:
                return member.pod


def simulate_rise(
    fleet: Fleet, scaler: Autoscaler | None, start_seconds: int, rates: tuple[float, float]
) -> dict[str, Any]:
    """Load a fleet with the first rate until `RISE_AT`, then with the second.

    The rates are in requests per second. Returns the fleet's figures for `capacity.json`.
    """
    rows, completed_before_hold, metrics = [], 0, fleet.metrics()
    for second in range(0, END, SYNC_SECONDS):
        if scaler:
            # Recording rules and adapter delay the metrics by one scrape.
            fleet.scale(scaler.sync(second, metrics), second + start_seconds)
        fleet.scrape()
        metrics = fleet.metrics()
        if second == HOLD_AT:
            completed_before_hold = len(fleet.latencies)
        attempts, rejections, completed = fleet.attempts, fleet.rejections, len(fleet.latencies)
        fleet.load(rates[0] if second < RISE_AT else rates[1], second + SYNC_SECONDS)
        rejected_share = (fleet.rejections - rejections) / (fleet.attempts - attempts)
        p99 = np.percentile(fleet.latencies[completed:], 99)
        rows.append((second, len(fleet.members), rejected_share, p99))
    seconds, pods, rejected_shares, p99_ms = map(np.array, zip(*rows, strict=True))
    steady = pods[seconds >= HOLD_AT]
    before_hold = [second for second in fleet.rejecting_seconds if second < HOLD_AT]
    return {
        "rejecting_following": len(before_hold),
        "rejecting_steady": len(fleet.rejecting_seconds) - len(before_hold),
        "lost": fleet.lost,
        "fewest_pods": steady.min(),
        "most_pods": steady.max(),
        "pod_minutes": pods.sum() * SYNC_SECONDS / 60,
        "p99_ms": np.percentile(fleet.latencies[completed_before_hold:], 99),
        "series": {"second": seconds, "pods": pods, "rejected_share": rejected_shares, "p99_ms": p99_ms},
    }
