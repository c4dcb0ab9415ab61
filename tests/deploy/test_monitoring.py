"""Rules, alerts, dashboard, the autoscaler's metrics: checked by Prometheus' own tools, and in step."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deploy.local.server import PROJECT
from deploy.monitoring.panels import scaling_targets
from tests.deploy.kubernetes import objects
from tests.support.prometheus import UNPACKED

MONITORING = PROJECT / "deploy" / "monitoring"
FLEET = PROJECT / "docs" / "fleet.md"


def promtool(*arguments: str | Path, folder: Path = MONITORING) -> str:
    """Run it; return what it said, or fail with that."""
    program = shutil.which("promtool", path=f"{UNPACKED}:{os.environ['PATH']}")
    assert program, "no promtool: `make deploy-check` unpacks Debian's prometheus"
    done = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rules(kind: str) -> list[dict]:
    """Return the rules that are a "record" or an "alert"."""
    documents = [yaml.safe_load(path.read_text()) for path in MONITORING.glob("*_rules.yaml")]
    groups = [group for document in documents for group in document["groups"]]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


def recorded() -> set[str]:
    return {rule["record"] for rule in rules("record")}


def named(text: str) -> set[str]:
    """Return the recorded series that a text names."""
    return set(re.findall(r"triton_face:[a-z_]+:[a-z]+", text))


def test_the_rules_are_rules():
    assert "SUCCESS" in promtool("check", "rules", "recording_rules.yaml", "alerting_rules.yaml")


def test_the_rules_unit_tests():
    assert "SUCCESS" in promtool("test", "rules", "rules_test.yaml")


def test_every_rule_has_a_unit_test():
    text = (MONITORING / "rules_test.yaml").read_text()
    tests = yaml.safe_load(text)["tests"]
    expected = {one["expr"] for test in tests for one in test.get("promql_expr_test", [])}
    assert recorded() <= expected
    firing = {
        one["alertname"] for test in tests for one in test.get("alert_rule_test", []) if one.get("exp_alerts")
    }
    assert firing == {rule["alert"] for rule in rules("alert")}


def test_composes_prometheus_takes_its_configuration(tmp_path: Path):
    config = yaml.safe_load((PROJECT / "deploy" / "docker" / "prometheus.yaml").read_text())
    config["rule_files"] = [str(MONITORING / "*_rules.yaml")]
    path = tmp_path / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    assert "SUCCESS" in promtool("check", "config", path)


def test_what_is_written_is_up_to_date():
    done = subprocess.run(
        [sys.executable, "-m", "deploy.monitoring", "--check"], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_the_operators_rule_is_the_same_rules():
    rule = objects("gpu")["PrometheusRule", "triton-face"]
    of_files = [rule for kind in ("record", "alert") for rule in rules(kind)]
    of_object = [one for group in rule["spec"]["groups"] for one in group["rules"]]
    assert sorted(map(_text, of_object)) == sorted(map(_text, of_files))


def _text(rule: dict) -> str:
    return json.dumps(rule, sort_keys=True)


def test_the_scaling_metric_has_one_definition():
    """The counters of queue time are set against others in the recording rules alone."""
    for path in [*MONITORING.glob("*.yaml"), *(PROJECT / "deploy" / "k8s").rglob("*.yaml")]:
        if path.name in ("recording_rules.yaml", "rules_test.yaml", "prometheus_rule.yaml"):
            continue
        assert "queue_duration_us" not in path.read_text(), path


def test_the_autoscaler_gets_what_is_recorded():
    adapter = yaml.safe_load((MONITORING / "prometheus_adapter.yaml").read_text())["rules"]["custom"]
    offered = {rule["name"]["as"] for rule in adapter}
    autoscaler = objects("gpu")["HorizontalPodAutoscaler", "triton-face"]["spec"]
    asked = {metric["pods"]["metric"]["name"] for metric in autoscaler["metrics"]}
    assert asked == offered
    for rule in adapter:
        assert named(rule["seriesQuery"]) <= recorded()
        assert rule["resources"]["overrides"] == {
            "namespace": {"resource": "namespace"},
            "pod": {"resource": "pod"},
        }
        for part in ("<<.Series>>", "<<.LabelMatchers>>", "<<.GroupBy>>"):
            assert part in rule["metricsQuery"], "else pods of all fleets are mixed"
    assert set(scaling_targets()) == asked


def test_the_pods_get_the_job_that_the_rules_go_by():
    monitor = objects("gpu")["PodMonitor", "triton-face"]["spec"]
    labels = objects("gpu")["Deployment", "triton-face"]["spec"]["template"]["metadata"]["labels"]
    assert labels[monitor["jobLabel"]] == "triton-face"
    jobs = {job for rule in rules("record") for job in re.findall(r'job="(.*?)"', rule["expr"])}
    assert jobs == {"triton-face"}


def test_alerts_and_dashboard_name_recorded_series():
    dashboard = (MONITORING / "dashboard.json").read_text()
    assert named(dashboard) <= recorded()
    for rule in rules("alert"):
        assert named(rule["expr"]) <= recorded()


@pytest.mark.parametrize("alert", [rule["alert"] for rule in rules("alert")])
def test_every_alert_is_in_the_runbook(alert: str):
    """With what it means, what to look at and what to do."""
    section = re.search(rf"^### {alert}\n(.*?)(?=^##|\Z)", FLEET.read_text(), re.DOTALL | re.MULTILINE)
    assert section, "no section of this name"
    assert len(section[1].split()) > 20


def test_the_dashboards_panels_do_not_overlap():
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (column, line)
            for column in range(place["x"], place["x"] + place["w"])
            for line in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    shown = objects("gpu")["ConfigMap", "triton-face-dashboard"]
    assert json.loads(shown["data"]["triton-face.json"]) == json.loads(
        (MONITORING / "dashboard.json").read_text()
    )
    assert shown["metadata"]["labels"]["grafana_dashboard"] == "1"
