"""Alternating measurements: each round times every call once, so that drift of the machine affects all."""

import time
from collections.abc import Callable

import numpy as np

CALL_SECONDS = 0.3
"""A measurement repeats its call for at least this long and reports the median."""

PAUSE_SECONDS = 0.05
"""Pause before each measurement: idle OpenMP threads spin for a moment after a call."""

Measure = Callable[[], float]
"""Measure a call once; return seconds."""


def alternate(measures: dict[str, Measure], rounds: int) -> dict[str, np.ndarray]:
    """Return the seconds of each measurement in each round, after one warm-up round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds + 1):
        for name, measure in measures.items():
            time.sleep(PAUSE_SECONDS)
            seconds[name].append(measure())
    return {name: np.array(values[1:]) for name, values in seconds.items()}


def timed(call: Callable[[], object]) -> Measure:
    """Return a measurement of a call in this process: its median seconds over `CALL_SECONDS`."""

    def measure() -> float:
        seconds = []
        end = time.perf_counter() + CALL_SECONDS
        while (start := time.perf_counter()) < end:
            call()
            seconds.append(time.perf_counter() - start)
        return float(np.median(seconds))

    return measure


def median_ratio(numerators: np.ndarray, denominators: np.ndarray) -> float:
    """Return the median over rounds of the ratio within each round."""
    return float(np.median(numerators / denominators))
