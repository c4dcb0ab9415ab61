"""The capacity simulation: scaling against Kubernetes' examples, queues against formulas, the page."""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks.capacity.autoscaler import Autoscaler, desired_replicas
from benchmarks.capacity.page import write_page
from benchmarks.capacity.pod import MEASURED, Clock, Pod, PodModel, derive_model, simulate_load
from benchmarks.capacity.rise import RATIO, Fleet
from deploy.monitoring.panels import AUTOSCALER, scaling_targets

RESULTS = Path(__file__).parents[1] / "results"
SERVICE_MS = 10.0


def one_server(**changes: object) -> PodModel:
    """Return a queue of single requests before one server with a service time of `SERVICE_MS`."""
    limits = {
        "align_instances": 1,
        "hog_instances": 1000,
        "batch_faces": 1,
        "queue_requests": 10**6,
        "cores": 1,
    }
    costs = {"align_batch": 0.0, "align_face": SERVICE_MS, "hog_request": 0.0, "hog_face": 0.0}
    return PodModel(**(limits | costs | changes))


def simulate_utilization(model: PodModel, load: float, seed: int) -> dict[str, float]:
    """Simulate 300 s with an offered load of `load` Erlang: the mean number of servers that it needs."""
    return simulate_load(model, 1, 1e3 * load / SERVICE_MS, 300, seed)


def test_queue_with_constant_service_time():
    """M/D/1: the mean wait is load / (2 (1 - load)) service times; Little's law gives the queue length."""
    load = 0.7
    run = simulate_utilization(one_server(), load, seed=1)
    waiting = load / (2 * (1 - load))
    assert run["ratio"] == pytest.approx(waiting, rel=0.05)
    assert run["pending"] == pytest.approx(waiting * load, rel=0.05)


@pytest.mark.parametrize("load", [0.8, 1.5])
def test_rejections_of_a_bounded_queue(load: float):
    """M/M/1/K rejects (1 - load) load^K / (1 - load^(K + 1))."""
    capacity = 5
    run = simulate_utilization(one_server(queue_requests=capacity - 1, spread=1.0), load, seed=2)
    expected = (1 - load) * load**capacity / (1 - load ** (capacity + 1))
    assert run["rejected_share"] == pytest.approx(expected, rel=0.08)


def test_rejections_without_a_queue():
    """Erlang's loss formula holds for every distribution of the service time."""
    servers, load = 2, 1.2
    run = simulate_utilization(
        one_server(align_instances=servers, cores=servers, queue_requests=0), load, seed=3
    )
    terms = [load**count / math.factorial(count) for count in range(servers + 1)]
    assert run["rejected_share"] == pytest.approx(terms[-1] / sum(terms), rel=0.05)


def test_full_batches_under_overload():
    """Throughput is that of full batches: 16 faces in 10 + 16 ms."""
    model = one_server(align_batch=10.0, align_face=1.0, batch_faces=16, queue_requests=8)
    assert simulate_load(model, 2, 2000.0, 20, seed=5)["answered"] == pytest.approx(16 / 0.026, rel=0.01)


def test_every_accepted_request_completes():
    latencies: list[float] = []
    clock = Clock()
    pod = Pod(
        derive_model(json.loads(MEASURED.read_text())["rows"], 8), 8, clock, random.Random(6), latencies
    )
    accepted = sum(pod.offer() for _ in range(200))
    assert accepted < 200
    clock.run(60_000)
    assert len(latencies) == accepted


@pytest.mark.parametrize(
    ("replicas", "values", "target", "wanted"),
    [
        # Examples of the Kubernetes documentation: 200m with a target of 100m doubles, 50m halves.
        (3, [0.2, 0.2, 0.2], 0.1, 6),
        (4, [0.05] * 4, 0.1, 2),
        # Rounded up.
        (10, [1.11] * 10, 1.0, 12),
        (3, [0.5] * 3, 1.0, 2),
        # Within the tolerance of a tenth nothing changes.
        (10, [1.09] * 10, 1.0, 10),
        (10, [0.91] * 10, 1.0, 10),
        # Above the target two missing values count as 0: (4 + 4) / 4 = 2.
        (4, [4.0, 4.0], 1.0, 8),
        # If missing values as 0 reverse the direction, nothing changes: 1.2 / 10 < 1.
        (10, [1.2], 1.0, 10),
        # Below the target they count as the target: (0.2 + 0.2 + 1 + 1) / 4 = 0.6.
        (4, [0.2, 0.2], 1.0, 3),
        (4, [], 1.0, 4),
    ],
)
def test_desired_replicas_of_one_metric(replicas: int, values: list[float], target: float, wanted: int):
    assert desired_replicas(replicas, values, target) == wanted


