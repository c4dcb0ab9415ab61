"""The autoscaler's simulation: its algorithm by hand, its queue against formulas, its inputs as shipped."""

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks.capacity import shipped
from benchmarks.capacity.day import PATIENCE_SECONDS, Fleet, run_day
from benchmarks.capacity.growth import growth_rows, imbalance
from benchmarks.capacity.hpa import Autoscaler, Controller, Policy, Rules, desired_replicas
from benchmarks.capacity.pod import Costs, Limits, run_pod
from benchmarks.capacity.report import write_report
from benchmarks.capacity.seconds import EDGES_MS, Seconds
from benchmarks.capacity.shipped import PENDING, RATIO, read_autoscaler, read_limits
from deploy.local.server import PROJECT

RESULTS = PROJECT / "benchmarks" / "results"

UP = Rules(0, (Policy("Percent", 100, 60), Policy("Pods", 4, 60)))
DOWN = Rules(300, (Policy("Percent", 10, 60),))

ONE_CORE = Limits(instances=1, later_instances=1, batch_faces=1, queue_requests=10**6, cores=1)
SERVICE_MS = 10.0


@pytest.mark.parametrize(
    ("replicas", "values", "target", "wanted"),
    [
        # The documentation's own examples: 200m where 100m is wanted doubles, 50m halves.
        (3, [0.2, 0.2, 0.2], 0.1, 6),
        (4, [0.05] * 4, 0.1, 2),
        # Rounded up.
        (10, [1.11] * 10, 1.0, 12),
        (3, [0.5] * 3, 1.0, 2),
        # Within a tenth of the target nothing changes.
        (10, [1.09] * 10, 1.0, 10),
        (10, [0.91] * 10, 1.0, 10),
        # Only the mean counts.
        (2, [4.0, 0.0], 1.0, 4),
        # Two without a value count as idle on the way up: (4 + 4) / 4 = 2.
        (4, [4.0, 4.0], 1.0, 8),
        (4, [2.0, 2.0], 1.0, 4),
        # Where that turns the direction, nothing happens: 1.2 / 10.
        (10, [1.2], 1.0, 10),
        # On the way down they count as just loaded: (0.2 + 0.2 + 1 + 1) / 4 = 0.6.
        (4, [0.2, 0.2], 1.0, 3),
        (4, [], 1.0, None),
    ],
)
def test_what_a_metric_asks_for(replicas: int, values: list[float], target: float, wanted: int | None):
    assert desired_replicas(replicas, values, target) == wanted


def autoscaler(**changes: object) -> Autoscaler:
    plain = Autoscaler(least=2, most=20, targets={"metric": 1.0}, up=UP, down=DOWN)
    return dataclasses.replace(plain, **changes)


def sync_at_load(controller: Controller, moments: range, load: float) -> list[int]:
    """Give every pod an even share of a load; return the replicas after each moment."""
    return [
        controller.sync(moment, {"metric": [load / controller.replicas] * controller.replicas})
        for moment in moments
    ]


def test_up_by_the_larger_policy_and_to_the_bound():
    """2 may become max(4, 6) in a minute, 6 then max(12, 10), 12 then 24, which the bound makes 20."""
    counts = sync_at_load(Controller(autoscaler(), 2), range(0, 195, 15), load=1000.0)
    assert counts == [6] * 4 + [12] * 4 + [20] * 5


def test_up_by_the_smaller_policy():
    up = dataclasses.replace(UP, select="Min")
    assert sync_at_load(Controller(autoscaler(up=up), 2), range(0, 75, 15), load=1000.0) == [4] * 4 + [8]


def test_disabled():
    up = dataclasses.replace(UP, select="Disabled")
    assert sync_at_load(Controller(autoscaler(up=up), 2), range(0, 75, 15), load=1000.0) == [2] * 5


def test_down_after_the_window_and_by_a_tenth():
    """The recommendation of 20 counts until it is 300 s old; then two of 20 go, two of 18, two of 16."""
    controller = Controller(autoscaler(), 20)
    sync_at_load(controller, range(0, 15, 15), load=20.0)
    counts = sync_at_load(controller, range(15, 435, 15), load=4.0)
    assert counts == [20] * 19 + [18] * 4 + [16] * 4 + [14]


def test_never_under_the_least():
    controller = Controller(autoscaler(), 3)
    counts = sync_at_load(controller, range(0, 1200, 15), load=0.1)
    assert counts[-1] == 2


