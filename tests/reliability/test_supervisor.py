"""`make serve` keeps answering: a process that dies, is stopped or hangs is noticed and replaced."""

import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from deploy.local import LocalServer
from deploy.local.server import PROJECT
from deploy.local.supervisor import MOST_RESTARTS, Process, server_processes
from tests.support.face_data import photo_faces
from tests.support.injected_code import wrap_function
from tests.support.make_serve import read_until_ready, start, tritonserver_pid
from tests.support.raw_requests import infer
from triton_face_client import FaceFeatureClient, FaceServiceError

BACK_SECONDS = 30

Serving = tuple["subprocess.Popen[str]", dict[str, str]]


@pytest.fixture
def serving(repository: Path) -> Iterator[Serving]:
    """Give `make serve`, and what it has said about itself."""
    process = start(repository)
    yield process, read_until_ready(process)
    if process.poll() is None:
        process.terminate()
        process.communicate(timeout=60)


def align_mask(process: "subprocess.Popen[str]") -> Process:
    found = server_processes(tritonserver_pid(process))
    assert {one.name for one in found} == {"align_mask", "hog", "pose_mlp", "tritonserver"}
    return next(one for one in found if one.name == "align_mask")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP])
def test_a_stub_that_goes_under_load_is_replaced_and_no_face_is_lost(
    serving: Serving, number: signal.Signals
):
    process, said = serving
    frames, landmarks = photo_faces(40, 371)
    which = np.random.default_rng(0).integers(0, 40, 3000)
    with FaceFeatureClient(said["gRPC"]) as client:
        expected = client.features(frames, landmarks)
        answers = {}
        call = threading.Thread(
            target=lambda: answers.update(client.features(frames[which], landmarks[which]))
        )
        call.start()
        time.sleep(0.3)
        stub = align_mask(process)
        os.kill(stub.pid, number)
        start_of_it = time.monotonic()
        assert "starting the server again" in process.stderr.readline()
        assert "ready again" in process.stderr.readline()
        assert time.monotonic() - start_of_it < BACK_SECONDS
        call.join()
    assert align_mask(process).pid != stub.pid
    for name in expected:
        np.testing.assert_array_equal(answers[name], expected[name][which])


def test_a_server_that_dies_is_started_again_on_its_ports(serving: Serving):
    process, said = serving
    with FaceFeatureClient(said["gRPC"]) as client:
        _, landmarks = photo_faces(2, 372)
        expected = client.pose(landmarks)
        os.kill(tritonserver_pid(process), signal.SIGKILL)
        assert (
            process.stderr.readline()
            == "serve: the process of tritonserver is gone: starting the server again\n"
        )
        assert "ready again" in process.stderr.readline()
        np.testing.assert_array_equal(client.pose(landmarks), expected)


def test_a_stub_that_hangs_without_being_stopped_is_replaced(repository: Path, tmp_path: Path):
    """It waits in its own code, as for a lock: only a face without an answer shows it."""
    models, hold = shutil.copytree(repository, tmp_path / "models"), tmp_path / "hold"
    code = models / "align_mask" / "1" / "model.py"
    wait = f"while Path({str(hold)!r}).exists(): time.sleep(1)"
    wrap_function(code, "TritonPythonModel.execute", before=wait)
    process = start(models)
    said = read_until_ready(process)
    frames, landmarks = photo_faces(3, 374)
    with FaceFeatureClient(said["gRPC"]) as client:
        expected = client.features(frames, landmarks)
        hold.touch()
        start_of_it = time.monotonic()
        assert "a face has had no answer for 1" in process.stderr.readline()
        hold.unlink()
        assert "ready again" in process.stderr.readline()
        assert time.monotonic() - start_of_it < BACK_SECONDS
        np.testing.assert_array_equal(client.features(frames, landmarks)["HOG"], expected["HOG"])
    process.terminate()
    process.communicate(timeout=60)


