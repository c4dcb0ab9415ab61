"""A running container, confined as in the manifests: its rights, its answers, its probes, TLS and admin key."""

import contextlib
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import trustme
from tritonclient.utils import InferenceServerException

from deploy.docker.probe import STALE_SECONDS
from deploy.local.server import PROJECT
from tests.container.base import IMAGE, Say
from tests.container.container import Container, SharedMemory, compose_options, pod, pod_options
from tests.container.engine import FOLDER, Engine
from tests.faces import photo_faces
from triton_face_client import FaceFeatureClient, Retry, ServiceUnavailableError, Tls

KEY = "a-key-of-the-tests-and-no-other"
PROBE_SECONDS = STALE_SECONDS + 30.0
"""A stub is noticed within this."""


@pytest.fixture
def confinement(shared_memory: SharedMemory) -> list[str]:
    return pod_options(shared_memory.folder)


def test_rights_of_every_process(container: Container):
    for process in container.processes():
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "\t" in line
        )
        assert status["Uid"].split() == ["1000"] * 4, process
        assert status["Gid"].split() == ["1000"] * 4, process
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[kind], 16) == 0, (process, kind)
        assert status["NoNewPrivs"] == "1", process
        assert status["Seccomp"] == "2", process


def test_tritonserver_is_the_first_process(container: Container):
    """Each script ends with exec, so the kubelet's SIGTERM reaches the server and not a shell."""
    process = Path(f"/proc/{container.pid}")
    assert (process / "comm").read_text().strip() == "tritonserver"
    assert re.search(r"^NSpid:.*\t1$", (process / "status").read_text(), re.MULTILINE)


def test_the_base_images_entry_point_ran(container: Container):
    """NVIDIA's makes an older driver work with a newer CUDA."""
    environment = Path(f"/proc/{container.pid}/environ").read_bytes().split(b"\0")
    assert b"NVIDIA_ENTRYPOINT_RAN=1" in environment


def test_only_its_volumes_can_be_written_to(container: Container, shared_memory: SharedMemory):
    script = 'for place; do touch "$place/x" 2>/dev/null && echo "$place" && rm "$place/x"; done'
    places = ["/", "/etc", "/opt/triton-face", "/opt/triton-face/model_repository", "/run", "/usr", "/var/tmp"]
    done = container.execute("sh", "-c", script, "sh", *places, "/tmp", "/dev/shm")
    assert done.stdout.split() == ["/tmp", "/dev/shm"]


def test_shared_memory_is_as_large_as_the_manifests_say(container: Container):
    done = container.execute("df", "--output=size", "--block-size=1M", "/dev/shm")
    (volume,) = (volume for volume in pod()["volumes"] if volume["name"] == "shared-memory")
    assert volume["emptyDir"]["sizeLimit"] == "1Gi"
    assert done.stdout.split()[1] == "1024"


def test_acceptance(container: Container, say: Say):
    """Every answer against the oracles, by the tests that an operator runs as `make accept`."""
    command = [sys.executable, "-m", "pytest", "tests/acceptance", "-q", f"--server={container.grpc_url}"]
    log = FOLDER / "acceptance.log"
    say(f"see {log.relative_to(PROJECT)}")
    with log.open("w") as file:
        done = subprocess.run([*command, f"--metrics={container.metrics_url}"], cwd=PROJECT, stdout=file, stderr=file)
    assert done.returncode == 0, log.read_text()[-3000:]


def test_compose_and_the_health_check(engine: Engine):
    """As compose runs it; the health check is the image's."""
    frames, landmarks = photo_faces(128, 750)
    with Container(engine, compose_options()) as server:
        server.wait_until_ready()
        with FaceFeatureClient(server.grpc_url) as client:
            assert np.isfinite(client.features(frames, landmarks)["HOG"]).all()
        healthy = server.check_health()
        assert healthy.returncode == 0, healthy.stdout
    assert engine.inspect_image(IMAGE)["Config"]["Healthcheck"]["Test"][0] == "CMD"


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
    shutil.copy(PROJECT / "model_repository/align_mask/1/hull_mask.py", hull_mask)
    with hull_mask.open("a") as code:
        code.write("\nimport time\ndef hull_masks(*arguments, **options):\n    time.sleep(600)\n")
    hull_mask.chmod(0o644)
    served = "/opt/triton-face/model_repository/align_mask/1/hull_mask.py"
    with Container(engine, [*confinement, f"--volume={hull_mask}:{served}:ro"]) as server:
        server.wait_until_ready()
        assert_probes(server, healthy=True)
        with background_request(server):
            say(f"noticed after {seconds_until_unhealthy(server):.0f} s")
            assert_probes(server, healthy=False)
            server.send("KILL")


def assert_probes(server: Container, healthy: bool) -> None:
    """Assert what the liveness probe and the health check say."""
    command = pod()["containers"][0]["livenessProbe"]["exec"]["command"]
    assert (server.execute(*command).returncode == 0) == healthy
    assert (server.check_health().returncode == 0) == healthy


def seconds_until_unhealthy(server: Container) -> float:
    """Return how long it takes until the liveness probe fails."""
    began = time.monotonic()
    command = pod()["containers"][0]["livenessProbe"]["exec"]["command"]
    while server.execute(*command).returncode == 0:
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


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({"MODEL_CONFIG_NAME": "gpus"}, "gpus"),
        ({"ADMIN_KEY": "short"}, "ADMIN_KEY"),
        ({"ADMIN_KEY": "with,a-comma-and-long-enough"}, "ADMIN_KEY"),
        ({"TLS_FOLDER": "/nowhere"}, "/nowhere/tls.crt"),
    ],
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
