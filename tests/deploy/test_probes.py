"""The probes of the manifests on a real server: healthy, busy, and with a failing process or model.

The tests act as the kubelet, with the periods and thresholds of the manifest.
"""

import contextlib
import os
import shutil
import signal
import socket
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
from tests.deploy.kubelet import Kubelet, run_probe
from tests.deploy.production_server import ProductionServer
from tests.reliability.overload import overload
from tests.support.background_threads import background_threads
from tests.support.face_data import photo_faces
from tests.support.injected_code import wrap_function
from tests.support.raw_requests import infer
from triton_face_client import FaceFeatureClient, Retry

DEPLOYMENT = PROJECT / "deploy" / "k8s" / "base" / "deployment.yaml"

MAX_DECISION_SECONDS = 20.0
"""Time limit from a failure to the decision to restart."""

MAX_REPLACEMENT_SECONDS = 45.0
"""Time limit from a failure until the next server is ready."""

AFTER_PROBE_SECONDS = 3.0
"""Time from a probe to the failure. The second probe after the failure then still accepts the heartbeat, so
the kubelet decides as late as possible."""

OVERLOAD_SECONDS = 20.0


@pytest.fixture(scope="module")
def container() -> dict:
    return yaml.safe_load(DEPLOYMENT.read_text())["spec"]["template"]["spec"]["containers"][0]


INJECTED_BEHAVIOUR = """
behaviour_file = Path(__file__).parents[{parent}] / "behaviour"
def behaviour():
    return behaviour_file.read_text() if behaviour_file.exists() else ""
while behaviour() == "hang":
    time.sleep(0.1)
if behaviour() == "raise":
    raise RuntimeError("CUDA error: an illegal memory access was encountered")
if behaviour() == "slow":
    for _ in range(12):
        with args[4].stage("align"):
            time.sleep(1)
"""

PYTHON_HOG_MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "MASKED_FACES") for request in requests]
        hogs = [pb_utils.Tensor("HOG", np.zeros((faces.shape()[0], 5408), np.float32)) for faces in inputs]
        return [pb_utils.InferenceResponse([hog]) for hog in hogs]