def test_a_model_whose_batches_all_fail_is_replaced(repository: Path, tmp_path: Path):
    """As after a sticky CUDA error: its processes live, and every face gets an error."""
    models, broken = shutil.copytree(repository, tmp_path / "models"), tmp_path / "broken"
    code = models / "align_mask" / "1" / "align_mask" / "pipeline.py"
    error = "CUDA error: an illegal memory access was encountered"
    wrap_function(code, "process", before=f"if Path({str(broken)!r}).exists(): raise RuntimeError({error!r})")
    process = start(models)
    said = read_until_ready(process)
    frames, landmarks = photo_faces(3, 376)
    with FaceFeatureClient(said["gRPC"]) as client:
        expected = client.features(frames, landmarks)
        broken.touch()
        start_of_it = time.monotonic()
        for _ in range(20):
            with pytest.raises(FaceServiceError, match="illegal memory access"):
                client.features(frames, landmarks)
        assert re.match(r"serve: align_mask_0_\d has failed \d+ batches in a row", process.stderr.readline())
        broken.unlink()
        assert "ready again" in process.stderr.readline()
        assert time.monotonic() - start_of_it < BACK_SECONDS
        np.testing.assert_array_equal(client.features(frames, landmarks)["HOG"], expected["HOG"])
    process.terminate()
    assert process.communicate(timeout=60)[1] == ""


def test_a_server_that_fails_again_and_again_is_given_up(repository: Path):
    """What brings it down each time needs a person."""
    script = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from deploy.local import supervisor
        from deploy.local.server import LocalServer, ServerError

        class Fragile(LocalServer):
            def restart(self):
                super().restart()
                os.kill(self.pid, signal.SIGKILL)

        supervisor.LOOK_SECONDS = 0.05
        with Fragile(Path(sys.argv[1]), models=("pose_mlp",)) as server:
            watched = supervisor.Supervisor(server, print)
            os.kill(server.pid, signal.SIGKILL)
            try:
                watched.watch()
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
    assert done.stdout.count("starting the server again") == MOST_RESTARTS, done.stderr
    assert "given up: the process of tritonserver is gone; the server has failed 6 times" in done.stdout
    log = Path(done.stdout.rpartition("kept in ")[2].strip())
    assert log.read_text().count("Started GRPCInferenceService") == MOST_RESTARTS + 1
    log.unlink()


def test_an_overloaded_server_is_not_taken_for_a_hung_one(serving: Serving):
    """A face that is sent to look has to queue behind a thousand others."""
    process, said = serving
    frames, landmarks = photo_faces(64, 373)
    many = np.arange(6400) % 64
    with FaceFeatureClient(said["gRPC"], batch_size=128, in_flight=50) as client:
        client.features(frames[many], landmarks[many])
    process.terminate()
    assert process.communicate(timeout=60)[1] == ""


def test_no_probe_of_this_triton_sees_a_killed_stub(repository: Path):
    """Which is why the supervisor looks at processes; docs/reliability.md says what later versions see."""
    frames, landmarks = photo_faces(1, 375)
    with LocalServer(repository) as server, FaceFeatureClient(server.grpc_url) as client:
        assert client.connection.get_server_metadata().version == "2.51.0"
        stub = next(one for one in server_processes(server.pid) if one.name == "align_mask")
        os.kill(stub.pid, signal.SIGKILL)
        said = set()
        for _ in range(40):
            try:
                infer(client, "align_mask", {"FRAMES": frames, "LANDMARKS": landmarks}, ["MASK"])
                said.add("answered")
            except InferenceServerException as error:
                said.add(f"{error.status()} {error.message()}")
        said.remove("answered")
        (failed,) = said
        assert re.fullmatch(r"StatusCode.INTERNAL Stub process 'align_mask_0_[01]' is not healthy.", failed)
        for path in ("health/live", "health/ready", "models/align_mask/ready", "models/ensemble/ready"):
            with urllib.request.urlopen(f"http://{server.http_url}/v2/{path}") as probed:
                assert probed.status == 200
