"""Containers of the image with the settings of the manifests or of the compose file."""

import contextlib
import functools
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import yaml

from deploy.local.ports import HOST, Endpoints, Ports, choose_ports
from deploy.local.server import PROJECT
from deploy.local.supervisor import Process, server_processes
from tests.container.base import IMAGE
from tests.container.engine import MOUNT_POINT, Engine

DEPLOYMENT = PROJECT / "deploy" / "k8s" / "base" / "deployment.yaml"
COMPOSE = PROJECT / "deploy" / "docker" / "compose.yaml"

TRITON_PORTS = Ports(http=8000, grpc=8001, metrics=8002)
START_SECONDS = 180.0


class NotReadyError(RuntimeError):
    """The container ended or was not ready in time; the message has the end of the log."""


@functools.cache
def pod() -> dict:
    """Return the pod template of the manifests."""
    return yaml.safe_load(DEPLOYMENT.read_text())["spec"]["template"]["spec"]


@functools.cache
def compose_service() -> dict:
    """Return the service of the compose file."""
    return yaml.safe_load(COMPOSE.read_text())["services"]["triton-face"]


def pod_options(shared_memory: Path, temporary: Path | None = None) -> list[str]:
    """Return podman's options for the security settings, limits and volumes of the manifests' pod.

    Parameters
    ----------
    shared_memory : Path
        Folder for /dev/shm; it outlives the container, like Kubernetes' emptyDir.
    temporary : Path, optional
        Folder for /tmp; by default a new tmpfs.
    """
    (container,) = pod()["containers"]
    security = container["securityContext"]
    user = pod()["securityContext"]
    assert security["readOnlyRootFilesystem"]
    assert not security["allowPrivilegeEscalation"]
    new_tmpfs = f"--tmpfs=/tmp:size={_engine_size(_volume_size('temporary'))}"
    return [
        f"--user={user['runAsUser']}:{user['runAsGroup']}",
        # By default podman mounts further writable folders beside /tmp.
        *("--read-only", "--read-only-tmpfs=false"),
        "--security-opt=no-new-privileges",
        *(f"--cap-drop={name}" for name in security["capabilities"]["drop"]),
        f"--memory={_engine_size(container['resources']['limits']['memory'])}",
        f"--volume={temporary}:/tmp" if temporary else new_tmpfs,
        f"--volume={shared_memory}:/dev/shm",
    ]


def compose_options() -> list[str]:
    """Return podman's options for the security settings and limits of the compose file's service."""
    service = compose_service()
    assert service["read_only"]
    return [
        *("--read-only", "--read-only-tmpfs=false"),
        *(f"--security-opt={option}" for option in service["security_opt"]),
        *(f"--cap-drop={name}" for name in service["cap_drop"]),
        f"--memory={service['mem_limit']}",
        *(f"--tmpfs={folder}" for folder in service["tmpfs"]),
        f"--shm-size={service['shm_size']}",
    ]


def _volume_size(name: str) -> str:
    (volume,) = (volume for volume in pod()["volumes"] if volume["name"] == name)
    return volume["emptyDir"]["sizeLimit"]


def _engine_size(quantity: str) -> str:
    """Convert Kubernetes' suffixes `Gi` and `Mi` to podman's `g` and `m`."""
    return quantity.lower().removesuffix("i")


class SharedMemory(contextlib.AbstractContextManager):
    """A tmpfs for /dev/shm with the permissions of Kubernetes' emptyDir of the medium Memory.

    Parameters
    ----------
    size : str, optional
        Size in the format of `mount`; by default the volume's size in the manifests.

    Attributes
    ----------
    folder : Path
        Mount point.
    """

    def __init__(self, size: str | None = None) -> None:
        self._size = size or _engine_size(_volume_size("shared-memory"))

    def __enter__(self) -> "SharedMemory":
        """Mount it."""
        self.folder = MOUNT_POINT / f"shm-{time.monotonic_ns()}"
        self.folder.mkdir()
        group = pod()["securityContext"]["fsGroup"]
        options = f"size={self._size},mode=2777,gid={group}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.folder], check=True)
        return self

    def __exit__(self, *_exception: object) -> None:
        """Unmount it."""
        subprocess.run(["umount", self.folder], check=True)
        self.folder.rmdir()

    def resize(self, size: int) -> None:
        """Change the size, in bytes."""
        subprocess.run(["mount", "-o", f"remount,size={size}", self.folder], check=True)

    def files(self) -> set[str]:
        """Return the names of the files."""
        return {path.name for path in self.folder.iterdir()}

    def used(self) -> int:
        """Return the bytes that the files use."""
        return sum(512 * path.stat().st_blocks for path in self.folder.iterdir())