def test_up_only_with_the_window_s_lowest():
    up = dataclasses.replace(UP, window=60)
    controller = Controller(autoscaler(up=up), 4)
    assert sync_at_load(controller, range(0, 15, 15), load=4.0) == [4]
    counts = sync_at_load(controller, range(15, 90, 15), load=6.0)
    assert counts == [4] * 3 + [6] * 2


def test_the_largest_of_the_metrics():
    controller = Controller(autoscaler(targets={"one": 1.0, "other": 10.0}), 4)
    assert controller.sync(0, {"one": [1.5] * 4, "other": [10.0] * 4}) == 6
    assert controller.sync(60, {"one": [1.0] * 6, "other": [15.0] * 6}) == 9


def test_a_metric_that_is_not_there_keeps_pods_but_stops_none():
    controller = Controller(autoscaler(targets={"one": 1.0, "other": 1.0}), 10)
    assert controller.sync(0, {"one": [0.1] * 10, "other": []}) == 10
    assert controller.sync(1000, {"one": [0.1] * 10, "other": []}) == 10
    assert controller.sync(1015, {"one": [1.2] * 10, "other": []}) == 12
    assert controller.sync(1030, {"one": [], "other": []}) == 12


def test_waiting_of_a_queue_with_even_service():
    """M/D/1: a share of load l waits for l / (2 (1 - l)) services (Pollaczek and Khinchine)."""
    load = 0.7
    run = run_pod(ONE_CORE, Costs(batch=0.0, face=SERVICE_MS), 1, 1000 * load / SERVICE_MS, 600, seed=1)
    expected = SERVICE_MS * load / (2 * (1 - load))
    assert run.queue.mean() == pytest.approx(expected, rel=0.05)
    np.testing.assert_allclose(run.compute, SERVICE_MS, rtol=1e-6)
    # Little: how many wait is how long, times how many come.
    assert run.pending.mean() == pytest.approx(expected * load / SERVICE_MS, rel=0.05)
    assert run.gauge.mean() == pytest.approx(expected * load / SERVICE_MS, rel=0.25)


@pytest.mark.parametrize("load", [0.8, 1.5])
def test_refusals_of_a_bounded_queue(load: float):
    """M/M/1/K refuses (1 - l) l^K / (1 - l^(K + 1))."""
    places = 5
    limits = dataclasses.replace(ONE_CORE, queue_requests=places - 1)
    costs = Costs(batch=0.0, face=SERVICE_MS, spread=1.0)
    run = run_pod(limits, costs, 1, 1000 * load / SERVICE_MS, 300, seed=2)
    expected = (1 - load) * load**places / (1 - load ** (places + 1))
    assert run.refused / run.arrived == pytest.approx(expected, rel=0.08)


def test_refusals_without_a_queue():
    """Erlang's loss formula, whatever the distribution of the service."""
    servers, offered = 2, 1.2
    limits = dataclasses.replace(ONE_CORE, instances=servers, queue_requests=0, cores=servers)
    run = run_pod(limits, Costs(batch=0.0, face=SERVICE_MS), 1, 1000 * offered / SERVICE_MS, 300, seed=3)
    terms = [offered**count / math.factorial(count) for count in range(servers + 1)]
    assert run.refused / run.arrived == pytest.approx(terms[-1] / sum(terms), rel=0.05)


def test_sharing_of_a_core():
    """M/G/1 with processor sharing: a service takes 1 / (1 - l) times as long as alone."""
    load = 0.5
    limits = dataclasses.replace(ONE_CORE, instances=1000)
    costs = Costs(batch=0.0, face=SERVICE_MS, spread=0.5)
    run = run_pod(limits, costs, 1, 1000 * load / SERVICE_MS, 400, seed=4)
    assert run.compute.mean() == pytest.approx(SERVICE_MS / (1 - load), rel=0.05)


def test_a_batch_is_what_waits():
    """Under overload batches are full, and a pod answers what they allow."""
    limits = dataclasses.replace(ONE_CORE, batch_faces=16, queue_requests=8)
    run = run_pod(limits, Costs(batch=10.0, face=1.0), 2, 2000.0, 20, seed=5)
    assert run.summary()["batch_faces"] == pytest.approx(16, rel=0.01)
    assert run.summary()["answered"] == pytest.approx(16 / 0.026, rel=0.01)


@pytest.mark.parametrize("rate", [50.0, 400.0])
def test_no_request_is_forgotten(rate: float):
    run = run_pod(read_limits(), Costs(3.0, 0.4, 1.5, 0.6, 0.4, 5.0, spread=0.5), 8, rate, 10, seed=6)
    assert run.arrived == len(run.time) + run.refused + run.in_system
    assert (run.refused > 0) == (rate > 200)
    assert run.pending.max() <= read_limits().queue_requests
    assert (run.time >= run.queue + run.compute).all()


