"""Load generators: NVIDIA's perf_analyzer if it is installed, else threads of the project's client."""

import concurrent.futures
import csv
import dataclasses
import functools
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.speed.input_data import input_faces, write_input_data
from triton_face_client import FaceFeatureClient

WINDOWS = 3
"""Measurement windows of perf_analyzer, which needs three."""

INPUT_FACES = 16


@dataclasses.dataclass(frozen=True)
class Load:
    """Result of a closed loop: faces per second, and latencies of requests."""

    faces_per_second: float
    p50_ms: float
    p99_ms: float


class LoadError(RuntimeError):
    """The load generator failed; the message has the end of its output."""


class PerfAnalyzer:
    """perf_analyzer over gRPC. It always requests all outputs of the ensemble."""

    def __init__(self, command: str) -> None:
        self.command = command
        version = subprocess.run([command, "--version"], capture_output=True, text=True)
        self.name = (version.stdout + version.stderr).strip()
        self._folder = tempfile.TemporaryDirectory()

    def run(self, url: str, frames_input: str, batch: int, concurrency: int, seconds: float) -> Load:
        """Keep `concurrency` requests of `batch` faces in flight for at least `seconds`."""
        data = Path(self._folder.name) / f"{frames_input}.json"
        if not data.exists():
            write_input_data(data, frames_input, INPUT_FACES)
        table = data.with_suffix(".csv")
        table.unlink(missing_ok=True)
        finished = subprocess.run(
            [
                *(self.command, "-m", "ensemble", "-i", "grpc", "-u", url, "-b", str(batch)),
                *("--concurrency-range", str(concurrency), "--input-data", str(data)),
                *("--measurement-interval", str(round(1000 * seconds / WINDOWS)), "-f", str(table)),
                # Accept unstable windows: the benchmark uses medians over rounds.
                *("--stability-percentage", "100", "--max-trials", str(WINDOWS)),
            ],
            capture_output=True,
            text=True,
        )
        if not table.exists():
            raise LoadError((finished.stdout + finished.stderr)[-2000:])
        with table.open() as rows:
            row = next(csv.DictReader(rows))
        return Load(
            float(row["Inferences/Second"]), float(row["p50 latency"]) / 1e3, float(row["p99 latency"]) / 1e3
        )


class ProjectClient:
    """Threads of the project's client, which use more CPU time than perf_analyzer.

    Parameters
    ----------
    shm : bool or "cuda"
        The client's option. With "cuda" the frames are on the GPU before the load starts.
    headers : dict of str to str, optional
        Headers that give access to the restricted endpoints for shared memory.
    outputs : sequence of str
        The requested outputs.
    """

    name = "triton_face_client"

    def __init__(
        self,
        shm: bool | str = False,
        headers: dict[str, str] | None = None,
        outputs: Sequence[str] = ("HOG", "POSE"),
    ) -> None:
        self._outputs = outputs
        self._shm = shm
        self._headers = headers

    def run(self, url: str, frames_input: str, batch: int, concurrency: int, seconds: float) -> Load:
        """Keep `concurrency` requests of `batch` faces in flight for `seconds`."""
        some_frames, some_landmarks = _input_faces(frames_input)
        frames = np.resize(some_frames, (batch, *some_frames.shape[1:]))
        landmarks = np.resize(some_landmarks, (batch, *some_landmarks.shape[1:]))
        if self._shm == "cuda":
            frames = torch.from_numpy(frames).cuda()
        connected = threading.Barrier(concurrency)

        def loop(_number: int) -> tuple[float, list[float]]:
            latencies = []
            with FaceFeatureClient(url, batch_size=batch, shm=self._shm, headers=self._headers) as client:
                client.features(frames, landmarks, self._outputs)
                connected.wait()
                begin = time.perf_counter()
                while (start := time.perf_counter()) < begin + seconds:
                    client.features(frames, landmarks, self._outputs)
                    latencies.append(time.perf_counter() - start)
                return time.perf_counter() - begin, latencies

        with concurrent.futures.ThreadPoolExecutor(concurrency) as pool:
            loops = list(pool.map(loop, range(concurrency)))
        elapsed = max(seconds for seconds, _ in loops)
        latencies = [latency for _, latencies in loops for latency in latencies]
        p50, p99 = 1e3 * np.quantile(latencies, [0.5, 0.99])
        return Load(len(latencies) * batch / elapsed, float(p50), float(p99))


@functools.lru_cache
def _input_faces(frames_input: str) -> tuple[np.ndarray, np.ndarray]:
    return input_faces(frames_input, INPUT_FACES)


def load_generator() -> PerfAnalyzer | ProjectClient:
    """Return the perf_analyzer of PERF_ANALYZER or PATH, else the project's client."""
    command = os.environ.get("PERF_ANALYZER") or shutil.which("perf_analyzer")
    return PerfAnalyzer(command) if command else ProjectClient()
