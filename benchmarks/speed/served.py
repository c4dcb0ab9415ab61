"""Speed through a real server over gRPC, against py-feat in process: throughput, latency, CPU, memory."""

import time
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from benchmarks.speed.alternating import alternate, median_ratio, timed
from benchmarks.speed.in_process import Row
from benchmarks.speed.input_data import as_uint8
from benchmarks.speed.load import PerfAnalyzer, ProjectClient
from benchmarks.speed.local_pipeline import LocalPipeline
from benchmarks.speed.pyfeat_process import PyFeat
from deploy.local import LocalServer
from tests.support.processes import cpu_seconds, resident_megabytes, shared_megabytes
from triton_face_client import FaceFeatureClient

PYFEAT_FACES = 50
"""Faces per call of py-feat; on two cores its throughput is highest near this number."""

SWEEP = ((1, 1), (8, 2), (32, 3), (64, 3), (128, 3))
"""Faces per request and requests in flight."""

LOAD_SECONDS = 5.0
"""Length of each measurement."""

MEMORY_BATCHES = (1, 8, 32, 64, 128)
"""Faces per request of the loads between two samples of memory."""


def throughput_rows(
    server: LocalServer,
    load: PerfAnalyzer | ProjectClient,
    pyfeat: PyFeat,
    threads: int,
    rounds: int,
    pyfeat_call: str = "features",
) -> list[Row]:
    """Sweep batch, concurrency and frame type; each point alternates with a call of py-feat."""
    sweep = [(name, *point) for name in ("FRAMES", "FRAMES_UINT8") for point in SWEEP]
    return [
        _throughput_row(server, load, pyfeat, threads, rounds, pyfeat_call, *point)
        for point in tqdm(sweep, desc="served", unit="point")
    ]


def _throughput_row(
    server: LocalServer,
    load: PerfAnalyzer | ProjectClient,
    pyfeat: PyFeat,
    threads: int,
    rounds: int,
    pyfeat_call: str,
    frames_input: str,
    batch: int,
    concurrency: int,
) -> Row:
    loads = []

    def served() -> float:
        loads.append(load.run(server.grpc_url, frames_input, batch, concurrency, LOAD_SECONDS))
        return 1 / loads[-1].faces_per_second

    seconds = alternate(
        {
            "service": served,
            "pyfeat": lambda: pyfeat.seconds(pyfeat_call, PYFEAT_FACES, threads) / PYFEAT_FACES,
        },
        rounds,
    )
    return {
        "input": frames_input,
        "batch": batch,
        "concurrency": concurrency,
        "faces_per_second": 1 / float(np.median(seconds["service"])),
        # `alternate` does not count the first round.
        "p50_ms": float(np.median([result.p50_ms for result in loads[1:]])),
        "p99_ms": float(np.median([result.p99_ms for result in loads[1:]])),
        "pyfeat_faces_per_second": 1 / float(np.median(seconds["pyfeat"])),
        "ratio": median_ratio(seconds["pyfeat"], seconds["service"]),
    }


def one_face(
    server: LocalServer,
    pyfeat: PyFeat,
    frames: np.ndarray,
    landmarks: np.ndarray,
    rounds: int,
    outputs: Sequence[str] = ("HOG", "POSE"),
    pyfeat_call: str = "features",
) -> Row:
    """Time one face per request against one face per call of py-feat with 1 and 2 threads."""
    uint8 = as_uint8(frames[:1])
    with FaceFeatureClient(server.grpc_url) as client:
        seconds = alternate(
            {
                "fp32": timed(lambda: client.features(frames[:1], landmarks[:1], outputs)),
                "uint8": timed(lambda: client.features(uint8, landmarks[:1], outputs)),
                "pyfeat_1": lambda: pyfeat.seconds(pyfeat_call, 1, 1),
                "pyfeat_2": lambda: pyfeat.seconds(pyfeat_call, 1, 2),
            },
            rounds,
        )
    row: Row = {f"{name}_ms": 1e3 * float(np.median(values)) for name, values in seconds.items()}
    for kind in ("fp32", "uint8"):
        for threads in (1, 2):
            row[f"{kind}_over_pyfeat_{threads}"] = median_ratio(seconds[kind], seconds[f"pyfeat_{threads}"])
    return row


def cpu_cost(
    server: LocalServer,
    load: PerfAnalyzer | ProjectClient,
    frames: np.ndarray,
    landmarks: np.ndarray,
    best: Row,
    rounds: int,
) -> Row:
    """Compare CPU time per face of the server's processes with the same computation in this process.

    `best` is the row of `throughput_rows` whose load is repeated.
    """
    pipeline = LocalPipeline(threads=1)
    batch = int(best["batch"])
    faces = np.resize(frames, (batch, *frames.shape[1:])), np.resize(landmarks, (batch, 68, 2))
    if best["input"] == "FRAMES_UINT8":
        faces = as_uint8(faces[0]), faces[1]

    def served() -> float:
        with FaceFeatureClient(server.grpc_url) as client:
            before, seconds = _faces_served(client), cpu_seconds(server.pid)
            load.run(server.grpc_url, str(best["input"]), batch, int(best["concurrency"]), LOAD_SECONDS)
            seconds = cpu_seconds(server.pid) - seconds
            return seconds / (_faces_served(client) - before)

    def in_process() -> float:
        repeats = max(3, 1000 // batch)
        start = time.process_time()
        for _ in range(repeats):
            pipeline.features(*faces)
        return (time.process_time() - start) / repeats / batch

    seconds = alternate({"served": served, "in_process": in_process}, rounds)
    return {
        "input": best["input"],
        "batch": batch,
        "concurrency": best["concurrency"],
        "served_cpu_ms": 1e3 * float(np.median(seconds["served"])),
        "in_process_cpu_ms": 1e3 * float(np.median(seconds["in_process"])),
        "ratio": median_ratio(seconds["served"], seconds["in_process"]),
    }


def memory_rows(server: LocalServer, load: PerfAnalyzer | ProjectClient, minutes: float) -> list[Row]:
    """Sample the memory of the server's processes and of /dev/shm under loads of changing batch size."""
    rows: list[Row] = []
    start = time.monotonic()
    with tqdm(total=round(60 * minutes), desc="memory", unit="s") as progress:
        while (elapsed := time.monotonic() - start) < 60 * minutes:
            for batch in MEMORY_BATCHES:
                load.run(server.grpc_url, "FRAMES", batch, 2, LOAD_SECONDS)
            rows.append(
                {
                    "seconds": round(time.monotonic() - start, 1),
                    "resident_mb": resident_megabytes(server.pid),
                    "shared_mb": shared_megabytes(),
                }
            )
            progress.update(round(rows[-1]["seconds"] - elapsed))
    return rows


def _faces_served(client: FaceFeatureClient) -> int:
    statistics = client.connection.get_inference_statistics("align_mask")
    return statistics.model_stats[0].inference_count
