"""What becomes of a call when the server is away, stops, is slow or does not let everybody in."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import trustme
from tritonclient.grpc import InferenceServerClient, KeepAliveOptions
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
from triton_face_client.requests.retry import may_go_well_again

FACES = 4000


def many_faces() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return crops, landmarks, and which of 40 different faces each is."""
    frames, landmarks = photo_faces(40, 330)
    which = np.random.default_rng(0).integers(0, 40, FACES)
    return (255 * frames).astype(np.uint8)[which], landmarks[which], which


def stop_in_order(server: LocalServer) -> None:
    server.stop()


def kill(server: LocalServer) -> None:
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    server.stop()


@pytest.mark.parametrize("shm", [False, True], ids=["messages", "shared memory"])
@pytest.mark.parametrize("end", [stop_in_order, kill])
def test_no_face_is_lost_or_doubled_when_the_server_is_started_again_in_mid_call(
    own_server: LocalServer, repository: Path, end: object, shm: bool
):
    frames, landmarks, which = many_faces()
    one_of_each = [int(np.argmax(which == face)) for face in range(40)]
    with FaceFeatureClient(own_server.grpc_url, headers=own_server.admin_headers, shm=shm) as client:
        expected = client.features(frames[one_of_each], landmarks[one_of_each])
        answers = {}
        call = threading.Thread(target=lambda: answers.update(client.features(frames, landmarks)))
        call.start()
        time.sleep(0.5)
        end(own_server)
        assert call.is_alive(), "the call was over before the server was stopped"
        with LocalServer(repository, own_server.ports, admin_key=own_server.admin_key):
            call.join()
    for name in expected:
        np.testing.assert_array_equal(answers[name], expected[name][which])


def test_two_servers_take_turns_and_one_is_enough(server: LocalServer, own_server: LocalServer):
    frames, landmarks, which = many_faces()
    with FaceFeatureClient([server.grpc_url, own_server.grpc_url]) as client:
        expected = client.features(frames[:40], landmarks[:40])
        for url in (server.grpc_url, own_server.grpc_url):
            with InferenceServerClient(url) as one:
                before = one.get_inference_statistics("ensemble").model_stats[0].inference_count
            client.features(frames[:400], landmarks[:400])
            with InferenceServerClient(url) as one:
                after = one.get_inference_statistics("ensemble").model_stats[0].inference_count
            assert 100 < after - before < 300
        answers = {}
        call = threading.Thread(target=lambda: answers.update(client.features(frames, landmarks)))
        call.start()
        time.sleep(0.5)
        kill(own_server)
        call.join()
    for face in range(40):
        np.testing.assert_array_equal(answers["HOG"][which == which[face]][0], expected["HOG"][face])
    assert np.isfinite(answers["HOG"]).all()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_a_full_queue_is_waited_for(repository: Path, tmp_path: Path):
    """A queue of one request, and twelve at a time: what is refused is sent again until it is answered."""
    narrow = shutil.copytree(repository, tmp_path / "models")
    config = narrow / "align_mask" / "config.pbtxt"
    wide = "max_queue_size: 64"
    assert wide in config.read_text()
    config.write_text(config.read_text().replace(wide, "max_queue_size: 1"))
    frames, landmarks = photo_faces(40, 343)
    with LocalServer(narrow) as server:
        with FaceFeatureClient(server.grpc_url) as client:
            expected = client.align(frames, landmarks)["MASKED_FACES"]
        with FaceFeatureClient(server.grpc_url, batch_size=1, in_flight=12) as client:
            np.testing.assert_array_equal(client.align(frames, landmarks)["MASKED_FACES"], expected)
        impatient = {"batch_size": 1, "in_flight": 12, "retry": Retry(seconds=0)}
        with (
            FaceFeatureClient(server.grpc_url, **impatient) as client,
            pytest.raises(ServiceUnavailableError, match="Exceeds maximum queue size"),
        ):
            client.align(frames, landmarks)


def test_a_wrong_address_is_said_at_once():
    start = time.monotonic()
    url = f"127.0.0.1:{free_port()}"
    with (
        FaceFeatureClient(url) as client,
        pytest.raises(ServiceUnavailableError, match=f"no server answers at {url}: is the address") as caught,
    ):
        client.pose(photo_faces(1, 331)[1])
    assert time.monotonic() - start < 5
    assert isinstance(caught.value, InferenceServerException)
    assert isinstance(caught.value, ConnectionError)


def test_the_http_port_is_said_to_be_wrong(server: LocalServer):
    with (
        FaceFeatureClient(server.http_url, timeout=5) as client,
        pytest.raises(FaceServiceError, match="closes the connection: is it the HTTP port"),
    ):
        client.pose(photo_faces(1, 331)[1])


def test_waiting_for_a_server_that_is_not_there_yet(server: LocalServer):
    with FaceFeatureClient(server.grpc_url) as client:
        client.wait_until_ready(1)
    with (
        FaceFeatureClient(f"127.0.0.1:{free_port()}") as client,
        pytest.raises(ServiceUnavailableError, match=r"not ready after 0\.3 s"),
    ):
        client.wait_until_ready(0.3)


