"""A day of a fleet: how many pods there are, what they answer, what they refuse. All fleets at once.

Time goes in steps of a second, in which each pod replays a random second of `Seconds` at its load; the random
numbers are the same for every fleet. Loads are in requests a second. A fleet's pods are in the order in which
they came; the last go first, as Kubernetes takes those that are not ready or youngest.
"""

import dataclasses

import numpy as np
from tqdm import tqdm

from benchmarks.capacity.growth import NAME_SECONDS
from benchmarks.capacity.hpa import SYNC_SECONDS, Autoscaler, Controller
from benchmarks.capacity.seconds import EDGES_MS, Seconds
from benchmarks.capacity.shipped import PENDING, RATIO

DAY_SECONDS = 24 * 3600
MINUTE = 60
SECONDS_PER_HOUR = 3600

NIGHT = 0.1
"""Of the peak."""

HUMPS = (10.5, 15.5)
HUMP_HOURS = 1.5
"""The hours of the day's two peaks, and how wide they are (standard deviation)."""

BURST = (12.5, 12.5 + 1 / 6)
BURST_FACTOR = 2.0
"""At midday the load is for ten minutes so many times what it would be."""

VIDEO = (22.0, 23.5)
"""From when to when a queue of video is worked off, at the day's peak and from one second to the next."""

CONNECTION_SECONDS = 30 + NAME_SECONDS
"""The age at which a connection ends and its client looks up the pods again, and what it may hear then."""

PATIENCE_SECONDS = 60
"""How long a client tries again; the default of the client's `Retry`."""

SCRAPES = 4
"""That the rate over a minute sees, one every `SYNC_SECONDS`: Prometheus's and the autoscaler's period."""

REFUSING = 0.001
"""A second with a larger share of its tries refused counts as one with refusals."""


@dataclasses.dataclass(frozen=True)
class Fleet:
    """Pods whose number an autoscaler changes or none, and the seconds until a new one is ready."""

    name: str
    start_seconds: int
    autoscaler: Autoscaler | None
    replicas: int


@dataclasses.dataclass(frozen=True)
class Day:
    """What became of F fleets over M minutes. Times are in milliseconds, rates in requests a second.

    Attributes
    ----------
    pod_hours : ndarray of float64 [F]
        Of pods that were wanted, ready or not.
    tries, refused, requests, lost : ndarray of float64 [F]
        Lost are those that were refused for `PATIENCE_SECONDS`.
    waited : ndarray of float64 [F]
        Requests that were answered after a second or more of refusals.
    slow_seconds, refusing_seconds : ndarray of int64 [F]
        In which p99 was over `SLOW_MS`, in which tries were refused.
    highest, turns : ndarray of int64 [F]
        Replicas, and how often they went from growing to shrinking or back.
    p50, p99 : ndarray of float64 [F]
        Time in the service of what was answered.
    offered : ndarray of float64 [M]
    answered, refused_share, replicas, p99_by_minute : ndarray of float64 [F, M]
    """

    pod_hours: np.ndarray
    tries: np.ndarray
    refused: np.ndarray
    requests: np.ndarray
    lost: np.ndarray
    waited: np.ndarray
    slow_seconds: np.ndarray
    refusing_seconds: np.ndarray
    highest: np.ndarray
    turns: np.ndarray
    p50: np.ndarray
    p99: np.ndarray
    offered: np.ndarray
    answered: np.ndarray
    refused_share: np.ndarray
    replicas: np.ndarray
    p99_by_minute: np.ndarray


def day_load(peak: float) -> np.ndarray:
    """Return the load of each second of the day, in the unit of its peak, float64 [86400]."""
    hours = np.arange(DAY_SECONDS) / SECONDS_PER_HOUR
    humps = sum(np.exp(-0.5 * ((hours - hump) / HUMP_HOURS) ** 2) for hump in HUMPS)
    load = NIGHT + (1 - NIGHT) * humps / humps.max()
    load[(hours >= BURST[0]) & (hours < BURST[1])] *= BURST_FACTOR
    load[(hours >= VIDEO[0]) & (hours < VIDEO[1])] = 1.0
    return peak * load


