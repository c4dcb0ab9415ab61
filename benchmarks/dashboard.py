"""Draw the dashboard's panels from a real Prometheus, without Grafana.

`python -m benchmarks.dashboard` takes six minutes: the embedded server is idle, loaded, overloaded, receives
invalid faces and has one stub process stopped, while Prometheus scrapes it with the project's rules.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from tqdm import tqdm

from deploy.local import LocalServer
from deploy.local.server import DEFAULT_REPOSITORY, PROJECT
from deploy.local.supervisor import server_processes
from deploy.monitoring.panels import for_pod
from tests.support.background_threads import background_threads
from tests.support.face_data import photo_faces
from tests.support.prometheus import Prometheus
from triton_face_client import FaceFeatureClient

MONITORING = PROJECT / "deploy" / "monitoring"
PICTURE = PROJECT / "docs" / "dashboard.png"

OPTIONS = (
    "--metrics-config=summary_latencies=true",
    "--metrics-config=summary_quantiles=0.5:0.05,0.99:0.001",
)
"""Options of serve.sh that the latency panels need."""

LABELS = {"namespace": "here", "pod": "server"}

FACES = 8
"""Faces per request."""

Send = Callable[[FaceFeatureClient], None]

Series = list[tuple[dict[str, str], np.ndarray]]
"""Result of a query: for each series its labels, and times and values [K, 2]."""


def main() -> None:
    """Run all phases and save the picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dashboard", description=__doc__)
    parser.add_argument("--picture", type=Path, default=PICTURE, metavar="FILE")
    picture = parser.parse_args().picture
    rules = [MONITORING / "recording_rules.yaml", MONITORING / "alerting_rules.yaml"]
    with (
        LocalServer(DEFAULT_REPOSITORY, options=OPTIONS) as server,
        Prometheus(server.metrics_url, "triton-face", LABELS, rules) as prometheus,
    ):
        phases = run_phases(server)
        start, end = next(iter(phases.values())), time.time()
        results = {
            title: [prometheus.query_range(query, start, end, 1.0) for query in queries]
            for title, queries in panels().items()
        }
    draw(results, phases, start, picture)
    print(picture)


def panels() -> dict[str, list[str]]:
    """Return the queries of each panel by its title, for the scraped server, without the GPU panels."""
    queries_by_title = {}
    for panel in json.loads((MONITORING / "dashboard.json").read_text())["panels"]:
        queries = [target["expr"] for target in panel.get("targets", [])]
        if queries and "nv_gpu_" not in queries[0]:
            queries_by_title[panel["title"]] = [for_pod(query, **LABELS) for query in queries]
    return queries_by_title


def run_phases(server: LocalServer) -> dict[str, float]:
    """Run all phases; return the start of each, Unix time, by its name."""
    frames, landmarks = photo_faces(16, 730)
    invalid = landmarks.copy()
    invalid[::4, 30] = np.nan
    invalid[1::8] = 40

    def light(client: FaceFeatureClient) -> None:
        client.features(frames[:FACES], landmarks[:FACES])
        time.sleep(0.02)

    def heavy(client: FaceFeatureClient) -> None:
        repeated = np.arange(40 * FACES) % 16
        client.features(frames[repeated], landmarks[repeated])

    def with_invalid_faces(client: FaceFeatureClient) -> None:
        client.features(frames, invalid, on_invalid="nan")

    phases: dict[str, float] = {}
    for name, send, callers, seconds in (
        ("idle", None, 0, 30),
        ("loaded", light, 1, 70),
        ("overloaded", heavy, 3, 70),
        ("invalid faces", with_invalid_faces, 1, 70),
    ):
        phases[name] = time.time()
        with _load(server, send, callers):
            _wait(name, seconds)
    phases["stub stopped"] = time.time()
    stubs = [process.pid for process in server_processes(server.pid) if process.name == "align_mask"]
    os.kill(stubs[0], signal.SIGSTOP)
    _wait("stub stopped", 90)
    os.kill(stubs[0], signal.SIGCONT)
    phases["stub continued"] = time.time()
    _wait("stub continued", 30)
    return phases


@contextlib.contextmanager
def _load(server: LocalServer, send: Send | None, callers: int) -> Iterator[None]:
    def call(stopping: threading.Event) -> None:
        with FaceFeatureClient(server.grpc_url, batch_size=FACES, in_flight=40) as client:
            while not stopping.is_set():
                send(client)

    with background_threads(call, callers):
        yield


def _wait(name: str, seconds: int) -> None:
    for _ in tqdm(range(seconds), desc=name, unit="s"):
        time.sleep(1)


def draw(
    results: Mapping[str, list[Series]], phases: Mapping[str, float], start: float, picture: Path
) -> None:
    """Draw each panel, with vertical lines where phases begin."""
    panel_of_title = {
        panel["title"]: panel for panel in json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    }
    figure, grid = plt.subplots(-(-len(results) // 3), 3, figsize=(15, 15), layout="constrained", sharex=True)
    for axes, (title, queries) in zip(grid.flat, results.items(), strict=True):
        _draw_panel(axes, panel_of_title[title], queries, start)
        for moment in phases.values():
            axes.axvline(moment - start, color="0.7", linewidth=0.8)
    for axes in grid[0]:
        top = axes.secondary_xaxis("top")
        top.set_xticks([moment - start for moment in phases.values()], list(phases), rotation=25, ha="left")
    for axes in grid[-1]:
        axes.set_xlabel("seconds")
    figure.savefig(picture, dpi=90)
    plt.close(figure)


def _draw_panel(axes: Axes, panel: Mapping[str, Any], queries: list[Series], start: float) -> None:
    for target, series in zip(panel["targets"], queries, strict=True):
        shown = _by_bucket(series) if panel["type"] == "heatmap" else series
        for labels, values in shown:
            # Of several series, omit those that are always 0, such as most reasons of failure.
            if len(series) == 1 or values[:, 1].any():
                axes.plot(values[:, 0] - start, values[:, 1], linewidth=1, label=_name(target, labels))
    unit = panel["fieldConfig"]["defaults"]["unit"]
    axes.set_title(panel["title"] + (f", {unit}" if unit != "none" else ""), fontsize=10, pad=4)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if axes.get_lines():
        axes.legend(fontsize=7, loc="upper left")


def _name(target: Mapping[str, str], labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels[found[1]], target["legendFormat"])


def _by_bucket(series: Series) -> Series:
    """Convert a histogram's cumulative counts into the counts of each bucket."""
    ordered = sorted(series, key=lambda bucket: float(bucket[0]["le"]))
    lower_count = np.zeros_like(ordered[0][1][:, 1])
    buckets = []
    for labels, values in ordered:
        buckets.append((labels, np.stack([values[:, 0], values[:, 1] - lower_count], axis=1)))
        lower_count = values[:, 1]
    return buckets


if __name__ == "__main__":
    main()
