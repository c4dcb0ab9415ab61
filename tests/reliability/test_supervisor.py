"""`make serve` restarts its server after a process dies, stops or hangs, or a model keeps failing."""

import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from deploy.local import LocalServer
from deploy.local.server import PROJECT
from deploy.local.supervisor import MAX_RESTARTS, server_processes
from export.au.classifiers import AuCheckpoint
from tests.acceptance import target
from tests.reliability.crashes import stub_crash
from tests.support.face_data import photo_faces
from tests.support.injected_code import wrap_function
from tests.support.make_serve import STOP_SECONDS, run_make_serve, tritonserver_pid
from tests.support.raw_requests import infer
from triton_face_client import FaceFeatureClient, FaceServiceError

RESTART_SECONDS = 120
"""Time limit of a restart on a busy machine; `make chaos` measures it on an idle machine."""

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP])
def test_dead_or_stopped_stub_process_is_replaced_and_no_face_is_lost(
    repository: Path, signal_number: signal.Signals
):
    report = stub_crash(repository, signal_number)
    assert report.seconds < RESTART_SECONDS
    assert report.faces > 0
    assert report.wrong == 0


def test_killed_stub_process_of_action_units_is_replaced(repository: Path, au_repository: Path):
    serving = run_make_serve(repository, AU_REPOSITORY=str(au_repository))
    with serving as (process, lines), FaceFeatureClient(lines["gRPC"]) as client:
        faces = target.frame_inputs(*photo_faces(2, 377))
        expected = target.infer(client, "action_units", faces, ["AU"])
        stubs = server_processes(tritonserver_pid(process))
        os.kill(next(stub.pid for stub in stubs if stub.name == "au"), signal.SIGKILL)
        ended = "serve: the process of au has ended: starting the server again\n"
        assert process.stderr.readline() == ended
        assert "ready again" in process.stderr.readline()
        replaced = target.infer(client, "action_units", faces, ["AU"])
        np.testing.assert_array_equal(replaced["AU"], expected["AU"])


def test_killed_server_restarts_on_its_ports(repository: Path):
    with run_make_serve(repository) as (process, lines), FaceFeatureClient(lines["gRPC"]) as client:
        _, landmarks = photo_faces(2, 372)
        expected = client.pose(landmarks)
        os.kill(tritonserver_pid(process), signal.SIGKILL)
        assert (
            process.stderr.readline()
            == "serve: the process of tritonserver has ended: starting the server again\n"
        )
        assert "ready again" in process.stderr.readline()
        np.testing.assert_array_equal(client.pose(landmarks), expected)


def test_hanging_stub_process_is_replaced(repository: Path, tmp_path: Path):
    """The stub process hangs in a batch, as in a deadlock: only a request without a response shows this."""
    models, hold = shutil.copytree(repository, tmp_path / "models"), tmp_path / "hold"
    code = models / "align_mask" / "1" / "model.py"
    wait = f"while Path({str(hold)!r}).exists(): time.sleep(1)"
    wrap_function(code, "TritonPythonModel.execute", before=wait)
    frames, landmarks = photo_faces(3, 374)
    with run_make_serve(models) as (process, lines), FaceFeatureClient(lines["gRPC"]) as client:
        expected = client.features(frames, landmarks)
        hold.touch()
        start_time = time.monotonic()
        assert "a test request has had no response for 1" in process.stderr.readline()
        hold.unlink()
        assert "ready again" in process.stderr.readline()
        assert time.monotonic() - start_time < RESTART_SECONDS
        np.testing.assert_array_equal(client.features(frames, landmarks)["HOG"], expected["HOG"])


HANGING_AU_MODEL = """
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        while Path({hold!r}).exists():
            time.sleep(1)
        counts = [pb_utils.get_input_tensor_by_name(request, "HOG").shape()[0] for request in requests]
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("AU", np.zeros((count, {units}), np.float32))])
            for count in counts
        ]
"""


def test_hanging_action_units_are_replaced(
    repository: Path, au_repository: Path, au_checkpoint: AuCheckpoint, tmp_path: Path
):
    """No caller uses action units: only the supervisor's test request shows the hang."""
    models, hold = shutil.copytree(au_repository, tmp_path / "models"), tmp_path / "hold"
    code = HANGING_AU_MODEL.format(hold=str(hold), units=len(au_checkpoint.units))
    (models / "au" / "1" / "model.py").write_text(code)
    config = models / "au" / "config.pbtxt"
    text = config.read_text().replace('"onnxruntime"', '"python"').replace("model.onnx", "model.py")
    config.write_text(text.partition("model_warmup")[0])
    with run_make_serve(repository, AU_REPOSITORY=str(models)) as (process, _):
        hold.touch()
        assert "a test request has had no response for 1" in process.stderr.readline()
        hold.unlink()
        assert "ready again" in process.stderr.readline()


