"""Restart the local server when a process ends, is stopped or hangs, or when a model keeps failing.

Triton 2.51 does not restart a stub process (an instance of a Python model) that died: its requests fail while
all readiness probes succeed. The supervisor detects

- a process that died or was stopped, by a check of all processes every second;
- a hang, by a test request with one face every five seconds;
- a model that hangs or fails every request, by the metrics every five seconds, like a pod's liveness probe.

While stubs use CPU time, a late response means a long queue, not a hang.
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
from deploy.local.errors import ServerError
from deploy.local.server import LocalServer
from triton_face_client.sample_faces import sample_faces
from triton_face_client.transports.base import create_input

CHECK_SECONDS = 1.0
"""Interval of the process checks."""

TEST_REQUEST_SECONDS = 5.0
"""Interval of the test requests."""

METRICS_SECONDS = 5.0
"""Interval of metrics reads. Like a pod's liveness probe, a restart requires two consecutive failures."""

HUNG_SECONDS = 10.0
"""The server hangs if a test request has no response for this long while no stub uses CPU time."""

MIN_CPU_SECONDS = 0.1
"""The stubs count as idle until their CPU time has grown by this much; idle stubs use a little."""

MAX_RESTARTS, RESTARTS_SECONDS = 5, 600.0
"""The supervisor gives up when the server needs more than `MAX_RESTARTS` in `RESTARTS_SECONDS`."""

AU_ENSEMBLE = "action_units"

SERVER = "tritonserver"
STUB = "triton_python_backend_stub"
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass(frozen=True)
class Process:
    """A process of the server.

    Attributes
    ----------
    pid : int
        Process id.
    name : str
        "tritonserver", or the name of the stub's model.
    state : str
        State in /proc: T is stopped, Z is a zombie.
    cpu_seconds : float
        CPU time used so far.
    """

    pid: int
    name: str
    state: str
    cpu_seconds: float


class Supervisor:
    """Watch a running server and restart it after a failure.

    Parameters
    ----------
    server : LocalServer
        The server, already started.
    log : callable of str
        Log callback.
    """

    def __init__(self, server: LocalServer, log: Callable[[str], None]) -> None:
        self._server = server
        self._log = log
        self._restart_times: collections.deque[float] = collections.deque(maxlen=MAX_RESTARTS)
        self._start_watching()

    def watch(self) -> None:
        """Watch forever.

        Raises
        ------
        ServerError
            If the server needs too many restarts, or a restart fails.
        """
        while True:
            time.sleep(CHECK_SECONDS)
            failure = self._failure()
            if failure is not None:
                self._restart(failure)

    def _start_watching(self) -> None:
        self._expected = {process.pid: process.name for process in server_processes(self._server.pid)}
        self._stopped: set[int] = set()
        self._test_request = _TestRequest(
            self._server.grpc_url, with_action_units=AU_ENSEMBLE in self._server.ensembles
        )
        self._cpu_seconds = 0.0
        self._idle_since = time.monotonic()
        self._metrics_check = _MetricsCheck(self._server.ports.metrics)

    def _restart(self, failure: str) -> None:
        now = time.monotonic()
        if len(self._restart_times) == MAX_RESTARTS and now - self._restart_times[0] < RESTARTS_SECONDS:
            raise ServerError(
                f"{failure}; the server has failed {MAX_RESTARTS + 1} times: look at its log, kept in "
                f"{self._server.keep_log()}"
            )
        self._restart_times.append(now)
        self._log(f"{failure}: starting the server again")
        self._test_request.close()
        self._server.restart()
        self._start_watching()
        self._log(f"ready again after {time.monotonic() - now:.1f} s")

    def _failure(self) -> str | None:
        """Return a description of the failure, or None."""
        processes = {process.pid: process for process in server_processes(self._server.pid)}
        for pid, name in self._expected.items():
            if pid not in processes or processes[pid].state == "Z":
                return f"the process of {name} has ended"
        stopped = {pid for pid, process in processes.items() if process.state == "T"}
        # Two consecutive checks: a debugger or a snapshot of the machine may stop a process for a moment.
        for pid in stopped & self._stopped:
            return f"the process of {processes[pid].name} is stopped"
        self._stopped = stopped
        cpu_seconds = sum(process.cpu_seconds for process in processes.values() if process.name != SERVER)
        return self._hang(cpu_seconds) or self._metrics_check.failure()

    def _hang(self, cpu_seconds: float) -> str | None:
        """Return a description of a hang, or None; `cpu_seconds` is the CPU time of all stubs so far."""
        now = time.monotonic()
        if cpu_seconds - self._cpu_seconds > MIN_CPU_SECONDS:
            self._cpu_seconds, self._idle_since = cpu_seconds, now
        sent_at = self._test_request.send_if_due()
        if sent_at is not None and now - max(sent_at, self._idle_since) > HUNG_SECONDS:
            return f"a test request has had no response for {now - sent_at:.0f} s"
        return None