def run_day(fleets: list[Fleet], seconds: Seconds, load: np.ndarray, seed: int) -> Day:
    """Send the same load to every fleet."""
    pods = _Pods(fleets, seconds, np.random.default_rng(seed))
    clients = _Clients(len(fleets))
    controllers = [
        Controller(fleet.autoscaler, fleet.replicas) if fleet.autoscaler else None for fleet in fleets
    ]
    books = _Books(fleets, seconds, len(load))
    for second in tqdm(range(len(load)), desc="day", unit="s", mininterval=1.0):
        if second % SYNC_SECONDS == 0:
            # What the autoscaler sees is one scrape old: rules and adapter take their time.
            readings = pods.readings()
            for number, controller in enumerate(controllers):
                if controller is not None:
                    wanted = controller.sync(second, readings[number])
                    pods.scale(number, wanted, second)
            pods.scrape(second)
        tries = clients.tries(load[second])
        answered, levels = pods.work(tries, second)
        accepted = np.minimum(answered.sum(axis=1) / tries, 1.0)
        waited, lost = clients.learn(accepted)
        books.enter(second, load[second], tries, answered, levels, pods, waited, lost)
    return books.close()


class _Clients:
    """Requests that were refused, by the seconds for which they have been tried.

    The client's backoff comes to a wait of a second on average after five tries, all within the first second
    or two; one try a second stands for it.
    """

    def __init__(self, fleets: int) -> None:
        self._trying = np.zeros((fleets, PATIENCE_SECONDS + 1))

    def tries(self, load: float) -> np.ndarray:
        """Return the tries of this second, new requests and refused ones, float64 [F]."""
        self._trying[:, 0] = load
        return self._trying.sum(axis=1)

    def learn(self, accepted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Take in which share was accepted; return those that had waited for it and those given up, [F]."""
        waited = self._trying[:, 1:].sum(axis=1) * accepted
        self._trying *= (1 - accepted)[:, None]
        lost = self._trying[:, -1].copy()
        self._trying[:, 1:] = self._trying[:, :-1]
        return waited, lost


class _Pods:
    """The pods of all fleets, F by the most that one may have, S."""

    def __init__(self, fleets: list[Fleet], seconds: Seconds, generator: np.random.Generator) -> None:
        self._seconds = seconds
        self._generator = generator
        self._start = [fleet.start_seconds for fleet in fleets]
        most = max(fleet.autoscaler.most if fleet.autoscaler else fleet.replicas for fleet in fleets)
        shape = (len(fleets), most)
        self.replicas = np.array([fleet.replicas for fleet in fleets])
        self._ready_at = np.full(shape, np.inf)
        # Those of the start are known to every client.
        self._ready_at[np.arange(most) < self.replicas[:, None]] = -CONNECTION_SECONDS
        self._queue, self._compute, self._gauge = np.zeros((3, *shape))
        # The last scrapes, the latest last; NaN is a pod that was not there.
        self._scraped = np.full((SCRAPES, 3, *shape), np.nan)

    def scale(self, fleet: int, wanted: int, second: int) -> None:
        """Start pods, or end the last ones."""
        now = self.replicas[fleet]
        if wanted > now:
            self._ready_at[fleet, now:wanted] = second + self._start[fleet]
            for counter in (self._queue, self._compute, self._gauge):
                counter[fleet, now:wanted] = 0.0
        elif wanted < now:
            self._ready_at[fleet, wanted:] = np.inf
            self._scraped[:, :, fleet, wanted:] = np.nan
        self.replicas[fleet] = wanted

    def work(self, tries: np.ndarray, second: int) -> tuple[np.ndarray, np.ndarray]:
        """Let each pod replay a second of its load; return what it answered and its level, [F, S].

        A new pod's share grows from nothing over `CONNECTION_SECONDS`, while one client after the other looks
        up the pods.
        """
        known = np.clip((second - self._ready_at) / CONNECTION_SECONDS, 0.0, 1.0)
        loads = known * (tries / known.sum(axis=1))[:, None]
        table = self._seconds
        place = np.interp(loads, table.loads, np.arange(len(table.loads)))
        low = place.astype(int)
        share = place - low
        high = np.minimum(low + 1, len(table.loads) - 1)
        answered = table.answered[low] * (1 - share) + table.answered[high] * share
        pods = loads.shape[1]
        # Between two loads, each as often as it is near.
        levels = np.where(self._generator.random(pods) < share, high, low)
        replayed = self._generator.integers(table.queue.shape[1], size=pods)
        self._queue += table.queue[levels, replayed]
        self._compute += table.compute[levels, replayed]
        self._gauge = table.gauge[levels, replayed]
        return answered, levels

    def scrape(self, second: int) -> None:
        """Read the counters and the gauge of the pods that are ready."""
        self._scraped[:-1] = self._scraped[1:]
        latest = np.stack([self._queue, self._compute, self._gauge])
        self._scraped[-1] = np.where(self._ready_at <= second, latest, np.nan)

    def readings(self) -> list[dict[str, list[float]]]:
        """Return the metrics of the pods that have them, for each fleet.

        The ratio is the rate of waiting over that of computing: of the last scrape and the first of the pod's
        in the minute. It wants two scrapes and a request.
        """
        there = ~np.isnan(self._scraped[:, 0])
        first = there.argmax(axis=0)[None, None]
        grown = self._scraped[-1, :2] - np.take_along_axis(self._scraped[:, :2], first, axis=0)[0]
        ratio = np.divide(grown[0], grown[1], out=np.full_like(grown[0], np.nan), where=grown[1] > 0)
        scrapes = there.sum(axis=0)
        waiting = np.where(there, self._scraped[:, 2], 0.0).sum(axis=0)
        pending = np.divide(waiting, scrapes, out=np.full_like(waiting, np.nan), where=there[-1])
        return [
            {RATIO: one[~np.isnan(one)].tolist(), PENDING: other[~np.isnan(other)].tolist()}
            for one, other in zip(ratio, pending, strict=True)
        ]


class _Books:
    """Sums over the day and over each minute."""

    def __init__(self, fleets: list[Fleet], seconds: Seconds, length: int) -> None:
        self._seconds = seconds
        self._row = len(seconds.loads) * np.arange(len(fleets))[:, None]
        count = len(fleets)
        self._minutes = length // MINUTE
        self._totals = {
            name: np.zeros(count)
            for name in ("tries", "refused", "requests", "lost", "waited", "slow", "refusing", "pods")
        }
        self._by_minute = {
            name: np.zeros((count, self._minutes)) for name in ("answered", "refused", "tries", "replicas")
        }
        self._offered = np.zeros(self._minutes)
        self._levels = np.zeros((self._minutes, count, len(seconds.loads)))
        self._highest = np.zeros(count, dtype=int)
        self._direction = np.zeros(count, dtype=int)
        self._turns = np.zeros(count, dtype=int)
        self._last: np.ndarray | None = None

    def enter(
        self,
        second: int,
        load: float,
        tries: np.ndarray,
        answered: np.ndarray,
        levels: np.ndarray,
        pods: _Pods,
        waited: np.ndarray,
        lost: np.ndarray,
    ) -> None:
        """Add a second."""
        minute = second // MINUTE
        done = answered.sum(axis=1)
        refused = np.maximum(tries - done, 0.0)
        slow = (answered * self._seconds.slow[levels]).sum(axis=1) > 0.01 * done
        for name, values in (
            ("tries", tries),
            ("refused", refused),
            ("requests", load),
            ("lost", lost),
            ("waited", waited),
            ("slow", slow),
            ("refusing", refused > REFUSING * tries),
            ("pods", pods.replicas),
        ):
            self._totals[name] += values
        for name, values in (
            ("answered", done),
            ("refused", refused),
            ("tries", tries),
            ("replicas", pods.replicas),
        ):
            self._by_minute[name][:, minute] += values
        self._offered[minute] += load
        places = (self._row + levels).ravel()
        self._levels[minute] += np.bincount(
            places, answered.ravel(), minlength=self._levels[minute].size
        ).reshape(self._levels[minute].shape)
        self._note_replicas(pods.replicas)

    def _note_replicas(self, replicas: np.ndarray) -> None:
        self._highest = np.maximum(self._highest, replicas)
        if self._last is not None:
            change = np.sign(replicas - self._last)
            self._turns += change * self._direction < 0
            self._direction = np.where(change != 0, change, self._direction)
        self._last = replicas.copy()

    def close(self) -> Day:
        """Return the day."""
        totals, minutes = self._totals, self._by_minute
        return Day(
            pod_hours=totals["pods"] / SECONDS_PER_HOUR,
            **{name: totals[name] for name in ("tries", "refused", "requests", "lost", "waited")},
            slow_seconds=totals["slow"].astype(int),
            refusing_seconds=totals["refusing"].astype(int),
            highest=self._highest,
            turns=self._turns,
            p50=self._percentile(self._levels.sum(axis=0), 0.5),
            p99=self._percentile(self._levels.sum(axis=0), 0.99),
            offered=self._offered / MINUTE,
            answered=minutes["answered"] / MINUTE,
            refused_share=minutes["refused"] / minutes["tries"],
            replicas=minutes["replicas"] / MINUTE,
            p99_by_minute=self._percentile(self._levels, 0.99).T,
        )

    def _percentile(self, levels: np.ndarray, share: float) -> np.ndarray:
        """Return a percentile of the times of what was answered at each level, [..., L] -> [...], ms."""
        cumulated = np.cumsum(levels @ self._seconds.times, axis=-1)
        place = (cumulated < share * cumulated[..., -1:]).sum(axis=-1)
        return EDGES_MS[np.minimum(place + 1, len(EDGES_MS) - 1)]
