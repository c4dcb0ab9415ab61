"""Every probe of the manifests on a real server: well, busy, and with a process or a model in trouble.

The tests play the kubelet, with the manifest's own periods and thresholds.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from tritonclient.utils import InferenceServerException

from deploy.docker import probe
from deploy.local.server import PROJECT
from deploy.local.supervisor import server_processes
from tests.deploy.kubelet import PROBE, Kubelet, look
from tests.deploy.production_server import ProductionServer
from tests.reliability.overload import overload
from tests.support.face_data import photo_faces
from tests.support.raw_requests import infer
from triton_face_client import FaceFeatureClient, Retry

DEPLOYMENT = PROJECT / "deploy" / "k8s" / "base" / "deployment.yaml"

NOTICE_SECONDS = 20.0
"""Within which the kubelet must give up a container that has to be replaced."""

REPLACE_SECONDS = 45.0
"""Within which another server must be ready in its place."""

LATE_SECONDS = 3.0
"""After a look; the second look from then finds a heartbeat just not stale, so the notice takes longest."""

OVERLOAD_SECONDS = 30.0


@pytest.fixture(scope="module")
def container() -> dict:
    return yaml.safe_load(DEPLOYMENT.read_text())["spec"]["template"]["spec"]["containers"][0]


@pytest.fixture
def own(repository: Path) -> Iterator[ProductionServer]:
    with ProductionServer(repository) as server:
        yield server


ALIGN_MASK = """
    import pathlib, time
    order = pathlib.Path(__file__).parents[1] / "order"
    order = order.read_text() if order.exists() else ""
    if order == "hang":
        time.sleep(600)
    if order == "raise":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if order == "slow":
        for _ in range(12):
            with clock.stage("align"):
                time.sleep(1)
"""

HOG = """
import pathlib
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        order = pathlib.Path(__file__).parent / "order"
        order = order.read_text() if order.exists() else ""
        if order == "hang":
            time.sleep(600)
        if order == "raise":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        faces = [pb_utils.get_input_tensor_by_name(one, "MASKED_FACES").shape()[0] for one in requests]
        hogs = [pb_utils.Tensor("HOG", np.zeros((count, 5408), np.float32)) for count in faces]
        return [pb_utils.InferenceResponse([hog]) for hog in hogs]