def server_processes(leader: int) -> list[Process]:
    """Return the server with process id `leader` and its stubs, which share its session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(") ")[2].split()
            if int(fields[3]) != leader:
                continue
            command = (folder / "cmdline").read_text().split("\0")
        except OSError:  # the process has ended since the listing
            continue
        name = _model_of_stub(command) if int(folder.name) != leader else SERVER
        if name is not None:
            cpu_seconds = (int(fields[11]) + int(fields[12])) / CLOCK_TICKS
            found.append(Process(int(folder.name), name, fields[0], cpu_seconds))
    return found


def _model_of_stub(command: list[str]) -> str | None:
    """Return the model of a stub's command line, whose first argument is MODEL/VERSION/FILE."""
    return Path(command[1]).parent.parent.name if command[0].endswith(STUB) else None


class _MetricsCheck:
    """Check the server's metrics every few seconds, with the rules of the pod's liveness probe."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._history: probe.CounterHistory = {}
        self._failed_before = False
        self._last_read = time.monotonic()

    def failure(self) -> str | None:
        """Return a description of the failing models after two consecutive reads with failures, or None."""
        now = time.monotonic()
        if now - self._last_read < METRICS_SECONDS:
            return None
        self._last_read = now
        try:
            metrics = probe.get_metrics(self._port, now + probe.ANSWER_SECONDS)
        except (OSError, ValueError, http.client.HTTPException):
            return None  # the test request detects a server that does not respond
        failures = probe.find_problems(metrics, self._history)
        failed_before, self._failed_before = self._failed_before, bool(failures)
        return "; ".join(failures) if failures and failed_before else None


class _TestRequest:
    """A request with one face, sent every few seconds but never before the previous response.

    It uses every model: `action_units`, where served, has the steps of `ensemble` and `au`.
    """

    def __init__(self, url: str, with_action_units: bool) -> None:
        self._connection = InferenceServerClient(url)
        frames, landmarks = sample_faces(1)
        tensors = {"FRAMES_UINT8": frames, "LANDMARKS": landmarks}
        self._inputs = [
            create_input(name, values).set_data_from_numpy(values) for name, values in tensors.items()
        ]
        self._model, output = (AU_ENSEMBLE, "AU") if with_action_units else ("ensemble", "HOG")
        self._outputs = [InferRequestedOutput(output), InferRequestedOutput("POSE")]
        self._sent_at = -TEST_REQUEST_SECONDS
        self._waiting = False

    def send_if_due(self) -> float | None:
        """Send the request if it is due.

        Returns
        -------
        float, optional
            Time at which the unanswered request was sent, in seconds of the monotonic clock; None if the
            last request was answered.
        """
        now = time.monotonic()
        if not self._waiting and now - self._sent_at >= TEST_REQUEST_SECONDS:
            self._sent_at, self._waiting = now, True
            self._connection.async_infer(self._model, self._inputs, self._on_response, outputs=self._outputs)
        return self._sent_at if self._waiting else None

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _on_response(self, result: object, error: InferenceServerException | None) -> None:  # noqa: ARG002
        # Any response shows a live server, also an error, for example because a queue is full.
        self._waiting = False
