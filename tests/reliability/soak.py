"""Memory of the server's processes and of /dev/shm under a mixed load over a long time.

The same load on an `align_mask` with a deliberate leak shows that the test detects leaks.
"""

import contextlib
import dataclasses
import shutil
import threading
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from deploy.local import LocalServer
from deploy.local.supervisor import server_processes
from tests.reliability.memory_growth import growth
from tests.support.face_data import photo_faces
from tests.support.injected_code import wrap_function
from tests.support.processes import resident_by_process
from triton_face_client import FaceFeatureClient

CALLERS = 3
"""Number of threads, each with a separate client."""

CALLS_PER_CLIENT = 50
"""Calls after which a caller opens a new client, as callers do in production."""

FACES_PER_CALL = (1, 2, 5, 8, 32, 100)

FRAME_SIZES = ((112, 112), (90, 120), (200, 160))
"""Height and width of frames, pixels."""

INVALID_FRACTION = 0.05
"""Fraction of the faces with a NaN landmark."""

SHARED_MEMORY = "/dev/shm"


@dataclasses.dataclass(frozen=True)
class SoakReport:
    """Outcome of a soak test.

    Attributes
    ----------
    seconds : list of float
        Times of the samples.
    memory_mb : dict of str to list of float
        Private resident memory of each process of the server, and the server's files in /dev/shm.
    faces, wrong : int
        Valid faces computed, and faces whose features are not bit-identical to the expected ones.
    failures : list of str
        Exceptions that ended callers.
    """

    seconds: list[float]
    memory_mb: dict[str, list[float]]
    faces: int
    wrong: int
    failures: list[str]

    @property
    def growth_mb(self) -> dict[str, float]:
        """Growth of each entry of `memory_mb` after the warm-up."""
        return {name: growth(samples) for name, samples in self.memory_mb.items()}


def process_name(name: str) -> str:
    """Return a key of `memory_mb` without its process id."""
    return name.rpartition(" ")[0] or name


def soak(server: LocalServer, seconds: float, sample_seconds: float) -> SoakReport:
    """Put a mixed load on a server for `seconds` and sample its memory every `sample_seconds`."""
    samples: dict[str, list[float]] = {}
    times: list[float] = []
    names = {process.pid: f"{process.name} {process.pid}" for process in server_processes(server.pid)}
    with contextlib.ExitStack() as stack:
        callers = [stack.enter_context(_Caller(server.grpc_url, number)) for number in range(CALLERS)]
        start = time.monotonic()
        with tqdm(total=round(seconds), desc="soak", unit="s") as progress:
            while (elapsed := time.monotonic() - start) < seconds:
                time.sleep(sample_seconds)
                times.append(time.monotonic() - start)
                for pid, megabytes in resident_by_process(server.pid).items():
                    samples.setdefault(names[pid], []).append(megabytes)
                regions = sum(512 * path.stat().st_blocks for path in server.shared_memory())
                samples.setdefault(SHARED_MEMORY, []).append(regions / 2**20)
                progress.update(round(times[-1]) - round(elapsed))
    return SoakReport(
        times,
        samples,
        sum(caller.faces for caller in callers),
        sum(caller.wrong for caller in callers),
        [caller.failure for caller in callers if caller.failure],
    )


def leaking_repository(repository: Path, folder: Path, leak_bytes: int) -> Path:
    """Copy a repository; the copy's align_mask leaks `leak_bytes` in every dynamic batch."""
    leaking = shutil.copytree(repository, folder / "leaking")
    keep = f"args[0].__dict__.setdefault('kept', []).append(bytearray(b'x' * {leak_bytes}))"
    wrap_function(leaking / "align_mask/1/model.py", "TritonPythonModel.execute", before=keep)
    return leaking


class _Caller(contextlib.AbstractContextManager):
    """Thread that calls the server until the end of the block, which sets `faces`, `wrong` and `failure`."""

    def __init__(self, url: str, seed: int) -> None:
        self._url = url
        self._generator = np.random.default_rng(seed)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.faces = self.wrong = 0
        self.failure: str | None = None

    def __enter__(self) -> "_Caller":
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        """Wait for the call in flight."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            with FaceFeatureClient(self._url) as client:
                pools = [_Pool(client, size, seed) for seed, size in enumerate(FRAME_SIZES)]
            while not self._stopping.is_set():
                with FaceFeatureClient(self._url) as client:
                    for _ in range(CALLS_PER_CLIENT):
                        if not self._stopping.is_set():
                            self._call(client, pools[self._generator.integers(len(pools))])
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"
            raise

    def _call(self, client: FaceFeatureClient, pool: "_Pool") -> None:
        chosen = self._generator.integers(0, len(pool.landmarks), self._generator.choice(FACES_PER_CALL))
        landmarks = pool.landmarks[chosen]
        invalid = self._generator.random(len(chosen)) < INVALID_FRACTION
        landmarks[invalid, 30] = np.nan
        frames = pool.uint8_frames[chosen] if self._generator.random() < 0.5 else pool.fp32_frames[chosen]
        outputs = client.features(frames, landmarks, on_invalid="nan")
        is_right = (outputs["HOG"] == pool.hog[chosen]).all(axis=1)
        self.faces += int((~invalid).sum())
        self.wrong += int((~is_right[~invalid]).sum()) + int(
            np.isfinite(outputs["HOG"][invalid]).any(axis=1).sum()
        )


class _Pool:
    """Faces of one frame size, in UINT8 and FP32, and their expected features."""

    def __init__(self, client: FaceFeatureClient, size: tuple[int, int], seed: int) -> None:
        frames, self.landmarks = photo_faces(24, 620 + seed, size)
        self.uint8_frames = (255 * frames).astype(np.uint8)
        self.fp32_frames = self.uint8_frames.astype(np.float32) / np.float32(255)
        self.hog = client.features(self.uint8_frames, self.landmarks, ["HOG"])["HOG"]
