"""A real tritonserver, started by serve.sh, the entry point of the image."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from deploy.local.ports import HOST, Endpoints, Ports, choose_ports
from deploy.local.server import PROJECT
from deploy.local.wheel import create_backend_folder, find_triton, library_path

SERVE = PROJECT / "deploy" / "docker" / "serve.sh"
START_SECONDS = 120.0
STOP_SECONDS = 60.0


class ProductionServer(Endpoints, contextlib.AbstractContextManager):
    """Run serve.sh and wait until the server is ready; stop it on exit.

    Unlike the image, it listens on loopback and free ports, and has a separate folder of backends.

    Parameters
    ----------
    repository : Path
        The model repository.
    environment : dict of str to str
        Variables of a Deployment's `env`.
    options : tuple of str
        Further options of tritonserver.
    """

    def __init__(
        self,
        repository: Path,
        environment: dict[str, str] | None = None,
        options: tuple[str, ...] = (),
    ) -> None:
        self._repository = repository
        self._environment = environment or {}
        self._options = options

    def __enter__(self) -> "ProductionServer":
        """Start the server."""
        self._folder = tempfile.TemporaryDirectory(prefix="triton-face-production-")
        folder = Path(self._folder.name)
        folder.chmod(0o755)
        create_backend_folder(find_triton(), folder / "backends")
        self.ports = choose_ports(Ports())
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
        """Stop the server and its stub processes."""
        self.stop()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._folder.cleanup()

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._process.pid

    def command(self, backends: Path) -> list[str]:
        """Return the command line."""
        return [
            str(SERVE),
            f"--backend-directory={backends}",
            *(f"--{endpoint}-address={HOST}" for endpoint in ("http", "grpc", "metrics")),
            f"--http-port={self.ports.http}",
            f"--grpc-port={self.ports.grpc}",
            f"--metrics-port={self.ports.metrics}",
            *self._options,
        ]

    def environment(self) -> dict[str, str]:
        """Return the Deployment's variables and those for a tritonserver from nvidia-pytriton's wheel."""
        triton = find_triton()
        return {
            "MODEL_REPOSITORY": str(self._repository),
            "LD_LIBRARY_PATH": library_path(triton),
            # Stub processes use the packages of the first python3 on PATH.
            "PATH": f"{triton / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin",
        } | self._environment

    def get(self, path: str, port: int | None = None, headers: dict[str, str] | None = None) -> int:
        """Return the status of an HTTP request."""
        request = urllib.request.Request(
            f"http://{HOST}:{port or self.ports.http}{path}", headers=headers or {}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status
        except urllib.error.HTTPError as error:
            return error.code

    def options(self) -> dict[str, str]:
        """Return the options of the running tritonserver by their names."""
        arguments = Path(f"/proc/{self.pid}/cmdline").read_text().split("\0")[1:]
        return dict(argument.removeprefix("--").split("=", 1) for argument in arguments if "=" in argument)

    def stop(self) -> int:
        """Send SIGTERM, as the kubelet does; return the exit status."""
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
                log = self.log_path.read_text()
                self.__exit__()
                raise RuntimeError(f"serve.sh did not start a server: {_first_errors(log)}")
            time.sleep(0.1)


def _first_errors(log: str) -> str:
    lines = log.splitlines()
    return "\n".join([line for line in lines if line.startswith(("E", "serve.sh"))][:10] + lines[-10:])
