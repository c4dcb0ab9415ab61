"""The start script serve.sh with a real tritonserver: options, access control, TLS and stops."""

import contextlib
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import trustme
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

from tests.deploy.production_server import ProductionServer
from tests.support.face_data import photo_faces
from triton_face_client import FaceFeatureClient, ServiceUnavailableError
from triton_face_client.transports.channel import Tls

KEY = "a-key-of-the-tests-and-no-other"
RESTRICTED = {
    "model repository": lambda connection, headers: connection.get_model_repository_index(headers=headers),
    "shared memory": lambda connection, headers: connection.get_system_shared_memory_status(headers=headers),
    "trace": lambda connection, headers: connection.get_trace_settings(headers=headers),
    "log": lambda connection, headers: connection.get_log_settings(headers=headers),
}


@pytest.fixture(scope="module")
def configured(repository: Path) -> Iterator[ProductionServer]:
    """Yield a server with a profile and an admin key."""
    with ProductionServer(repository, {"MODEL_CONFIG_NAME": "cpu", "ADMIN_KEY": KEY}) as server:
        yield server


def test_server_uses_the_options(production: ProductionServer, configured: ProductionServer):
    log = production.log_path.read_text()
    for row in ("model_control_mode .*MODE_NONE", "strict_model_config .* 1 ", "strict_readiness .* 1 "):
        assert re.search(row, log), row
    assert re.search(r"exit_timeout .* 40 ", log)
    assert re.search(r"model_config_name .* cpu ", configured.log_path.read_text())


@pytest.mark.parametrize("profile", ["config.pbtxt", "configs/gpu.pbtxt"])
def test_cuda_memory_pool_holds_the_largest_batch_of_every_instance(
    production: ProductionServer, repository: Path, profile: str
):
    """config.pbtxt uses a GPU too, on a machine that has one."""
    sizes = re.findall(r"cuda_memory_pool_byte_size{\d}\s*\| (\d+)", production.log_path.read_text())
    assert len(sizes) == 8
    needed = 0
    for model in ("hog", "pose_mlp"):
        text = (repository / model / profile).read_text()
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
        row = sum(4 * math.prod(tensor.dims) for tensor in [*config.input, *config.output])
        needed += config.instance_group[0].count * config.max_batch_size * row
    assert all(int(size) > needed for size in sizes)


def test_gpu_profile_needs_a_gpu(repository: Path):
    """Triton accepts the options and then fails to load the models."""
    with pytest.raises(RuntimeError, match="instance group") as caught:
        ProductionServer(repository, {"MODEL_CONFIG_NAME": "gpu"}).__enter__()
    assert "unrecognized" not in str(caught.value)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"MODEL_CONFIG_NAME": "gpus"}, "has no profile gpus"),
        ({"ADMIN_KEY": "short"}, "shorter than 16"),
        ({"ADMIN_KEY": "with,a-comma-and-long-enough"}, "letters, digits"),
        ({"TLS_FOLDER": "/nowhere"}, "cannot read /nowhere/tls.crt"),
        ({"AU_REPOSITORY": "/nowhere"}, "cannot read /nowhere/au/config.pbtxt; `python -m export au"),
    ],
)
def test_wrong_environment_prevents_the_start(repository: Path, environment: dict[str, str], message: str):
    with pytest.raises(RuntimeError, match=message):
        ProductionServer(repository, environment).__enter__()


@pytest.mark.parametrize("endpoint", RESTRICTED)
def test_unset_admin_key_forbids_the_restricted_endpoints(production: ProductionServer, endpoint: str):
    with FaceFeatureClient(production.grpc_url) as client:
        for headers in ({}, {"triton-grpc-protocol-admin-key": KEY}):
            with pytest.raises(InferenceServerException, match="restricted"):
                RESTRICTED[endpoint](client.connection, headers)


def test_admin_key_allows_the_restricted_endpoints(configured: ProductionServer):
    headers = {"triton-grpc-protocol-admin-key": KEY}
    with FaceFeatureClient(configured.grpc_url) as client:
        for call in RESTRICTED.values():
            call(client.connection, headers)
        assert configured.get("/v2/trace/setting") == 403
        assert configured.get("/v2/trace/setting", headers={"admin-key": KEY}) == 200
        with pytest.raises(InferenceServerException, match="explicit model load / unload is not allowed"):
            client.connection.unload_model("hog", headers=headers)


def test_tls_requires_a_client_certificate_of_the_ca(repository: Path, tmp_path: Path):
    """The folder has the files of a mounted Secret of the type kubernetes.io/tls with a ca.crt."""
    authority, other_authority = trustme.CA(), trustme.CA()
    for name, ca in (("trusted", authority), ("foreign", other_authority)):
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

    with ProductionServer(repository, {"TLS_FOLDER": str(tmp_path / "trusted")}) as server:
        with FaceFeatureClient(server.grpc_url, tls=tls("trusted")) as client:
            assert client.features(frames, landmarks)["HOG"].shape == (2, 5408)
        for wrong in (None, tls("foreign")):
            with (
                FaceFeatureClient(server.grpc_url, tls=wrong) as client,
                pytest.raises((ServiceUnavailableError, TimeoutError)),
            ):
                client.features(frames, landmarks, deadline=3.0)
        assert server.get("/v2/models/align_mask/ready") == 200, "the probes use HTTP, which has no TLS"


def test_clients_survive_the_end_of_old_connections(repository: Path):
    """Connections end after 1 s instead of 30 s; calls on new connections give bit-identical outputs."""
    frames, landmarks = photo_faces(40, 711)
    quick = ("--grpc-max-connection-age=1000", "--grpc-max-connection-age-grace=30000")
    with (
        ProductionServer(repository, options=quick) as server,
        FaceFeatureClient(server.grpc_url, batch_size=4) as client,
    ):
        expected = client.features(frames, landmarks)["HOG"]
        before, used = _sockets(), set()
        end = time.monotonic() + 8
        while time.monotonic() < end:
            np.testing.assert_array_equal(client.features(frames, landmarks)["HOG"], expected)
            used |= _sockets()
        assert len(used - before) >= 4


def test_sigterm_stops_the_server(repository: Path):
    with ProductionServer(repository) as server:
        comm = Path(f"/proc/{server.pid}/comm").read_text().strip()
        assert comm == "tritonserver", "the kubelet's SIGTERM must not reach a shell"
        start = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - start < 30, "a server without requests must not wait for the exit timeout"


def _sockets() -> set[str]:
    """Return the open sockets of this process by their inodes."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(str(descriptor.readlink()))
    return {name for name in found if name.startswith("socket:")}
