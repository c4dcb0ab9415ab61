"""Load on a server: NVIDIA's perf_analyzer where there is one, else the project's own client."""

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
from pathlib import Path

import numpy as np
import torch

from benchmarks.speed.input_data import input_faces, write_input_data
from triton_face_client import FaceFeatureClient

WINDOWS = 3
"""perf_analyzer compares its last three."""

INPUT_FACES = 16


@dataclasses.dataclass(frozen=True)
class Load:
    """What came of a closed loop: faces a second, and milliseconds of a request."""

    faces_per_second: float
    p50_ms: float
    p99_ms: float


class LoadError(RuntimeError):
    """The load generator failed; the message is its own last words."""


class PerfAnalyzer:
    """perf_analyzer over gRPC. It asks for every output of the ensemble; it cannot be told otherwise."""

    def __init__(self, command: str) -> None:
        self.command = command
        said = subprocess.run([command, "--version"], capture_output=True, text=True)
        self.name = (said.stdout + said.stderr).strip()
        self._folder = tempfile.TemporaryDirectory()

    def run(self, url: str, frames_input: str, batch: int, concurrency: int, seconds: float) -> Load:
        """Send requests of `batch` faces, `concurrency` of them at a time, for some `seconds` and more."""
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
                # What a machine with neighbours does; medians over rounds are taken later.
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


class OwnClient:
    """Threads of the project's client; asks for HOG and POSE. Slower than perf_analyzer: it is Python.

    Parameters
    ----------
    shm : bool or "cuda"
        The client's option. With "cuda" the frames already lie on the GPU.
    headers : dict of str to str, optional
        Open the endpoints that register shared memory.
    """

    name = "triton_face_client"

    def __init__(self, shm: bool | str = False, headers: dict[str, str] | None = None) -> None:
        self._shm = shm
        self._headers = headers

    def run(self, url: str, frames_input: str, batch: int, concurrency: int, seconds: float) -> Load:
        """Send requests of `batch` faces, `concurrency` of them at a time, for some `seconds`."""
        few_frames, few_landmarks = _input_faces(frames_input)
        frames = np.resize(few_frames, (batch, *few_frames.shape[1:]))
        landmarks = np.resize(few_landmarks, (batch, *few_landmarks.shape[1:]))
        if self._shm == "cuda":
            frames = torch.from_numpy(frames).cuda()
        connected = threading.Barrier(concurrency)

        def loop(_number: int) -> tuple[float, list[float]]:
            latencies = []
            with FaceFeatureClient(url, batch_size=batch, shm=self._shm, headers=self._headers) as client:
                client.features(frames, landmarks)
                connected.wait()
                begin = time.perf_counter()
                while (start := time.perf_counter()) < begin + seconds:
                    client.features(frames, landmarks)
                    latencies.append(time.perf_counter() - start)
                return time.perf_counter() - begin, latencies

        with concurrent.futures.ThreadPoolExecutor(concurrency) as pool:
            loops = list(pool.map(loop, range(concurrency)))
        elapsed = max(seconds for seconds, _ in loops)
        latencies = [one for _, many in loops for one in many]
        p50, p99 = 1e3 * np.quantile(latencies, [0.5, 0.99])
        return Load(len(latencies) * batch / elapsed, float(p50), float(p99))


@functools.lru_cache
def _input_faces(frames_input: str) -> tuple[np.ndarray, np.ndarray]:
    return input_faces(frames_input, INPUT_FACES)


def load_generator() -> PerfAnalyzer | OwnClient:
    """Return perf_analyzer as PERF_ANALYZER names it or as PATH has it, else the own client."""
    command = os.environ.get("PERF_ANALYZER") or shutil.which("perf_analyzer")
    return PerfAnalyzer(command) if command else OwnClient()
