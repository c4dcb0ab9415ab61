"""Containers that start, fail and end: dead and hung stubs, stops, kills, settings, TLS, the admin key."""

import contextlib
import dataclasses
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
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
from tests.container.engine import Engine, Say
from tests.support.face_data import photo_faces
from tests.support.injected_code import wrap_function
from triton_face_client import FaceFeatureClient, Retry, ServiceUnavailableError, Tls

KEY = "a-key-of-the-tests-and-no-other"

PROBE_SECONDS = 20.0
"""Within this the liveness probe fails."""

KILLS = 20
NEIGHBOUR_PORTS = Ports(http=8010, grpc=8011, metrics=8012)


@pytest.fixture
def confinement(shared_memory: SharedMemory) -> list[str]:
    return pod_options(shared_memory.folder)


def test_it_serves_as_compose_runs_it(engine: Engine):
    frames, landmarks = photo_faces(128, 750)
    with Container(engine, compose_options()) as server, FaceFeatureClient(server.grpc_url) as client:
        server.wait_until_ready()
        assert np.isfinite(client.features(frames, landmarks)["HOG"]).all()
        assert_probes(server, healthy=True)


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])
def test_probe_and_health_check_see_a_stub_that_is_gone(
    engine: Engine, confinement: list[str], how: str, say: Say
):
    with Container(engine, confinement) as server:
        server.wait_until_ready()
        assert_probes(server, healthy=True)
        stub = next(process for process in server.processes() if process.name == "align_mask")
        subprocess.run(["kill", f"-{how}", str(stub.pid)], check=True)
        say(f"noticed after {seconds_until_unhealthy(server):.0f} s")
        assert_probes(server, healthy=False)


def test_probe_and_health_check_see_a_stub_that_hangs(
    engine: Engine, confinement: list[str], tmp_path: Path, say: Say
):
    """In the middle of a batch, while its other threads go on."""
    hull_mask = tmp_path / "hull_mask.py"
    shutil.copy(PROJECT / "model_repository/align_mask/1/align_mask/hull_mask.py", hull_mask)
    wrap_function(hull_mask, "hull_masks", before="time.sleep(600)")
    hull_mask.chmod(0o644)
    served = "/opt/triton-face/model_repository/align_mask/1/align_mask/hull_mask.py"
    with Container(engine, [*confinement, f"--volume={hull_mask}:{served}:ro"]) as server:
        server.wait_until_ready()
        assert_probes(server, healthy=True)
        with background_request(server):
            say(f"noticed after {seconds_until_unhealthy(server):.0f} s")
            assert_probes(server, healthy=False)
            server.send("KILL")


def seconds_until_unhealthy(server: Container) -> float:
    """Return how long it takes until the liveness probe fails."""
    began = time.monotonic()
    while probe(server).returncode == 0:
        assert time.monotonic() - began < PROBE_SECONDS, "the probe sees nothing"
        time.sleep(1)
    return time.monotonic() - began


@contextlib.contextmanager
def background_request(server: Container) -> Iterator[None]:
    """Send a request that will not be answered."""
    frames, landmarks = photo_faces(1, 751)

    def ask() -> None:
        with (
            FaceFeatureClient(server.grpc_url, retry=Retry(seconds=0)) as client,
            contextlib.suppress(ServiceUnavailableError, InferenceServerException, TimeoutError),
        ):
            client.features(frames, landmarks)

    asking = threading.Thread(target=ask)
    asking.start()
    yield
    asking.join()


@dataclasses.dataclass
class Load:
    """Callers that send the same faces again and again.

    Attributes
    ----------
    answers : list of ndarray
        HOG of each call.
    failures : list of Exception
        What ended a caller.
    """

    answers: list[np.ndarray] = dataclasses.field(default_factory=list)
    failures: list[Exception] = dataclasses.field(default_factory=list)


@contextlib.contextmanager
def load(url: str, frames: np.ndarray, landmarks: np.ndarray, callers: int = 3) -> Iterator[Load]:
    """Send faces from several threads until the end of the block."""
    measured = Load()
    ending = threading.Event()

    def call() -> None:
        with FaceFeatureClient(url, batch_size=8) as client:
            while not ending.is_set():
                try:
                    measured.answers.append(client.features(frames, landmarks, ["HOG"])["HOG"])
                except (InferenceServerException, ServiceUnavailableError, TimeoutError) as error:
                    measured.failures.append(error)
                    return

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield measured
    finally:
        ending.set()
        for thread in threads:
            thread.join()


def test_a_stop_under_load_loses_no_face(engine: Engine, confinement: list[str], say: Say):
    """SIGTERM without preStop, as compose sends it. The client's retries bridge the time to the successor."""
    frames, landmarks = photo_faces(32, 752)
    grace = float(compose_service()["stop_grace_period"].removesuffix("s"))
    with Container(engine, confinement) as server, contextlib.ExitStack() as successors:
        server.wait_until_ready()
        with FaceFeatureClient(server.grpc_url) as client:
            expected = client.features(frames, landmarks, ["HOG"])["HOG"]
        with load(server.grpc_url, frames, landmarks) as measured:
            time.sleep(3)
            began = time.monotonic()
            server.send("TERM")
            assert server.wait(grace) == 0, server.log()[-2000:]
            stopped, before = time.monotonic() - began, len(measured.answers)
            successors.enter_context(Container(engine, confinement)).wait_until_ready()
            ready = time.monotonic() - began - stopped
            wait_until(lambda: len(measured.answers) > before + 10 or bool(measured.failures))
    faces = sum(len(answer) for answer in measured.answers)
    say(f"stopped in {stopped:.1f} s, the successor ready {ready:.1f} s later; {faces} faces, all answered")
    assert measured.failures == []
    assert before > 0
    for answer in measured.answers:
        np.testing.assert_array_equal(answer, expected)


