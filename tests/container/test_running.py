"""A running container with the manifests' settings: privileges, outputs, probes."""

import re
import subprocess
import sys
from pathlib import Path

from deploy.local.server import PROJECT
from tests.container.container import Container, SharedMemory, assert_probes, pod
from tests.container.engine import FOLDER, Echo


def test_processes_have_no_privileges(container: Container):
    for process in container.processes():
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
            if ":\t" in line
        )
        assert status["Uid"].split() == ["1000"] * 4, process
        assert status["Gid"].split() == ["1000"] * 4, process
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[kind], 16) == 0, (process, kind)
        assert status["NoNewPrivs"] == "1", process
        assert status["Seccomp"] == "2", process


def test_tritonserver_is_the_first_process(container: Container):
    """The kubelet's SIGTERM must reach the server, not a shell."""
    process = Path(f"/proc/{container.pid}")
    assert (process / "comm").read_text().strip() == "tritonserver"
    assert re.search(r"^NSpid:.*\t1$", (process / "status").read_text(), re.MULTILINE)


def test_entry_point_of_the_base_image_ran(container: Container):
    """NVIDIA's entry point sets up CUDA's compatibility with older drivers."""
    environment = Path(f"/proc/{container.pid}/environ").read_bytes().split(b"\0")
    assert b"NVIDIA_ENTRYPOINT_RAN=1" in environment


def test_only_volumes_are_writable(container: Container, shared_memory: SharedMemory):
    script = 'for folder; do touch "$folder/x" 2>/dev/null && echo "$folder" && rm "$folder/x"; done'
    folders = [
        "/",
        "/etc",
        "/opt/triton-face",
        "/opt/triton-face/model_repository",
        "/run",
        "/usr",
        "/var/tmp",
    ]
    done = container.execute("sh", "-c", script, "sh", *folders, "/tmp", "/dev/shm")
    assert done.stdout.split() == ["/tmp", "/dev/shm"]


def test_shared_memory_has_the_size_of_the_manifests(container: Container):
    done = container.execute("df", "--output=size", "--block-size=1M", "/dev/shm")
    (volume,) = (volume for volume in pod()["volumes"] if volume["name"] == "shared-memory")
    assert volume["emptyDir"]["sizeLimit"] == "1Gi"
    assert done.stdout.split()[1] == "1024"


def test_acceptance(container: Container, echo: Echo):
    """The tests of `make accept`: every output against the oracles."""
    log = FOLDER / "acceptance.log"
    echo(f"acceptance tests, half a minute; log: {log.relative_to(PROJECT)}")
    servers = [f"--server={container.grpc_url}", f"--metrics={container.metrics_url}"]
    command = [sys.executable, "-m", "pytest", "-q", "tests/acceptance", *servers]
    with log.open("w") as file:
        done = subprocess.run(command, cwd=PROJECT, stdout=file, stderr=file)
    assert done.returncode == 0, log.read_text()[-3000:]
    echo(log.read_text().splitlines()[-1])


def test_probes_of_a_healthy_server_pass(container: Container):
    for name in ("startupProbe", "readinessProbe"):
        assert container.get(pod()["containers"][0][name]["httpGet"]["path"]) == 200
    assert_probes(container, healthy=True)
