"""Start and stop of the local server.

A stop leaves no process, no file and no shared memory. An error is one line.
"""

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

from deploy.docker.shm_regions import SHARED_MEMORY, remove_leftovers
from deploy.local import LocalServer, ServerError
from deploy.local.ports import HOST, Ports
from export.hog.command import export_hog
from tests.server.test_onnxruntime_backend import TABLE_CONFIG, TABLE_GRAPH, add_model
from tests.support.face_data import photo_faces
from tests.support.make_serve import read_until_ready, start
from triton_face_client import FaceFeatureClient


@pytest.fixture
def small_repository(tmp_path: Path) -> Path:
    """Return a repository with one model, a lookup table, and its profile `small`."""
    add_model(tmp_path, "table", TABLE_GRAPH, TABLE_CONFIG)
    (tmp_path / "table" / "configs").mkdir()
    profile = TABLE_CONFIG.replace("max_batch_size: 64", "max_batch_size: 3")
    (tmp_path / "table" / "configs" / "small.pbtxt").write_text(f'name: "table"\n{profile}')
    return tmp_path


def shared_memory_of(log: Path) -> list[Path]:
    """Return the files in /dev/shm, including the lock, of the server that writes this log."""
    return list(SHARED_MEMORY.glob(f"{log.parent.name.replace('-', '_')}*"))


def processes_of_session(leader: int) -> list[int]:
    """Return the living processes of a session: the fourth field after the name in /proc/PID/stat."""
    living = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(session) == leader and state != "Z":
            living.append(int(stat.parent.name))
    return living


def test_profile_is_selected_by_name(small_repository: Path):
    process = start(small_repository, MODEL_CONFIG_NAME="small")
    with grpcclient.InferenceServerClient(read_until_ready(process)["gRPC"]) as connection:
        assert connection.get_model_config("table").config.max_batch_size == 3
    process.terminate()
    assert process.wait(30) == 0


def test_unknown_profile_is_an_error(small_repository: Path):
    _, errors = start(small_repository, MODEL_CONFIG_NAME="smal").communicate(timeout=30)
    assert errors.startswith("serve: MODEL_CONFIG_NAME=smal: no model has a profile configs/smal.pbtxt")
    assert "['small']" in errors


def test_two_repositories_are_served(small_repository: Path, tmp_path_factory: pytest.TempPathFactory):
    further = tmp_path_factory.mktemp("further repository")
    add_model(further, "other_table", TABLE_GRAPH, TABLE_CONFIG)
    process = start(small_repository, AU_REPOSITORY=str(further))
    with grpcclient.InferenceServerClient(read_until_ready(process)["gRPC"]) as connection:
        assert connection.is_model_ready("table")
        assert connection.is_model_ready("other_table")
    process.terminate()
    assert process.wait(30) == 0


def test_model_in_two_repositories_is_an_error(small_repository: Path, tmp_path: Path):
    copy = shutil.copytree(small_repository / "table", tmp_path / "further" / "table").parent
    _, errors = start(small_repository, AU_REPOSITORY=str(copy)).communicate(timeout=30)
    assert errors == (
        f"serve: the model table is in both {small_repository} and {copy}: serve only one of them\n"
    )


def test_stop_after_an_exception_leaves_nothing(repository: Path):
    servers = []

    def raise_while_serving() -> None:
        with LocalServer(repository) as server:
            servers.append((server.pid, server.log_path))
            assert len(processes_of_session(server.pid)) >= 4  # the server and a stub for each model
            assert len(shared_memory_of(server.log_path)) >= 4
            with FaceFeatureClient(server.grpc_url) as client:
                client.features(*photo_faces(64, 71))
            raise KeyError("raised by the test")

    with pytest.raises(KeyError, match="raised by the test"):
        raise_while_serving()
    ((session, log),) = servers
    assert processes_of_session(session) == []
    assert shared_memory_of(log) == []
    assert not log.parent.exists()


def test_stop_after_sigkill_leaves_nothing(repository: Path):
    with LocalServer(repository, models=("pose_mlp",)) as server:
        session, log = server.pid, server.log_path
        os.kill(session, signal.SIGKILL)
        server.wait()
    assert processes_of_session(session) == []
    assert shared_memory_of(log) == []


def test_repository_path_may_have_blanks_and_quotes(repository: Path, tmp_path: Path):
    unusual_path = shutil.copytree(repository, tmp_path / "my models' $(copy)")
    with (
        LocalServer(unusual_path, models=("pose_mlp",)) as server,
        FaceFeatureClient(server.grpc_url) as client,
    ):
        assert client.pose(photo_faces(1, 73)[1]).shape == (1, 6)


