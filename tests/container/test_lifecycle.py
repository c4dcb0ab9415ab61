"""Start, failure and stop of containers: stub processes, signals, settings, TLS and the admin key."""

import contextlib
import dataclasses
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import trustme
from tritonclient.utils import InferenceServerException

from deploy.local.server import PROJECT, Ports
from tests.container.container import (
    Container,
    SharedMemory,
    assert_probes,
    compose_options,
    compose_service,
    pod,
    pod_options,
    probe,
)
from tests.container.engine import Echo, Engine
from tests.support.background_threads import background_threads
from tests.support.face_data import photo_faces
from tests.support.injected_code import wrap_function
from tests.support.waiting import wait_until
from triton_face_client import FaceFeatureClient, Retry, ServiceUnavailableError, Tls

KEY = "a-key-of-the-tests-and-no-other"

PROBE_SECONDS = 20.0
"""Time limit from a failure to the failing liveness probe."""

KILLS = 8
OTHER_PORTS = Ports(http=8010, grpc=8011, metrics=8012)


@pytest.fixture
def podman_options(shared_memory: SharedMemory) -> list[str]:
    return pod_options(shared_memory.folder)


def test_server_with_the_settings_of_compose_computes_features(engine: Engine):
    frames, landmarks = photo_faces(128, 750)
    with Container(engine, compose_options()) as server, FaceFeatureClient(server.grpc_url) as client:
        server.wait_until_ready()
        assert np.isfinite(client.features(frames, landmarks)["HOG"]).all()
        assert_probes(server, healthy=True)


@pytest.mark.parametrize("signal_name", ["SIGKILL", "SIGSTOP"])
def test_dead_stub_process_fails_the_probes(
    engine: Engine, podman_options: list[str], signal_name: str, echo: Echo
):
    with Container(engine, podman_options) as server:
        server.wait_until_ready()
        assert_probes(server, healthy=True)
        stub = next(process for process in server.processes() if process.name == "align_mask")
        subprocess.run(["kill", f"-{signal_name}", str(stub.pid)], check=True)
        echo(f"probe failed after {seconds_until_unhealthy(server):.0f} s")
        assert_probes(server, healthy=False)


def test_hanging_stub_process_fails_the_probes(
    engine: Engine, podman_options: list[str], tmp_path: Path, echo: Echo
):
    """The process hangs in a batch; its other threads continue."""
    hull_mask = tmp_path / "hull_mask.py"
    shutil.copy(PROJECT / "model_repository/align_mask/1/align_mask/hull_mask.py", hull_mask)
    wrap_function(hull_mask, "hull_masks", before="time.sleep(600)")
    hull_mask.chmod(0o644)
    served = "/opt/triton-face/model_repository/align_mask/1/align_mask/hull_mask.py"
    with Container(engine, [*podman_options, f"--volume={hull_mask}:{served}:ro"]) as server:
        server.wait_until_ready()
        assert_probes(server, healthy=True)
        with background_request(server):
            echo(f"probe failed after {seconds_until_unhealthy(server):.0f} s")
            assert_probes(server, healthy=False)
            server.send("KILL")


def seconds_until_unhealthy(server: Container) -> float:
    """Wait until the liveness probe fails; return the time that passed."""
    start = time.monotonic()
    while probe(server).returncode == 0:
        assert time.monotonic() - start < PROBE_SECONDS, "the probe does not fail"
        time.sleep(1)
    return time.monotonic() - start


@contextlib.contextmanager
def background_request(server: Container) -> Iterator[None]:
    """Send a request that gets no response."""
    frames, landmarks = photo_faces(1, 751)

    def send() -> None:
        with (
            FaceFeatureClient(server.grpc_url, retry=Retry(seconds=0)) as client,
            contextlib.suppress(ServiceUnavailableError, InferenceServerException, TimeoutError),
        ):
            client.features(frames, landmarks)

    sending = threading.Thread(target=send)
    sending.start()
    yield
    sending.join()


