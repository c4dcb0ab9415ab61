"""A context manager that runs a real `tritonserver` process on the loopback interface.

The executable is part of the package nvidia-pytriton (`deploy.local.wheel`). Triton's Python backend runs
each instance of a Python model in a stub process. The server's backends, log and admin key are in a temporary
folder that is removed when the server stops.
"""

import contextlib
import ctypes
import http.client
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from deploy.docker.shm_regions import SHARED_MEMORY, RegionPrefix, remove_leftovers
from deploy.local.checks import check_hog_of_au, check_temporary_folder, read_all_configs
from deploy.local.errors import ServerError
from deploy.local.ports import HOST, Endpoints, Ports, choose_ports
from deploy.local.wheel import create_backend_folder, find_triton, server_environment

PROJECT = Path(__file__).resolve().parent.parent.parent
DEFAULT_REPOSITORY = PROJECT / "model_repository"

ADMIN_PROTOCOLS = ("model-repository", "shared-memory", "trace", "logging")
"""The restricted endpoints, by Triton's names, which are the same for gRPC and HTTP."""

ADMIN_HEADERS = ("triton-grpc-protocol-admin-key", "admin-key")
"""The headers of the admin key, for gRPC and for HTTP."""

PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None)

STUB_MEMORY_BYTES = 64 * 2**20
"""Initial shared memory of each stub process; a batch of 128 crops and its outputs fit without growth."""

START_SECONDS = 120.0
"""Time limit of a start; importing torch from a cold disk has taken over 30 s."""

DRAIN_SECONDS = 10
"""Time limit for accepted requests after a stop begins; equals the models' queue timeout."""

ADMIN_TIMEOUT_SECONDS = 10
"""Time limit of a request to the model repository endpoints."""

EXIT_SECONDS = DRAIN_SECONDS + 5.0
"""Time from SIGTERM until tritonserver is killed. An idle server ends after 7 s (docs/reliability.md).

After SIGTERM, Triton waits up to `DRAIN_SECONDS` (--exit-timeout-secs) for requests that clients sent
directly to a model of the ensemble.
"""

KILL_SECONDS = 5.0
"""Time limit for killed processes to end."""


