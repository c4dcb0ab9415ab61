"""Every probe of the manifests on a real server: with its align_mask stubs alive, killed, stopped, hung."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from tritonclient.utils import InferenceServerException

from deploy.local.server import PROJECT
from deploy.local.supervisor import server_processes
from tests.deploy.production_server import ProductionServer
from tests.faces import photo_faces
from tests.raw import infer
from triton_face_client import FaceFeatureClient, Retry

DEPLOYMENT = PROJECT / "deploy" / "k8s" / "base" / "deployment.yaml"
PROBE = PROJECT / "deploy" / "docker" / "probe.py"

SEES_DEAD_STUBS = (2, 68)
"""Triton's version since which a model is not ready when its stub has died: that of 26.04."""


@pytest.fixture(scope="module")
def container() -> dict:
    return yaml.safe_load(DEPLOYMENT.read_text())["spec"]["template"]["spec"]["containers"][0]


@pytest.fixture
def own(repository: Path) -> Iterator[ProductionServer]:
    with ProductionServer(repository) as server:
        yield server


def probe(server: ProductionServer, stale_seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run the image's probe as the kubelet does, with another patience where a test has none."""
    code = f"import sys; sys.path.insert(0, {str(PROBE.parent)!r}); import probe; "
    code += f"probe.STALE_SECONDS = {stale_seconds}; sys.exit(probe.main())"
    ports = {"HTTP_PORT": str(server.http_port), "METRICS_PORT": str(server.metrics_port)}
    return subprocess.run(
        [sys.executable, "-S", "-c", code], env=os.environ | ports, capture_output=True, text=True
    )


def test_the_manifest_asks_what_is_tested_here(container: dict):
    paths = {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe")}
    assert paths == {"startupProbe": "/v2/health/ready", "readinessProbe": "/v2/models/align_mask/ready"}
    assert container["livenessProbe"]["exec"]["command"] == ["python3", "-I", "/opt/triton-face/probe.py"]
    assert "ensemble" not in str([container[name] for name in container if name.endswith("Probe")])


def test_alive(container: dict, production: ProductionServer):
    for name in ("startupProbe", "readinessProbe"):
        assert production.get(container[name]["httpGet"]["path"]) == 200
    # The script itself, as the manifest has it.
    ports = {"HTTP_PORT": str(production.http_port), "METRICS_PORT": str(production.metrics_port)}
    # As it is, and where a proxy is to be used for everything else.
    for proxy in ({}, {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}):
        command = [sys.executable, "-I", str(PROBE)]
        done = subprocess.run(command, env=os.environ | ports | proxy, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_stub_that_is_gone(container: dict, own: ProductionServer, end: signal.Signals):
    stub = next(process for process in server_processes(own.pid) if process.name == "align_mask")
    assert probe(own, stale_seconds=4).returncode == 0
    os.kill(stub.pid, end)
    wait_for_a_failure(own)
    done = probe(own, stale_seconds=4)
    assert done.returncode == 1
    if end == signal.SIGKILL and version(own) >= SEES_DEAD_STUBS:
        assert "400" in done.stdout
        assert own.get(container["readinessProbe"]["httpGet"]["path"]) == 400
    else:
        # What no endpoint of Triton tells, the heartbeat does, and names the one of the two.
        assert "no heartbeat of" in done.stdout
        assert done.stdout.count("align_mask_0_") == 1
        assert own.get(container["readinessProbe"]["httpGet"]["path"]) == 200
    assert own.get("/v2/models/ensemble/ready") == 200, "why no probe asks the ensemble"
    # It is the server that must be started again, and the kubelet's way of that works: SIGTERM, then SIGKILL.
    os.kill(own.pid, signal.SIGKILL)
    assert probe(own).returncode == 1


def test_a_stub_that_hangs_in_a_batch(repository: Path, tmp_path: Path):
    """In its own code, while its other threads go on: the heartbeat stands where the batch began."""
    hanging = shutil.copytree(repository, tmp_path / "hanging")
    code = hanging / "align_mask" / "1" / "model.py"
    begins = "        clock = StageClock()\n"
    assert code.read_text().count(begins) == 1
    code.write_text(code.read_text().replace(begins, f"        __import__('time').sleep(600)\n{begins}"))
    with ProductionServer(hanging) as server:
        time.sleep(5)
        assert probe(server, stale_seconds=4).returncode == 0
        subprocess.Popen([sys.executable, "-c", ONE_FACE, server.grpc_url], cwd=PROJECT)
        wait_for_a_failure(server)
        os.kill(server.pid, signal.SIGKILL)


ONE_FACE = """
import sys
from triton_face_client import FaceFeatureClient, Retry
from triton_face_client.sample_faces import sample_faces
FaceFeatureClient(sys.argv[1], timeout=10, retry=Retry(seconds=0)).align(*sample_faces(1))
"""


@pytest.mark.parametrize("what", ["answered", "refused", "failed"])
def test_the_heart_beats_again_after_a_batch(production: ProductionServer, what: str):
    """Whatever became of it: an idle pod must not be taken for one that hangs in its last batch."""
    frames, landmarks = photo_faces(2, 740)
    if what == "refused":
        landmarks[0] = np.nan
    with FaceFeatureClient(production.grpc_url, retry=Retry(seconds=0)) as client:
        for _ in range(8):
            with contextlib.suppress(InferenceServerException):
                # Without frames the model finds nothing to compute.
                tensors = {"LANDMARKS": landmarks} | ({} if what == "failed" else {"FRAMES": frames})
                infer(client, "align_mask", tensors, ["MASK"])
    time.sleep(6)
    done = probe(production, stale_seconds=4)
    assert done.returncode == 0, done.stdout


def test_a_server_without_metrics_is_not_taken_for_a_live_one(repository: Path):
    with ProductionServer(repository, options=("--allow-metrics=false",)) as server:
        assert probe(server).returncode == 1


def test_a_batch_that_takes_long_is_no_hang(production: ProductionServer):
    """The probe's minute is many times what the largest request takes."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", LARGEST, production.grpc_url], cwd=PROJECT, check=True)
    assert time.monotonic() - began < 60
    assert probe(production).returncode == 0


LARGEST = """
import sys
import numpy as np
from triton_face_client import FaceFeatureClient
from triton_face_client.sample_faces import sample_faces
frames, landmarks = sample_faces(8)
large = np.zeros((8, 3, 1080, 1920), np.uint8)
large[:, :, :112, :112] = frames
with FaceFeatureClient(sys.argv[1]) as client:
    client.features(large, landmarks)
"""


def wait_for_a_failure(server: ProductionServer) -> None:
    deadline = time.monotonic() + 30
    while probe(server, stale_seconds=4).returncode == 0:
        assert time.monotonic() < deadline, "the probe saw nothing"
        time.sleep(0.5)


def version(server: ProductionServer) -> tuple[int, ...]:
    """Return Triton's version, of its log."""
    for line in server.log_path.read_text().splitlines():
        if "server_version" in line:
            return tuple(int(part) for part in line.split("|")[2].strip().split("."))
    raise AssertionError("the log names no version")
