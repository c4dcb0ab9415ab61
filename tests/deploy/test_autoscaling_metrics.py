"""The rules and the dashboard's queries in a real Prometheus; the server is idle, under load, idle again."""

import contextlib
import json
import math
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from deploy.local.server import PROJECT
from deploy.monitoring.panels import for_pod, scaling_targets
from tests.deploy.production_server import ProductionServer
from tests.support.background_threads import background_threads
from tests.support.face_data import photo_faces
from tests.support.prometheus import Prometheus
from tests.support.waiting import wait_until
from triton_face_client import FaceFeatureClient

MONITORING = PROJECT / "deploy" / "monitoring"

TIME_LIMIT = 100.0
"""Seconds for the rules' window of 60 s, two evaluations, and delays of a busy machine."""

CALLERS, IN_FLIGHT, FACES = 8, 10, 8
"""80 requests of eight faces: batches of two instances hold 32, the queue of 64 holds the other 48."""


@pytest.fixture
def server(repository: Path) -> Iterator[ProductionServer]:
    """Yield an idle server; the rules' window must not contain load of other tests."""
    with ProductionServer(repository) as running:
        yield running


@pytest.fixture
def prometheus(server: ProductionServer) -> Iterator[Prometheus]:
    labels = {"namespace": "test", "pod": "local"}
    rules = [MONITORING / "recording_rules.yaml", MONITORING / "alerting_rules.yaml"]
    with Prometheus(server.metrics_url, "triton-face", labels, rules) as running:
        yield running


@contextlib.contextmanager
def load(url: str) -> Iterator[None]:
    """Keep requests in the queue until the end of the block."""
    frames, landmarks = photo_faces(16, 720)
    frames = np.round(255 * frames).astype(np.uint8)
    repeated = np.arange(4 * IN_FLIGHT * FACES) % 16

    def call(stopping: threading.Event) -> None:
        with FaceFeatureClient(url, batch_size=FACES, in_flight=IN_FLIGHT) as client:
            while not stopping.is_set():
                client.features(frames[repeated], landmarks[repeated])

    with background_threads(call, CALLERS):
        yield


def dashboard_queries() -> dict[str, str]:
    """Return the dashboard's queries for the test's pod by panel and query, without GPU metrics."""
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    return {
        f"{panel['title']} {target['refId']}": for_pod(target["expr"], "test", "local")
        for panel in panels
        for target in panel.get("targets", [])
        if "nv_gpu_" not in target["expr"]
    }


def adapter_queries() -> dict[str, str]:
    """Return prometheus-adapter's queries for the test's pod by the metric's name in the autoscaler."""
    rules = yaml.safe_load((MONITORING / "prometheus_adapter.yaml").read_text())["rules"]["custom"]
    queries = {}
    for rule in rules:
        series = re.match(r"[\w:]+", rule["seriesQuery"])[0]
        query = rule["metricsQuery"].replace("<<.Series>>", series).replace("<<.GroupBy>>", "pod")
        queries[rule["name"]["as"]] = query.replace("<<.LabelMatchers>>", 'namespace="test",pod=~"local"')
    return queries


def test_scaling_metrics_follow_the_load(server: ProductionServer, prometheus: Prometheus):
    targets, queries = scaling_targets(), adapter_queries()
    assert set(targets) == set(queries)

    def values() -> dict[str, float | None]:
        """Return the current values of the autoscaler's metrics."""
        return {name: prometheus.query(query).get("local") for name, query in queries.items()}

    def is_idle() -> bool:
        return set(values().values()) == {0.0}

    def exceeds_targets() -> bool:
        return all((value or 0.0) > targets[name] for name, value in values().items())

    assert wait_until(is_idle, TIME_LIMIT, interval=1), values()
    with load(server.grpc_url):
        assert wait_until(exceeds_targets, TIME_LIMIT, interval=1), values()
        without_data = [
            panel for panel, query in dashboard_queries().items() if not has_data(prometheus, query)
        ]
        assert without_data == []
        assert sum(prometheus.query("triton_face:faces:rate").values()) > 0
    assert prometheus.query('ALERTS{alertstate="firing"}') == {}, "every request is answered"
    assert wait_until(is_idle, TIME_LIMIT, interval=1), values()


def has_data(prometheus: Prometheus, query: str) -> bool:
    return any(not math.isnan(value) for value in prometheus.query(query).values())