"""


class FailingServer:
    """A server whose align_mask and hog raise an exception, hang or are slow on demand."""

    def __init__(self, server: ProductionServer, repository: Path) -> None:
        self.server = server
        self._repository = repository

    @contextlib.contextmanager
    def behaviour(self, model: str, behaviour: str) -> Iterator[None]:
        """Make a model "raise", "hang" or be "slow" until the end of the block."""
        file = self._repository / model / "1" / "behaviour"
        file.write_text(behaviour)
        try:
            yield
        finally:
            file.unlink()


@pytest.fixture(scope="module")
def failing(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FailingServer]:
    models = shutil.copytree(repository, tmp_path_factory.mktemp("failing") / "models")
    pipeline = models / "align_mask" / "1" / "align_mask" / "pipeline.py"
    wrap_function(pipeline, "process", before=INJECTED_BEHAVIOUR.format(parent=1))
    hog = models / "hog" / "1" / "model.py"
    hog.write_text(PYTHON_HOG_MODEL)
    wrap_function(hog, "TritonPythonModel.execute", before=INJECTED_BEHAVIOUR.format(parent=0))
    config = models / "hog" / "config.pbtxt"
    config.write_text(
        config.read_text().replace('"onnxruntime"', '"python"').replace("model.onnx", "model.py")
    )
    with ProductionServer(models) as server:
        yield FailingServer(server, models)


@contextlib.contextmanager
def background_calls(server: ProductionServer, callers: int = 8) -> Iterator[None]:
    """Send faces from several threads until the end of the block and ignore failures."""
    frames, landmarks = photo_faces(2, 741)

    def call(stopping: threading.Event) -> None:
        with FaceFeatureClient(server.grpc_url, timeout=5, retry=Retry(seconds=0)) as client:
            while not stopping.wait(0.1):
                with contextlib.suppress(InferenceServerException):
                    infer(client, "ensemble", {"FRAMES": frames, "LANDMARKS": landmarks}, ["HOG"], 5)

    with background_threads(call, callers):
        yield


def test_probes_of_a_healthy_server_pass(container: dict, production: ProductionServer, tmp_path: Path):
    for name in ("startupProbe", "readinessProbe"):
        assert production.get(container[name]["httpGet"]["path"]) == 200
    assert run_probe(production, tmp_path) is None
    (history,) = tmp_path.iterdir()
    assert set(probe.load_history(history)) == {"hog", "pose_mlp"}


def test_probe_covers_action_units(repository: Path, au_repository: Path, tmp_path: Path):
    frames, landmarks = photo_faces(2, 743)
    with (
        ProductionServer(repository, {"AU_REPOSITORY": str(au_repository)}) as server,
        FaceFeatureClient(server.grpc_url) as client,
    ):
        response = infer(client, "action_units", {"FRAMES": frames, "LANDMARKS": landmarks}, ["AU"])
        assert np.isfinite(response["AU"]).all()
        assert run_probe(server, tmp_path) is None
    (history,) = tmp_path.iterdir()
    assert set(probe.load_history(history)) == {"hog", "pose_mlp", "au"}


def test_probe_ignores_proxy_settings(production: ProductionServer, tmp_path: Path):
    assert run_probe(production, tmp_path, http_proxy="http://127.0.0.1:9") is None


def test_probe_reports_history_that_cannot_be_written(production: ProductionServer, tmp_path: Path):
    assert run_probe(production, tmp_path) is None
    (history,) = tmp_path.iterdir()
    history.unlink()
    history.symlink_to("/etc/passwd")
    assert run_probe(production, tmp_path).startswith("only align_mask is checked")


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_container_with_a_dead_stub_process_is_replaced(
    container: dict, repository: Path, signal_number: signal.Signals, tmp_path: Path
):
    liveness = container["livenessProbe"]
    with ProductionServer(repository) as server, Kubelet(server, liveness, tmp_path) as kubelet:
        stub = next(process for process in server_processes(server.pid) if process.name == "align_mask")
        time.sleep(AFTER_PROBE_SECONDS)
        os.kill(stub.pid, signal_number)
        failed_at = time.monotonic()
        assert kubelet.seconds_until_restart() < MAX_DECISION_SECONDS
        assert kubelet.failures[-1].count("align_mask_0_") == 1, "one of two instances fails"
        assert "has made no progress" in kubelet.failures[-1]
        # Triton 2.51's own endpoints do not show the failure.
        for model in ("align_mask", "ensemble"):
            assert server.get(f"/v2/models/{model}/ready") == 200
        # preStop lasts longer than the grace period; then the kubelet sends SIGTERM, and SIGKILL 2 s later.
        time.sleep(liveness["terminationGracePeriodSeconds"] + 2)
        os.killpg(server.pid, signal.SIGKILL)
    assert "ConnectionRefusedError" in run_probe(server, tmp_path)
    with ProductionServer(repository) as server:
        time.sleep(container["startupProbe"]["periodSeconds"])
        assert time.monotonic() - failed_at < MAX_REPLACEMENT_SECONDS
        assert run_probe(server, tmp_path) is None, "the probe must accept the counters of the first server"


def test_stopped_server_fails_the_probe(container: dict, repository: Path, tmp_path: Path):
    with ProductionServer(repository) as server:
        with Kubelet(server, container["livenessProbe"], tmp_path) as kubelet:
            time.sleep(AFTER_PROBE_SECONDS)
            os.kill(server.pid, signal.SIGSTOP)
            assert kubelet.seconds_until_restart() < MAX_DECISION_SECONDS
        os.kill(server.pid, signal.SIGKILL)
    assert "TimeoutError" in kubelet.failures[-1]


@pytest.mark.parametrize(
    ("model", "behaviour", "reason"),
    [
        ("align_mask", "hang", "has made no progress"),
        ("align_mask", "raise", "batches in a row"),
        ("hog", "raise", "hog has failed"),
        ("hog", "hang", "hog has completed no request"),
    ],
)
def test_failing_model_fails_the_probe(
    container: dict, failing: FailingServer, tmp_path: Path, model: str, behaviour: str, reason: str
):
    with background_calls(failing.server):
        time.sleep(2)  # a successful batch resets the failures of the previous test
        with Kubelet(failing.server, container["livenessProbe"], tmp_path) as kubelet:
            time.sleep(AFTER_PROBE_SECONDS)
            assert kubelet.failures == []
            with failing.behaviour(model, behaviour):
                assert kubelet.seconds_until_restart() < MAX_DECISION_SECONDS
    assert reason in kubelet.failures[-1]


def test_long_batch_passes_the_probe(container: dict, failing: FailingServer, tmp_path: Path):
    """The probe limits the time of each step of a batch, not of the batch."""
    frames, landmarks = photo_faces(2, 742)
    with (
        failing.behaviour("align_mask", "slow"),
        Kubelet(failing.server, container["livenessProbe"], tmp_path) as kubelet,
        FaceFeatureClient(failing.server.grpc_url, timeout=60) as client,
    ):
        start = time.monotonic()
        infer(client, "align_mask", {"FRAMES": frames, "LANDMARKS": landmarks}, ["MASK"])
        assert time.monotonic() - start > probe.STALE_SECONDS + 2
    assert kubelet.probes >= 2
    assert kubelet.failures == []


SEND_LARGEST_REQUEST = """
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


