"""A kubelet for tests: it runs the liveness probe and decides when to restart the container."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from deploy.local.server import PROJECT
from tests.deploy.production_server import ProductionServer

PROBE = PROJECT / "deploy" / "docker" / "probe.py"


def run_probe(
    server: ProductionServer, folder: Path, timeout: float = 60.0, **environment: str
) -> str | None:
    """Run the liveness probe once; return its output if it failed or wrote an error, else None.

    Parameters
    ----------
    server : ProductionServer
        Server to probe.
    folder : Path
        Folder for the probe's counters; /tmp in a container.
    timeout : float
        Time limit, s.
    **environment : str
        Further environment variables.
    """
    ports = {"HTTP_PORT": str(server.ports.http), "METRICS_PORT": str(server.ports.metrics)}
    variables = os.environ | ports | {"TMPDIR": str(folder)} | environment
    command = [sys.executable, "-I", str(PROBE)]
    try:
        done = subprocess.run(
            command, env=variables, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no result after {timeout:g} s"
    return done.stdout + done.stderr if done.returncode or done.stderr else None


class Kubelet(contextlib.AbstractContextManager):
    """Run the liveness probe with a manifest's settings until the block ends or a restart is due.

    Parameters
    ----------
    server : ProductionServer
        Server to probe.
    settings : dict
        `livenessProbe` of the container.
    folder : Path
        Folder for the probe's counters.

    Attributes
    ----------
    failures : list of str
        Output of each failed probe.
    probes : int
        Number of probes.
    """

    def __init__(self, server: ProductionServer, settings: dict[str, Any], folder: Path) -> None:
        self._server = server
        self._settings = settings
        self._folder = folder
        self.failures: list[str] = []
        self.probes = 0
        self._restart_due = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Kubelet":
        """Start probing."""
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        """Stop probing."""
        self._stopping.set()
        self._thread.join()

    def seconds_until_restart(self, time_limit: float = 60.0) -> float:
        """Wait until a restart is due; return the time that passed."""
        start = time.monotonic()
        if not self._restart_due.wait(time_limit):
            raise AssertionError(f"no restart within {time_limit:g} s; failed probes: {self.failures}")
        return time.monotonic() - start

    def _run(self) -> None:
        consecutive_failures = 0
        due = time.monotonic()
        while not self._stopping.wait(max(0.0, due - time.monotonic())):
            # A probe that takes longer than the period delays the next one.
            due += self._settings["periodSeconds"]
            failure = run_probe(self._server, self._folder, self._settings["timeoutSeconds"])
            self.probes += 1
            consecutive_failures = consecutive_failures + 1 if failure else 0
            self.failures += [failure] if failure else []
            if consecutive_failures == self._settings["failureThreshold"]:
                self._restart_due.set()
                return