@dataclasses.dataclass
class Load:
    """Results of callers that send the same faces repeatedly.

    Attributes
    ----------
    outputs : list of ndarray
        HOG of each call.
    failures : list of Exception
        Exceptions that ended a caller.
    """

    outputs: list[np.ndarray] = dataclasses.field(default_factory=list)
    failures: list[Exception] = dataclasses.field(default_factory=list)


@contextlib.contextmanager
def load(url: str, frames: np.ndarray, landmarks: np.ndarray, callers: int = 3) -> Iterator[Load]:
    """Send faces from several threads until the end of the block."""
    results = Load()

    def call(stopping: threading.Event) -> None:
        with FaceFeatureClient(url, batch_size=8) as client:
            while not stopping.is_set():
                try:
                    results.outputs.append(client.features(frames, landmarks, ["HOG"])["HOG"])
                except (InferenceServerException, ServiceUnavailableError, TimeoutError) as error:
                    results.failures.append(error)
                    return

    with background_threads(call, callers):
        yield results


def test_stop_under_load_loses_no_face(engine: Engine, podman_options: list[str], echo: Echo):
    """Compose sends SIGTERM without preStop. The client retries until the next server is ready."""
    frames, landmarks = photo_faces(32, 752)
    grace = float(compose_service()["stop_grace_period"].removesuffix("s"))
    with Container(engine, podman_options) as server, contextlib.ExitStack() as successors:
        server.wait_until_ready()
        with FaceFeatureClient(server.grpc_url) as client:
            expected = client.features(frames, landmarks, ["HOG"])["HOG"]
        with load(server.grpc_url, frames, landmarks) as results:
            time.sleep(3)
            start = time.monotonic()
            server.send("TERM")
            assert server.wait(grace) == 0, server.log()[-2000:]
            stopped, before = time.monotonic() - start, len(results.outputs)
            successors.enter_context(Container(engine, podman_options)).wait_until_ready()
            ready = time.monotonic() - start - stopped
            assert wait_until(lambda: len(results.outputs) > before + 10 or bool(results.failures), 60)
    faces = sum(len(output) for output in results.outputs)
    echo(f"stopped in {stopped:.1f} s, next server ready {ready:.1f} s later; {faces} faces, none lost")
    assert results.failures == []
    assert before > 0
    for output in results.outputs:
        np.testing.assert_array_equal(output, expected)


def test_server_starts_after_each_sigkill(engine: Engine, echo: Echo):
    """/dev/shm has room for a server that keeps running and one and a half others; /tmp is kept."""
    settings = {"HTTP_PORT": str(OTHER_PORTS.http), "METRICS_PORT": str(OTHER_PORTS.metrics)}
    options = tuple(f"--{name}-port={port}" for name, port in dataclasses.asdict(OTHER_PORTS).items())
    with SharedMemory("2g") as memory, SharedMemory("256m") as temporary:
        podman_options = pod_options(memory.folder, temporary.folder)
        with Container(engine, pod_options(memory.folder), settings, options, OTHER_PORTS) as other:
            other.wait_until_ready()
            regions, server_bytes = memory.files(), memory.used()
            memory.resize(server_bytes + 3 * server_bytes // 2)
            megabytes = server_bytes / 2**20
            echo(f"a server uses {megabytes:.0f} MB; /dev/shm has {2.5 * megabytes:.0f} MB")
            kill_repeatedly(engine, podman_options, memory)
            with Container(engine, podman_options) as server:
                assert_computes_features(server.wait_until_ready())
                assert memory.used() == 2 * server_bytes, sorted(memory.files())
                assert regions < memory.files(), "regions of the running server"
                server_folders = other.execute("ls", "/tmp").stdout.split()
                assert len(temporary.files()) == len(server_folders), (
                    "folders of killed servers remain in /tmp"
                )
                assert_probes(other, healthy=True)
                assert_computes_features(other)
                server.send("TERM")
                assert server.wait() == 0


def kill_repeatedly(engine: Engine, podman_options: list[str], memory: SharedMemory) -> None:
    """Start servers and kill all their processes, alternately when ready and during the start."""
    kept = memory.files()
    for number in range(KILLS):
        before = memory.files()
        with Container(engine, podman_options) as server:
            if number % 2:
                assert wait_until(lambda before=before: len(memory.files() - before) > 3, 60)
            else:
                assert_computes_features(server.wait_until_ready())
            server.send("KILL")
            assert server.wait() == 137
        assert memory.files() > kept, "a killed server left no regions, so there is nothing to clean up"


def assert_computes_features(server: Container) -> None:
    frames, landmarks = photo_faces(16, 753)
    with FaceFeatureClient(server.grpc_url) as client:
        assert np.isfinite(client.features(frames, landmarks)["HOG"]).all()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"MODEL_CONFIG_NAME": "gpus"}, "gpus"),
        ({"ADMIN_KEY": "short"}, "ADMIN_KEY"),
        ({"ADMIN_KEY": "with,a-comma-and-long-enough"}, "ADMIN_KEY"),
        ({"TLS_FOLDER": "/nowhere"}, "/nowhere/tls.crt"),
    ],
    ids=["profile", "short key", "key with a comma", "no certificate"],
)
def test_wrong_environment_prevents_the_start(
    engine: Engine, podman_options: list[str], environment: dict[str, str], message: str
):
    with Container(engine, podman_options, environment) as server:
        assert server.wait(20) != 0
        (line,) = server.log().splitlines()
        assert line.startswith("serve.sh: ")
        assert message in line