def test_largest_requests_pass_the_probe(container: dict, production: ProductionServer, tmp_path: Path):
    """Two requests with 16 frames of 1920x1080 in FP32, one for each align_mask instance."""
    with Kubelet(production, container["livenessProbe"], tmp_path) as kubelet:
        command = [sys.executable, "-c", SEND_LARGEST_REQUEST, production.grpc_url]
        callers = [subprocess.Popen(command, cwd=PROJECT) for _ in range(2)]
        assert [caller.wait(300) for caller in callers] == [0, 0]
    assert kubelet.probes > 1
    assert kubelet.failures == []


def test_overloaded_server_passes_the_probe(container: dict, production: ProductionServer, tmp_path: Path):
    with Kubelet(production, container["livenessProbe"], tmp_path) as kubelet:
        report = overload(production, OVERLOAD_SECONDS)
    assert report.statuses["UNAVAILABLE"] > report.sent / 10, "no overload"
    assert kubelet.probes > OVERLOAD_SECONDS / container["livenessProbe"]["periodSeconds"]
    assert kubelet.failures == []


def test_rejected_requests_pass_the_probe(production: ProductionServer, tmp_path: Path):
    """The heartbeat continues after wrong shapes, types and batch sizes, and invalid faces."""
    frames, landmarks = photo_faces(2, 740)
    invalid = np.full_like(landmarks, np.nan)
    small, long = np.zeros((2, 3, 112, 50), np.float32), np.zeros((200, 3, 112, 112), np.float32)
    assert run_probe(production, tmp_path) is None
    with FaceFeatureClient(production.grpc_url, retry=Retry(seconds=0)) as client:
        for model, tensors, output in (
            ("hog", {"MASKED_FACES": small}, "HOG"),
            ("hog", {"MASKED_FACES": small.astype(np.float64)}, "HOG"),
            ("hog", {"MASKED_FACES": long}, "HOG"),
            ("pose_mlp", {"LANDMARKS": landmarks[:, :60]}, "POSE"),
            ("align_mask", {"LANDMARKS": landmarks}, "MASK"),
            ("align_mask", {"FRAMES": frames, "LANDMARKS": invalid}, "MASK"),
            ("ensemble", {"FRAMES": frames, "LANDMARKS": invalid}, "HOG"),
        ):
            for _ in range(2 * probe.FAILURES):
                with pytest.raises(InferenceServerException):
                    infer(client, model, tensors, [output])
        assert run_probe(production, tmp_path) is None
        infer(client, "align_mask", {"FRAMES": frames, "LANDMARKS": landmarks}, ["MASK"])
    time.sleep(probe.STALE_SECONDS + 1)
    assert run_probe(production, tmp_path) is None


def test_server_without_metrics_fails_the_probe(production: ProductionServer, tmp_path: Path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # without listen()
        port = str(closed.getsockname()[1])
        assert "ConnectionRefusedError" in run_probe(production, tmp_path, METRICS_PORT=port)
