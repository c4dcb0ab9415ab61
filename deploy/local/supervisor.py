"""Keeps a server answering: restarts it when a process is gone, stopped or hangs, or a model keeps failing.

Triton 2.51 does not restart a Python model's process, a stub, that has died: every request that meets it
fails while all readiness probes stay green. The supervisor looks at the processes every second, which shows
one that died or was stopped. Every five seconds it sends a face, which shows one that hangs, and reads the
metrics as a pod's liveness probe does, which shows a model that fails every request. A busy server is not a
hung one: its stubs use CPU time, however long the face has to queue.
"""

import collections
import dataclasses
import http.client
import os
import time
from collections.abc import Callable
from pathlib import Path

from tritonclient.grpc import InferenceServerClient, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from deploy.docker import probe
from deploy.local.server import LocalServer, ServerError
from triton_face_client.sample_faces import sample_faces
from triton_face_client.transports.base import create_input

LOOK_SECONDS = 1.0

FACE_SECONDS = 5.0
"""Between two faces that are sent to see whether the server answers."""

METRICS_SECONDS = 5.0
"""Between two looks at the metrics; two in a row must show trouble, as for a pod's liveness probe."""

HUNG_SECONDS = 10.0
"""A face without an answer for so long, while no stub uses CPU time, is a server that hangs."""

LEAST_CPU_SECONDS = 0.1
"""Idle stubs use some; a face takes milliseconds."""

MOST_RESTARTS, RESTARTS_SECONDS = 5, 600.0
"""A server that fails more often than this needs a person."""

SERVER = "tritonserver"
STUB = "triton_python_backend_stub"
TICKS = os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass(frozen=True)
class Process:
    """A process of the server.

    Attributes
    ----------
    pid : int
        Its number.
    name : str
        "tritonserver", or the model whose stub it is.
    state : str
        As /proc has it: T is stopped, Z is dead.
    cpu_seconds : float
        CPU time it has used.
    """

    pid: int
    name: str
    state: str
    cpu_seconds: float


class Supervisor:
    """Watch a running server.

    Parameters
    ----------
    server : LocalServer
        The server, started.
    say : callable of str
        Takes what is to be told.
    """

    def __init__(self, server: LocalServer, say: Callable[[str], None]) -> None:
        self._server = server
        self._say = say
        self._restarts: collections.deque[float] = collections.deque(maxlen=MOST_RESTARTS)
        self._begin()

    def watch(self) -> None:
        """Watch for ever.

        Raises
        ------
        ServerError
            When the server has to be started again too often, or cannot be.
        """
        while True:
            time.sleep(LOOK_SECONDS)
            trouble = self._trouble()
            if trouble is not None:
                self._restart(trouble)

    def _begin(self) -> None:
        self._expected = {process.pid: process.name for process in server_processes(self._server.pid)}
        self._stopped: set[int] = set()
        self._face = _Face(self._server.grpc_url)
        self._cpu_seconds = 0.0
        self._idle_since = time.monotonic()
        self._metrics = _Metrics(self._server.ports.metrics)

    def _restart(self, trouble: str) -> None:
        now = time.monotonic()
        if len(self._restarts) == MOST_RESTARTS and now - self._restarts[0] < RESTARTS_SECONDS:
            raise ServerError(
                f"{trouble}; the server has failed {MOST_RESTARTS + 1} times: look at its log, kept in "
                f"{self._server.keep_log()}"
            )
        self._restarts.append(now)
        self._say(f"{trouble}: starting the server again")
        self._face.close()
        self._server.restart()
        self._begin()
        self._say(f"ready again after {time.monotonic() - now:.1f} s")

    def _trouble(self) -> str | None:
        """Say what is wrong, or None."""
        processes = {process.pid: process for process in server_processes(self._server.pid)}
        for pid, name in self._expected.items():
            if pid not in processes or processes[pid].state == "Z":
                return f"the process of {name} is gone"
        stopped = {pid for pid, process in processes.items() if process.state == "T"}
        # Twice in a row: a debugger, or a snapshot of the machine, may stop a process for a moment.
        for pid in stopped & self._stopped:
            return f"the process of {processes[pid].name} is stopped"
        self._stopped = stopped
        cpu_seconds = sum(process.cpu_seconds for process in processes.values() if process.name != SERVER)
        return self._no_answer(cpu_seconds) or self._metrics.look()

    def _no_answer(self, cpu_seconds: float) -> str | None:
        now = time.monotonic()
        if cpu_seconds - self._cpu_seconds > LEAST_CPU_SECONDS:
            self._cpu_seconds, self._idle_since = cpu_seconds, now
        waiting_since = self._face.look()
        if waiting_since is not None and now - max(waiting_since, self._idle_since) > HUNG_SECONDS:
            return f"a face has had no answer for {now - waiting_since:.0f} s"
        return None


def server_processes(leader: int) -> list[Process]:
    """Return the server `leader` and its stubs, which are in its session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(") ")[2].split()
            if int(fields[3]) != leader:
                continue
            command = (folder / "cmdline").read_text().split("\0")
        except OSError:  # gone since the listing
            continue
        name = _name(command) if int(folder.name) != leader else SERVER
        if name is not None:
            cpu_seconds = (int(fields[11]) + int(fields[12])) / TICKS
            found.append(Process(int(folder.name), name, fields[0], cpu_seconds))
    return found


def _name(command: list[str]) -> str | None:
    """Return the model whose stub a command line is: its first argument is MODEL/VERSION/FILE."""
    return Path(command[1]).parent.parent.name if command[0].endswith(STUB) else None


class _Metrics:
    """The server's metrics, read every few seconds."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._memory: probe.Memory = {}
        self._was_in_trouble = False
        self._looked = time.monotonic()

    def look(self) -> str | None:
        """Return what is wrong with a model, once two looks in a row show trouble, or None."""
        now = time.monotonic()
        if now - self._looked < METRICS_SECONDS:
            return None
        self._looked = now
        try:
            metrics = probe.get_metrics(self._port, now + probe.ANSWER_SECONDS)
        except (OSError, ValueError, http.client.HTTPException):
            return None  # the face that is sent shows a server that does not answer
        found = probe.troubles(metrics, self._memory)
        was_in_trouble, self._was_in_trouble = self._was_in_trouble, bool(found)
        return "; ".join(found) if found and was_in_trouble else None


class _Face:
    """A face that is sent every few seconds, and whether its answer has come."""

    def __init__(self, url: str) -> None:
        self._connection = InferenceServerClient(url)
        frames, landmarks = sample_faces(1)
        tensors = {"FRAMES_UINT8": frames, "LANDMARKS": landmarks}
        self._inputs = [
            create_input(name, values).set_data_from_numpy(values) for name, values in tensors.items()
        ]
        self._outputs = [InferRequestedOutput("HOG"), InferRequestedOutput("POSE")]
        self._sent = -FACE_SECONDS
        self._waiting = False

    def look(self) -> float | None:
        """Send a face if it is time; return since when one waits for its answer, or None."""
        now = time.monotonic()
        if not self._waiting and now - self._sent >= FACE_SECONDS:
            self._sent, self._waiting = now, True
            self._connection.async_infer("ensemble", self._inputs, self._answered, outputs=self._outputs)
        return self._sent if self._waiting else None

    def close(self) -> None:
        """Forget it."""
        self._connection.close()

    def _answered(self, result: object, error: InferenceServerException | None) -> None:  # noqa: ARG002
        # A refusal is an answer too, for example of a full queue.
        self._waiting = False
