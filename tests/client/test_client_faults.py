"""Calls to a server that is unreachable, stops, hangs, has full queues or restricts access."""

import concurrent.futures
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import trustme
from google.protobuf import text_format
from tritonclient.grpc import InferenceServerClient, KeepAliveOptions, model_config_pb2
from tritonclient.utils import InferenceServerException

from deploy.local import LocalServer
from deploy.local.server import PROJECT
from tests.support.face_data import photo_faces
from tests.support.raw_requests import infer
from triton_face_client import (
    DeadlineError,
    FaceFeatureClient,
    FaceServiceError,
    InvalidFacesError,
    Retry,
    ServiceUnavailableError,
    Tls,
)
from triton_face_client.requests.retry import is_retryable

FACE_COUNT = 3000


@pytest.fixture(scope="module")
def pose_server(repository: Path) -> Iterator[LocalServer]:
    """Yield a server of `pose_mlp` alone. A test may suspend it."""
    with LocalServer(repository, models=("pose_mlp",)) as running:
        yield running


@contextlib.contextmanager
def suspended(server: LocalServer) -> Iterator[None]:
    """Suspend a server, so that it accepts connections and does not answer."""
    os.killpg(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(server.pid, signal.SIGCONT)


def many_faces() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return crops and landmarks of `FACE_COUNT` rows that repeat 40 faces, and the face of each row."""
    frames, landmarks = photo_faces(40, 330)
    face_of_row = np.random.default_rng(0).integers(0, 40, FACE_COUNT)
    return (255 * frames).astype(np.uint8)[face_of_row], landmarks[face_of_row], face_of_row


def stop(server: LocalServer) -> None:
    """Let a server complete its requests and end."""
    server.stop()


def kill(server: LocalServer) -> None:
    """End a server at once, and clean up after it."""
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    server.stop()


@pytest.mark.parametrize("end_server", [stop, kill])
def test_calls_survive_a_restart_of_the_server(
    own_server: LocalServer, repository: Path, end_server: Callable[[LocalServer], None]
):
    """A client that sends messages and a client with shared memory must return the row of each face."""
    frames, landmarks, face_of_row = many_faces()
    one_of_each = [int(np.argmax(face_of_row == face)) for face in range(40)]
    address, headers = own_server.grpc_url, own_server.admin_headers
    with (
        FaceFeatureClient(address) as message_client,
        FaceFeatureClient(address, headers=headers, shm=True) as shm_client,
        concurrent.futures.ThreadPoolExecutor(2) as pool,
    ):
        expected = message_client.features(frames[one_of_each], landmarks[one_of_each])
        shm_client.features(frames[one_of_each], landmarks[one_of_each])
        calls = [pool.submit(client.features, frames, landmarks) for client in (message_client, shm_client)]
        time.sleep(0.5)
        end_server(own_server)
        assert not any(call.done() for call in calls), "a call ended before the server did"
        with LocalServer(repository, own_server.ports, admin_key=own_server.admin_key):
            for call in calls:
                for name, rows in call.result().items():
                    np.testing.assert_array_equal(rows, expected[name][face_of_row])


def test_round_robin_over_two_servers_survives_the_loss_of_one(server: LocalServer, own_server: LocalServer):
    frames, landmarks, face_of_row = many_faces()
    with FaceFeatureClient([server.grpc_url, own_server.grpc_url]) as client:
        expected = client.features(frames[:40], landmarks[:40])
        for url in (server.grpc_url, own_server.grpc_url):
            with InferenceServerClient(url) as connection:
                before = connection.get_inference_statistics("ensemble").model_stats[0].inference_count
            client.features(frames[:400], landmarks[:400])
            with InferenceServerClient(url) as connection:
                after = connection.get_inference_statistics("ensemble").model_stats[0].inference_count
            assert 100 < after - before < 300, "each server computes about half of the faces"
        answers = {}
        call = threading.Thread(target=lambda: answers.update(client.features(frames, landmarks)))
        call.start()
        time.sleep(0.5)
        kill(own_server)
        call.join()
    for face in range(40):
        np.testing.assert_array_equal(
            answers["HOG"][face_of_row == face_of_row[face]][0], expected["HOG"][face]
        )
    assert np.isfinite(answers["HOG"]).all()


def test_retries_while_the_queue_is_full(repository: Path, tmp_path: Path):
    """The queue holds one request, and the client sends twelve requests concurrently."""
    models = shutil.copytree(repository, tmp_path / "models")
    path = models / "align_mask" / "config.pbtxt"
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    config.dynamic_batching.default_queue_policy.max_queue_size = 1
    path.write_text(text_format.MessageToString(config))
    frames, landmarks = photo_faces(40, 343)
    with LocalServer(models, models=("align_mask",)) as server:
        with FaceFeatureClient(server.grpc_url) as client:
            expected = client.align(frames, landmarks)["MASKED_FACES"]
        with FaceFeatureClient(server.grpc_url, batch_size=1, in_flight=12) as client:
            np.testing.assert_array_equal(client.align(frames, landmarks)["MASKED_FACES"], expected)
        without_retries = {"batch_size": 1, "in_flight": 12, "retry": Retry(seconds=0)}
        with (
            FaceFeatureClient(server.grpc_url, **without_retries) as client,
            pytest.raises(ServiceUnavailableError, match="Exceeds maximum queue size"),
        ):
            client.align(frames, landmarks)


def test_first_call_fails_at_once_without_a_server(unused_address: str):
    start = time.monotonic()
    with (
        FaceFeatureClient(unused_address) as client,
        pytest.raises(ServiceUnavailableError, match=f"no server answers at {unused_address}: ") as caught,
    ):
        client.pose(photo_faces(1, 331)[1])
    assert time.monotonic() - start < 5
    assert isinstance(caught.value, InferenceServerException)
    assert isinstance(caught.value, ConnectionError)


def test_http_port_gives_an_error_that_names_the_grpc_port(server: LocalServer):
    with (
        FaceFeatureClient(server.http_url, timeout=5) as client,
        pytest.raises(FaceServiceError, match="closes the connection: pass the gRPC port"),
    ):
        client.pose(photo_faces(1, 331)[1])


def test_wait_until_ready_returns_or_gives_an_error(server: LocalServer, unused_address: str):
    with FaceFeatureClient(server.grpc_url) as client:
        client.wait_until_ready(1)
    with (
        FaceFeatureClient(unused_address) as client,
        pytest.raises(ServiceUnavailableError, match=r"not ready after 0\.3 s"),
    ):
        client.wait_until_ready(0.3)


def test_error_names_a_model_that_is_not_loaded(pose_server: LocalServer):
    _, landmarks = photo_faces(1, 332)
    with FaceFeatureClient(pose_server.grpc_url) as client:
        assert client.pose(landmarks).shape == (1, 6)
        with pytest.raises(ServiceUnavailableError, match="has no model align_mask ready"):
            client.align(np.zeros((1, 3, 112, 112), np.uint8), landmarks)


def test_retries_end_after_their_time_or_at_the_deadline(repository: Path):
    _, landmarks = photo_faces(1, 333)
    with (
        LocalServer(repository, models=("pose_mlp",)) as server,
        FaceFeatureClient(server.grpc_url, retry=Retry(seconds=1.0)) as short_retry,
        FaceFeatureClient(server.grpc_url) as long_retry,
    ):
        short_retry.pose(landmarks)
        long_retry.pose(landmarks)
        server.stop()
        start = time.monotonic()
        with pytest.raises(ServiceUnavailableError):
            short_retry.pose(landmarks)
        assert 0.5 < time.monotonic() - start < 5
        start = time.monotonic()
        with pytest.raises(DeadlineError, match="deadline"):
            long_retry.pose(landmarks, deadline=1.0)
        assert time.monotonic() - start < 5


def test_request_to_a_hanging_server_times_out(pose_server: LocalServer):
    _, landmarks = photo_faces(2, 335)
    with FaceFeatureClient(pose_server.grpc_url, timeout=1.0) as client:
        expected = client.pose(landmarks)
        with suspended(pose_server), pytest.raises(DeadlineError, match="did not answer in time") as caught:
            client.pose(landmarks)
        assert isinstance(caught.value, TimeoutError)
        np.testing.assert_array_equal(client.pose(landmarks), expected)


def test_deadline_includes_the_first_connection(pose_server: LocalServer):
    _, landmarks = photo_faces(1, 341)
    with suspended(pose_server), FaceFeatureClient(pose_server.grpc_url) as client:
        start = time.monotonic()
        with pytest.raises(DeadlineError):
            client.pose(landmarks, deadline=1.0)
        with pytest.raises(ServiceUnavailableError):
            client.wait_until_ready(1.0)
        assert time.monotonic() - start < 6


def test_client_is_usable_after_an_interrupt(server: LocalServer):
    """Ctrl-C or a notebook's stop button at any moment of a call must not leave a lock of gRPC acquired.

    A timer interrupts calls after 3, 6, ... 90 ms.
    """
    script = textwrap.dedent(
        """
        import signal, sys
        import numpy as np
        from triton_face_client import FaceFeatureClient
        from triton_face_client.sample_faces import sample_faces

        frames, landmarks = sample_faces(256)
        # The timer's signal raises KeyboardInterrupt, like Ctrl-C.
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        headers = {"triton-grpc-protocol-admin-key": sys.argv[3]}
        shm = sys.argv[2] == "shm"
        with FaceFeatureClient(sys.argv[1], headers=headers, batch_size=4, shm=shm) as client:
            expected = client.features(frames[:8], landmarks[:8])["HOG"]
            for number in range(30):
                signal.setitimer(signal.ITIMER_REAL, 0.003 * (number + 1))
                try:
                    while True:
                        client.features(frames, landmarks)
                except KeyboardInterrupt:
                    answers = client.features(frames[:8], landmarks[:8], deadline=20)
                np.testing.assert_array_equal(answers["HOG"], expected)
        print("usable")
        """
    )
    for transport in ("messages", "shm"):
        completed = subprocess.run(
            [sys.executable, "-c", script, server.grpc_url, transport, server.admin_key],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert completed.stdout == "usable\n", completed.stderr


def test_rejects_invalid_retries_timeouts_and_deadlines():
    for settings in ({"seconds": -1}, {"first": 0}, {"first": 3, "longest": 1}):
        with pytest.raises(ValueError, match="longest at least first"):
            Retry(**settings)
    for retry in (False, 0, 5):
        with pytest.raises(TypeError, match=r"Retry\(seconds=0\) sends every request once"):
            FaceFeatureClient(retry=retry)
    for timeout in (0, float("nan"), float("inf"), 1e9):
        with pytest.raises(ValueError, match="more than 0 and at most"):
            FaceFeatureClient(timeout=timeout)
    with FaceFeatureClient() as client, pytest.raises(ValueError, match="deadline is NaN"):
        client.pose(photo_faces(1, 342)[1], deadline=float("nan"))


def test_rejected_request_is_not_retried(client: FaceFeatureClient, monkeypatch: pytest.MonkeyPatch):
    frames, landmarks = photo_faces(4, 336)
    landmarks[2] = np.nan
    sent_requests, async_infer = [], client.connection.async_infer

    def record(**arguments: object) -> object:
        sent_requests.append(arguments)
        return async_infer(**arguments)

    monkeypatch.setattr(client.connection, "async_infer", record)
    with pytest.raises(InvalidFacesError):
        client.align(frames, landmarks)
    assert len(sent_requests) == 1


@pytest.mark.parametrize(
    ("status", "message", "retryable"),
    [
        ("UNAVAILABLE", "Socket closed", True),
        ("UNAVAILABLE", "Exceeds maximum queue size", True),
        ("UNAVAILABLE", "This protocol is restricted, expecting header 'triton-grpc-protocol-key'", False),
        ("INTERNAL", "Exceeds maximum queue size", True),
        ("INTERNAL", "Failed to process the request(s), Stub process 'align_mask_0_0' is not healthy.", True),
        ("INTERNAL", "onnx runtime error", False),
        ("NOT_FOUND", "Request for unknown model: 'hog' is not found", True),
        ("INVALID_ARGUMENT", "face 0: non-finite landmark", False),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", False),
        ("RESOURCE_EXHAUSTED", "Received message larger than max", False),
    ],
)
def test_retryable_errors_by_status_and_message(status: str, message: str, retryable: bool):
    assert is_retryable(InferenceServerException(message, f"StatusCode.{status}")) is retryable


def test_bounds_of_waits_double_up_to_a_limit():
    waits = list(Retry(seconds=30, first=0.1, longest=2.0).waits())
    assert sum(waits) <= 30
    assert len(waits) < 200
    bounds = [0.1, 0.2, 0.4, 0.8, 1.6] + [2.0] * 200
    assert all(wait <= bound for wait, bound in zip(waits, bounds, strict=False))
    assert list(Retry(seconds=0).waits()) == []


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Return the certificate authority of server and client."""
    return trustme.CA()


@pytest.fixture(scope="module")
def pem(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with certificates of a server, of a client, and of a client of another authority."""
    folder = tmp_path_factory.mktemp("pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name, issuer in (("server", authority), ("client", authority), ("foreign", trustme.CA())):
        certificate = issuer.issue_cert("faces.test" if name == "server" else f"{name}.test")
        certificate.private_key_pem.write_to_path(folder / f"{name}.key")
        certificate.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
    return folder


@pytest.fixture(scope="module")
def tls_server(repository: Path, pem: Path) -> Iterator[LocalServer]:
    """Yield a server that requires client certificates."""
    options = (
        "--grpc-use-ssl=1",
        "--grpc-use-ssl-mutual=1",
        f"--grpc-server-cert={pem / 'server.pem'}",
        f"--grpc-server-key={pem / 'server.key'}",
        f"--grpc-root-cert={pem / 'ca.pem'}",
    )
    with LocalServer(repository, options=options, models=("pose_mlp",)) as running:
        yield running


def test_mutual_tls_accepts_a_client_certificate(tls_server: LocalServer, pem: Path):
    _, landmarks = photo_faces(3, 337)
    tls = Tls(pem / "ca.pem", pem / "client.pem", pem / "client.key", server_name="faces.test")
    for url in (tls_server.grpc_url, [tls_server.grpc_url, tls_server.grpc_url]):
        with FaceFeatureClient(url, tls=tls) as client:
            assert client.pose(landmarks).shape == (3, 6)


@pytest.mark.parametrize(
    "defect",
    [
        "client certificate of another authority",
        "no client certificate",
        "no TLS",
        "wrong server name",
        "wrong authority",
    ],
)
def test_rejects_tls_connection_with_a_defect(tls_server: LocalServer, pem: Path, defect: str):
    certificate = {"certificate_chain": pem / "client.pem", "private_key": pem / "client.key"}
    tls = {
        "client certificate of another authority": Tls(
            pem / "ca.pem", pem / "foreign.pem", pem / "foreign.key", server_name="faces.test"
        ),
        "no client certificate": Tls(pem / "ca.pem", server_name="faces.test"),
        "no TLS": None,
        "wrong server name": Tls(pem / "ca.pem", **certificate, server_name="other.test"),
        "wrong authority": Tls(pem / "foreign.pem", **certificate, server_name="faces.test"),
    }[defect]
    with (
        FaceFeatureClient(tls_server.grpc_url, tls=tls, timeout=5) as client,
        pytest.raises(FaceServiceError, match="no server answers|closes the connection"),
    ):
        client.pose(photo_faces(1, 338)[1])


def test_rejects_unreadable_tls_files(pem: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="cannot read .*missing.pem"):
        FaceFeatureClient(tls=Tls(tmp_path / "missing.pem"))
    with pytest.raises(ValueError, match="give both or neither"):
        FaceFeatureClient(tls=Tls(certificate_chain=pem / "client.pem"))


def test_headers_give_access_to_restricted_endpoints(server: LocalServer):
    """Shared memory is restricted. gRPC needs header names in lower case, so the client converts them."""
    _, landmarks = photo_faces(1, 339)
    headers = {"Triton-Grpc-Protocol-Admin-Key": server.admin_key}
    with FaceFeatureClient(server.grpc_url, headers=headers, shm=True) as client:
        assert client.pose(landmarks).shape == (1, 6)
    with FaceFeatureClient(server.grpc_url, shm=True) as client, pytest.raises(FaceServiceError):
        client.pose(landmarks)


def test_keepalive_pings_keep_the_connection_usable(server: LocalServer):
    options = KeepAliveOptions(keepalive_time_ms=1000, keepalive_timeout_ms=500)
    with FaceFeatureClient(server.grpc_url, keepalive=options) as client:
        assert infer(client, "pose_mlp", {"LANDMARKS": photo_faces(1, 340)[1]}, ["POSE"])["POSE"].size == 6
        time.sleep(2.5)  # at least two pings
        assert client.pose(photo_faces(1, 340)[1]).shape == (1, 6)


def test_unreachable_address_does_not_delay_requests_to_the_other(server: LocalServer, unused_address: str):
    with FaceFeatureClient([unused_address, server.grpc_url]) as client:
        for seed in range(5):
            assert client.pose(photo_faces(2, seed)[1]).shape == (2, 6)
