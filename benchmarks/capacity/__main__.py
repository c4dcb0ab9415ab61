"""Simulate autoscalers while the load rises; write `capacity.json`, `.md` and `.png` into results."""

import argparse
import concurrent.futures
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from benchmarks.capacity.autoscaler import Autoscaler
from benchmarks.capacity.page import PLOTTED, write_results
from benchmarks.capacity.pod import MEASURED, PodModel, derive_model, simulate_load, simulate_row
from benchmarks.capacity.rise import PENDING, RATIO, Fleet, simulate_rise
from deploy.monitoring.panels import AUTOSCALER, scaling_targets

RESULTS = Path(__file__).parents[1] / "results"
SCENARIOS = ((8, 40), (8, 240), (32, 40))
"""Faces per request; seconds until a new pod is ready: 40 if its node has the image, 240 on a new node."""

FITTED_FACES = 8
"""Faces per request of the measured rows that give the latency of an idle pod."""

RISE = 3
"""Load after the rise divided by the load before it."""

P99_LIMIT_MS, CAPACITY_SECONDS = 500.0, 120
"""Limit of the p99 latency that defines a pod's capacity; length of each simulation that searches for it."""

SHIPPED = scaling_targets()
FLEETS = {
    "as shipped": SHIPPED,
    "ratio 0.2": SHIPPED | {RATIO: 0.2},
    "ratio 0.3": SHIPPED | {RATIO: 0.3},
    "ratio 1 alone": {RATIO: 1.0},
    "pending alone": {PENDING: SHIPPED[PENDING]},
    "fixed": None,
}
"""Targets of each simulated fleet. "fixed" has no autoscaler and one pod more than the load needs."""


def main() -> None:
    """Simulate and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capacity", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="output folder")
    parser.add_argument("--seed", type=int, default=1, help="random seed (default: %(default)s)")
    arguments = parser.parse_args()
    measured = json.loads(MEASURED.read_text())
    model = derive_model(measured["rows"], FITTED_FACES)
    capacity = {faces: find_capacity(model, faces, arguments.seed) for faces, _ in SCENARIOS}
    jobs = [
        (model, name, faces, start_seconds, capacity[faces], arguments.seed)
        for faces, start_seconds in SCENARIOS
        for name in FLEETS
    ]
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count()) as pool:
        fleets = list(tqdm(pool.map(simulate_fleet, *zip(*jobs, strict=True)), total=len(jobs), unit="fleet"))
    result = measured | {
        "seed": arguments.seed,
        "model": dataclasses.asdict(model),
        "capacity": {f"faces_{faces}": rate * faces for faces, rate in capacity.items()},
        "rows": [row | {"simulated": simulate_row(model, row, arguments.seed)} for row in measured["rows"]],
        "rise": RISE,
        "shipped": SHIPPED,
        "fleets": fleets,
    }
    write_results(result, arguments.results)


def find_capacity(model: PodModel, faces: int, seed: int) -> float:
    """Return the capacity of one pod in requests per second: the highest rate with a p99 within the limit.

    The search lowers the rate in steps of 5 %.
    """
    rate = 1e3 * model.cores / (model.hog_request + faces * (model.align_face + model.hog_face))
    while simulate_load(model, faces, rate, CAPACITY_SECONDS, seed)["p99_ms"] > P99_LIMIT_MS:
        rate *= 0.95
    return rate


def simulate_fleet(
    model: PodModel, name: str, faces: int, start_seconds: int, capacity: float, seed: int
) -> dict[str, Any]:
    """Simulate one of `FLEETS` while its load rises from one pod's capacity to `RISE` times as much."""
    targets = FLEETS[name]
    scaler = Autoscaler(yaml.safe_load(AUTOSCALER.read_text())["spec"], targets) if targets else None
    fleet = Fleet(model, faces, scaler.replicas if scaler else RISE + 1, seed)
    row = {"name": name, "faces": faces, "start_seconds": start_seconds}
    row |= simulate_rise(fleet, scaler, start_seconds, (capacity, RISE * capacity))
    if name not in PLOTTED or (faces, start_seconds) != SCENARIOS[0]:
        del row["series"]
    return row


if __name__ == "__main__":
    main()
