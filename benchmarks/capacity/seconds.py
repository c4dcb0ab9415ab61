"""Seconds of one pod at each load, from the event simulation, for the day to replay.

A pod's queue fills or empties in about a second of overload, so that a second at a load says what the pod
does whatever came before it. What is kept for longer is with the clients, which try again what was refused.
"""

import dataclasses

import numpy as np
from tqdm import tqdm

from benchmarks.capacity.pod import MS_PER_SECOND, Costs, Limits, run_pod

LOADS = (*np.arange(0.05, 0.7, 0.05), *np.arange(0.7, 1.2, 0.02), 1.3, 1.5, 2.0, 3.0)
"""Loads that are simulated, over what a pod can do; beyond the last the answers stay as many."""

OVERLOAD = 2.0
"""The load, over what the cores alone would do, at which is told what a pod can do."""

SECONDS = 130
WARM_UP_SECONDS = 10
"""Of each load's run, and those at its start that are not kept."""

SLOW_MS = 1000.0
"""A request that takes longer is slow."""

EDGES_MS = np.geomspace(1.0, 20_000.0, 241)
"""Of the histogram of times; a bin is 4 % wide."""


@dataclasses.dataclass(frozen=True)
class Seconds:
    """L loads of a pod, the first of which is none, and W seconds of each.

    Attributes
    ----------
    loads : ndarray of float64 [L]
        Requests a second that come.
    answered : ndarray of float64 [L]
        Requests a second that are answered.
    queue, compute : ndarray of float64 [L, W]
        Sums over what was answered in the second, ms.
    gauge : ndarray of float64 [L, W]
        Requests that wait at its end.
    times : ndarray of float64 [L, B]
        Share of the answered in each bin of `EDGES_MS`.
    slow : ndarray of float64 [L]
        Share of the answered that took longer than `SLOW_MS`.
    p99 : ndarray of float64 [L]
        Of the times, ms.
    """

    loads: np.ndarray
    answered: np.ndarray
    queue: np.ndarray
    compute: np.ndarray
    gauge: np.ndarray
    times: np.ndarray
    slow: np.ndarray
    p99: np.ndarray

    def capacity(self) -> float:
        """Return the most requests a second that a pod answers."""
        return float(self.answered.max())

    def worth(self, bound_ms: float) -> float:
        """Return the highest load, requests a second, up to which p99 keeps to a bound."""
        broken = np.flatnonzero(self.p99 > bound_ms)
        return float(self.loads[broken[0] - 1])


def simulate_seconds(limits: Limits, costs: Costs, faces: int, seed: int) -> Seconds:
    """Run a pod at each load of requests of so many faces."""
    work = costs.batch + costs.later_request + faces * (costs.face + costs.later_face)
    bound = limits.cores * MS_PER_SECOND / work
    overload = run_pod(limits, costs, faces, OVERLOAD * bound, SECONDS, seed)
    capacity = len(overload.time) / SECONDS
    loads = capacity * np.array(LOADS)
    rows = [
        _seconds(limits, costs, faces, load, seed + number)
        for number, load in enumerate(
            tqdm(loads, desc=f"loads of a pod, {faces} a request", unit="load"), start=1
        )
    ]
    # Without load: no request, no time.
    columns = [np.stack([np.zeros_like(column[0]), *column]) for column in zip(*rows, strict=True)]
    return Seconds(np.array([0.0, *loads]), *columns)


def _seconds(limits: Limits, costs: Costs, faces: int, load: float, seed: int) -> tuple[np.ndarray, ...]:
    """Return a row of each array of `Seconds` but the loads."""
    run = run_pod(limits, costs, faces, load, SECONDS, seed)
    second = (run.answered_at / MS_PER_SECOND).astype(int)
    kept = slice(WARM_UP_SECONDS, SECONDS)
    times = run.time[second >= WARM_UP_SECONDS]
    counts, _ = np.histogram(times, EDGES_MS)
    refused = run.refused / run.arrived
    return (
        np.array(load * (1 - refused)),
        np.bincount(second, run.queue, SECONDS)[kept],
        np.bincount(second, run.compute, SECONDS)[kept],
        run.gauge[kept].astype(np.float64),
        counts / counts.sum(),
        np.array(np.mean(times > SLOW_MS)),
        np.array(np.percentile(times, 99)),
    )
