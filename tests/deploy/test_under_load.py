"""A real Prometheus evaluates the rules against a real server: idle, under load, and idle again."""

import contextlib
import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import yaml

from deploy.local.server import PROJECT
from deploy.monitoring.panels import for_pod, scaling_targets
from tests.deploy.production_server import ProductionServer
from tests.support.face_data import photo_faces
from tests.support.prometheus import Prometheus
from triton_face_client import FaceFeatureClient

MONITORING = PROJECT / "deploy" / "monitoring"
RATIO, PENDING = "triton_face:queue_compute:ratio", "triton_face:pending_requests:avg"

WINDOW_SECONDS = 60.0
"""Of the rules' rates."""

SLACK_SECONDS = 40.0
"""Two evaluations of the rules, and a machine that does other things."""

CALLERS, IN_FLIGHT, FACES = 2, 40, 8
"""80 requests at a time: more than two instances can join in a batch each, fewer than are refused."""


@pytest.fixture(scope="module")
def watched(production: ProductionServer) -> Iterator[Prometheus]:
    labels = {"namespace": "test", "pod": "local"}
    rules = [MONITORING / "recording_rules.yaml", MONITORING / "alerting_rules.yaml"]
    with Prometheus(production.metrics_url, "triton-face", labels, rules) as prometheus:
        yield prometheus


@contextlib.contextmanager
def load(url: str) -> Iterator[None]:
    """Keep requests waiting until the end of the block."""
    frames, landmarks = photo_faces(16, 720)
    which = [number % 16 for number in range(2 * IN_FLIGHT * FACES)]
    stopping = threading.Event()

    def call() -> None:
        with FaceFeatureClient(url, batch_size=FACES, in_flight=IN_FLIGHT) as client:
            while not stopping.is_set():
                client.features(frames[which], landmarks[which])

    callers = [threading.Thread(target=call) for _ in range(CALLERS)]
    for caller in callers:
        caller.start()
    try:
        yield
    finally:
        stopping.set()
        for caller in callers:
            caller.join()


def wait_until(is_so: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(1)
    return True


def dashboard_queries() -> dict[str, str]:
    """Return each query by its panel's title and letter, for the pod there is."""
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    found = {}
    for panel in panels:
        for target in panel.get("targets", []):
            found[f"{panel['title']} {target['refId']}"] = for_pod(target["expr"], "test", "local")
    return found


def adapter_queries() -> dict[str, str]:
    """Return what prometheus-adapter would ask, by the metric's name in the autoscaler."""
    rules = yaml.safe_load((MONITORING / "prometheus_adapter.yaml").read_text())["rules"]["custom"]
    found = {}
    for rule in rules:
        series = re.match(r"[\w:]+", rule["seriesQuery"])[0]
        query = rule["metricsQuery"].replace("<<.Series>>", series).replace("<<.GroupBy>>", "pod")
        found[rule["name"]["as"]] = query.replace("<<.LabelMatchers>>", 'namespace="test",pod=~"local"')
    return found


def test_the_scaling_metrics_rise_and_fall(production: ProductionServer, watched: Prometheus):
    targets = scaling_targets()

    def over_target() -> bool:
        """Tell whether the autoscaler would want more pods for each of its two metrics."""
        seen = {name: watched.query(query) for name, query in adapter_queries().items()}
        return all(seen[name].get("local", 0.0) > target for name, target in targets.items())

    def is_calm() -> bool:
        return set(watched.query(RATIO).values()) == {0.0}

    assert wait_until(is_calm, WINDOW_SECONDS + SLACK_SECONDS), watched.query(RATIO)
    with load(production.grpc_url):
        assert wait_until(over_target, WINDOW_SECONDS + SLACK_SECONDS), (RATIO, watched.query(RATIO))
        nothing = {
            title: expression
            for title, expression in dashboard_queries().items()
            if "nv_gpu_" not in expression and not values(watched, expression)
        }
        assert nothing == {}, "panels without data under load"
        assert sum(watched.query("triton_face:faces:rate").values()) > 50
    assert wait_until(is_calm, WINDOW_SECONDS + SLACK_SECONDS), watched.query(RATIO)
    assert set(watched.query(PENDING).values()) == {0.0}


def test_alerts_are_evaluated_and_none_fires(watched: Prometheus):
    """By a load that is answered; each alert's own firing is in rules_test.yaml."""
    assert watched.query('ALERTS{alertstate="firing"}') == {}
    rules = yaml.safe_load((MONITORING / "alerting_rules.yaml").read_text())["groups"][0]["rules"]
    assert len(rules) > 10
    for rule in rules:
        watched.query(rule["expr"])


def values(prometheus: Prometheus, expression: str) -> list[float]:
    return [value for value in prometheus.query(expression).values() if not math.isnan(value)]