def test_a_model_that_is_not_ready(repository: Path):
    """The server is up, with one model of the four."""
    _, landmarks = photo_faces(1, 332)
    with (
        LocalServer(repository, models=("pose_mlp",)) as server,
        FaceFeatureClient(server.grpc_url) as client,
    ):
        assert client.pose(landmarks).shape == (1, 6)
        with pytest.raises(ServiceUnavailableError, match="has no model align_mask ready"):
            client.align(np.zeros((1, 3, 112, 112), np.uint8), landmarks)


def test_a_retry_gives_up_in_its_time(own_server: LocalServer):
    _, landmarks = photo_faces(1, 333)
    with FaceFeatureClient(own_server.grpc_url, retry=Retry(seconds=1.0)) as client:
        client.pose(landmarks)
        own_server.stop()
        start = time.monotonic()
        with pytest.raises(ServiceUnavailableError):
            client.pose(landmarks)
        assert 0.5 < time.monotonic() - start < 5


def test_a_deadline_ends_retries(own_server: LocalServer):
    _, landmarks = photo_faces(1, 334)
    with FaceFeatureClient(own_server.grpc_url) as client:
        client.pose(landmarks)
        own_server.stop()
        start = time.monotonic()
        with pytest.raises(DeadlineError, match="deadline is over"):
            client.pose(landmarks, deadline=1.0)
        assert time.monotonic() - start < 5


