"""`make bench`: measure every row of the speed table in alternation with py-feat.

Writes `results/bench.json`, `results/bench.md` and `results/bench.png`. PYFEAT_PYTHON names the Python of
py-feat's environment. PERF_ANALYZER names the perf_analyzer to use; by default that on PATH.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from benchmarks.speed import in_process, served
from benchmarks.speed.load import LoadError, load_generator
from benchmarks.speed.page import write_report
from benchmarks.speed.pyfeat_process import PyFeat, PyFeatError
from deploy.local import LocalServer
from deploy.local.server import DEFAULT_REPOSITORY, ServerError
from export.hog.configs import configured_settings
from export.hog.settings import HogSettings
from tests.support.face_data import photo_faces
from tests.support.machine import machine

RESULTS = Path(__file__).parents[1] / "results"
FACES = 500
SEED = 2026
PYFEAT_THREADS = 2
"""Threads of py-feat next to the server."""


def main() -> int:
    """Measure and write; return 1 with one line of error when the environment is incomplete."""
    arguments = _arguments()
    if "PYFEAT_PYTHON" not in os.environ:
        print(
            "bench: PYFEAT_PYTHON, the Python of py-feat's environment, is not set: run `make bench`",
            file=sys.stderr,
        )
        return 1
    if (settings := configured_settings(DEFAULT_REPOSITORY)) != HogSettings():
        print(
            f"bench: hog/config.pbtxt has {settings}, but py-feat computes {HogSettings()}: run "
            f"`python -m export hog {HogSettings().as_options()}`",
            file=sys.stderr,
        )
        return 1
    try:
        result = _measure(arguments.rounds, arguments.memory_minutes)
    except (ServerError, LoadError, PyFeatError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / "bench.json").write_text(json.dumps(result, indent=2) + "\n")
    write_report(result, arguments.results)
    print((arguments.results / "bench.md").read_text())
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument(
        "--rounds",
        type=int,
        default=7,
        help="rounds in process; half as many, at least 3, through the server (default: %(default)s)",
    )
    parser.add_argument(
        "--memory-minutes",
        type=float,
        default=3,
        help="minutes of load while memory is sampled (default: %(default)s)",
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="output folder")
    return parser.parse_args()


def _measure(rounds: int, memory_minutes: float) -> dict[str, object]:
    frames, landmarks = photo_faces(FACES, SEED)
    load = load_generator()
    served_rounds = max(3, rounds // 2)
    result: dict[str, object] = {
        "machine": machine(),
        "load": load.name,
        "rounds": rounds,
        "served_rounds": served_rounds,
    }
    with PyFeat(frames, landmarks) as pyfeat:
        result["hog"] = in_process.hog_rows(pyfeat, frames, landmarks, rounds)
        result["masks"] = in_process.mask_rows(pyfeat, landmarks, rounds)
        result["growth"] = in_process.growth_rows(frames, landmarks, rounds)
        with LocalServer() as server:
            rows = served.throughput_rows(server, load, pyfeat, PYFEAT_THREADS, served_rounds)
            result["served"] = rows
            result["one_face"] = served.one_face(server, pyfeat, frames, landmarks, rounds)
            best = max(rows, key=lambda row: row["ratio"])
            result["cpu_cost"] = served.cpu_cost(server, load, frames, landmarks, best, served_rounds)
            result["memory"] = served.memory_rows(server, load, memory_minutes)
    return result


if __name__ == "__main__":
    sys.exit(main())
