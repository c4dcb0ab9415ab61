"""`make serve` in a separate process."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from deploy.local.server import PROJECT

STOP_SECONDS = 180.0
"""Time limit of a stop, which takes seconds on an otherwise idle machine."""

FREE_PORTS = {"HTTP_PORT": "0", "GRPC_PORT": "0", "METRICS_PORT": "0"}


def start(repository: Path, **environment: str) -> "subprocess.Popen[str]":
    """Start the process that `make serve` starts, on free ports."""
    return subprocess.Popen(
        [sys.executable, "-m", "deploy.local"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
        env=os.environ | FREE_PORTS | {"MODEL_REPOSITORY": str(repository)} | environment,
    )


def read_until_ready(process: "subprocess.Popen[str]") -> dict[str, str]:
    """Return the lines that `make serve` prints until it is ready: first word -> rest of the line."""
    lines = {}
    for line in process.stdout:
        name, _, value = line.strip().partition(" ")
        lines[name] = value.strip()
        if name.startswith("ready"):
            return lines
    raise AssertionError(process.stderr.read())


@contextlib.contextmanager
def run_make_serve(
    repository: Path, **environment: str
) -> Iterator[tuple["subprocess.Popen[str]", dict[str, str]]]:
    """Run `make serve`; yield its process and the lines that it printed until it was ready."""
    process = start(repository, **environment)
    try:
        yield process, read_until_ready(process)
    finally:
        process.terminate()
        process.communicate(timeout=STOP_SECONDS)


def tritonserver_pid(process: "subprocess.Popen[str]") -> int:
    """Return the process id of the tritonserver that `make serve` runs."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(children[0])
