"""Nobody gets in: who may ask what of the embedded server, and how much."""

import ast
import http.client
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException

from deploy.local import LocalServer, ServerError
from deploy.local.server import ADMIN_PROTOCOLS, PROJECT
from tests.support.face_data import photo_faces
from tests.support.make_serve import read_until_ready, start
from tests.support.raw_requests import infer
from triton_face_client import FaceFeatureClient

Connection = grpcclient.InferenceServerClient | httpclient.InferenceServerClient

ADMINISTRATIVE: dict[str, tuple[str, tuple]] = {
    "list the repository": ("get_model_repository_index", ()),
    "load": ("load_model", ("hog",)),
    "unload": ("unload_model", ("hog",)),
    "system memory": ("get_system_shared_memory_status", ()),
    "map memory": ("register_system_shared_memory", ("mine", "/mine", 100)),
    "unmap memory": ("unregister_system_shared_memory", ()),
    "CUDA memory": ("get_cuda_shared_memory_status", ()),
    "read the trace": ("get_trace_settings", ()),
    "trace": ("update_trace_settings", (None, {"trace_level": ["OFF"]})),
    "read the log": ("get_log_settings", ()),
    "log": ("update_log_settings", ({"log_verbose_level": 0},)),
}

OPEN = {
    "live": ("is_server_live", ()),
    "ready": ("is_server_ready", ()),
    "metadata": ("get_server_metadata", ()),
    "configuration": ("get_model_config", ("ensemble",)),
    "statistics": ("get_inference_statistics", ()),
}


@pytest.fixture(params=["gRPC", "HTTP"])
def connection(request: pytest.FixtureRequest, server: LocalServer) -> Connection:
    if request.param == "gRPC":
        connected = grpcclient.InferenceServerClient(server.grpc_url)
    else:
        connected = httpclient.InferenceServerClient(server.http_url)
    with connected:
        yield connected


