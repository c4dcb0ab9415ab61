"""A real Prometheus that scrapes a server."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from deploy.local.server import HOST, PROJECT

UNPACKED = PROJECT / "build" / "debian" / "usr" / "bin"
"""Folder of the programs that `make` unpacks from Debian's packages."""

READY_SECONDS = 30.0


class Prometheus(contextlib.AbstractContextManager):
    """Scrape a target every second from entry to exit.

    Parameters
    ----------
    target : str
        Host and port of a metrics endpoint.
    job : str
        Label `job` of the series.
    labels : dict of str to str
        Further labels of the series.
    rules : sequence of Path
        Rule files; groups without an interval are evaluated every second.
    """

    def __init__(
        self,
        target: str,
        job: str = "triton",
        labels: Mapping[str, str] | None = None,
        rules: Sequence[Path] = (),
    ) -> None:
        self._static_config = {"targets": [target], "labels": dict(labels or {})}
        self._job = job
        self._rules = [str(path) for path in rules]

    def __enter__(self) -> "Prometheus":
        """Start Prometheus and wait until it is ready."""
        program = shutil.which("prometheus", path=f"{os.environ['PATH']}:{UNPACKED}")
        if program is None:
            pytest.fail("no prometheus on PATH or in build/debian: `make test` unpacks Debian's package")
        self._folder = tempfile.TemporaryDirectory(prefix="prometheus-")
        folder = Path(self._folder.name)
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "scrape_configs": [{"job_name": self._job, "static_configs": [self._static_config]}],
            "rule_files": self._rules,
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        with socket.socket() as free:
            free.bind((HOST, 0))
            self._address = f"{HOST}:{free.getsockname()[1]}"
        self._process = subprocess.Popen(
            [
                program,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self._address}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=(folder / "log").open("wb"),
        )
        deadline = time.monotonic() + READY_SECONDS
        while not self._is_ready():
            if time.monotonic() > deadline or self._process.poll() is not None:
                log = (folder / "log").read_text()
                self.__exit__()
                raise RuntimeError(f"Prometheus did not start: {log[-2000:]}")
            time.sleep(0.1)
        return self

    def __exit__(self, *_exception: object) -> None:
        """Stop Prometheus and delete its data."""
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()

    def query(self, expression: str) -> dict[str, float]:
        """Return the current values of an expression, by the labels in which its series differ."""
        found = self._get("query", {"query": expression})
        return {_distinguishing_labels(series["metric"]): float(series["value"][1]) for series in found}

    def query_range(
        self, expression: str, start: float, end: float, step: float
    ) -> list[tuple[dict[str, str], np.ndarray]]:
        """Return labels, and times and values ``[K, 2]``, of each series between two Unix times."""
        found = self._get("query_range", {"query": expression, "start": start, "end": end, "step": step})
        return [(series["metric"], np.array(series["values"], dtype=float)) for series in found]

    def _get(self, endpoint: str, parameters: Mapping[str, object]) -> list[dict]:
        url = f"http://{self._address}/api/v1/{endpoint}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url) as response:
            return json.load(response)["data"]["result"]

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self._address}/-/ready"):
                return True
        except OSError:
            return False


def _distinguishing_labels(metric: Mapping[str, str]) -> str:
    """Return the values of the labels in which the series of one target and metric differ."""
    ignored = {"__name__", "instance", "job", "model"}
    return ",".join(value for name, value in sorted(metric.items()) if name not in ignored)
