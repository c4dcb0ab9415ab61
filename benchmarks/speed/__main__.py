"""`make bench`: measure every row of the speed table in alternation with py-feat.

Writes `results/bench.json`, `results/bench.md` and `results/bench.png`. PYFEAT_PYTHON names the Python of
py-feat's environment. PERF_ANALYZER names the perf_analyzer to use; by default that on PATH.
"""

import argparse
import sys

from benchmarks.speed import command, in_process, served
from benchmarks.speed.load import load_generator
from benchmarks.speed.page import write_report
from benchmarks.speed.pyfeat_process import PyFeat
from deploy.local import LocalServer
from deploy.local.server import DEFAULT_REPOSITORY
from export.hog.configs import configured_settings
from export.hog.settings import PYFEAT_COMMAND, HogSettings
from tests.support.face_data import photo_faces
from tests.support.machine import machine

FACES = 500
SEED = 2026
PYFEAT_THREADS = 2
"""Threads of py-feat next to the server."""


def main() -> int:
    """Measure and write; return 1 with one line of error when the environment is incomplete."""
    arguments = _arguments()
    if (settings := configured_settings(DEFAULT_REPOSITORY)) != HogSettings():
        print(
            f"bench: hog/config.pbtxt has {settings}, but py-feat computes {HogSettings()}: run "
            f"`{PYFEAT_COMMAND}`",
            file=sys.stderr,
        )
        return 1
    return command.run(
        "bench",
        "bench",
        arguments.results,
        lambda: _measure(arguments.rounds, arguments.memory_minutes),
        write_report,
    )


def _arguments() -> argparse.Namespace:
    parser = command.argument_parser("benchmarks.speed", __doc__)
    parser.add_argument(
        "--memory-minutes",
        type=float,
        default=3,
        help="minutes of load while memory is sampled (default: %(default)s)",
    )
    return parser.parse_args()


def _measure(rounds: int, memory_minutes: float) -> dict[str, object]:
    frames, landmarks = photo_faces(FACES, SEED)
    load = load_generator()
    served_rounds = command.served_rounds(rounds)
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
