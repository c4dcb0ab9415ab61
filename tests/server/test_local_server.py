"""Starting and stopping the embedded server: nothing left behind, and one line that says what is wrong."""

import os
import re
import shutil
import signal
import socket
import sys
import sysconfig
import threading
import time
from pathlib import Path

import pytest
import tritonclient.grpc as grpcclient

from deploy.docker.shm_regions import remove_leftovers
from deploy.local import LocalServer, ServerError
from deploy.local.server import HOST, Ports
from tests.server.test_onnxruntime_backend import TABLE, TABLE_CONFIG, add_model
from tests.support.face_data import photo_faces
from tests.support.make_serve import read_until_ready, start
from triton_face_client import FaceFeatureClient


def shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()}


def processes_of_session(leader: int) -> list[int]:
    """Return the living processes of a session; /proc/PID/stat has it fourth after the command's name."""
    living = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(session) == leader and state != "Z":
            living.append(int(stat.parent.name))
    return living


def test_another_tuning_by_its_name(tmp_path: Path):
    add_model(tmp_path, "table", TABLE, TABLE_CONFIG)
    tunings = tmp_path / "table" / "configs"
    tunings.mkdir()
    tuned = TABLE_CONFIG.replace("max_batch_size: 64", "max_batch_size: 3")
    (tunings / "small.pbtxt").write_text(f'name: "table"\n{tuned}')
    process = start(tmp_path, MODEL_CONFIG_NAME="small")
    with grpcclient.InferenceServerClient(read_until_ready(process)["gRPC"]) as connection:
        assert connection.get_model_config("table").config.max_batch_size == 3
    process.terminate()
    assert process.wait(30) == 0

    _, said = start(tmp_path, MODEL_CONFIG_NAME="smal").communicate(timeout=30)
    assert said == "serve: MODEL_CONFIG_NAME=smal: no model has configs/smal.pbtxt, but ['small']\n"


def test_stopping_leaves_nothing(repository: Path):
    before = shared_memory()
    with LocalServer(repository) as server:
        session, folder = server.pid, server.log_path.parent
        assert len(processes_of_session(session)) >= 4  # the server and a stub for each model
        assert shared_memory() > before
        with FaceFeatureClient(server.grpc_url) as client:
            client.features(*photo_faces(64, 71))
    assert processes_of_session(session) == []
    assert shared_memory() <= before
    assert not folder.exists()


def test_an_exception_inside_stops_it_too(repository: Path):
    before = shared_memory()
    sessions = []

    def fail_inside() -> None:
        with LocalServer(repository) as server:
            sessions.append(server.pid)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail_inside()
    assert processes_of_session(sessions[0]) == []
    assert shared_memory() <= before


def test_a_killed_server_leaves_nothing_either(repository: Path):
    before = shared_memory()
    with LocalServer(repository) as server:
        session = server.pid
        os.kill(session, signal.SIGKILL)
        server.wait()
    assert processes_of_session(session) == []
    assert shared_memory() <= before


def test_a_repository_path_with_blanks_and_quotes(repository: Path, tmp_path: Path):
    awkward = shutil.copytree(repository, tmp_path / "my models' $(copy)")
    with LocalServer(awkward) as server, FaceFeatureClient(server.grpc_url) as client:
        assert client.pose(photo_faces(1, 73)[1]).shape == (1, 6)