"""


@pytest.fixture
def obedient(repository: Path, tmp_path: Path) -> Path:
    """Give a repository whose align_mask and hog raise, hang or are slow when told by `give_order`."""
    models = shutil.copytree(repository, tmp_path / "obedient")
    pipeline = models / "align_mask" / "1" / "align_mask" / "pipeline.py"
    begins = '    with clock.stage("align"):\n        alignment'
    assert pipeline.read_text().count(begins) == 1
    pipeline.write_text(pipeline.read_text().replace(begins, ALIGN_MASK + begins))
    config = models / "hog" / "config.pbtxt"
    config.write_text(
        config.read_text().replace('"onnxruntime"', '"python"').replace("model.onnx", "model.py")
    )
    (models / "hog" / "1" / "model.py").write_text(HOG)
    return models


def give_order(models: Path, model: str, order: str) -> None:
    (models / model / "1" / "order").write_text(order)


@contextlib.contextmanager
def calls(server: ProductionServer, callers: int = 8) -> Iterator[None]:
    """Have callers send faces, whatever becomes of them, until the end of the block."""
    frames, landmarks = photo_faces(2, 741)
    stopping = threading.Event()

    def call() -> None:
        with FaceFeatureClient(server.grpc_url, timeout=5, retry=Retry(seconds=0)) as client:
            while not stopping.wait(0.1):
                with contextlib.suppress(InferenceServerException):
                    infer(client, "ensemble", {"FRAMES": frames, "LANDMARKS": landmarks}, ["HOG"])

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        os.kill(server.pid, signal.SIGKILL)  # else a hung model keeps the callers waiting
        for thread in threads:
            thread.join()


def test_the_manifest_asks_what_is_tested_here(container: dict):
    paths = {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe")}
    assert paths == {"startupProbe": "/v2/health/ready", "readinessProbe": "/v2/models/align_mask/ready"}
    assert container["livenessProbe"]["exec"]["command"] == ["python3", "-I", "/opt/triton-face/probe.py"]
    assert "ensemble" not in str([container[name] for name in container if name.endswith("Probe")])


def test_alive(container: dict, production: ProductionServer, tmp_path: Path):
    for name in ("startupProbe", "readinessProbe"):
        assert production.get(container[name]["httpGet"]["path"]) == 200
    assert look(production, tmp_path) is None
    (memory,) = tmp_path.iterdir()
    assert set(probe.load(memory)) == {"hog", "pose_mlp"}


def test_where_a_proxy_is_to_be_used_for_everything_else(production: ProductionServer, tmp_path: Path):
    environment = {
        "HTTP_PORT": str(production.http_port),
        "METRICS_PORT": str(production.metrics_port),
        "TMPDIR": str(tmp_path),
        "http_proxy": "http://127.0.0.1:9",
    }
    done = subprocess.run([sys.executable, "-I", PROBE], env=os.environ | environment, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_memory_that_cannot_be_kept(production: ProductionServer, tmp_path: Path):
    """The probe says so, and sees the rest."""
    assert look(production, tmp_path) is None
    (memory,) = tmp_path.iterdir()
    memory.unlink()
    memory.symlink_to("/etc/passwd")
    said = look(production, tmp_path)
    assert said.startswith("failures of other models than align_mask are not seen")


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_stub_that_is_gone(container: dict, repository: Path, end: signal.Signals, tmp_path: Path):
    liveness = container["livenessProbe"]
    with (
        ProductionServer(repository) as server,
        Kubelet(server, liveness, tmp_path) as kubelet,
    ):
        stub = next(process for process in server_processes(server.pid) if process.name == "align_mask")
        time.sleep(LATE_SECONDS)
        os.kill(stub.pid, end)
        gone = time.monotonic()
        assert kubelet.seconds_until_it_gives_up(60) < NOTICE_SECONDS
        assert kubelet.failures[-1].count("align_mask_0_") == 1, "one of the two"
        assert "has made no progress" in kubelet.failures[-1]
        # What no endpoint of Triton 2.51 shows.
        for model in ("align_mask", "ensemble"):
            assert server.get(f"/v2/models/{model}/ready") == 200
        # preStop uses up the grace, SIGTERM gets 2 s, then the kubelet kills all of the container.
        time.sleep(liveness["terminationGracePeriodSeconds"] + 2)
        os.killpg(server.pid, signal.SIGKILL)
    assert "ConnectionRefusedError" in look(server, tmp_path)
    with ProductionServer(repository) as server:
        time.sleep(container["startupProbe"]["periodSeconds"])
        assert time.monotonic() - gone < REPLACE_SECONDS
        assert look(server, tmp_path) is None, "with the memory of the server before"


def test_a_server_that_is_stopped(container: dict, own: ProductionServer, tmp_path: Path):
    with Kubelet(own, container["livenessProbe"], tmp_path) as kubelet:
        time.sleep(LATE_SECONDS)
        os.kill(own.pid, signal.SIGSTOP)
        assert kubelet.seconds_until_it_gives_up(60) < NOTICE_SECONDS
    os.kill(own.pid, signal.SIGKILL)
    assert "TimeoutError" in kubelet.failures[-1]


@pytest.mark.parametrize(
    ("model", "order", "reason"),
    [
        # In its own code, while its other threads go on.
        ("align_mask", "hang", "has made no progress"),
        ("align_mask", "raise", "batches in a row"),
        ("hog", "raise", "hog has failed"),
        ("hog", "hang", "hog has ended no request"),
    ],
)
def test_a_model_in_trouble(
    container: dict, obedient: Path, tmp_path: Path, model: str, order: str, reason: str
):
    with (
        ProductionServer(obedient) as server,
        Kubelet(server, container["livenessProbe"], tmp_path) as kubelet,
        calls(server),
    ):
        time.sleep(7)
        assert kubelet.failures == []
        give_order(obedient, model, order)
        assert kubelet.seconds_until_it_gives_up(60) < NOTICE_SECONDS
    assert reason in kubelet.failures[-1]


def test_a_batch_that_takes_long_is_no_hang(container: dict, obedient: Path, tmp_path: Path):
    """It takes longer than the threshold, which is for one step of it."""
    give_order(obedient, "align_mask", "slow")
    frames, landmarks = photo_faces(2, 742)
    with (
        ProductionServer(obedient) as server,
        Kubelet(server, container["livenessProbe"], tmp_path) as kubelet,
        FaceFeatureClient(server.grpc_url, timeout=60) as client,
    ):
        start = time.monotonic()
        infer(client, "align_mask", {"FRAMES": frames, "LANDMARKS": landmarks}, ["MASK"])
        assert time.monotonic() - start > probe.STALE_SECONDS + 2
    assert kubelet.looks > 2
    assert kubelet.failures == []


def test_the_largest_request_is_no_hang(container: dict, production: ProductionServer, tmp_path: Path):
    """All pixels that a request may have, 16 frames of 1920x1080 in FP32, for both instances at once."""
    with Kubelet(production, container["livenessProbe"], tmp_path) as kubelet:
        command = [sys.executable, "-c", LARGEST, production.grpc_url]
        callers = [subprocess.Popen(command, cwd=PROJECT) for _ in range(2)]
        assert [caller.wait(300) for caller in callers] == [0, 0]
    assert kubelet.looks > 1
    assert kubelet.failures == []


LARGEST = """
import sys
import numpy as np
from tests.support.raw_requests import infer
from triton_face_client import FaceFeatureClient
from triton_face_client.sample_faces import sample_faces
frames, landmarks = sample_faces(16)
large = np.zeros((16, 3, 1080, 1920), np.float32)
large[:, :, :112, :112] = frames / np.float32(255)
with FaceFeatureClient(sys.argv[1], timeout=250) as client:
    infer(client, "ensemble", {"FRAMES": large, "LANDMARKS": landmarks}, ["HOG", "POSE"])
