"""Access to the local server: restricted endpoints, admin key, loopback, working folder."""

import http.client
import os
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
from deploy.local.server import PROJECT
from tests.server.test_onnxruntime_backend import TABLE_CONFIG, TABLE_GRAPH, add_model
from tests.support.face_data import photo_faces
from tests.support.make_serve import read_until_ready, start
from triton_face_client import FaceFeatureClient

Connection = grpcclient.InferenceServerClient | httpclient.InferenceServerClient

RESTRICTED: dict[str, tuple[str, tuple]] = {
    "list models": ("get_model_repository_index", ()),
    "load a model": ("load_model", ("hog",)),
    "unload a model": ("unload_model", ("hog",)),
    "list system regions": ("get_system_shared_memory_status", ()),
    "register a system region": ("register_system_shared_memory", ("region", "/region", 100)),
    "unregister system regions": ("unregister_system_shared_memory", ()),
    "list CUDA regions": ("get_cuda_shared_memory_status", ()),
    "read trace settings": ("get_trace_settings", ()),
    "change trace settings": ("update_trace_settings", (None, {"trace_level": ["OFF"]})),
    "read log settings": ("get_log_settings", ()),
    "change log settings": ("update_log_settings", ({"log_verbose_level": 0},)),
}
"""Operation -> method of Triton's clients and its arguments."""

HARMLESS = ("list models", "list system regions", "read trace settings", "read log settings")
"""Restricted operations that a test may run on the shared server."""

UNRESTRICTED = {
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


def is_restricted(call: Callable[[], object]) -> bool:
    """Return whether the server rejects a call because its endpoint is restricted."""
    try:
        call()
    except InferenceServerException as error:
        return "is restricted" in error.message()
    return False


@pytest.mark.parametrize("operation", RESTRICTED)
def test_restricted_endpoints_require_the_admin_key(
    server: LocalServer, connection: Connection, operation: str
):
    method, arguments = RESTRICTED[operation]
    call = getattr(connection, method)
    assert is_restricted(lambda: call(*arguments))
    for wrong in ("", "admin", server.admin_key[:-1], f"{server.admin_key}x"):
        headers = dict.fromkeys(server.admin_headers, wrong)
        assert is_restricted(lambda headers=headers: call(*arguments, headers=headers))
    if operation in HARMLESS:
        call(*arguments, headers=server.admin_headers)


@pytest.mark.parametrize("operation", UNRESTRICTED)
def test_other_endpoints_need_no_key(connection: Connection, operation: str):
    method, arguments = UNRESTRICTED[operation]
    assert getattr(connection, method)(*arguments)


def test_listens_only_on_loopback(server: LocalServer):
    ports = {f"{port:04X}" for port in (server.ports.http, server.ports.grpc, server.ports.metrics)}
    listening = "0A"  # TCP_LISTEN in /proc/net/tcp
    hosts = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            host, port = line.split()[1].split(":")
            if port in ports and line.split()[3] == listening:
                hosts.add(host)
    loopback = "".join(f"{byte:02X}" for byte in reversed(socket.inet_aton("127.0.0.1")))
    ipv4_mapped = f"0000000000000000FFFF0000{loopback}"
    assert hosts == {loopback, ipv4_mapped}


def test_serve_uses_admin_key_from_environment(tmp_path: Path):
    add_model(tmp_path, "table", TABLE_GRAPH, TABLE_CONFIG)
    process = start(tmp_path, ADMIN_KEY="key-of-this-test-only")
    printed = read_until_ready(process)
    path = Path(printed["admin"].removeprefix("key in "))
    assert path.read_text() == "key-of-this-test-only"
    assert path.parent.stat().st_mode & 0o077 == path.stat().st_mode & 0o077 == 0
    with grpcclient.InferenceServerClient(printed["gRPC"]) as connection:
        headers = {"triton-grpc-protocol-admin-key": "key-of-this-test-only"}
        assert connection.get_model_repository_index(headers=headers).models
        assert is_restricted(connection.get_model_repository_index)
    process.terminate()
    assert process.wait(60) == 0
    assert not path.exists()


@pytest.mark.parametrize("key", ["short", "sixteen letters!", "a,b:c=d and more of it"])
def test_invalid_admin_key_is_an_error(repository: Path, key: str):
    with pytest.raises(ServerError, match="16 or more letters"):
        LocalServer(repository, admin_key=key)
    process = start(repository, ADMIN_KEY=key)
    assert "serve: the admin key must be" in process.communicate(timeout=30)[1]


def test_default_admin_key_is_random(repository: Path):
    assert LocalServer(repository).admin_key != LocalServer(repository).admin_key


def test_incomplete_http_bodies_delay_no_request(server: LocalServer, client: FaceFeatureClient):
    frames, landmarks = photo_faces(2, 651)
    expected = client.features(frames, landmarks)["HOG"]
    incomplete = []
    for _ in range(20):
        connection = http.client.HTTPConnection(*server.http_url.split(":"))
        connection.putrequest("POST", "/v2/models/ensemble/infer")
        connection.putheader("Content-Length", "1000000")
        connection.endheaders(b"{")
        incomplete.append(connection)
    np.testing.assert_array_equal(client.features(frames, landmarks)["HOG"], expected)
    for connection in incomplete:
        connection.close()
    np.testing.assert_array_equal(client.features(frames, landmarks)["HOG"], expected)


def test_stubs_import_nothing_from_the_working_folder(repository: Path, tmp_path: Path):
    """A file torch.py in the caller's working folder must not replace the package torch."""
    for module in ("align_mask", "torch", "onnxruntime"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit('ran code of the working folder')\n")
    script = (
        "import sys; from pathlib import Path; from deploy.local import LocalServer\n"
        "with LocalServer(Path(sys.argv[1]), models=('align_mask', 'pose_mlp')): print('served')"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(repository)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{PROJECT}:{PROJECT / 'client' / 'src'}", "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.stdout == "served\n", run.stderr
