"""Dockerfiles and compose.yaml, without building an image; `tests/container` builds and runs it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deploy.local.server import PROJECT

DOCKER = PROJECT / "deploy" / "docker"


@pytest.mark.parametrize("name", ["Dockerfile", "perf_analyzer.Dockerfile"])
def test_hadolint_reports_nothing(name: str):
    command = [Path(sys.executable).parent / "hadolint", DOCKER / name]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("target", ["image", "perf-image"])
def test_make_requires_the_digest_of_the_base_image(target: str):
    command = ["make", target, "TRITON_IMAGE=registry.example/tritonserver"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "DIGEST=sha256:..." in done.stdout


def test_compose_mounts_action_units_read_only_where_serve_sh_reads_them():
    service = yaml.safe_load((DOCKER / "compose.action_units.yaml").read_text())["services"]["triton-face"]
    (mount,) = service["volumes"]
    assert f"AU_REPOSITORY:-{mount['target']}}}" in (DOCKER / "serve.sh").read_text()
    assert mount["read_only"]
    default = re.fullmatch(r"\${AU_REPOSITORY:-(.*)}", mount["source"])[1]
    assert (DOCKER / default).resolve() == PROJECT / "build" / "au_repository"


def test_compose_mounts_existing_files_and_publishes_on_loopback():
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert source in compose["volumes"] or (DOCKER / source).is_file(), source
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