"""


def test_an_overloaded_server_is_not_taken_for_a_dead_one(
    container: dict, production: ProductionServer, tmp_path: Path
):
    with Kubelet(production, container["livenessProbe"], tmp_path) as kubelet:
        report = overload(production, OVERLOAD_SECONDS)
    assert report.statuses["UNAVAILABLE"] > report.accepted, "it was no overload"
    assert kubelet.looks > OVERLOAD_SECONDS / container["livenessProbe"]["periodSeconds"]
    assert kubelet.failures == []


def test_callers_faults_are_no_failures(production: ProductionServer, tmp_path: Path):
    """Wrong shapes, types and batch sizes, invalid faces; and the heart beats again after each batch."""
    frames, landmarks = photo_faces(2, 740)
    nowhere = np.full_like(landmarks, np.nan)
    small, long = np.zeros((2, 3, 112, 50), np.float32), np.zeros((200, 3, 112, 112), np.float32)
    assert look(production, tmp_path) is None
    with FaceFeatureClient(production.grpc_url, retry=Retry(seconds=0)) as client:
        for model, tensors, output in (
            ("hog", {"MASKED_FACES": small}, "HOG"),
            ("hog", {"MASKED_FACES": small.astype(np.float64)}, "HOG"),
            ("hog", {"MASKED_FACES": long}, "HOG"),
            ("pose_mlp", {"LANDMARKS": landmarks[:, :60]}, "POSE"),
            ("align_mask", {"LANDMARKS": landmarks}, "MASK"),
            ("align_mask", {"FRAMES": frames, "LANDMARKS": nowhere}, "MASK"),
            ("ensemble", {"FRAMES": frames, "LANDMARKS": nowhere}, "HOG"),
        ):
            for _ in range(2 * probe.FAILURES):
                with pytest.raises(InferenceServerException):
                    infer(client, model, tensors, [output])
        assert look(production, tmp_path) is None
        infer(client, "align_mask", {"FRAMES": frames, "LANDMARKS": landmarks}, ["MASK"])
    time.sleep(probe.STALE_SECONDS + 1)
    assert look(production, tmp_path) is None


def test_a_server_without_metrics_is_not_taken_for_a_live_one(repository: Path, tmp_path: Path):
    with ProductionServer(repository, options=("--allow-metrics=false",)) as server:
        assert "ConnectionRefusedError" in look(server, tmp_path)
