"""Through a real server over gRPC, beside py-feat in process: throughput, latency, CPU cost, memory."""

import time

import numpy as np
from tqdm import tqdm

from benchmarks.speed.in_process import Row
from benchmarks.speed.input_data import as_bytes
from benchmarks.speed.load import OwnClient, PerfAnalyzer
from benchmarks.speed.local_pipeline import InProcess
from benchmarks.speed.pyfeat_process import PyFeat, median_ratio, take_turns, timed
from deploy.local import LocalServer
from tests.support.processes import cpu_seconds, resident_megabytes, shared_megabytes
from triton_face_client import FaceFeatureClient

PEER_FACES = 50
"""py-feat's best number of faces a call on two cores is near this one."""

SWEEP = ((1, 1), (8, 2), (32, 3), (64, 3), (128, 3))
"""Faces a request and requests in flight."""

LOAD_SECONDS = 5.0
"""Length of each load."""

MEMORY_BATCHES = (1, 8, 32, 64, 128)


def throughput_rows(
    server: LocalServer, load: PerfAnalyzer | OwnClient, peer: PyFeat, threads: int, rounds: int
) -> list[Row]:
    """Sweep batch and concurrency with both kinds of frames; py-feat takes its turn beside each."""
    sweep = [(name, *point) for name in ("FRAMES", "FRAMES_UINT8") for point in SWEEP]
    return [
        _throughput_row(server, load, peer, threads, rounds, *point)
        for point in tqdm(sweep, desc="served", unit="point")
    ]


def _throughput_row(
    server: LocalServer,
    load: PerfAnalyzer | OwnClient,
    peer: PyFeat,
    threads: int,
    rounds: int,
    frames_input: str,
    batch: int,
    concurrency: int,
) -> Row:
    loads = []

    def served() -> float:
        loads.append(load.run(server.grpc_url, frames_input, batch, concurrency, LOAD_SECONDS))
        return 1 / loads[-1].faces_per_second

    seconds = take_turns(
        {
            "ours": served,
            "pyfeat": lambda: peer.seconds("features", PEER_FACES, threads) / PEER_FACES,
        },
        rounds,
    )
    return {
        "input": frames_input,
        "batch": batch,
        "concurrency": concurrency,
        "faces_per_second": 1 / float(np.median(seconds["ours"])),
        # take_turns throws the first round away, so its latencies go as well.
        "p50_ms": float(np.median([one.p50_ms for one in loads[1:]])),
        "p99_ms": float(np.median([one.p99_ms for one in loads[1:]])),
        "pyfeat_faces_per_second": 1 / float(np.median(seconds["pyfeat"])),
        "ratio": median_ratio(seconds["pyfeat"], seconds["ours"]),
    }


def one_face(
    server: LocalServer, peer: PyFeat, frames: np.ndarray, landmarks: np.ndarray, rounds: int
) -> Row:
    """Time one face, one request at a time, against py-feat's one face in process with 1 and 2 threads."""
    in_bytes = as_bytes(frames[:1])
    with FaceFeatureClient(server.grpc_url) as client:
        seconds = take_turns(
            {
                "fp32": timed(lambda: client.features(frames[:1], landmarks[:1])),
                "uint8": timed(lambda: client.features(in_bytes, landmarks[:1])),
                "pyfeat_1": lambda: peer.seconds("features", 1, 1),
                "pyfeat_2": lambda: peer.seconds("features", 1, 2),
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
    load: PerfAnalyzer | OwnClient,
    frames: np.ndarray,
    landmarks: np.ndarray,
    best: Row,
    rounds: int,
) -> Row:
    """Compare CPU seconds a face of the server's processes with the same computation in one process."""
    ours = InProcess(threads=1)
    batch = int(best["batch"])
    faces = np.resize(frames, (batch, *frames.shape[1:])), np.resize(landmarks, (batch, 68, 2))
    if best["input"] == "FRAMES_UINT8":
        faces = as_bytes(faces[0]), faces[1]

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
            ours.features(*faces)
        return (time.process_time() - start) / repeats / batch

    seconds = take_turns({"served": served, "in_process": in_process}, rounds)
    return {
        "input": best["input"],
        "batch": batch,
        "concurrency": best["concurrency"],
        "served_cpu_ms": 1e3 * float(np.median(seconds["served"])),
        "in_process_cpu_ms": 1e3 * float(np.median(seconds["in_process"])),
        "ratio": median_ratio(seconds["served"], seconds["in_process"]),
    }


def memory_rows(server: LocalServer, load: PerfAnalyzer | OwnClient, minutes: float) -> list[Row]:
    """Sample the memory of the server's processes and /dev/shm under a load that changes its batch size."""
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
