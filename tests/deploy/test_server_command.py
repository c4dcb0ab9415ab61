"""`serve.sh`, the one place with the server's options, on a real tritonserver."""

import contextlib
import math
import os
import re
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import trustme
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

from deploy.local.server import PROJECT, STUB_MEMORY_BYTES
from deploy.local.wheel import find_triton, library_path
from tests.deploy.production_server import ProductionServer
from tests.support.face_data import photo_faces
from triton_face_client import FaceFeatureClient, ServiceUnavailableError
from triton_face_client.transports.channel import Tls

SCRIPT = PROJECT / "deploy" / "docker" / "serve.sh"

KEY = "a-key-of-the-tests-and-no-other"
CLOSED = {
    "list the repository": lambda connection, headers: connection.get_model_repository_index(headers=headers),
    "memory": lambda connection, headers: connection.get_system_shared_memory_status(headers=headers),
    "trace": lambda connection, headers: connection.get_trace_settings(headers=headers),
    "log": lambda connection, headers: connection.get_log_settings(headers=headers),
}


def options() -> set[str]:
    """Return the names of all options that the script gives, whatever its environment."""
    code = re.sub(r"^\s*#.*$", "", SCRIPT.read_text(), flags=re.MULTILINE)
    return set(re.findall(r'(?<=[\s"])--[a-z][a-z0-9-]+(?==|[ "])', code)) - {"--"}


def test_every_option_is_known_to_a_real_server():
    triton = find_triton()
    described = subprocess.run(
        [triton / "bin" / "tritonserver", "--help"],
        env=os.environ | {"LD_LIBRARY_PATH": library_path(triton)},
        capture_output=True,
        text=True,
    )
    known = set(re.findall(r"^\s*(--[a-z0-9-]+)", described.stdout + described.stderr, re.MULTILINE))
    assert len(known) > 50
    assert len(options()) >= 14
    assert options() <= known


def test_a_real_server_takes_all_of_them(production: ProductionServer, repository: Path):
    """With every branch of the script; TLS has a test of its own."""
    log = production.log_path.read_text()
    for row in ("model_control_mode .*MODE_NONE", "strict_model_config .* 1 ", "strict_readiness .* 1 "):
        assert re.search(row, log), row
    assert re.search(r"exit_timeout .* 30 ", log)
    with ProductionServer(repository, {"MODEL_CONFIG_NAME": "cpu", "ADMIN_KEY": KEY}) as tuned:
        assert re.search(r"model_config_name .* cpu ", tuned.log_path.read_text())


@pytest.mark.parametrize("profile", ["config.pbtxt", "configs/gpu.pbtxt"])
def test_the_cuda_memory_pool_holds_every_instances_largest_batch(
    production: ProductionServer, repository: Path, profile: str
):
    """Also with the portable configs, whose instances run on a GPU where there is one."""
    sizes = re.findall(r"cuda_memory_pool_byte_size{\d}\s*\| (\d+)", production.log_path.read_text())
    assert len(sizes) == 8
    needed = 0
    for model in ("hog", "pose_mlp"):
        text = (repository / model / profile).read_text()
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
        row = sum(4 * math.prod(tensor.dims) for tensor in [*config.input, *config.output])
        needed += config.instance_group[0].count * config.max_batch_size * row
    assert all(int(size) > needed for size in sizes)


def test_the_gpu_tunings_option_is_taken(repository: Path):
    """The server stops at its models, which want a GPU, and not at its options."""
    with pytest.raises(RuntimeError) as caught:
        ProductionServer(repository, {"MODEL_CONFIG_NAME": "gpu"}).__enter__()
    assert "unrecognized" not in str(caught.value)
    assert "instance group" in str(caught.value)


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({"MODEL_CONFIG_NAME": "gpus"}, "there is no tuning gpus"),
        ({"ADMIN_KEY": "short"}, "shorter than 16"),
        ({"ADMIN_KEY": "with,a-comma-and-long-enough"}, "letters, digits"),
        ({"TLS_FOLDER": "/nowhere"}, "no /nowhere/tls.crt"),
    ],
)
def test_a_wrong_environment_ends_it_at_once(repository: Path, environment: dict[str, str], complaint: str):
    server = ProductionServer(repository, environment)
    with pytest.raises(RuntimeError, match=complaint):
        server.__enter__()


