"""Rules, alerts and dashboard pass promtool and are consistent with each other and the manifests."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from deploy.local.server import PROJECT
from tests.deploy.kubernetes import objects
from tests.support.prometheus import UNPACKED

MONITORING = PROJECT / "deploy" / "monitoring"


def promtool(*arguments: str | Path) -> None:
    """Run promtool and assert that it reports success."""
    program = shutil.which("promtool", path=f"{os.environ['PATH']}:{UNPACKED}")
    assert program, "no promtool: `make deploy-check` unpacks Debian's package prometheus"
    done = subprocess.run([program, *arguments], cwd=MONITORING, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


def rules(kind: str) -> list[dict]:
    """Return the rules of the kind "record" or "alert"."""
    groups = [
        group
        for path in MONITORING.glob("*_rules.yaml")
        for group in yaml.safe_load(path.read_text())["groups"]
    ]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


def test_rules_pass_their_unit_tests():
    promtool("test", "rules", "rules_test.yaml")


def test_every_rule_has_a_unit_test():
    tests = yaml.safe_load((MONITORING / "rules_test.yaml").read_text())["tests"]
    evaluated = {case["expr"] for test in tests for case in test.get("promql_expr_test", [])}
    fired = {
        case["alertname"]
        for test in tests
        for case in test.get("alert_rule_test", [])
        if case.get("exp_alerts")
    }
    assert {rule["record"] for rule in rules("record")} <= evaluated
    assert {rule["alert"] for rule in rules("alert")} == fired


def test_prometheus_accepts_the_configuration_of_compose(tmp_path: Path):
    config = yaml.safe_load((PROJECT / "deploy" / "docker" / "prometheus.yaml").read_text())
    config["rule_files"] = [str(MONITORING / "*_rules.yaml")]
    path = tmp_path / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    promtool("check", "config", path)


def test_generated_files_are_up_to_date():
    command = [sys.executable, "-m", "deploy.monitoring", "--check"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_alerts_and_dashboard_use_recorded_series():
    texts = [rule["expr"] for rule in rules("alert")] + [(MONITORING / "dashboard.json").read_text()]
    used = {name for text in texts for name in re.findall(r"triton_face:[a-z_]+:[a-z]+", text)}
    assert used <= {rule["record"] for rule in rules("record")}


def test_scraped_pods_have_the_job_of_the_rules():
    monitor = objects("gpu")["PodMonitor", "triton-face"]["spec"]
    labels = objects("gpu")["Deployment", "triton-face"]["spec"]["template"]["metadata"]["labels"]
    jobs = {job for rule in rules("record") for job in re.findall(r'job="(.*?)"', rule["expr"])}
    assert jobs == {labels[monitor["jobLabel"]]}


def test_every_alert_has_a_section_in_the_runbook():
    headings = re.findall(r"^### (TritonFace\w+)$", (PROJECT / "docs" / "fleet.md").read_text(), re.MULTILINE)
    assert set(headings) == {rule["alert"] for rule in rules("alert") if rule["labels"]["severity"] != "info"}


def test_grafana_sidecar_gets_the_dashboard():
    config_map = objects("gpu")["ConfigMap", "triton-face-dashboard"]
    assert config_map["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(config_map["data"]["triton-face.json"])["panels"]
