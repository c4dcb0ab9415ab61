"""A day of the shipped autoscaler and of others, simulated from measured service times.

Writes `autoscaling.json`, and `autoscaling.md` and `autoscaling.png` from that.
"""

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.capacity import growth
from benchmarks.capacity.day import Day, Fleet, day_load, run_day
from benchmarks.capacity.fit import FACES, compare, factors, fit_costs, read_measured
from benchmarks.capacity.hpa import Autoscaler
from benchmarks.capacity.pod import Costs, Limits
from benchmarks.capacity.report import write_report
from benchmarks.capacity.seconds import Seconds, simulate_seconds
from benchmarks.capacity.shipped import PENDING, RATIO, read_autoscaler, read_limits

RESULTS = Path(__file__).parent.parent / "results"

START_SECONDS = (40, 240)
"""Until a new pod is ready: on a node that has the image, and where a node has to come first."""

PEAK_PODS = 12
"""The day's peak, in pods' worth."""

WORTH_P99_MS = 500.0
"""A pod's worth is the highest load with a p99 up to this."""

RATIOS = (0.15, 0.2, 0.25, 0.3, 0.5, 1.0)
PENDINGS = (4.0, 8.0, 16.0)
"""The grid of targets."""

SIZES = (1, 32)
SIZE_RATIOS = (0.15, 0.2, 0.25, 0.3)
SIZE_PENDING = 8.0
"""Faces a request, beside `FACES`, and the targets that are tried with them; 32 is the client's default."""

HIGHER_RATIO = 0.3
SLOWER_PERIOD = 60
"""Seconds, of the scale-up policies, in the variants of the shipped autoscaler."""

PLOTTED = ("fixed, for the peak", "ratio 1.0 alone", "shipped")

DIGITS = 5
"""Significant ones, of what is written."""


def main() -> None:
    """Simulate and write."""
    arguments = _arguments()
    limits, autoscaler, measured = read_limits(), read_autoscaler(), read_measured()
    costs = fit_costs(limits, measured["rows"], arguments.seed)
    comparison = compare(limits, costs, measured["rows"], arguments.seed)
    seconds = simulate_seconds(limits, costs, FACES, arguments.seed)
    worth = seconds.worth(WORTH_P99_MS)
    load = day_load(PEAK_PODS * worth)
    fleets = [
        fleet
        for start in START_SECONDS
        for fleet in (*_policies(autoscaler, load / worth, start), *_grid(autoscaler, start))
    ]
    day = run_day(fleets, seconds, load, arguments.seed)
    result = {
        "seed": arguments.seed,
        "measured": {name: value for name, value in measured.items() if name != "rows"},
        "limits": dataclasses.asdict(limits),
        "costs": dataclasses.asdict(costs),
        "autoscaler": dataclasses.asdict(autoscaler),
        "comparison": comparison,
        "factors": {str(faces): factors(comparison, faces) for faces in (1, 8, 32)},
        "pod": _pod(seconds, worth),
        "faces": FACES,
        "load": {"peak": load.max() * FACES, "mean": load.mean() * FACES, "peak_pods": PEAK_PODS},
        "offered": day.offered * FACES,
        "fleets": [_fleet(fleet, day, number) for number, fleet in enumerate(fleets)],
        "sizes": [row for faces in SIZES for row in _size(limits, costs, autoscaler, faces, arguments.seed)],
        "growth": growth.growth_rows(arguments.seed),
        "growth_assumptions": growth.assumptions(),
        "shares": growth.share_rows(),
    }
    arguments.results.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_rounded(result))
    (arguments.results / "autoscaling.json").write_text(text + "\n")
    write_report(json.loads(text), arguments.results)
    print((arguments.results / "autoscaling.md").read_text())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capacity", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where to write")
    parser.add_argument("--seed", type=int, default=1, help="of everything random (default: %(default)s)")
    return parser.parse_args()


