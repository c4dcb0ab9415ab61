"""A process of a server dies or hangs while a client's calls are in flight."""

import contextlib
import dataclasses
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np

from deploy.local import LocalServer
from deploy.local.supervisor import server_processes
from tests.support.face_data import photo_faces
from tests.support.make_serve import run_make_serve, tritonserver_pid
from triton_face_client import FaceFeatureClient

DIFFERENT_FACES = 40
"""Different faces that each call repeats in random order, so that a lost or swapped row is detected."""

FACES = 3000
"""Faces of one call."""

CRASH_AFTER_SECONDS = 0.3
"""Time from the start of a call to the crash."""


@dataclasses.dataclass(frozen=True)
class CrashReport:
    """Outcome of a crash.

    Attributes
    ----------
    seconds : float
        Time from the crash until the server is ready again.
    faces, wrong : int
        Faces of the client's calls during the crash, and those whose outputs are wrong.
    """

    seconds: float
    faces: int
    wrong: int


def stub_crash(repository: Path, signal_number: signal.Signals) -> CrashReport:
    """Send a signal to an align_mask stub process of `make serve` while a client's call is in flight."""
    with run_make_serve(repository) as (process, lines), _Load(lines["gRPC"]) as load:
        time.sleep(CRASH_AFTER_SECONDS)
        stubs = [stub for stub in server_processes(tritonserver_pid(process)) if stub.name == "align_mask"]
        os.kill(stubs[0].pid, signal_number)
        crash = time.monotonic()
        for line in process.stderr:
            if "ready again" in line:
                break
        seconds = time.monotonic() - crash
    return CrashReport(seconds, load.faces, load.wrong)


def one_of_two_killed(repository: Path) -> CrashReport:
    """Kill one of two servers that share a client's calls, and start it again."""
    with (
        LocalServer(repository) as first,
        LocalServer(repository) as second,
        _Load([first.grpc_url, second.grpc_url]) as load,
    ):
        time.sleep(CRASH_AFTER_SECONDS)
        crash = time.monotonic()
        os.killpg(second.pid, signal.SIGKILL)
        second.restart()
        seconds = time.monotonic() - crash
    return CrashReport(seconds, load.faces, load.wrong)


class _Load(contextlib.AbstractContextManager):
    """Consecutive calls of a client until the end of the block, which sets `faces` and `wrong`."""

    def __init__(self, url: str | list[str]) -> None:
        self._client = FaceFeatureClient(url)
        frames, landmarks = photo_faces(DIFFERENT_FACES, 610)
        self._faces = (255 * frames).astype(np.uint8), landmarks
        self._order = np.random.default_rng(0).integers(0, DIFFERENT_FACES, FACES)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.faces = self.wrong = 0

    def __enter__(self) -> "_Load":
        """Compute the expected outputs, then start."""
        self._expected = self._client.features(*self._faces)
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        """Wait for the call in flight."""
        self._stopping.set()
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        frames, landmarks = (values[self._order] for values in self._faces)
        while not self._stopping.is_set():
            outputs = self._client.features(frames, landmarks)
            is_right = np.ones(FACES, dtype=bool)
            for name, expected in self._expected.items():
                is_right &= (outputs[name] == expected[self._order]).all(axis=1)
            self.faces += FACES
            self.wrong += int((~is_right).sum())
