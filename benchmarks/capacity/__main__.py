"""Simulate autoscalers under a rise of the load; write `capacity.json`, `.md` and `.png` into results."""

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
from benchmarks.capacity.page import write_page
from benchmarks.capacity.pod import MEASURED, PodModel, derive_model, simulate_load, simulate_row
from benchmarks.capacity.rise import PENDING, RATIO, Fleet, simulate_rise
from deploy.monitoring.panels import AUTOSCALER, scaling_targets

RESULTS = Path(__file__).parents[1] / "results"
SCENARIOS = ((8, 40), (8, 240), (32, 40))
"""Faces per request; seconds until a new pod is ready: with the image on the node, on a new node."""

FITTED_FACES, RISE, P99_LIMIT_MS = 8, 3, 500.0
SWEEP_SECONDS = 120
PLOTTED = ("as shipped", "ratio 0.3", "ratio 1 alone", "fixed")
SHIPPED = scaling_targets()
FLEETS = {
    "as shipped": SHIPPED,
    "ratio 0.2": SHIPPED | {RATIO: 0.2},
    "ratio 0.3": SHIPPED | {RATIO: 0.3},
    "ratio 1 alone": {RATIO: 1.0},
    "pending alone": {PENDING: SHIPPED[PENDING]},
    "fixed": None,
}
"""Targets of each simulated fleet; the last has no autoscaler and one pod more than the load's worth."""


def main() -> None:
    """Simulate and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capacity", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="output folder")
    parser.add_argument("--seed", type=int, default=1, help="random seed (default: %(default)s)")
    arguments = parser.parse_args()
    measured = json.loads(MEASURED.read_text())
    model = derive_model(measured["rows"], FITTED_FACES)
    capacity = {faces: capacity_of(model, faces, arguments.seed) for faces, _ in SCENARIOS}
    jobs = [
        (model, name, faces, start, capacity[faces], arguments.seed)
        for faces, start in SCENARIOS
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
    text = json.dumps(result, default=lambda value: value.tolist())
    result = json.loads(text, parse_float=lambda digits: float(f"{float(digits):.4g}"))
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / "capacity.json").write_text(json.dumps(result) + "\n")
    write_page(result, arguments.results)


def capacity_of(model: PodModel, faces: int, seed: int) -> float:
    """Return the requests per second, in steps of 5 %, up to which the p99 of one pod keeps the limit."""
    rate = 1e3 * model.cores / (model.hog_request + faces * (model.align_face + model.hog_face))
    while simulate_load(model, faces, rate, SWEEP_SECONDS, seed)["p99_ms"] > P99_LIMIT_MS:
        rate *= 0.95
    return rate


def simulate_fleet(
    model: PodModel, name: str, faces: int, start: int, capacity: float, seed: int
) -> dict[str, Any]:
    """Simulate one of `FLEETS` while its load rises from one pod's capacity to `RISE` times as much."""
    targets = FLEETS[name]
    scaler = Autoscaler(yaml.safe_load(AUTOSCALER.read_text())["spec"], targets) if targets else None
    fleet = Fleet(model, faces, scaler.replicas if scaler else RISE + 1, seed)
    row = {"name": name, "faces": faces, "start_seconds": start}
    row |= simulate_rise(fleet, scaler, start, (capacity, RISE * capacity))
    if name not in PLOTTED or (faces, start) != SCENARIOS[0]:
        del row["series"]
    return row


if __name__ == "__main__":
    main()