def test_model_that_fails_every_batch_is_replaced(repository: Path, tmp_path: Path):
    """The processes run, but every request fails, as after a persistent CUDA error."""
    models, broken = shutil.copytree(repository, tmp_path / "models"), tmp_path / "broken"
    code = models / "align_mask" / "1" / "align_mask" / "pipeline.py"
    error = "CUDA error: an illegal memory access was encountered"
    wrap_function(code, "process", before=f"if Path({str(broken)!r}).exists(): raise RuntimeError({error!r})")
    frames, landmarks = photo_faces(3, 376)
    with run_make_serve(models) as (process, lines), FaceFeatureClient(lines["gRPC"]) as client:
        expected = client.features(frames, landmarks)
        broken.touch()
        start_time = time.monotonic()
        for _ in range(20):
            with pytest.raises(FaceServiceError, match="illegal memory access"):
                client.features(frames, landmarks)
        assert re.match(r"serve: align_mask_0_\d has failed \d+ batches in a row", process.stderr.readline())
        broken.unlink()
        assert "ready again" in process.stderr.readline()
        assert time.monotonic() - start_time < RESTART_SECONDS
        np.testing.assert_array_equal(client.features(frames, landmarks)["HOG"], expected["HOG"])
        process.terminate()
        assert process.communicate(timeout=STOP_SECONDS)[1] == ""


def test_supervisor_gives_up_after_repeated_failures(repository: Path):
    script = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from deploy.local import supervisor
        from deploy.local.server import LocalServer, ServerError

        class FailingServer(LocalServer):
            def restart(self):
                super().restart()
                os.kill(self.pid, signal.SIGKILL)

        supervisor.CHECK_SECONDS = 0.05
        with FailingServer(Path(sys.argv[1]), models=("pose_mlp",)) as server:
            watching = supervisor.Supervisor(server, print)
            os.kill(server.pid, signal.SIGKILL)
            try:
                watching.watch()
            except ServerError as error:
                print("given up:", error)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(repository)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.count("starting the server again") == MAX_RESTARTS, done.stderr
    assert "given up: the process of tritonserver has ended; the server has failed 6 times" in done.stdout
    log = Path(done.stdout.rpartition("kept in ")[2].strip())
    assert log.read_text().count("Started GRPCInferenceService") == MAX_RESTARTS + 1
    log.unlink()


def test_overloaded_server_does_not_restart(repository: Path):
    """The supervisor's test face waits in the queue behind thousands of others."""
    frames, landmarks = photo_faces(64, 373)
    repeated = np.arange(6400) % 64
    with run_make_serve(repository) as (process, lines):
        with FaceFeatureClient(lines["gRPC"], batch_size=128, in_flight=50) as client:
            client.features(frames[repeated], landmarks[repeated])
        process.terminate()
        assert process.communicate(timeout=STOP_SECONDS)[1] == ""


def test_health_endpoints_of_triton_2_51_ignore_a_killed_stub_process(repository: Path):
    """The supervisor therefore checks processes; docs/reliability.md describes later versions."""
    frames, landmarks = photo_faces(1, 375)
    with LocalServer(repository) as server, FaceFeatureClient(server.grpc_url) as client:
        assert client.connection.get_server_metadata().version == "2.51.0"
        stub = next(process for process in server_processes(server.pid) if process.name == "align_mask")
        os.kill(stub.pid, signal.SIGKILL)
        responses = set()
        for _ in range(40):
            try:
                infer(client, "align_mask", {"FRAMES": frames, "LANDMARKS": landmarks}, ["MASK"])
                responses.add("computed")
            except InferenceServerException as error:
                responses.add(f"{error.status()} {error.message()}")
        responses.remove("computed")
        (failed,) = responses
        assert re.fullmatch(r"StatusCode.INTERNAL Stub process 'align_mask_0_[01]' is not healthy.", failed)
        for path in ("health/live", "health/ready", "models/align_mask/ready", "models/ensemble/ready"):
            with urllib.request.urlopen(f"http://{server.http_url}/v2/{path}") as response:
                assert response.status == 200
