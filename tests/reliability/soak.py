"""A mixed load for a long time, and whether the memory of any process or /dev/shm grows.

The same load on an `align_mask` that leaks on purpose shows that a leak would be seen.
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
from tests.reliability.growth import growth
from tests.support.face_data import photo_faces
from tests.support.injected_code import wrap_function
from tests.support.processes import resident_by_process
from triton_face_client import FaceFeatureClient

CALLERS = 3
"""Threads, each with a client of its own."""

CALLS_A_CLIENT = 50
"""After which a caller takes a new client, as callers come and go."""

BATCHES = (1, 2, 5, 8, 32, 100)

SIZES = ((112, 112), (90, 120), (200, 160))
"""Height and width of frames, pixels."""

BAD_SHARE = 0.05
"""Of the faces: with a NaN among its landmarks."""

FLAT_MB = 100.0
"""Growth below it is none: allocators keep tens of megabytes more or less."""

SHARED_MEMORY = "/dev/shm"


@dataclasses.dataclass(frozen=True)
class SoakReport:
    """What came of it.

    Attributes
    ----------
    seconds : list of float
        When the samples were taken.
    memory_mb : dict of str to list of float
        Resident memory of each process of the server, without what it shares, and what the server has in
        /dev/shm.
    faces, wrong : int
        Sound faces answered, and how many not with the bits that they must have.
    failures : list of str
        What ended a caller.
    """

    seconds: list[float]
    memory_mb: dict[str, list[float]]
    faces: int
    wrong: int
    failures: list[str]

    @property
    def growth_mb(self) -> dict[str, float]:
        """Return the growth of each after the warm-up."""
        return {name: growth(samples) for name, samples in self.memory_mb.items()}


def kind(name: str) -> str:
    """Return what one of `memory_mb` is, without the process id."""
    return name.rpartition(" ")[0] or name


def soak(server: LocalServer, seconds: float, sample_seconds: float) -> SoakReport:
    """Put a mixed load on a server for some seconds and sample its memory."""
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
    """Copy a repository, with an align_mask that keeps so many bytes of every dynamic batch for ever."""
    leaking = shutil.copytree(repository, folder / "leaking")
    keep = f"args[0].__dict__.setdefault('kept', []).append(bytearray(b'x' * {leak_bytes}))"
    wrap_function(leaking / "align_mask/1/model.py", "TritonPythonModel.execute", before=keep)
    return leaking


class _Caller(contextlib.AbstractContextManager):
    """A thread that calls until the end of the block; then `faces`, `wrong` and `failure` are known."""

    def __init__(self, url: str, seed: int) -> None:
        self._url = url
        self._generator = np.random.default_rng(seed)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.faces = self.wrong = 0
        self.failure: str | None = None

    def __enter__(self) -> "_Caller":
        """Start."""
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        """Let the call under way end."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            with FaceFeatureClient(self._url) as client:
                pools = [_Pool(client, size, seed) for seed, size in enumerate(SIZES)]
            while not self._stopping.is_set():
                with FaceFeatureClient(self._url) as client:
                    for _ in range(CALLS_A_CLIENT):
                        if not self._stopping.is_set():
                            self._call(client, pools[self._generator.integers(len(pools))])
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"
            raise

    def _call(self, client: FaceFeatureClient, pool: "_Pool") -> None:
        which = self._generator.integers(0, len(pool.landmarks), self._generator.choice(BATCHES))
        landmarks = pool.landmarks[which]
        bad = self._generator.random(len(which)) < BAD_SHARE
        landmarks[bad, 30] = np.nan
        frames = pool.in_bytes[which] if self._generator.random() < 0.5 else pool.frames[which]
        answers = client.features(frames, landmarks, on_invalid="nan")
        right = (answers["HOG"] == pool.hog[which]).all(axis=1)
        self.faces += int((~bad).sum())
        self.wrong += int((~right[~bad]).sum()) + int(np.isfinite(answers["HOG"][bad]).any(axis=1).sum())


class _Pool:
    """Faces of one frame size, as bytes and as the floats they stand for, and the features of both."""

    def __init__(self, client: FaceFeatureClient, size: tuple[int, int], seed: int) -> None:
        frames, self.landmarks = photo_faces(24, 620 + seed, size)
        self.in_bytes = (255 * frames).astype(np.uint8)
        self.frames = self.in_bytes.astype(np.float32) / np.float32(255)
        self.hog = client.features(self.in_bytes, self.landmarks, ["HOG"])["HOG"]
