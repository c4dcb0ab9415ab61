"""`make serve` as a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

from deploy.local.server import PROJECT

FREE_PORTS = {"HTTP_PORT": "0", "GRPC_PORT": "0", "METRICS_PORT": "0"}


def start(repository: Path, **environment: str) -> "subprocess.Popen[str]":
    """Start what `make serve` starts."""
    return subprocess.Popen(
        [sys.executable, "-m", "deploy.local"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
        env=os.environ | FREE_PORTS | {"MODEL_REPOSITORY": str(repository)} | environment,
    )


def read_until_ready(process: "subprocess.Popen[str]") -> dict[str, str]:
    """Return what `serve` says about itself, by its first word."""
    said = {}
    for line in process.stdout:
        name, _, value = line.strip().partition(" ")
        said[name] = value.strip()
        if name.startswith("ready"):
            return said
    raise AssertionError(process.stderr.read())


def the_server(process: "subprocess.Popen[str]") -> int:
    """Return the process id of the tritonserver that `make serve` runs."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(children[0])
