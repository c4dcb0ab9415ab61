"""What can be said of the image without building it; `tests/container` builds and runs it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deploy.local.server import PROJECT

DOCKER = PROJECT / "deploy" / "docker"
COMPOSE = DOCKER / "compose.yaml"
DOCKERFILES = {"image": DOCKER / "Dockerfile", "perf-image": DOCKER / "perf_analyzer.Dockerfile"}


@pytest.mark.parametrize("dockerfile", DOCKERFILES.values(), ids=lambda path: path.name)
def test_the_linter_finds_nothing(dockerfile: Path):
    done = subprocess.run(
        [Path(sys.executable).parent / "hadolint", dockerfile], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("target", DOCKERFILES)
def test_make_names_images_that_can_be(target: str):
    """BuildKit parses every FROM, needed or not: a missing argument leaves no reference."""
    digest = "sha256:" + 64 * "0"
    given = [
        "TRITON_IMAGE=registry.example/tritonserver",
        f"TRITON_DIGEST={digest}",
        f"TRITON_SDK_DIGEST={digest}",
    ]
    command = subprocess.check_output(["make", "--dry-run", target, *given], cwd=PROJECT, text=True)
    arguments = dict(re.findall(r"--build-arg (\w+)=(\S+)", command))
    dockerfile = PROJECT / re.search(r"--file (\S+)", command)[1]
    assert dockerfile == DOCKERFILES[target]
    bases = re.findall(r"^FROM (\S+)", dockerfile.read_text(), re.MULTILINE)
    for base in (base for base in bases if "$" in base):
        name = re.sub(r"\$\{(\w+)\}", lambda found: arguments.get(found[1], ""), base)
        assert re.fullmatch(r"[a-z0-9./-]+:[\w.-]+@sha256:[0-9a-f]{64}", name), name
    assert subprocess.run(["make", target], cwd=PROJECT, capture_output=True).returncode != 0, (
        "without a digest"
    )


@pytest.fixture(scope="module")
def compose() -> dict:
    return yaml.safe_load(COMPOSE.read_text())


def test_what_compose_mounts_is_there(compose: dict):
    mounted = [
        volume.partition(":")[0]
        for service in compose["services"].values()
        for volume in service.get("volumes", [])
    ]
    for source in mounted:
        assert source in compose["volumes"] or (COMPOSE.parent / source).is_file(), source


def test_compose_keeps_the_service_apart(compose: dict):
    service = compose["services"]["triton-face"]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") for one in compose["services"].values() for port in one["ports"])
    assert service["shm_size"] == "1gb"