def test_server_ends_when_its_parent_is_killed(small_repository: Path):
    process = start(small_repository)
    log = Path(read_until_ready(process)["log"])
    child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while processes_of_session(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of_session(child) == []
    # Only the empty lock file stays; the next server removes it.
    assert all(path.stat().st_size == 0 for path in shared_memory_of(log))
    remove_leftovers()
    assert shared_memory_of(log) == []


@pytest.mark.parametrize("stop_signal", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_serve_stops_on_signals(small_repository: Path, stop_signal: signal.Signals):
    process = start(small_repository)
    printed = read_until_ready(process)
    assert re.fullmatch(rf"{HOST}:\d+", printed["gRPC"])
    process.send_signal(stop_signal)
    time.sleep(0.3)
    process.send_signal(stop_signal)  # a second signal must not interrupt the clean-up
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (0, "stopping ...\nstopped\n", "")
    log = Path(printed["log"])
    assert shared_memory_of(log) == []
    assert not log.exists()


def test_port_in_use_is_an_error(small_repository: Path):
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen()
        port = listener.getsockname()[1]
        process = start(small_repository, GRPC_PORT=str(port))
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.startswith(f"serve: port {port} on {HOST} is taken")
    assert "GRPC_PORT" in errors
    assert len(errors.splitlines()) == 1


def test_waits_for_port_that_is_released_soon(repository: Path):
    """A `make serve` that is stopping may still use the port of the next one."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen()
        port = listener.getsockname()[1]
        threading.Timer(2.0, listener.close).start()
        with LocalServer(repository, Ports(grpc=port), models=("pose_mlp",)) as server:
            assert server.grpc_url == f"{HOST}:{port}"
            assert server.ports.http > 0


def test_same_port_for_two_endpoints_is_an_error(small_repository: Path):
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port = str(listener.getsockname()[1])
    process = start(small_repository, HTTP_PORT=port, GRPC_PORT=port)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.startswith(f"serve: port {port} on {HOST} is taken")


@pytest.mark.parametrize("port", ["http", "-1", "70000"])
def test_invalid_port_number_is_an_error(repository: Path, port: str):
    process = start(repository, METRICS_PORT=port)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors == f"serve: METRICS_PORT must be a port number, it is {port!r}\n"


def test_folder_without_models_is_an_error(tmp_path: Path):
    process = start(tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.startswith(f"serve: {tmp_path} is not a model repository")


def test_missing_onnx_files_are_an_error(repository: Path, tmp_path: Path):
    copy = shutil.copytree(repository, tmp_path / "copy", ignore=shutil.ignore_patterns("*.onnx"))
    with pytest.raises(ServerError, match=r"no ONNX file for hog and pose_mlp in .*make models"):
        LocalServer(copy).__enter__()


AU_CONFIG = """
name: "au"
backend: "onnxruntime"
input [ { name: "HOG" data_type: TYPE_FP32 dims: [ 4608 ] } ]
"""


def test_missing_action_units_are_an_error(repository: Path, tmp_path: Path):
    (tmp_path / "au").mkdir()
    (tmp_path / "au" / "config.pbtxt").write_text(AU_CONFIG)
    message = f"no ONNX file for au in {tmp_path}: build it with `python -m export au --weights FILE.skops"
    with pytest.raises(ServerError, match=re.escape(message)):
        LocalServer(repository, au_repository=tmp_path).__enter__()


def test_action_units_for_another_hog_length_are_an_error(repository: Path, tmp_path: Path):
    (tmp_path / "au" / "1").mkdir(parents=True)
    (tmp_path / "au" / "1" / "model.onnx").touch()
    (tmp_path / "au" / "config.pbtxt").write_text(AU_CONFIG)
    message = r"^au needs HOG with dims \[4608\], but hog returns \[5408\]: build hog .*python -m export hog"
    with pytest.raises(ServerError, match=message):
        LocalServer(repository, au_repository=tmp_path).__enter__()


def test_corrupt_onnx_file_is_an_error(repository: Path, tmp_path: Path):
    copy = shutil.copytree(repository, tmp_path / "copy")
    model = copy / "hog" / "1" / "model.onnx"
    model.write_bytes(model.read_bytes()[:3000])
    with pytest.raises(ServerError, match=r"failed to load 'hog'.*model.onnx"):
        LocalServer(copy, models=("hog",)).__enter__()


@pytest.mark.parametrize(
    ("model", "old", "new", "reason"),
    [
        ("hog", "[ 5408 ]", "[ 5000 ]", r"'HOG'.*5408.*5000"),
        ("align_mask", '"2.5"', '"wide"', r"box_enlarge.*'wide'"),
    ],
)
def test_invalid_config_is_an_error(
    repository: Path, tmp_path: Path, model: str, old: str, new: str, reason: str
):
    copy = shutil.copytree(repository, tmp_path / "copy")
    config = copy / model / "config.pbtxt"
    config.write_text(config.read_text().replace(old, new))
    with pytest.raises(ServerError, match=rf"failed to load '{model}'.*{reason}"):
        LocalServer(copy, models=(model,)).__enter__()


def test_unreadable_config_is_an_error(repository: Path, tmp_path: Path):
    copy = shutil.copytree(repository, tmp_path / "copy")
    (copy / "hog" / "config.pbtxt").write_text("name: {")
    with pytest.raises(ServerError, match=r"hog/config.pbtxt is not a model configuration"):
        LocalServer(copy).__enter__()


def test_python_without_shared_library_is_an_error(repository: Path, monkeypatch: pytest.MonkeyPatch):
    original = sysconfig.get_config_var
    monkeypatch.setattr(sys, "base_prefix", "/nowhere")
    monkeypatch.setattr(
        sysconfig, "get_config_var", lambda name: "/nowhere" if name == "LIBDIR" else original(name)
    )
    with pytest.raises(ServerError, match=r"^/nowhere has no libpython3.*--enable-shared"):
        LocalServer(repository).__enter__()


def test_numpy_2_is_an_error(repository: Path, monkeypatch: pytest.MonkeyPatch):
    """With NumPy 2, Triton 2.51's stub returns empty tensors with status OK."""
    monkeypatch.setattr("importlib.metadata.version", lambda _name: "2.4.6")
    with pytest.raises(ServerError, match=r"^NumPy 2.4.6 .*install numpy<2$"):
        LocalServer(repository).__enter__()


def test_action_units_for_other_hog_settings_are_an_error(
    repository: Path, au_repository: Path, tmp_path: Path
):
    copy = shutil.copytree(repository, tmp_path / "copy")
    export_hog(copy, block_norm="L1")
    with pytest.raises(ServerError, match=r"^au was exported for hog with .*--norm L2-Hys.*has .*--norm L1 "):
        LocalServer(copy, au_repository=au_repository).__enter__()