def is_restricted(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except InferenceServerException as error:
        return "is restricted" in error.message()
    return False


@pytest.mark.parametrize("what", ADMINISTRATIVE)
def test_administration_wants_the_key(server: LocalServer, connection: Connection, what: str):
    method, arguments = ADMINISTRATIVE[what]
    ask = getattr(connection, method)
    assert is_restricted(lambda: ask(*arguments))
    for wrong in ("", "admin", server.admin_key[:-1], f"{server.admin_key}x"):
        headers = dict.fromkeys(server.admin_headers, wrong)
        assert is_restricted(lambda headers=headers: ask(*arguments, headers=headers))
    if what in ("list the repository", "system memory", "read the trace", "read the log"):
        ask(*arguments, headers=server.admin_headers)


@pytest.mark.parametrize("what", OPEN)
def test_what_anybody_may_ask(connection: Connection, what: str):
    method, arguments = OPEN[what]
    assert getattr(connection, method)(*arguments)


def test_every_administrative_protocol_is_among_them():
    """Triton has others; those that change the server or read its memory are these."""
    assert set(ADMIN_PROTOCOLS) == {"model-repository", "shared-memory", "trace", "logging"}


def test_it_listens_on_the_loopback_interface_alone(server: LocalServer):
    ports = {f"{port:04X}" for port in (server.ports.http, server.ports.grpc, server.ports.metrics)}
    listening = "0A"
    hosts = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            host, port = line.split()[1].split(":")
            if port in ports and line.split()[3] == listening:
                hosts.add(host)
    loopback = "".join(f"{byte:02X}" for byte in reversed(socket.inet_aton("127.0.0.1")))
    as_ipv6 = f"0000000000000000FFFF0000{loopback}"
    assert hosts == {loopback, as_ipv6}


def test_serve_makes_a_key_or_takes_one(repository: Path):
    process = start(repository, ADMIN_KEY="only-we-know-this-one")
    said = read_until_ready(process)
    path = Path(said["admin"].removeprefix("key in "))
    assert path.read_text() == "only-we-know-this-one"
    assert path.parent.stat().st_mode & 0o077 == path.stat().st_mode & 0o077 == 0
    with grpcclient.InferenceServerClient(said["gRPC"]) as connection:
        headers = {"triton-grpc-protocol-admin-key": "only-we-know-this-one"}
        assert connection.get_model_repository_index(headers=headers).models
        assert is_restricted(connection.get_model_repository_index)
    process.terminate()
    assert process.wait(60) == 0
    assert not path.exists()


@pytest.mark.parametrize("key", ["short", "sixteen letters!", "a,b:c=d and more of it"])
def test_a_key_that_is_none(repository: Path, key: str):
    with pytest.raises(ServerError, match="16 or more letters"):
        LocalServer(repository, admin_key=key)
    process = start(repository, ADMIN_KEY=key)
    assert "serve: the admin key must be" in process.communicate(timeout=30)[1]


def test_every_server_has_another_key(repository: Path):
    assert LocalServer(repository).admin_key != LocalServer(repository).admin_key


def test_a_request_has_a_limit_too(repository: Path, tmp_path: Path):
    """Each frame is within max_frame_pixels; together they are over max_request_pixels."""
    models = shutil.copytree(repository, tmp_path / "models")
    config = models / "align_mask" / "config.pbtxt"
    assert '"268435456"' in config.read_text()
    config.write_text(config.read_text().replace('"268435456"', '"100000"'))
    frames, landmarks = photo_faces(8, 650)
    with (
        LocalServer(models, models=("align_mask",)) as server,
        FaceFeatureClient(server.grpc_url) as client,
    ):
        most = 100000 // 112**2
        assert infer(client, "align_mask", {"FRAMES": frames[:most], "LANDMARKS": landmarks[:most]}, ["MASK"])
        with pytest.raises(InferenceServerException) as caught:
            infer(client, "align_mask", {"FRAMES": frames, "LANDMARKS": landmarks}, ["MASK"])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert "send fewer frames per request, at most 7 of this size" in caught.value.message()


def test_a_body_that_ends_early_keeps_nobody_waiting(server: LocalServer, client: FaceFeatureClient):
    frames, landmarks = photo_faces(2, 651)
    expected = client.features(frames, landmarks)["HOG"]
    held = []
    for _ in range(20):
        connection = http.client.HTTPConnection(*server.http_url.split(":"))
        connection.putrequest("POST", "/v2/models/ensemble/infer")
        connection.putheader("Content-Length", "1000000")
        connection.endheaders(b"{")
        held.append(connection)
    np.testing.assert_array_equal(client.features(frames, landmarks)["HOG"], expected)
    for connection in held:
        connection.close()
    np.testing.assert_array_equal(client.features(frames, landmarks)["HOG"], expected)


FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}
FORBIDDEN_CALLS = {"eval", "exec", "os.system", "os.popen", "torch.load", "torch.jit.load", "np.load"}
CODE = [
    path
    for folder in ("model_repository", "export", "client/src", "deploy", "benchmarks", "examples")
    for path in sorted((PROJECT / folder).rglob("*.py"))
]


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(PROJECT)))
def test_no_shell_and_no_pickle(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not FORBIDDEN_MODULES & {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] not in FORBIDDEN_MODULES
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            shell = [word.value for word in node.keywords if word.arg == "shell"]
            allowed = called == "np.load" and "allow_pickle=False" in ast.unparse(node)
            assert called not in FORBIDDEN_CALLS or allowed, called
            assert not shell, f"{called} with a shell"


def test_a_stub_runs_no_code_of_the_working_folder(repository: Path, tmp_path: Path):
    """A file there that is called as a module of ours, or as torch, is not taken for that module."""
    for module in ("align_mask", "torch", "onnxruntime"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit('ran code of the working folder')\n")
    script = (
        "import sys; from pathlib import Path; from deploy.local import LocalServer\n"
        "with LocalServer(Path(sys.argv[1])): print('served')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(repository)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{PROJECT}:{PROJECT / 'client' / 'src'}", "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "served\n", done.stderr
