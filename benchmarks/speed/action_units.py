"""`make bench-au`: speed of action units in alternation with py-feat; the second half of `make bench`.

Writes `results/action_units.json` and `results/action_units.md`. PYFEAT_PYTHON names the Python of py-feat's
environment. AU_WEIGHTS=FILE.skops measures another checkpoint than the synthetic one.
"""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.speed import command
from benchmarks.speed.alternating import alternate, median_ratio, timed
from benchmarks.speed.au_checkpoints import PUBLISHED, export_checkpoint, synthetic_checkpoint
from benchmarks.speed.au_page import write_page
from benchmarks.speed.in_process import Row
from benchmarks.speed.load import ProjectClient
from benchmarks.speed.local_pipeline import LocalPipeline
from benchmarks.speed.pyfeat_process import PyFeat
from benchmarks.speed.served import LOAD_SECONDS, one_face, throughput_rows
from deploy.local import LocalServer
from tests.support.face_data import photo_faces
from tests.support.machine import machine

FACES = 50
SEED = 2026
PYFEAT_THREADS = 2
"""Threads of py-feat next to the server."""

COUNTS = (1, 5, 32, 50)
"""Faces per call in process."""

OUTPUTS = {"AU": ("AU",), "HOG and AU": ("HOG", "AU"), "HOG": ("HOG",)}
"""Outputs whose throughput is compared."""


def main() -> int:
    """Measure and write; return 1 with one line of error when the environment is incomplete."""
    arguments = command.argument_parser("benchmarks.speed.action_units", __doc__).parse_args()
    return command.run(
        "bench-au", "action_units", arguments.results, lambda: _measure(arguments.rounds), write_page
    )


def _measure(rounds: int) -> dict[str, object]:
    frames, landmarks = photo_faces(FACES, SEED)
    weights = os.environ.get("AU_WEIGHTS")
    checkpoint = Path(weights) if weights else synthetic_checkpoint(PUBLISHED)
    served_rounds = command.served_rounds(rounds)
    result: dict[str, object] = {
        "machine": machine(),
        "load": ProjectClient.name,
        "checkpoint": checkpoint.name if weights else PUBLISHED,
        "rounds": rounds,
        "served_rounds": served_rounds,
    }
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "au_repository"
        export_checkpoint(checkpoint, repository)
        with PyFeat(frames, landmarks, au_checkpoint=checkpoint) as pyfeat:
            result["in_process"] = in_process_rows(
                pyfeat, LocalPipeline(1, repository), frames, landmarks, rounds
            )
            with LocalServer(au_repository=repository) as server:
                load = ProjectClient(outputs=("AU",))
                rows = throughput_rows(server, load, pyfeat, PYFEAT_THREADS, served_rounds, "action_units")
                result["served"] = rows
                result["one_face"] = one_face(
                    server, pyfeat, frames, landmarks, rounds, ["AU"], "action_units"
                )
                best = max(rows, key=lambda row: row["faces_per_second"])
                result["outputs"] = output_rows(server, best, served_rounds)
    return result


def in_process_rows(
    pyfeat: PyFeat, pipeline: LocalPipeline, frames: np.ndarray, landmarks: np.ndarray, rounds: int
) -> list[Row]:
    """Time crops to AU, and HOG to AU alone, at `COUNTS` faces in one thread."""
    rows = []
    for count in tqdm(COUNTS, desc="AU in process", unit="size"):
        crops = frames[:count], landmarks[:count]
        features = pipeline.hog_and_aligned_landmarks(*crops)
        seconds = alternate(
            {
                "service": timed(lambda crops=crops: pipeline.action_units(*crops)),
                "service_classify": timed(lambda features=features: pipeline.classify(*features)),
                "pyfeat": lambda n=count: pyfeat.seconds("action_units", n, 1),
                "pyfeat_classify": lambda n=count: pyfeat.seconds("classify", n, 1),
            },
            rounds,
        )
        row: Row = {"faces": count}
        row |= {f"{name}_ms": 1e3 * float(np.median(values)) / count for name, values in seconds.items()}
        row["ratio"] = median_ratio(seconds["pyfeat"], seconds["service"])
        row["classify_ratio"] = median_ratio(seconds["pyfeat_classify"], seconds["service_classify"])
        rows.append(row)
    return rows


def output_rows(server: LocalServer, best: Row, rounds: int) -> list[Row]:
    """Compare the throughput of `OUTPUTS` at the load of the row `best` of `throughput_rows`."""
    batch, concurrency = int(best["batch"]), int(best["concurrency"])

    def seconds_per_face(outputs: tuple[str, ...]) -> float:
        load = ProjectClient(outputs=outputs)
        return (
            1
            / load.run(server.grpc_url, str(best["input"]), batch, concurrency, LOAD_SECONDS).faces_per_second
        )

    seconds = alternate(
        {name: lambda outputs=outputs: seconds_per_face(outputs) for name, outputs in OUTPUTS.items()}, rounds
    )
    return [
        {
            "outputs": name,
            "input": best["input"],
            "batch": batch,
            "concurrency": concurrency,
            "faces_per_second": 1 / float(np.median(values)),
            "time_over_au": median_ratio(values, seconds["AU"]),
        }
        for name, values in seconds.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
