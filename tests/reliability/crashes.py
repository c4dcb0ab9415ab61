"""A process of the server dies, hangs or is told to stop while faces are under way: what becomes of them."""

import contextlib
import dataclasses
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException

from deploy.local import LocalServer
from deploy.local.supervisor import server_processes
from tests.support.face_data import photo_faces
from tests.support.make_serve import read_until_ready, start, the_server
from triton_face_client import FaceFeatureClient
from triton_face_client.transports.base import create_input

DIFFERENT = 40
"""Faces, each of which is sent many times, so that one that was mixed up or lost shows."""

FACES = 3000
"""Of one call."""

BEGIN_SECONDS = 0.3
"""From the start of a call to what happens to the server."""

BACK_SECONDS = 60.0
"""For a server that never comes back."""

STOPPING_REQUESTS = 60
"""Sent before the server is told to stop; a second of work."""

SENT_SECONDS = 0.4
"""After which the server has them all, and most are under way."""

REQUEST_FACES = 32

SMALL = (24, 24)
"""Frames that are sent at once and take as much work as others, pixels."""


@dataclasses.dataclass(frozen=True)
class CrashReport:
    """What came of a crash.

    Attributes
    ----------
    seconds : float
        From the crash until the server was ready again.
    faces, wrong : int
        Faces of the client's calls during it, and how many had another answer than they must.
    """

    seconds: float
    faces: int
    wrong: int


@dataclasses.dataclass(frozen=True)
class StopReport:
    """What came of requests when the server was told to stop.

    Attributes
    ----------
    accepted, under_way, answered : int
        Requests sent before, how many of them had no answer yet, and how many were answered with the right
        bits.
    later, silent : int
        Requests sent after, until the server was gone, and how many of all got neither answer nor error.
    seconds : float
        Until the server was gone.
    left : list of str
        Processes and files in /dev/shm of the server's that were still there.
    """

    accepted: int
    under_way: int
    answered: int
    later: int
    silent: int
    seconds: float
    left: list[str]


def stub_crash(repository: Path, number: signal.Signals) -> CrashReport:
    """Send a signal to an align_mask stub of `make serve` while a client's call is under way."""
    process = start(repository)
    try:
        url = read_until_ready(process)["gRPC"]
        with _Load(url) as load:
            time.sleep(BEGIN_SECONDS)
            stubs = [one for one in server_processes(the_server(process)) if one.name == "align_mask"]
            os.kill(stubs[0].pid, number)
            crashed = time.monotonic()
            for line in process.stderr:
                if "ready again" in line:
                    break
            seconds = time.monotonic() - crashed
        return CrashReport(seconds, load.faces, load.wrong)
    finally:
        process.terminate()
        process.communicate(timeout=BACK_SECONDS)


def one_of_two_killed(repository: Path) -> CrashReport:
    """Kill one of two servers that a client's calls are balanced over, and start it again."""
    with (
        LocalServer(repository) as first,
        LocalServer(repository) as second,
        _Load([first.grpc_url, second.grpc_url]) as load,
    ):
        time.sleep(BEGIN_SECONDS)
        crashed = time.monotonic()
        os.killpg(second.pid, signal.SIGKILL)
        second.restart()
        seconds = time.monotonic() - crashed
    return CrashReport(seconds, load.faces, load.wrong)


class _Load(contextlib.AbstractContextManager):
    """Calls of a client, one after the other until the block ends; then `faces` and `wrong` are known."""

    def __init__(self, url: str | list[str]) -> None:
        self._client = FaceFeatureClient(url)
        frames, landmarks = photo_faces(DIFFERENT, 610)
        self._faces = (255 * frames).astype(np.uint8), landmarks
        self._which = np.random.default_rng(0).integers(0, DIFFERENT, FACES)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.faces = self.wrong = 0

    def __enter__(self) -> "_Load":
        """Learn the right answers, start."""
        self._expected = self._client.features(*self._faces)
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        """Let the call under way end."""
        self._stopping.set()
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        frames, landmarks = (values[self._which] for values in self._faces)
        while not self._stopping.is_set():
            answers = self._client.features(frames, landmarks)
            right = np.ones(FACES, dtype=bool)
            for name, expected in self._expected.items():
                right &= (answers[name] == expected[self._which]).all(axis=1)
            self.faces += FACES
            self.wrong += int((~right).sum())


def stop_under_load(repository: Path, model: str, output: str) -> StopReport:
    """Stop a server in order while requests for an output of a model are under way and more are sent."""
    server = LocalServer(repository)
    with server, InferenceServerClient(server.grpc_url) as connection:
        ask = _Requests(connection, model, output)
        processes = server_processes(server.pid)
        ask.send(STOPPING_REQUESTS)
        time.sleep(SENT_SECONDS)
        under_way = ask.right.count(None)
        before = time.monotonic()
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        while stopping.is_alive():
            ask.send(1)
            time.sleep(0.02)
        seconds = time.monotonic() - before
        ask.wait()
    left = [one.name for one in processes if Path(f"/proc/{one.pid}").exists()]
    left += [path.name for path in server.shared_memory()]
    accepted = ask.right[:STOPPING_REQUESTS]
    later = len(ask.right) - len(accepted)
    return StopReport(
        len(accepted), under_way, accepted.count(True), later, ask.right.count(None), seconds, left
    )


class _Requests:
    """Requests that are sent without waiting, and for each whether it was answered right; None is silence."""

    def __init__(self, connection: InferenceServerClient, model: str, output: str) -> None:
        frames, landmarks = photo_faces(REQUEST_FACES, 612, SMALL)
        frames = (255 * frames).astype(np.uint8)
        self._connection = connection
        self._model, self._output = model, output
        self._inputs = [
            create_input(name, values).set_data_from_numpy(values)
            for name, values in (("FRAMES_UINT8", frames), ("LANDMARKS", landmarks))
        ]
        self._outputs = [InferRequestedOutput(output)]
        self._expected = connection.infer(model, self._inputs, outputs=self._outputs).as_numpy(output)
        self.right: list[bool | None] = []

    def send(self, count: int) -> None:
        for _ in range(count):
            self.right.append(None)

            def answered(
                result: InferResult | None,
                error: InferenceServerException | None,
                number: int = len(self.right) - 1,
            ) -> None:
                self.right[number] = error is None and np.array_equal(
                    result.as_numpy(self._output), self._expected
                )

            self._connection.async_infer(self._model, self._inputs, answered, outputs=self._outputs)

    def wait(self) -> None:
        """Wait for the answers that are missing, for a while."""
        deadline = time.monotonic() + BACK_SECONDS / 10
        while None in self.right and time.monotonic() < deadline:
            time.sleep(0.02)