def test_tls_and_the_admin_key(engine: Engine, podman_options: list[str], tmp_path: Path):
    """The files of a mounted Secret are readable only by their owner and group."""
    authority = trustme.CA()
    trusted = certificates(tmp_path / "trusted", authority, authority)
    foreign = certificates(tmp_path / "foreign", trustme.CA(), authority)
    frames, landmarks = photo_faces(2, 710)
    mounted = [*podman_options, f"--volume={tmp_path / 'trusted'}:/etc/triton-face/tls:ro"]
    environment = {"TLS_FOLDER": "/etc/triton-face/tls", "ADMIN_KEY": KEY}
    with Container(engine, mounted, environment) as server:
        server.wait_until_ready()
        with FaceFeatureClient(server.grpc_url, tls=trusted) as client:
            assert client.features(frames, landmarks)["HOG"].shape == (2, 5408)
            headers = {"triton-grpc-protocol-admin-key": KEY}
            assert client.connection.get_model_repository_index(headers=headers).models
            with pytest.raises(InferenceServerException, match="restricted"):
                client.connection.get_model_repository_index()
        for wrong in (None, foreign):
            with (
                FaceFeatureClient(server.grpc_url, tls=wrong) as client,
                pytest.raises((ServiceUnavailableError, TimeoutError)),
            ):
                client.features(frames, landmarks, deadline=3.0)
        assert server.get("/v2/trace/setting") == 403
        assert server.get("/v2/trace/setting", headers={"admin-key": KEY}) == 200
        assert_probes(server, healthy=True)


def certificates(folder: Path, issuer: trustme.CA, authority: trustme.CA) -> Tls:
    """Write the files of a Secret of the type kubernetes.io/tls; return them as a client's `Tls`."""
    certificate = issuer.issue_cert("127.0.0.1", "localhost")
    folder.mkdir()
    certificate.cert_chain_pems[0].write_to_path(str(folder / "tls.crt"))
    certificate.private_key_pem.write_to_path(str(folder / "tls.key"))
    authority.cert_pem.write_to_path(str(folder / "ca.crt"))
    for path in folder.iterdir():
        shutil.chown(path, group=pod()["securityContext"]["fsGroup"])
        path.chmod(0o440)
    folder.chmod(0o755)
    return Tls(folder / "ca.crt", folder / "tls.crt", folder / "tls.key", server_name="localhost")