def test_the_server_goes_with_the_process_that_started_it(repository: Path):
    before = shared_memory()
    process = start(repository)
    read_until_ready(process)
    child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while processes_of_session(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of_session(child) == []
    # An empty lock file is left, which the next server removes.
    left = shared_memory() - before
    assert all(Path("/dev/shm", name).stat().st_size == 0 for name in left)
    remove_leftovers()
    assert shared_memory() <= before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_serve_stops_on_signals(repository: Path, number: signal.Signals):
    before = shared_memory()
    process = start(repository)
    said = read_until_ready(process)
    assert re.fullmatch(rf"{HOST}:\d+", said["gRPC"])
    with FaceFeatureClient(said["gRPC"]) as client:
        assert client.features(*photo_faces(1, 72))["HOG"].shape == (1, 5408)
    process.send_signal(number)
    time.sleep(0.3)
    process.send_signal(number)  # an impatient second one must not cut the clean-up short
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (0, "stopping ...\nstopped\n", "")
    assert shared_memory() <= before
    assert not Path(said["log"]).exists()


def test_a_taken_port_is_named(repository: Path):
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = start(repository, GRPC_PORT=str(port))
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.startswith(f"serve: port {port} on {HOST} is taken")
    assert "GRPC_PORT" in errors
    assert len(errors.splitlines()) == 1


def test_a_port_that_is_about_to_be_free_is_waited_for(repository: Path):
    """As when `make serve` is stopped and started at once."""
    with socket.socket() as leaving:
        leaving.bind((HOST, 0))
        leaving.listen()
        port = leaving.getsockname()[1]
        threading.Timer(2.0, leaving.close).start()
        with LocalServer(repository, Ports(grpc=port), models=("pose_mlp",)) as server:
            assert server.ports.grpc == port


def test_one_port_for_two_endpoints_is_named(repository: Path):
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = str(probe.getsockname()[1])
    process = start(repository, HTTP_PORT=port, GRPC_PORT=port)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.startswith(f"serve: port {port} on {HOST} is taken")


@pytest.mark.parametrize("port", ["http", "-1", "70000"])
def test_a_port_that_is_none_is_named(repository: Path, port: str):
    process = start(repository, METRICS_PORT=port)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors == f"serve: METRICS_PORT must be a port number, it is {port!r}\n"


def test_a_folder_without_models_is_named(tmp_path: Path):
    process = start(tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.startswith(f"serve: {tmp_path} is not a model repository")


def test_missing_models_are_named(repository: Path, tmp_path: Path):
    copy = shutil.copytree(repository, tmp_path / "copy", ignore=shutil.ignore_patterns("*.onnx"))
    with pytest.raises(ServerError, match=r"no ONNX file for hog and pose_mlp in .*make models"):
        LocalServer(copy).__enter__()


def test_a_corrupt_model_is_named(repository: Path, tmp_path: Path):
    copy = shutil.copytree(repository, tmp_path / "copy")
    model = copy / "hog" / "1" / "model.onnx"
    model.write_bytes(model.read_bytes()[:3000])
    with pytest.raises(ServerError, match=r"failed to load 'hog'.*model.onnx"):
        LocalServer(copy).__enter__()


@pytest.mark.parametrize(
    ("model", "old", "new", "reason"),
    [
        ("hog", "[ 5408 ]", "[ 5000 ]", r"'HOG'.*5408.*5000"),
        ("align_mask", '"2.5"', '"wide"', r"box_enlarge.*'wide'"),
        ("align_mask", '"112"', '"96"', r"MASKED_FACES.*\[3, 112, 112\].*\[3, 96, 96\]"),
    ],
)
def test_a_wrong_config_is_named(
    repository: Path, tmp_path: Path, model: str, old: str, new: str, reason: str
):
    copy = shutil.copytree(repository, tmp_path / "copy")
    config = copy / model / "config.pbtxt"
    config.write_text(config.read_text().replace(old, new))
    with pytest.raises(ServerError, match=rf"failed to load '{model}'.*{reason}"):
        LocalServer(copy).__enter__()


def test_a_garbled_config_is_named(repository: Path, tmp_path: Path):
    copy = shutil.copytree(repository, tmp_path / "copy")
    (copy / "hog" / "config.pbtxt").write_text("name: {")
    with pytest.raises(ServerError, match=r"hog/config.pbtxt is not a model configuration"):
        LocalServer(copy).__enter__()


def test_a_python_without_shared_library_is_explained(repository: Path, monkeypatch: pytest.MonkeyPatch):
    known = sysconfig.get_config_var
    monkeypatch.setattr(sys, "base_prefix", "/nowhere")
    monkeypatch.setattr(
        sysconfig, "get_config_var", lambda name: "/nowhere" if name == "LIBDIR" else known(name)
    )
    with pytest.raises(ServerError, match=r"^/nowhere has no libpython3.*--enable-shared"):
        LocalServer(repository).__enter__()


def test_numpy_2_is_refused(repository: Path, monkeypatch: pytest.MonkeyPatch):
    """Under it Triton 2.51's stub answered with status OK and no data."""
    monkeypatch.setattr("importlib.metadata.version", lambda _name: "2.4.6")
    with pytest.raises(ServerError, match=r"^NumPy 2.4.6 .*install numpy<2$"):
        LocalServer(repository).__enter__()


def test_ports_can_be_chosen(repository: Path):
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        free = probe.getsockname()[1]
    with LocalServer(repository, Ports(grpc=free)) as server:
        assert server.grpc_url == f"{HOST}:{free}"
        assert server.ports.http > 0