def test_a_server_that_hangs_is_given_up(own_server: LocalServer):
    frames, landmarks = photo_faces(2, 335)
    with FaceFeatureClient(own_server.grpc_url, timeout=1.0) as client:
        expected = client.features(frames, landmarks)
        os.killpg(own_server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(DeadlineError, match="did not answer in time") as caught:
                client.features(frames, landmarks)
            assert isinstance(caught.value, TimeoutError)
        finally:
            os.killpg(own_server.pid, signal.SIGCONT)
        np.testing.assert_array_equal(client.features(frames, landmarks)["HOG"], expected["HOG"])


def test_a_client_goes_on_after_an_interrupt(server: LocalServer):
    """Ctrl-C at any moment of a call, as a notebook's stop button, must not leave a lock of gRPC's held."""
    script = textwrap.dedent(
        """
        import os, signal, sys, threading
        import numpy as np
        from triton_face_client import FaceFeatureClient
        from triton_face_client.sample_faces import sample_faces

        frames, landmarks = sample_faces(256)
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
        print("went on")
        """
    )
    interrupt = "import signal; signal.signal(signal.SIGALRM, signal.default_int_handler)\n"
    for transport in ("messages", "shm"):
        done = subprocess.run(
            [sys.executable, "-c", interrupt + script, server.grpc_url, transport, server.admin_key],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.stdout == "went on\n", done.stderr


def test_a_deadline_covers_the_first_contact(own_server: LocalServer):
    _, landmarks = photo_faces(1, 341)
    os.killpg(own_server.pid, signal.SIGSTOP)
    try:
        with FaceFeatureClient(own_server.grpc_url) as client:
            start = time.monotonic()
            with pytest.raises(DeadlineError):
                client.pose(landmarks, deadline=1.0)
            with pytest.raises(ServiceUnavailableError):
                client.wait_until_ready(1.0)
            assert time.monotonic() - start < 6
    finally:
        os.killpg(own_server.pid, signal.SIGCONT)


def test_times_that_cannot_be():
    for times in ({"seconds": -1}, {"first": 0}, {"first": 3, "longest": 1}):
        with pytest.raises(ValueError, match="longest at least first"):
            Retry(**times)
    for retry in (False, 0, 5):
        with pytest.raises(TypeError, match=r"Retry\(seconds=0\) sends everything once"):
            FaceFeatureClient(retry=retry)
    for timeout in (0, float("nan"), float("inf"), 1e9):
        with pytest.raises(ValueError, match="more than 0 and at most"):
            FaceFeatureClient(timeout=timeout)
    with FaceFeatureClient() as client, pytest.raises(ValueError, match="deadline is NaN"):
        client.pose(photo_faces(1, 342)[1], deadline=float("nan"))


def test_refusals_are_never_sent_again(client: FaceFeatureClient, monkeypatch: pytest.MonkeyPatch):
    frames, landmarks = photo_faces(4, 336)
    landmarks[2] = np.nan
    really, sent = client.connection.async_infer, []
    monkeypatch.setattr(client.connection, "async_infer", lambda **k: sent.append(k) or really(**k))
    with pytest.raises(InvalidFacesError):
        client.align(frames, landmarks)
    assert len(sent) == 1


@pytest.mark.parametrize(
    ("status", "message", "again"),
    [
        ("UNAVAILABLE", "Socket closed", True),
        ("UNAVAILABLE", "Exceeds maximum queue size", True),
        ("INTERNAL", "Exceeds maximum queue size", True),
        ("INTERNAL", "Failed to process the request(s), Stub process 'align_mask_0_0' is not healthy.", True),
        ("INTERNAL", "onnx runtime error", False),
        ("NOT_FOUND", "Request for unknown model: 'hog' is not found", True),
        ("INVALID_ARGUMENT", "face 0: non-finite landmark", False),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", False),
        ("RESOURCE_EXHAUSTED", "Received message larger than max", False),
    ],
)
def test_what_is_sent_again(status: str, message: str, again: bool):
    assert may_go_well_again(InferenceServerException(message, f"StatusCode.{status}")) is again


def test_waits_grow_and_end():
    waits = list(Retry(seconds=30, first=0.1, longest=2.0).waits())
    assert sum(waits) <= 30
    assert len(waits) < 200
    assert all(
        wait <= bound for wait, bound in zip(waits, [0.1, 0.2, 0.4, 0.8, 1.6] + [2.0] * 200, strict=False)
    )
    assert list(Retry(seconds=0).waits()) == []


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def pem(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with certificates of a server, of a client, and of a stranger."""
    folder = tmp_path_factory.mktemp("pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name, issuer in (("server", authority), ("client", authority), ("stranger", trustme.CA())):
        certificate = issuer.issue_cert("faces.test" if name == "server" else f"{name}.test")
        certificate.private_key_pem.write_to_path(folder / f"{name}.key")
        certificate.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
    return folder


@pytest.fixture(scope="module")
def tls_server(repository: Path, pem: Path) -> Iterator[LocalServer]:
    """Give a server that wants a certificate of its clients."""
    options = (
        "--grpc-use-ssl=1",
        "--grpc-use-ssl-mutual=1",
        f"--grpc-server-cert={pem / 'server.pem'}",
        f"--grpc-server-key={pem / 'server.key'}",
        f"--grpc-root-cert={pem / 'ca.pem'}",
    )
    with LocalServer(repository, options=options, models=("pose_mlp",)) as running:
        yield running


def test_a_mutual_handshake(tls_server: LocalServer, pem: Path):
    _, landmarks = photo_faces(3, 337)
    tls = Tls(pem / "ca.pem", pem / "client.pem", pem / "client.key", server_name="faces.test")
    for url in (tls_server.grpc_url, [tls_server.grpc_url, tls_server.grpc_url]):
        with FaceFeatureClient(url, tls=tls) as client:
            assert client.pose(landmarks).shape == (3, 6)


@pytest.mark.parametrize("who", ["stranger", "nobody", "without tls", "wrong name", "wrong authority"])
def test_who_is_not_let_in(tls_server: LocalServer, pem: Path, who: str):
    mine = {"certificate_chain": pem / "client.pem", "private_key": pem / "client.key"}
    tls = {
        "stranger": Tls(pem / "ca.pem", pem / "stranger.pem", pem / "stranger.key", server_name="faces.test"),
        "nobody": Tls(pem / "ca.pem", server_name="faces.test"),
        "without tls": None,
        "wrong name": Tls(pem / "ca.pem", **mine, server_name="other.test"),
        "wrong authority": Tls(pem / "stranger.pem", **mine, server_name="faces.test"),
    }[who]
    with (
        FaceFeatureClient(tls_server.grpc_url, tls=tls, timeout=5) as client,
        pytest.raises(FaceServiceError, match="is the address|closes the connection"),
    ):
        client.pose(photo_faces(1, 338)[1])


def test_tls_files_that_cannot_be_read(pem: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="cannot read .*missing.pem"):
        FaceFeatureClient(tls=Tls(tmp_path / "missing.pem"))
    with pytest.raises(ValueError, match="give both or neither"):
        FaceFeatureClient(tls=Tls(certificate_chain=pem / "client.pem"))


def test_headers_open_what_the_server_keeps_closed(repository: Path):
    options = ("--grpc-restricted-protocol=inference:admin-key=secret",)
    _, landmarks = photo_faces(1, 339)
    with LocalServer(repository, options=options, models=("pose_mlp",)) as server:
        headers = {"Triton-Grpc-Protocol-Admin-Key": "secret"}
        with FaceFeatureClient(server.grpc_url, headers=headers) as client:
            assert client.pose(landmarks).shape == (1, 6)
        with FaceFeatureClient(server.grpc_url) as client, pytest.raises(FaceServiceError):
            client.pose(landmarks)


def test_keepalive_is_an_option_of_the_channel(server: LocalServer):
    options = KeepAliveOptions(keepalive_time_ms=1000, keepalive_timeout_ms=500)
    with FaceFeatureClient(server.grpc_url, keepalive=options) as client:
        assert infer(client, "pose_mlp", {"LANDMARKS": photo_faces(1, 340)[1]}, ["POSE"])["POSE"].size == 6
        time.sleep(2.5)
        assert client.pose(photo_faces(1, 340)[1]).shape == (1, 6)


def test_an_address_of_nobody_does_not_hold_up_the_other(server: LocalServer):
    with FaceFeatureClient([f"127.0.0.1:{free_port()}", server.grpc_url]) as client:
        for seed in range(5):
            assert client.pose(photo_faces(2, seed)[1]).shape == (2, 6)