class Container(Endpoints, contextlib.AbstractContextManager):
    """A container of the image, started on entry and removed on exit.

    Parameters
    ----------
    engine : Engine
        Container engine.
    podman_options : list of str
        `pod_options(...)` or `compose_options()`.
    environment : dict of str to str, optional
        Environment variables; without MODEL_CONFIG_NAME the server uses the portable configs.
    arguments : tuple of str
        Further options of tritonserver.
    ports : Ports
        Ports of the server; by default Triton's default ports.
    image : str
        The image; by default the one without action units.
    """

    def __init__(
        self,
        engine: Engine,
        podman_options: list[str],
        environment: dict[str, str] | None = None,
        arguments: tuple[str, ...] = (),
        ports: Ports = TRITON_PORTS,
        image: str = IMAGE,
    ) -> None:
        self._engine = engine
        self._podman_options = podman_options
        self._environment = environment or {}
        self._arguments = arguments
        self.ports = ports
        self._image = image

    def __enter__(self) -> "Container":
        """Start the container without waiting for readiness."""
        # gRPC would share a port that is in use, without an error.
        choose_ports(self.ports)
        settings = [f"--env={name}={value}" for name, value in self._environment.items()]
        # This process is in a separate network namespace. The tests run the health check themselves.
        options = ["--network=host", "--health-interval=disable", *self._podman_options, *settings]
        self.name = self._engine.podman("run", "--detach", *options, self._image, *self._arguments)
        return self

    def __exit__(self, *_exception: object) -> None:
        """Kill and remove the container."""
        self._engine.podman("rm", "--force", "--time=0", self.name)

    @property
    def pid(self) -> int:
        """Process id of the container's first process in this machine's namespace."""
        return int(self._inspect("State.Pid"))

    @property
    def is_running(self) -> bool:
        """Whether the first process is running."""
        return self._inspect("State.Running") == "true"

    def processes(self) -> list[Process]:
        """Return tritonserver and its stub processes, with process ids in this machine's namespace."""
        return server_processes(self.pid)

    def wait_until_ready(self) -> "Container":
        """Wait until every model is ready.

        Raises
        ------
        NotReadyError
            The container ended, or was not ready within START_SECONDS.
        """
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready():
            if not self.is_running:
                raise NotReadyError(f"the container ended: {self.log()[-3000:]}")
            if time.monotonic() > deadline:
                raise NotReadyError(f"not ready after {START_SECONDS:.0f} s: {self.log()[-3000:]}")
            time.sleep(0.1)
        return self

    def get(self, path: str, headers: dict[str, str] | None = None) -> int:
        """Return the status of an HTTP request."""
        request = urllib.request.Request(f"http://{HOST}:{self.ports.http}{path}", headers=headers or {})
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status
        except urllib.error.HTTPError as error:
            return error.code

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the container."""
        return self._engine.attempt("podman", "--log-level=fatal", "exec", self.name, *command)

    def check_health(self) -> subprocess.CompletedProcess[str]:
        """Run the image's HEALTHCHECK once."""
        return self._engine.attempt("podman", "--log-level=fatal", "healthcheck", "run", self.name)

    def send(self, signal_name: str) -> None:
        """Send a signal to the first process."""
        self._engine.podman("kill", f"--signal={signal_name}", self.name)

    def wait(self, seconds: float = 60.0) -> int:
        """Wait until the container ends; return its exit status."""
        deadline = time.monotonic() + seconds
        while self.is_running:
            assert time.monotonic() < deadline, f"still running after {seconds:.0f} s: {self.log()[-2000:]}"
            time.sleep(0.1)
        return int(self._inspect("State.ExitCode"))

    def log(self) -> str:
        """Return the container's standard output and error."""
        done = self._engine.attempt("podman", "--log-level=fatal", "logs", self.name)
        return done.stdout + done.stderr

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError):
            return self.get("/v2/health/ready") == 200
        return False

    def _inspect(self, field: str) -> str:
        return self._engine.podman("container", "inspect", "--format", f"{{{{.{field}}}}}", self.name)


def probe(server: Container) -> subprocess.CompletedProcess[str]:
    """Run the liveness probe of the manifests."""
    return server.execute(*pod()["containers"][0]["livenessProbe"]["exec"]["command"])


def assert_probes(server: Container, healthy: bool) -> None:
    """Assert that the liveness probe and the image's health check pass or fail."""
    for done in (probe(server), server.check_health()):
        assert done.returncode == (0 if healthy else 1), done