def wait_until(is_so: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s"
        time.sleep(0.1)


def test_it_starts_again_after_each_sigkill(engine: Engine, say: Say):
    """With the same /tmp and a /dev/shm with room for one and a half servers beside a living neighbour."""
    settings = {"HTTP_PORT": str(NEIGHBOUR_PORTS.http), "METRICS_PORT": str(NEIGHBOUR_PORTS.metrics)}
    options = tuple(f"--{name}-port={port}" for name, port in dataclasses.asdict(NEIGHBOUR_PORTS).items())
    with SharedMemory("2g") as memory, SharedMemory("256m") as temporary:
        confinement = pod_options(memory.folder, temporary.folder)
        with Container(engine, pod_options(memory.folder), settings, options, NEIGHBOUR_PORTS) as neighbour:
            neighbour.wait_until_ready()
            regions, of_one = memory.files(), memory.used()
            memory.resize(of_one + 3 * of_one // 2)
            say(f"a server uses {of_one / 2**20:.0f} MB; /dev/shm has {2.5 * of_one / 2**20:.0f} MB")
            kill_again_and_again(engine, confinement, memory)
            with Container(engine, confinement) as server:
                assert_answers(server.wait_until_ready())
                assert memory.used() == 2 * of_one, sorted(memory.files())
                assert regions < memory.files(), "the living neighbour's regions"
                folders_of_one = neighbour.execute("ls", "/tmp").stdout.split()
                assert len(temporary.files()) == len(folders_of_one), "folders of killed servers in /tmp"
                assert_probes(neighbour, healthy=True)
                assert_answers(neighbour)
                server.send("TERM")
                assert server.wait() == 0


def kill_again_and_again(engine: Engine, confinement: list[str], memory: SharedMemory) -> None:
    """Start a server and kill all its processes: once when it is ready, once in the middle of its start."""
    others = memory.files()
    for number in range(KILLS):
        before = memory.files()
        with Container(engine, confinement) as server:
            if number % 2:
                wait_until(lambda before=before: len(memory.files() - before) > 3)
            else:
                assert_answers(server.wait_until_ready())
            server.send("KILL")
            assert server.wait() == 137
        assert memory.files() > others, "a killed server leaves regions, or this test proves nothing"


def assert_answers(server: Container) -> None:
    frames, landmarks = photo_faces(16, 753)
    with FaceFeatureClient(server.grpc_url) as client:
        assert np.isfinite(client.features(frames, landmarks)["HOG"]).all()


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({"MODEL_CONFIG_NAME": "gpus"}, "gpus"),
        ({"ADMIN_KEY": "short"}, "ADMIN_KEY"),
        ({"ADMIN_KEY": "with,a-comma-and-long-enough"}, "ADMIN_KEY"),
        ({"TLS_FOLDER": "/nowhere"}, "/nowhere/tls.crt"),
    ],
    ids=["profile", "short key", "key with a comma", "no certificate"],
)
def test_a_wrong_environment_ends_it_at_once(
    engine: Engine, confinement: list[str], environment: dict[str, str], complaint: str
):
    with Container(engine, confinement, environment) as server:
        assert server.wait(20) != 0
        (line,) = server.log().splitlines()
        assert line.startswith("serve.sh: ")
        assert complaint in line


def test_tls_and_the_admin_key(engine: Engine, confinement: list[str], tmp_path: Path):
    """With a Secret's files and key, as the overlay gpu-tls mounts them: for the group alone to read."""
    authority = trustme.CA()
    ours = certificates(tmp_path / "ours", authority, authority)
    strangers = certificates(tmp_path / "strangers", trustme.CA(), authority)
    frames, landmarks = photo_faces(2, 710)
    mounted = [*confinement, f"--volume={tmp_path / 'ours'}:/etc/triton-face/tls:ro"]
    environment = {"TLS_FOLDER": "/etc/triton-face/tls", "ADMIN_KEY": KEY}
    with Container(engine, mounted, environment) as server:
        server.wait_until_ready()
        with FaceFeatureClient(server.grpc_url, tls=ours) as client:
            assert client.features(frames, landmarks)["HOG"].shape == (2, 5408)
            headers = {"triton-grpc-protocol-admin-key": KEY}
            assert client.connection.get_model_repository_index(headers=headers).models
            with pytest.raises(InferenceServerException, match="restricted"):
                client.connection.get_model_repository_index()
        for wrong in (None, strangers):
            with (
                FaceFeatureClient(server.grpc_url, tls=wrong) as client,
                pytest.raises((ServiceUnavailableError, TimeoutError)),
            ):
                client.features(frames, landmarks, deadline=3.0)
        assert server.get("/v2/trace/setting") == 403
        assert server.get("/v2/trace/setting", headers={"admin-key": KEY}) == 200
        assert_probes(server, healthy=True)


def certificates(folder: Path, issuer: trustme.CA, trusted: trustme.CA) -> Tls:
    """Write a certificate as kubernetes.io/tls Secrets are mounted; return it for a client."""
    certificate = issuer.issue_cert("127.0.0.1", "localhost")
    folder.mkdir()
    certificate.cert_chain_pems[0].write_to_path(str(folder / "tls.crt"))
    certificate.private_key_pem.write_to_path(str(folder / "tls.key"))
    trusted.cert_pem.write_to_path(str(folder / "ca.crt"))
    for path in folder.iterdir():
        shutil.chown(path, group=pod()["securityContext"]["fsGroup"])
        path.chmod(0o440)
    folder.chmod(0o755)
    return Tls(folder / "ca.crt", folder / "tls.crt", folder / "tls.key", server_name="localhost")