def autoscaler(minimum: int = 2, targets: dict[str, float] | None = None) -> Autoscaler:
    up = [
        {"type": "Percent", "value": 100, "periodSeconds": 60},
        {"type": "Pods", "value": 4, "periodSeconds": 60},
    ]
    down = [{"type": "Percent", "value": 10, "periodSeconds": 60}]
    behavior = {
        "scaleUp": {"stabilizationWindowSeconds": 0, "policies": up},
        "scaleDown": {"stabilizationWindowSeconds": 300, "policies": down},
    }
    spec = {"minReplicas": minimum, "maxReplicas": 20, "behavior": behavior}
    return Autoscaler(spec, targets or {"metric": 1.0})


def sync_at_load(scaler: Autoscaler, moments: range, load: float) -> list[int]:
    """Return the replicas after each moment; every pod has an even share of the load as its metric."""
    return [scaler.sync(moment, {"metric": [load / scaler.replicas] * scaler.replicas}) for moment in moments]


def test_scale_up_follows_the_larger_policy_up_to_the_maximum():
    """In a minute 2 pods may become max(4, 6), 6 become max(12, 10), and 12 become 24, limited to 20."""
    assert sync_at_load(autoscaler(), range(0, 195, 15), load=1000.0) == [6] * 4 + [12] * 4 + [20] * 5


def test_scale_down_waits_for_the_window_and_follows_the_policy():
    """The recommendation of 20 counts until it is 300 s old; then 2 pods per minute are removed."""
    scaler = autoscaler()
    sync_at_load(scaler, range(0, 165, 15), load=20.0)
    assert sync_at_load(scaler, range(165, 585, 15), load=4.0)[18:] == [20] + [18] * 4 + [16] * 4 + [14]


def test_scale_down_stops_at_the_minimum():
    scaler = autoscaler(minimum=3)
    sync_at_load(scaler, range(0, 15, 15), load=20.0)
    assert sync_at_load(scaler, range(15, 2400, 15), load=0.1)[-1] == 3


def test_largest_recommendation_of_all_metrics_wins():
    scaler = autoscaler(4, {"one": 1.0, "other": 10.0})
    assert scaler.sync(0, {"one": [1.5] * 4, "other": [10.0] * 4}) == 6
    assert scaler.sync(60, {"one": [1.0] * 6, "other": [15.0] * 6}) == 9


def test_missing_metric_prevents_scale_down_but_not_scale_up():
    scaler = autoscaler(10, {"one": 1.0, "other": 1.0})
    values: Sequence[tuple[int, list[float], int]] = [
        (0, [0.1] * 10, 10),
        (1000, [0.1] * 10, 10),
        (1015, [1.2] * 10, 12),
    ]
    for moment, one, wanted in values:
        assert scaler.sync(moment, {"one": one, "other": []}) == wanted


def test_autoscaler_reads_the_shipped_manifest_and_targets():
    spec = yaml.safe_load(AUTOSCALER.read_text())["spec"]
    scaler = Autoscaler(spec, scaling_targets())
    loaded = {name: [2 * target] * scaler.replicas for name, target in scaling_targets().items()}
    before = scaler.replicas
    assert scaler.sync(0, loaded) == 2 * before
    assert {rule.get("selectPolicy", "Max") for rule in spec["behavior"].values()} == {"Max"}


def test_fleet_accounts_for_every_request():
    """A pod with a service time of 10 ms, under 1.5 times its capacity, serves 100 requests per second."""
    fleet = Fleet(one_server(queue_requests=1), 1, 1, seed=1)
    fleet.load(150.0, until=70)
    assert fleet.attempts - fleet.rejections == pytest.approx(100 * 70, rel=0.05)
    assert fleet.lost > 0
    fleet.clock.run(1e3 * 140)
    assert fleet.attempts - fleet.rejections == len(fleet.latencies)


def test_metrics_of_a_fleet_are_those_of_its_pods():
    fleet = Fleet(one_server(), 1, 2, seed=1)
    fleet.scrape()
    fleet.load(2 * 50.0, until=100)
    fleet.scrape()
    assert np.mean(fleet.metrics()[RATIO]) == pytest.approx(0.5, rel=0.1)


def test_page_matches_its_json(tmp_path: Path):
    write_page(json.loads((RESULTS / "capacity.json").read_text()), tmp_path)
    assert (tmp_path / "capacity.md").read_text() == (RESULTS / "capacity.md").read_text()
    assert (tmp_path / "capacity.png").stat().st_size > 10_000