@pytest.mark.parametrize("what", CLOSED)
def test_administration_wants_the_key(repository: Path, production: ProductionServer, what: str):
    """Without a Secret nobody has it."""
    ask = CLOSED[what]
    with FaceFeatureClient(production.grpc_url) as client:
        for headers in ({}, {"triton-grpc-protocol-admin-key": KEY}):
            with pytest.raises(InferenceServerException, match="restricted"):
                ask(client.connection, headers)


def test_the_secrets_key_opens(repository: Path):
    with (
        ProductionServer(repository, {"ADMIN_KEY": KEY}) as server,
        FaceFeatureClient(server.grpc_url) as client,
    ):
        headers = {"triton-grpc-protocol-admin-key": KEY}
        for ask in CLOSED.values():
            ask(client.connection, headers)
        assert server.get("/v2/trace/setting") == 403
        assert server.get("/v2/trace/setting", headers={"admin-key": KEY}) == 200
        with pytest.raises(InferenceServerException, match="explicit model load / unload is not allowed"):
            client.connection.unload_model("hog", headers=headers)


def test_tls_wants_a_certificate_of_the_secrets_authority(repository: Path, tmp_path: Path):
    """The folder is what a kubernetes.io/tls Secret with a ca.crt mounts."""
    authority, stranger = trustme.CA(), trustme.CA()
    for name, ca in (("ours", authority), ("strangers", stranger)):
        certificate = ca.issue_cert("127.0.0.1", "localhost")
        folder = tmp_path / name
        folder.mkdir()
        certificate.cert_chain_pems[0].write_to_path(str(folder / "tls.crt"))
        certificate.private_key_pem.write_to_path(str(folder / "tls.key"))
        authority.cert_pem.write_to_path(str(folder / "ca.crt"))
    frames, landmarks = photo_faces(2, 710)

    def tls(name: str) -> Tls:
        folder = tmp_path / name
        return Tls(folder / "ca.crt", folder / "tls.crt", folder / "tls.key", server_name="localhost")

    with ProductionServer(repository, {"TLS_FOLDER": str(tmp_path / "ours")}) as server:
        with FaceFeatureClient(server.grpc_url, tls=tls("ours")) as client:
            assert client.features(frames, landmarks)["HOG"].shape == (2, 5408)
        for wrong in (None, tls("strangers")):
            with (
                FaceFeatureClient(server.grpc_url, tls=wrong) as client,
                pytest.raises((ServiceUnavailableError, TimeoutError)),
            ):
                client.features(frames, landmarks, deadline=3.0)
        assert server.get("/v2/models/align_mask/ready") == 200, "the probe's port has no TLS"


def test_connections_that_come_of_age_lose_nothing(repository: Path):
    """Every second here instead of every 30: callers go on with the same bits, on new connections."""
    frames, landmarks = photo_faces(40, 711)
    quick = ("--grpc-max-connection-age=1000", "--grpc-max-connection-age-grace=30000")
    with (
        ProductionServer(repository, options=quick) as server,
        FaceFeatureClient(server.grpc_url, batch_size=4) as client,
    ):
        expected = client.features(frames, landmarks)["HOG"]
        before, seen = _sockets(), set()
        end = time.monotonic() + 8
        while time.monotonic() < end:
            np.testing.assert_array_equal(client.features(frames, landmarks)["HOG"], expected)
            seen |= _sockets()
        assert len(seen - before) >= 4


def test_sigterm_ends_it_in_time(repository: Path):
    with ProductionServer(repository) as server:
        os.kill(server.pid, 0)
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 30, "the exit timeout is for requests that run"


def test_its_memory_of_a_stub_is_the_local_servers():
    assert f"shm-default-byte-size={STUB_MEMORY_BYTES}" in SCRIPT.read_text()


def test_the_server_is_the_containers_first_process(production: ProductionServer):
    """`exec`: the kubelet's SIGTERM reaches tritonserver, not a shell that keeps it."""
    assert Path(f"/proc/{production.pid}/comm").read_text().strip() == "tritonserver"


def _sockets() -> set[str]:
    """Return the sockets that this process has open, by their inodes."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(str(descriptor.readlink()))
    return {name for name in found if name.startswith("socket:")}
