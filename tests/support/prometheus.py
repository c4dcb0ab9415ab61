"""A real Prometheus that scrapes a server, for a while."""

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
"""Where `make test` puts Debian's package when there is no Prometheus on PATH."""

READY_SECONDS = 30.0


class Prometheus(contextlib.AbstractContextManager):
    """Scrape a target every second from entry to exit.

    Parameters
    ----------
    target : str
        Host and port of a metrics endpoint.
    job : str
        What its series' label `job` says.
    labels : dict of str to str
        Further labels of its series.
    rules : sequence of Path
        Files of rules, evaluated every second.
    """

    def __init__(
        self,
        target: str,
        job: str = "triton",
        labels: Mapping[str, str] | None = None,
        rules: Sequence[Path] = (),
    ) -> None:
        self._scraped = {"targets": [target], "labels": dict(labels or {})}
        self._job = job
        self._rules = [str(path) for path in rules]

    def __enter__(self) -> "Prometheus":
        """Start, wait until it answers."""
        program = shutil.which("prometheus", path=f"{os.environ['PATH']}:{UNPACKED}")
        if program is None:
            pytest.fail("no prometheus: `make test` fetches Debian's package, or put one on PATH")
        self._folder = tempfile.TemporaryDirectory(prefix="prometheus-")
        folder = Path(self._folder.name)
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "scrape_configs": [{"job_name": self._job, "static_configs": [self._scraped]}],
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
                said = (folder / "log").read_text()
                self.__exit__()
                raise RuntimeError(f"Prometheus did not start: {said[-2000:]}")
            time.sleep(0.1)
        return self

    def __exit__(self, *_exception: object) -> None:
        """Stop it and forget what it scraped."""
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()

    def query(self, expression: str) -> dict[str, float]:
        """Return the values of an expression now, by the labels that tell them apart."""
        found = self._ask("query", {"query": expression})
        return {_distinguishing(one["metric"]): float(one["value"][1]) for one in found}

    def query_range(
        self, expression: str, start: float, end: float, step: float
    ) -> list[tuple[dict[str, str], np.ndarray]]:
        """Return each series between two Unix times: its labels, and times and values, [K, 2]."""
        asked = {"query": expression, "start": start, "end": end, "step": step}
        return [
            (one["metric"], np.array(one["values"], dtype=float)) for one in self._ask("query_range", asked)
        ]

    def _ask(self, endpoint: str, asked: Mapping[str, object]) -> list[dict]:
        url = f"http://{self._address}/api/v1/{endpoint}?{urllib.parse.urlencode(asked)}"
        with urllib.request.urlopen(url) as answer:
            return json.load(answer)["data"]["result"]

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self._address}/-/ready"):
                return True
        except OSError:
            return False


def _distinguishing(metric: Mapping[str, str]) -> str:
    """Return the labels that tell a series from its like; all here are of one target."""
    ignored = {"__name__", "instance", "job", "model"}
    return ",".join(value for name, value in sorted(metric.items()) if name not in ignored)