class LocalServer(Endpoints):
    """Start a server on entry, wait until every model is ready, stop it and clean up on exit.

    Parameters
    ----------
    repository : Path, optional
        The model repository; by default the project's.
    ports : Ports, optional
        Ports on 127.0.0.1; by default free ones.
    options : tuple of str
        Further options of `tritonserver`.
    models : tuple of str
        Names of the models to load; by default all.
    admin_key : str, optional
        Key of the restricted endpoints (`ADMIN_PROTOCOLS`): 16 or more letters, digits, - and _; by default
        random. Other users of the machine can see the key in the process list, as an option of tritonserver.
    au_repository : Path, optional
        Second model repository, with the models `au` and `action_units` of ``python -m export au``.

    Attributes
    ----------
    ports : Ports
        The ports in use.
    admin_key : str
        The key of the restricted endpoints.
    admin_headers : dict of str to str
        The headers with the key, for gRPC and for HTTP.
    log_path : Path
        The server's log, which is deleted when the server stops.
    ensembles : list of str
        Names of the ensembles in the repositories.

    Raises
    ------
    ServerError
        On entry, if a file or package is missing, a port is in use or a model does not load.

    Examples
    --------
    >>> with LocalServer() as server:
    ...     print(server.grpc_url)
    """

    def __init__(
        self,
        repository: Path = DEFAULT_REPOSITORY,
        ports: Ports | None = None,
        options: tuple[str, ...] = (),
        models: tuple[str, ...] = ("*",),
        admin_key: str | None = None,
        au_repository: Path | None = None,
    ) -> None:
        self._models = models
        self.admin_key = secrets.token_urlsafe(24) if admin_key is None else admin_key
        if not re.fullmatch(r"[\w-]{16,}", self.admin_key, re.ASCII):
            raise ServerError("the admin key must be 16 or more letters, digits, - and _")
        self.admin_headers = dict.fromkeys(ADMIN_HEADERS, self.admin_key)
        self.repositories = [path.resolve() for path in (repository, au_repository) if path is not None]
        self.ports = ports or Ports()
        self.options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def admin_key_path(self) -> Path:
        """Return the file with the admin key; only this user can read its folder."""
        return self._folder / "admin-key"

    @property
    def pid(self) -> int:
        """Return the process id of tritonserver."""
        return self._running_process().pid

    def __enter__(self) -> "LocalServer":
        """Start the server and wait until it is ready."""
        configs = read_all_configs(self.repositories)
        check_hog_of_au(configs)
        self.ensembles = [name for name, config in configs.items() if config.platform == "ensemble"]
        triton = find_triton()
        check_temporary_folder()
        self._region_prefix = _reserve_regions()
        self._folder = _folder_of(self._region_prefix.name)
        self.log_path = self._folder / "server.log"
        self._start_in_folder(triton)
        return self

    def __exit__(self, *_exception: object) -> None:
        """Stop the server and clean up."""
        self.stop()

    def stop(self) -> None:
        """Answer accepted requests, end all processes, remove the temporary folder and the shared memory."""
        if self._process is not None and self._process.poll() is None:
            self._drain_ensembles()
        self._end_processes()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._region_prefix.release()

    def _end_processes(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                process.wait(EXIT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
            process.wait()
            _kill_group(process.pid)
        self._region_prefix.remove_regions()

    def shared_memory(self) -> list[Path]:
        """Return the server's files in /dev/shm."""
        return self._region_prefix.regions

    def restart(self) -> None:
        """Kill the server, hung or not, and start it again with the same ports, admin key and log."""
        self._running_process().kill()
        self._running_process().wait()
        self._end_processes()
        self._start_in_folder(find_triton())

    def keep_log(self) -> Path:
        """Copy the log to a temporary file that outlives the server, and return its path."""
        handle, name = tempfile.mkstemp(prefix="triton-face-", suffix=".log")
        os.close(handle)
        return Path(shutil.copyfile(self.log_path, name))

    def wait(self) -> int:
        """Wait until the server ends by itself; return its exit status."""
        return self._running_process().wait()

    def _start_in_folder(self, triton: Path) -> None:
        try:
            self.ports = choose_ports(self.ports)
            self._create_folder(triton)
            self._start(triton)
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def _drain_ensembles(self) -> None:
        """Unload the ensembles and wait until they have answered the accepted requests.

        After SIGTERM alone, Triton stops all models at once, and an accepted request would be rejected by the
        ensemble's next step. An unloaded ensemble completes its requests; new ones are rejected with
        NOT_FOUND.
        """
        admin = _Admin(self.ports.http, self.admin_headers)
        deadline = time.monotonic() + DRAIN_SECONDS
        # A server that does not respond cannot complete its requests either.
        with contextlib.suppress(OSError, http.client.HTTPException):
            for name in self.ensembles:
                admin.post(f"models/{name}/unload")
            while admin.is_unloading() and time.monotonic() < deadline:
                time.sleep(0.01)

    def _running_process(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            raise ServerError("the server is not running; use it inside its `with` block")
        return self._process

    def _create_folder(self, triton: Path) -> None:
        if self.admin_key_path.exists():  # on a restart
            return
        try:
            self._folder.mkdir(mode=0o700)
            create_backend_folder(triton, self._folder / "backends")
            for link, repository in zip(self._repository_links(), self.repositories, strict=True):
                link.symlink_to(repository)
            self.admin_key_path.touch(mode=0o600)
            self.admin_key_path.write_text(self.admin_key)
        except OSError as error:
            raise ServerError(
                f"cannot create the server's folder in {self._folder.parent}: {error}; set TMPDIR to use "
                "another place"
            ) from error

    def _repository_links(self) -> list[Path]:
        """Return a symbolic link to each repository, whose path has no blanks.

        Triton starts stubs through a shell, which would split a path with blanks.
        """
        return [self._folder / f"repository-{number}" for number in range(len(self.repositories))]

    def _start(self, triton: Path) -> None:
        command = [
            str(triton / "bin" / "tritonserver"),
            *(f"--model-repository={link}" for link in self._repository_links()),
            f"--backend-directory={self._folder / 'backends'}",
            f"--backend-config=python,shm-region-prefix-name={self._region_prefix.name}",
            f"--backend-config=python,shm-default-byte-size={STUB_MEMORY_BYTES}",
            f"--http-address={HOST}",
            f"--grpc-address={HOST}",
            f"--metrics-address={HOST}",
            f"--http-port={self.ports.http}",
            f"--grpc-port={self.ports.grpc}",
            f"--metrics-port={self.ports.metrics}",
            f"--exit-timeout-secs={DRAIN_SECONDS}",
            # The configurations are complete; deploy/docker/serve.sh has this option, too.
            "--disable-auto-complete-config",
            # `_drain_ensembles` requires this mode.
            "--model-control-mode=explicit",
            *(f"--load-model={name}" for name in self._models),
            # For gRPC, Triton prepends "triton-grpc-protocol-" to the header's name.
            *(
                f"--{option}={','.join(ADMIN_PROTOCOLS)}:admin-key={self.admin_key}"
                for option in ("grpc-restricted-protocol", "http-restricted-api")
            ),
            *self.options,
        ]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=server_environment(triton),
                # Stubs import modules from their working folder, so it must not be the caller's.
                cwd=self._folder,
                pass_fds=(self._region_prefix.lock,),
                # In another session, Ctrl-C does not reach the server before `stop` has drained it.
                start_new_session=True,
                preexec_fn=_terminate_with_parent,
            )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not _is_ready(self.ports.http):
            if self._running_process().poll() is not None:
                raise ServerError(f"tritonserver did not start: {_log_reason(self.log_path)}")
            if time.monotonic() > deadline:
                raise ServerError(
                    f"tritonserver was not ready after {START_SECONDS:.0f} s: {_log_reason(self.log_path)}"
                )
            time.sleep(0.1)


def _reserve_regions() -> RegionPrefix:
    """Reserve a prefix of shared-memory regions; remove regions and folders of servers that were killed."""
    try:
        for prefix in remove_leftovers():
            shutil.rmtree(_folder_of(prefix), ignore_errors=True)
        return RegionPrefix()
    except OSError as error:
        raise ServerError(
            f"cannot use {SHARED_MEMORY}, which Triton's Python backend needs: {error}"
        ) from error


def _folder_of(prefix: str) -> Path:
    """Return the folder of the server whose shared-memory regions have this prefix."""
    return Path(tempfile.gettempdir()) / prefix.replace("_", "-").removesuffix("-")


def _is_ready(http_port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, http_port, timeout=5)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == http.client.OK
    except OSError:
        return False
    finally:
        connection.close()


class _Admin:
    """The server's model repository endpoints."""

    def __init__(self, http_port: int, headers: dict[str, str]) -> None:
        self._port = http_port
        self._headers = headers

    def post(self, path: str) -> object:
        """Return the response's JSON, also of an error, or None if its body is empty."""
        connection = http.client.HTTPConnection(HOST, self._port, timeout=ADMIN_TIMEOUT_SECONDS)
        with contextlib.closing(connection):
            connection.request("POST", f"/v2/repository/{path}", "{}", self._headers)
            body = connection.getresponse().read()
        return json.loads(body) if body else None

    def is_unloading(self) -> bool:
        """Return whether an unloaded model still has accepted requests."""
        models = self.post("index")
        return isinstance(models, list) and any(model.get("state") == "UNLOADING" for model in models)


def _terminate_with_parent() -> None:
    """Make the kernel send SIGTERM to the server when the thread that started it ends."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _kill_group(leader: int) -> None:
    """Kill the stubs of a server that was killed: they share its process group and outlive it."""
    deadline = time.monotonic() + KILL_SECONDS
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(leader, signal.SIGKILL)
            time.sleep(0.05)


def _log_reason(log_path: Path) -> str:
    """Return the log's first line about a model that failed to load, or its last error, or its last line."""
    lines = log_path.read_text(errors="replace").splitlines()
    # Lines of CUDA's start on a machine without a GPU begin with "Error" and have no "]".
    errors = [line.partition("] ")[2] for line in lines if line.startswith("E") and "] " in line]
    failed_models = [line for line in errors if "failed to load" in line]
    reason = next(iter(failed_models or errors[-1:] or lines[-1:]), "it wrote no log")
    return reason.strip()
