"""The costs of one pod, from what was measured of the real server."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.capacity.pod import Costs, Limits, run_pod

MEASURED = Path(__file__).parent / "measured.json"

FACES = 8
"""Of a request: the rows that the costs are fitted to, and the requests of the fleet."""

WINDOW_SECONDS = 5
"""How long each load was measured."""

WINDOWS = 6
"""Simulated for each load, each from an empty pod as the measured ones."""

SPREADS = (0.3, 0.5, 0.7, 1.0)
LATER_MS = (4.5, 4.75, 5.0, 5.25, 5.5, 5.75, 6.0, 6.25, 6.5)
"""What is tried for the spread and for the later steps' work for a request of `FACES` faces."""

REQUESTS_MS = (0.5, 1.0, 1.5, 2.0, 2.5)
"""What is tried for the part of it that does not grow with the faces."""

LITTLE_PENDING = 1.0
"""Requests, added to both sides where pending is compared: a tenth of a request for none is no error."""

COMPARED = ("answered", "ratio", "pending", "p99_ms")

Row = dict[str, Any]


def read_measured() -> dict[str, Any]:
    """Read `measured.json`, of `measure.py`: where and how it was measured, rows to fit to, rows beyond."""
    return json.loads(MEASURED.read_text())


def fit_costs(limits: Limits, rows: list[Row], seed: int) -> Costs:
    """Find the costs that explain the measured rows.

    What a batch and a face cost is the line through the lowest loads, where a batch is a request and has a
    core to itself; the handover is the queue there. The spread and the later steps' work are those with the
    smallest squared logarithms of simulated over measured in the rows of `FACES` faces, which cannot tell how
    that work is split between the request and its faces: the other rows do.

    The later steps must keep up with align_mask under overload. The real ones do, over minutes
    (`make chaos`), which windows of seconds do not show.
    """
    lowest = [min(group, key=lambda row: row["offered"]) for group in _by_faces(rows).values()]
    face, batch = np.polyfit([row["faces"] for row in lowest], [row["compute_ms"] for row in lowest], 1)
    idle = next(row for row in lowest if row["faces"] == FACES)
    first = Costs(float(batch), float(face), handover=idle["queue_ms"])
    slowest = limits.later_instances * FACES * (face + batch / limits.batch_faces) / limits.instances
    later = [
        _with_later(first, idle["p50_ms"], request=0.0, whole=whole, spread=spread)
        for spread, whole in itertools.product(SPREADS, LATER_MS)
        if whole <= slowest
    ]
    best = _nearest(limits, later, [row for row in rows if row["faces"] == FACES], seed)
    whole = FACES * best.later_face
    split = [_with_later(best, idle["p50_ms"], request, whole, best.spread) for request in REQUESTS_MS]
    return _nearest(limits, split, [row for row in rows if row["faces"] != FACES], seed)


def _with_later(costs: Costs, p50: float, request: float, whole: float, spread: float) -> Costs:
    """Give the later steps their work, and the rest of the lowest load's p50 to what takes no core."""
    at_work = costs.batch + FACES * costs.face + whole
    return dataclasses.replace(
        costs,
        later_request=request,
        later_face=(whole - request) / FACES,
        other=max(0.0, p50 - costs.handover - at_work),
        spread=spread,
    )


def _nearest(limits: Limits, tried: list[Costs], rows: list[Row], seed: int) -> Costs:
    errors = [
        sum(_error(row, simulated_row(limits, costs, row, seed)) for row in rows)
        for costs in tqdm(tried, desc="fit of a pod", unit="point")
    ]
    return tried[int(np.argmin(errors))]


def simulated_row(limits: Limits, costs: Costs, row: Row, seed: int) -> Row:
    """Simulate a measured load; the means of its windows, by the names of the measured ones.

    Where nothing was refused, what was answered is the load that really came.
    """
    faces = row["answered"] if row["refused_counted"] == 0 else row["offered"]
    runs = [
        run_pod(limits, costs, row["faces"], faces / row["faces"], WINDOW_SECONDS, seed + number).summary()
        for number in range(WINDOWS)
    ]
    return {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}


def compare(limits: Limits, costs: Costs, rows: list[Row], seed: int) -> list[Row]:
    """Put the simulated beside each measured row."""
    return [
        {
            "faces": row["faces"],
            "offered": row["offered"],
            "measured": {name: row[name] for name in (*COMPARED, "queue_ms", "compute_ms", "p50_ms")},
            "simulated": simulated_row(limits, costs, row, seed),
        }
        for row in rows
    ]


def factors(comparison: list[Row], faces: int) -> dict[str, float]:
    """Return by which factor the worst row of so many faces is off, for each of `COMPARED`."""
    rows = [row for row in comparison if row["faces"] == faces]
    return {
        name: float(
            np.exp(max(abs(_log_ratio(name, row["measured"], row["simulated"])) for row in rows)),
        )
        for name in COMPARED
    }


def _by_faces(rows: list[Row]) -> dict[int, list[Row]]:
    return {faces: [row for row in rows if row["faces"] == faces] for faces in {row["faces"] for row in rows}}


def _error(measured: Row, simulated: Row) -> float:
    return sum(_log_ratio(name, measured, simulated) ** 2 for name in COMPARED)


def _log_ratio(name: str, measured: Row, simulated: Row) -> float:
    little = LITTLE_PENDING if name == "pending" else 0.0
    return float(np.log((simulated[name] + little) / (measured[name] + little)))