def _policies(autoscaler: Autoscaler, load: np.ndarray, start: int) -> list[Fleet]:
    """Return the fleets that are compared, `load` in pods' worth."""
    slower = dataclasses.replace(
        autoscaler.up,
        policies=tuple(dataclasses.replace(one, period=SLOWER_PERIOD) for one in autoscaler.up.policies),
    )
    scaled = {
        "shipped": autoscaler,
        "ratio 1.0 alone": _with_targets(autoscaler, {RATIO: 1.0}),
        "waiting requests alone": _with_targets(autoscaler, {PENDING: autoscaler.targets[PENDING]}),
        f"ratio {HIGHER_RATIO}": _with_targets(autoscaler, {**autoscaler.targets, RATIO: HIGHER_RATIO}),
        f"up every {SLOWER_PERIOD} s": dataclasses.replace(autoscaler, up=slower),
    }
    fixed = {"fixed, for the peak": math.ceil(load.max()), "fixed, for the mean": math.ceil(load.mean())}
    return [
        *(Fleet(name, start, None, replicas) for name, replicas in fixed.items()),
        *(Fleet(name, start, one, one.least) for name, one in scaled.items()),
    ]


def _grid(autoscaler: Autoscaler, start: int) -> list[Fleet]:
    return [
        Fleet("grid", start, _with_targets(autoscaler, {RATIO: ratio, PENDING: pending}), autoscaler.least)
        for ratio in RATIOS
        for pending in PENDINGS
    ]


def _size(
    limits: Limits, costs: Costs, autoscaler: Autoscaler, faces: int, seed: int
) -> list[dict[str, Any]]:
    """Return what becomes of fleets under the same day, in pods' worth, with requests of another size."""
    seconds = simulate_seconds(limits, costs, faces, seed)
    worth = seconds.worth(WORTH_P99_MS)
    fleets = [
        Fleet(
            "size",
            START_SECONDS[0],
            _with_targets(autoscaler, {RATIO: ratio, PENDING: SIZE_PENDING}),
            autoscaler.least,
        )
        for ratio in SIZE_RATIOS
    ]
    day = run_day(fleets, seconds, day_load(PEAK_PODS * worth), seed)
    sized = {"faces": faces, "worth": worth * faces}
    return [sized | _fleet(fleet, day, number) for number, fleet in enumerate(fleets)]


def _with_targets(autoscaler: Autoscaler, targets: dict[str, float]) -> Autoscaler:
    return dataclasses.replace(autoscaler, targets=targets)


def _pod(seconds: Seconds, worth: float) -> dict[str, Any]:
    """Return what one pod does at each load, in faces a second."""
    with_load = slice(1, None)
    return {
        "worth": worth * FACES,
        "capacity": seconds.capacity() * FACES,
        "offered": seconds.loads[with_load] * FACES,
        "answered": seconds.answered[with_load] * FACES,
        "ratio": (seconds.queue.sum(axis=1)[with_load] / seconds.compute.sum(axis=1)[with_load]),
        "pending": seconds.gauge.mean(axis=1)[with_load],
        "p99_ms": seconds.p99[with_load],
    }


def _fleet(fleet: Fleet, day: Day, number: int) -> dict[str, Any]:
    """Return what became of a fleet; by the minute only where it is drawn."""
    row = {
        "name": fleet.name,
        "start_seconds": fleet.start_seconds,
        "targets": dict(fleet.autoscaler.targets) if fleet.autoscaler else None,
        "pod_hours": day.pod_hours[number],
        "refused_share": day.refused[number] / day.tries[number],
        "waited_share": day.waited[number] / day.requests[number],
        "lost_share": day.lost[number] / day.requests[number],
        "p50_ms": day.p50[number],
        "p99_ms": day.p99[number],
        "slow_seconds": day.slow_seconds[number],
        "refusing_seconds": day.refusing_seconds[number],
        "highest": day.highest[number],
        "turns": day.turns[number],
    }
    if fleet.name in PLOTTED:
        row["by_minute"] = {
            "answered": day.answered[number] * FACES,
            "refused_share": day.refused_share[number],
            "replicas": day.replicas[number],
            "p99_ms": day.p99_by_minute[number],
        }
    return row


def _rounded(value: Any) -> Any:
    """Make plain numbers of a few digits of everything, so that two runs' files can be compared."""
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_rounded(one) for one in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.{DIGITS}g}")
    return int(value) if isinstance(value, np.integer) else value


if __name__ == "__main__":
    main()
