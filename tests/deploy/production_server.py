"""A real tritonserver, started as the image starts it: by `serve.sh`, with the image's environment."""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

from deploy.local.server import (
    HOST,
    SHARED_MEMORY,
    Ports,
    claimed,
    find_triton,
    lay_out_backends,
    library_folders,
)
from tests.deploy.dockerfile import Image

START_SECONDS = 120.0
STOP_SECONDS = 60.0


class ProductionServer(contextlib.AbstractContextManager):
    """Run the image's entry point, wait until it is ready, end it.

    Only what this machine makes different is added to its options: loopback, free ports, a folder of backends
    (NVIDIA's image has its own) and a name for its files in /dev/shm.

    Parameters
    ----------
    image : Image
        What the Dockerfile's lines leave.
    environment : dict of str to str
        As of a Deployment's `env`.
    options : tuple of str
        Further options.
    prefix : tuple of str
        A command that ends by executing the words behind it.
    """

    def __init__(
        self,
        image: Image,
        environment: dict[str, str] | None = None,
        options: tuple[str, ...] = (),
        prefix: tuple[str, ...] = (),
    ) -> None:
        self._image = image
        self._environment = environment or {}
        self._options = options
        self._before = prefix
        self._prefix = f"triton_face_{uuid.uuid4().hex[:12]}_"

    def __enter__(self) -> "ProductionServer":
        """Start."""
        self._folder = tempfile.TemporaryDirectory(prefix="triton-face-fleet-")
        folder = Path(self._folder.name)
        folder.chmod(0o755)
        lay_out_backends(find_triton(), folder / "backends")
        ports = claimed(Ports())
        self.http_port, self.grpc_port, self.metrics_port = ports.http, ports.grpc, ports.metrics
        self.log_path = folder / "log"
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self.command(folder / "backends"),
                env=self.environment(),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait_until_ready()
        return self

    def __exit__(self, *_exception: object) -> None:
        """End it and its stubs."""
        self.stop()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for region in SHARED_MEMORY.glob(f"{self._prefix}*"):
            region.unlink()
        self._folder.cleanup()

    @property
    def grpc_url(self) -> str:
        """Return the host and port of gRPC."""
        return f"{HOST}:{self.grpc_port}"

    @property
    def metrics_url(self) -> str:
        """Return the host and port of the metrics."""
        return f"{HOST}:{self.metrics_port}"

    @property
    def pid(self) -> int:
        """Return the server's process id."""
        return self._process.pid

    def command(self, backends: Path) -> list[str]:
        """Return what is started."""
        return [
            *self._before,
            str(self._image.path("/opt/triton-face/serve.sh")),
            f"--backend-directory={backends}",
            f"--backend-config=python,shm-region-prefix-name={self._prefix}",
            *(f"--{endpoint}-address={HOST}" for endpoint in ("http", "grpc", "metrics")),
            f"--http-port={self.http_port}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-port={self.metrics_port}",
            *self._options,
        ]

    def environment(self) -> dict[str, str]:
        """Return the image's environment, the Deployment's, and what the wheel's server wants beside."""
        triton = find_triton()
        given = self._image.environment | {
            "MODEL_REPOSITORY": str(self._image.path("/opt/triton-face/model_repository")),
            "LD_LIBRARY_PATH": library_folders(triton),
        }
        given["PATH"] = f"{triton / 'bin'}:{given['PATH']}"
        return given | self._environment

    def get(self, path: str, port: int | None = None, headers: dict[str, str] | None = None) -> int:
        """Return the status that HTTP answers with."""
        request = urllib.request.Request(
            f"http://{HOST}:{port or self.http_port}{path}", headers=headers or {}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    def stop(self) -> int:
        """Send SIGTERM as the kubelet does; return the exit status."""
        self._process.terminate()
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError):
                if self.get("/v2/health/ready") == 200:
                    return
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = self.log_path.read_text()
                self.__exit__()
                raise RuntimeError(f"it did not start: {_first_errors(said)}")
            time.sleep(0.1)


def _first_errors(log: str) -> str:
    lines = log.splitlines()
    return "\n".join([line for line in lines if line.startswith(("E", "serve.sh"))][:10] + lines[-10:])