def plain_seconds() -> Seconds:
    """Make a pod that answers 100 requests a second, with a ratio in proportion to its load up to 0.5."""
    loads = np.array([0.0, 100.0, 200.0])
    level = np.array([0.0, 0.5, 2.0])[:, None] * np.ones((3, 4))
    times = np.zeros((3, len(EDGES_MS) - 1))
    times[1:, [50, 150]] = 0.5
    return Seconds(
        loads=loads,
        answered=np.minimum(loads, 100.0),
        queue=level,
        compute=np.ones((3, 4)),
        gauge=level * 10,
        times=times,
        slow=np.array([0.0, 0.0, 0.5]),
        p99=np.array([0.0, EDGES_MS[151], EDGES_MS[151]]),
    )


def test_every_request_of_a_day_is_answered_or_lost():
    load = np.array([150.0] * 600 + [1.0] * 300)
    day = run_day([Fleet("two", 40, None, 2), Fleet("one", 40, None, 1)], plain_seconds(), load, seed=1)
    answered = 60 * day.answered.sum(axis=1)
    np.testing.assert_allclose(answered + day.lost, load.sum(), rtol=1e-9)
    np.testing.assert_allclose(day.tries - day.refused, answered, rtol=1e-9)
    np.testing.assert_array_equal(day.lost > 0, [False, True])
    # Those of the last minute of overload may still get through.
    assert day.lost[1] >= 50 * (600 - 2 * PATIENCE_SECONDS)
    np.testing.assert_allclose(day.pod_hours, [2 * 900 / 3600, 900 / 3600])
    np.testing.assert_array_equal(day.slow_seconds > 0, [False, True])


def test_a_fleet_grows_to_its_load():
    """Where the ratio is in proportion to the load, 800 requests x 0.5 / 100 over 0.4 are ten pods."""
    load = np.full(1800, 800.0)
    scaled = autoscaler(targets={RATIO: 0.4})
    day = run_day([Fleet("scaled", 40, scaled, 2)], plain_seconds(), load, seed=1)
    assert day.replicas[0, 0] < 10 <= day.highest[0]
    assert day.refused_share[0, -1] == 0
    assert 9 <= day.replicas[0, -1] <= 11


def test_the_shipped_manifest_is_read(tmp_path: Path):
    text = shipped.AUTOSCALER.read_text()
    read = read_autoscaler()
    assert set(read.targets) == {RATIO, PENDING}
    assert f"minReplicas: {read.least}" in text
    assert f"maxReplicas: {read.most}" in text
    manifest = yaml.safe_load(text)
    manifest["spec"]["maxReplicas"] = 77
    manifest["spec"]["metrics"][0]["pods"]["target"]["averageValue"] = "125m"
    manifest["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] = 42
    other = tmp_path / "autoscaler.yaml"
    other.write_text(yaml.safe_dump(manifest))
    changed = read_autoscaler(other)
    assert changed.most == 77
    assert changed.targets[manifest["spec"]["metrics"][0]["pods"]["metric"]["name"]] == 0.125
    assert changed.down.window == 42
    assert changed.up == read.up


def test_the_shipped_limits_are_read():
    limits = read_limits()
    for name, expected in (
        ("align_mask", {"count": limits.instances, "max_queue_size": limits.queue_requests}),
        ("hog", {"count": limits.later_instances}),
    ):
        text = (shipped.DEFAULT_REPOSITORY / name / "config.pbtxt").read_text()
        for field, value in expected.items():
            assert re.search(rf"^ *{field}: (\d+)$", text, re.MULTILINE)[1] == str(value)


def test_imbalance_of_the_clients_choices():
    generator = np.random.default_rng(1)
    assert imbalance(10, 20, 10, generator) == 1.0
    # Two clients of one pod each, on one of two pods or on both.
    assert {imbalance(2, 2, 1, generator) for _ in range(50)} == {1.0, 2.0}
    rows = growth_rows(1)
    assert all(row["imbalance"]["one"] >= row["imbalance"]["subset"] >= 1 for row in rows)
    assert rows[-1]["reconnects_per_second"]["all"]["30"] == pytest.approx(2000 * 1000 / 30)


def test_the_page_is_made_from_the_figures(tmp_path: Path):
    result = json.loads((RESULTS / "autoscaling.json").read_text())
    write_report(result, tmp_path)
    assert (tmp_path / "autoscaling.md").read_text() == (RESULTS / "autoscaling.md").read_text()
    assert (tmp_path / "autoscaling.png").stat().st_size > 0
