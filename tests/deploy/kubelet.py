"""The kubelet's part in a test: it runs the liveness probe and decides when to end the container."""

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


def look(server: ProductionServer, folder: Path, timeout: float = 60.0) -> str | None:
    """Run the probe once as the manifest has it.

    Parameters
    ----------
    server : ProductionServer
        What it looks at.
    folder : Path
        Where it keeps its memory, /tmp in a container.
    timeout : float
        When to give up, s.

    Returns
    -------
    str or None
        Why it failed.
    """
    environment = os.environ | {
        "HTTP_PORT": str(server.http_port),
        "METRICS_PORT": str(server.metrics_port),
        "TMPDIR": str(folder),
    }
    command = [sys.executable, "-I", str(PROBE)]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no result after {timeout:g} s"
    return done.stdout + done.stderr if done.returncode or done.stderr else None


class Kubelet(contextlib.AbstractContextManager):
    """Run the liveness probe of a manifest, from entry to exit or until the container would be ended.

    Parameters
    ----------
    server : ProductionServer
        What it looks at.
    settings : dict
        The container's `livenessProbe`.
    folder : Path
        Where the probe keeps its memory.

    Attributes
    ----------
    failures : list of str
        What failed looks said.
    looks : int
        How many there were.
    """

    def __init__(self, server: ProductionServer, settings: dict[str, Any], folder: Path) -> None:
        self._server = server
        self._settings = settings
        self._folder = folder
        self.failures: list[str] = []
        self.looks = 0
        self._gave_up = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Kubelet":
        """Start."""
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        """Stop."""
        self._stopping.set()
        self._thread.join()

    def seconds_until_it_gives_up(self, at_most: float) -> float:
        """Wait until the container would be ended; return how long that took, s."""
        start = time.monotonic()
        if not self._gave_up.wait(at_most):
            raise AssertionError(f"not noticed within {at_most:g} s; failed looks: {self.failures}")
        return time.monotonic() - start

    def _run(self) -> None:
        in_a_row = 0
        due = time.monotonic()
        while not self._stopping.wait(max(0.0, due - time.monotonic())):
            # A look that takes longer than the period delays the next one to the next multiple of it.
            due += self._settings["periodSeconds"]
            why = look(self._server, self._folder, self._settings["timeoutSeconds"])
            self.looks += 1
            in_a_row = in_a_row + 1 if why else 0
            self.failures += [why] if why else []
            if in_a_row == self._settings["failureThreshold"]:
                self._gave_up.set()
                return
