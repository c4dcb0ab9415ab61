"""A context manager that owns a real `tritonserver` process on the loopback interface.

The wheel of nvidia-pytriton carries the server (2.51.0), its Python backend and a stub for each Python
version. They are laid out here as the server expects a backend folder, next to our stand-in for the ONNX
Runtime backend, in a folder that goes with the server.
"""

import contextlib
import ctypes
import dataclasses
import errno
import http.client
import importlib.metadata
import importlib.util
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from deploy.docker.shm_regions import SHARED_MEMORY, RegionPrefix, remove_leftovers

HOST = "127.0.0.1"

PROJECT = Path(__file__).resolve().parent.parent.parent
DEFAULT_REPOSITORY = PROJECT / "model_repository"
STANDIN_BACKENDS = Path(__file__).resolve().parent / "backends"

ADMIN_PROTOCOLS = ("model-repository", "shared-memory", "trace", "logging")
"""What only the administrator may ask of the server; by Triton's names, the same over gRPC and HTTP."""

ADMIN_HEADERS = ("triton-grpc-protocol-admin-key", "admin-key")
"""The header that carries the key over gRPC and over HTTP."""

PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None)

MALLOC_ARENAS = 2
"""With as many as glibc makes for its threads, the server kept twice the memory: 400 MB instead of 200 after
large requests. The speed is the same."""

STUB_MEMORY_BYTES = 64 * 2**20
"""Shared memory of each Python stub at start: a batch of 128 crops with its outputs fits without growth."""

START_SECONDS = 120.0
"""Importing torch from a cold disk has taken over 30 s."""

STOP_SECONDS = 10
"""How long running requests may take to finish: as long as a queue lets them wait."""

PORT_SECONDS = 5.0
"""How long to wait for a port that another server may be about to leave."""

KILL_SECONDS = 5.0
"""How long killed processes may take to go."""


class ServerError(RuntimeError):
    """The server cannot start or has died; the message is one line and says what to do."""


@dataclasses.dataclass(frozen=True)
class Ports:
    """TCP ports; 0 takes a free one."""

    http: int = 0
    grpc: int = 0
    metrics: int = 0


class LocalServer:
    """Start a server on entry, wait until every model is ready, stop it and clean up on exit.

    Parameters
    ----------
    repository : Path, optional
        The model repository; by default the project's.
    ports : Ports, optional
        Where to listen on 127.0.0.1; by default free ports.
    options : tuple of str
        Further options of `tritonserver`.
    models : tuple of str
        Which models to serve, by default all.
    admin_key : str, optional
        Opens the endpoints of `ADMIN_PROTOCOLS`, which nobody else may use: 16 characters or more of
        letters, digits, - and _; by default random ones. Other users of the machine can see it in the
        list of processes, where Triton has its options.

    Attributes
    ----------
    ports : Ports
        The ports it listens on.
    admin_key : str
        What opens them.
    admin_headers : dict of str to str
        The headers that carry the key, over gRPC and over HTTP.
    log_path : Path
        The server's log. It goes with the server.

    Raises
    ------
    ServerError
        On entry, when something is missing, a port is taken or a model does not load.

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
    ) -> None:
        self._models = models
        self.admin_key = secrets.token_urlsafe(24) if admin_key is None else admin_key
        if not re.fullmatch(r"[\w-]{16,}", self.admin_key, re.ASCII):
            raise ServerError("the admin key must be 16 or more letters, digits, - and _")
        self.admin_headers = dict.fromkeys(ADMIN_HEADERS, self.admin_key)
        self.repository = repository.resolve()
        self.ports = ports or Ports()
        self.options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def http_url(self) -> str:
        """Return the host and port of the HTTP endpoint."""
        return f"{HOST}:{self.ports.http}"

    @property
    def grpc_url(self) -> str:
        """Return the host and port of the gRPC endpoint."""
        return f"{HOST}:{self.ports.grpc}"

    @property
    def metrics_url(self) -> str:
        """Return the host and port of the metrics endpoint."""
        return f"{HOST}:{self.ports.metrics}"

    @property
    def admin_key_path(self) -> Path:
        """Return the file with the admin key, in a folder that only this user can read."""
        return self._folder / "admin-key"

    @property
    def pid(self) -> int:
        """Return the server's process id."""
        return self._running().pid

    def __enter__(self) -> "LocalServer":
        """Start and wait until ready."""
        configs = _read_configs(self.repository)
        _check_models(self.repository, configs)
        self._ensembles = [name for name, config in configs.items() if config.platform == "ensemble"]
        triton = find_triton()
        if not re.fullmatch(r"[\w./-]+", tempfile.gettempdir()):
            raise ServerError(f"Triton cannot start from {tempfile.gettempdir()}: set TMPDIR to a plain path")
        self._regions = _reserve_regions()
        self._folder = _folder_of(self._regions.name)
        self.log_path = self._folder / "server.log"
        self._start_in_folder(triton)
        return self

    def __exit__(self, *_exception: object) -> None:
        """Stop and clean up."""
        self.stop()

    def stop(self) -> None:
        """Answer what was accepted, end every process of the server, leave nothing behind."""
        if self._process is not None and self._process.poll() is None:
            self._drain_ensembles()
        self._end_processes()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._regions.release()

    def _end_processes(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                process.wait(STOP_SECONDS + 5)
            except subprocess.TimeoutExpired:
                process.kill()
            process.wait()
            _end_group(process.pid)
        self._regions.remove_regions()

    def shared_memory(self) -> list[Path]:
        """Return the server's files in /dev/shm."""
        return self._regions.regions

    def restart(self) -> None:
        """Kill the server, whatever state it is in, and start it again on the same ports.

        Its log goes on, and its admin key stays.
        """
        self._running().kill()
        self._running().wait()
        self._end_processes()
        self._start_in_folder(find_triton())

    def keep_log(self) -> Path:
        """Copy the log to a place where it stays, and return that."""
        handle, name = tempfile.mkstemp(prefix="triton-face-", suffix=".log")
        os.close(handle)
        return Path(shutil.copyfile(self.log_path, name))

    def _start_in_folder(self, triton: Path) -> None:
        try:
            self.ports = claimed(self.ports)
            self._lay_out(triton)
            self._start(triton)
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def wait(self) -> int:
        """Wait until the server ends by itself; return its exit status."""
        return self._running().wait()

    def _drain_ensembles(self) -> None:
        """Have the ensembles answer what they have accepted and take no more.

        SIGTERM alone would have their next step refuse it: Triton's models stop all at once. An ensemble that
        is unloaded first is gone when its last request is answered; later ones get NOT_FOUND.
        """
        admin = _Admin(self.ports.http, self.admin_headers)
        deadline = time.monotonic() + STOP_SECONDS
        # A server that hangs has nothing left to lose.
        with contextlib.suppress(OSError, http.client.HTTPException):
            for name in self._ensembles:
                admin.post(f"models/{name}/unload")
            while admin.is_unloading() and time.monotonic() < deadline:
                time.sleep(0.01)

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            raise ServerError("the server is not running; use it inside its `with` block")
        return self._process

    def _lay_out(self, triton: Path) -> None:
        if self.admin_key_path.exists():  # it is started again
            return
        try:
            self._folder.mkdir(mode=0o700)
            lay_out_backends(triton, self._folder / "backends")
            (self._folder / "models").symlink_to(self.repository)
            self.admin_key_path.touch(mode=0o600)
            self.admin_key_path.write_text(self.admin_key)
        except OSError as error:
            raise ServerError(
                f"cannot lay out the server in {self._folder.parent} (TMPDIR names another place): {error}"
            ) from error

    def _start(self, triton: Path) -> None:
        command = [
            str(triton / "bin" / "tritonserver"),
            # Triton starts stubs through a shell that would split the repository's own path at a blank.
            f"--model-repository={self._folder / 'models'}",
            f"--backend-directory={self._folder / 'backends'}",
            f"--backend-config=python,shm-region-prefix-name={self._regions.name}",
            f"--backend-config=python,shm-default-byte-size={STUB_MEMORY_BYTES}",
            f"--http-address={HOST}",
            f"--grpc-address={HOST}",
            f"--metrics-address={HOST}",
            f"--http-port={self.ports.http}",
            f"--grpc-port={self.ports.grpc}",
            f"--metrics-port={self.ports.metrics}",
            f"--exit-timeout-secs={STOP_SECONDS}",
            # As in production: the configs are whole, nothing is guessed from the models.
            "--disable-auto-complete-config",
            # For `_drain_ensembles`; the administrator's alone.
            "--model-control-mode=explicit",
            *(f"--load-model={name}" for name in self._models),
            # Over gRPC Triton puts "triton-grpc-protocol-" before the header's name.
            *(
                f"--{option}={','.join(ADMIN_PROTOCOLS)}:admin-key={self.admin_key}"
                for option in ("grpc-restricted-protocol", "http-restricted-api")
            ),
            *self.options,
        ]
        with self.log_path.open("ab") as log:
            # A session of its own: Ctrl-C reaches us alone, and we stop the server in order.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(triton),
                # Python stubs take modules from where they are started: not from wherever that happens to be.
                cwd=self._folder,
                pass_fds=(self._regions.lock,),
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not _is_ready(self.ports.http):
            if self._running().poll() is not None:
                raise ServerError(f"tritonserver did not start: {_log_reason(self.log_path)}")
            if time.monotonic() > deadline:
                raise ServerError(
                    f"tritonserver was not ready after {START_SECONDS:.0f} s: {_log_reason(self.log_path)}"
                )
            time.sleep(0.1)


def _reserve_regions() -> RegionPrefix:
    """Remove what dead servers left in /dev/shm and in the temporary folder; reserve a prefix."""
    try:
        for prefix in remove_leftovers():
            shutil.rmtree(_folder_of(prefix), ignore_errors=True)
        return RegionPrefix()
    except OSError as error:
        raise ServerError(f"{SHARED_MEMORY}, which Triton's Python backend needs: {error}") from error


def _folder_of(prefix: str) -> Path:
    """Return the folder of the server whose shared-memory regions have this prefix."""
    return Path(tempfile.gettempdir()) / prefix.replace("_", "-").removesuffix("-")


Configs = dict[str, model_config_pb2.ModelConfig]
"""Model -> its configuration."""


def _check_models(repository: Path, configs: Configs) -> None:
    """Find missing ONNX files before the server does, whose log is long."""
    missing = []
    for name, config in configs.items():
        file_name = config.default_model_filename or "model.onnx"
        if config.backend == "onnxruntime" and not (repository / name / "1" / file_name).is_file():
            missing.append(name)
    if missing:
        raise ServerError(
            f"no ONNX file for {' and '.join(missing)} in {repository}: build them with `make models`, or "
            "`python -m export hog` and `python -m export pose` with --repository"
        )


def _read_configs(repository: Path) -> Configs:
    paths = sorted(repository.glob("*/config.pbtxt"))
    if not paths:
        raise ServerError(f"{repository} is not a model repository: no model in it has a config.pbtxt")
    configs = {}
    for path in paths:
        try:
            configs[path.parent.name] = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
        except (text_format.ParseError, UnicodeDecodeError) as error:
            raise ServerError(f"{path} is not a model configuration: {error}") from error
    return configs


def find_triton() -> Path:
    """Return the folder of the wheel's tritonserver; a ServerError says what is missing."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise ServerError("nvidia-pytriton, which carries tritonserver, is not installed: run `make install`")
    numpy = importlib.metadata.version("numpy")
    if int(numpy.partition(".")[0]) >= 2:
        raise ServerError(
            f"NumPy {numpy} is installed, with which Triton 2.51's Python stub returns arrays as tensors of "
            "0 bytes: install numpy<2"
        )
    triton = Path(spec.origin).parent / "tritonserver"
    stub = _stub(triton)
    if not stub.is_file():
        raise ServerError(
            f"tritonserver has no stub for Python {stub.parent.name}: use Python 3.10, 3.11 or 3.12"
        )
    if _shared_libpython() is None:
        raise ServerError(
            f"{sys.base_prefix} has no {sysconfig.get_config_var('INSTSONAME')}, which Triton's Python "
            "stub needs: use a Python built with --enable-shared (Debian's and Ubuntu's are, with "
            "libpython3; pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install)"
        )
    return triton


def _stub(triton: Path) -> Path:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return triton / "python_backend_stubs" / version / "triton_python_backend_stub"


def _shared_libpython() -> Path | None:
    """Return the folder of the running Python's shared library, or None when it was built without."""
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    folders = [
        sysconfig.get_config_var("LIBDIR"),
        f"{sys.base_prefix}/lib",
        f"{sysconfig.get_config_var('LIBDIR')}/{sysconfig.get_config_var('MULTIARCH')}",
    ]
    return next((Path(folder) for folder in folders if (Path(folder) / name).is_file()), None)


def lay_out_backends(triton: Path, target: Path) -> None:
    """Make a backend folder of the wheel's Python backend and our stand-in for ONNX Runtime's."""
    shutil.copytree(STANDIN_BACKENDS, target, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(triton / "backends" / "python", target / "python")
    stub = _stub(triton)
    shutil.copy2(stub, target / "python" / stub.name)


def library_folders(triton: Path) -> str:
    """Return LD_LIBRARY_PATH for the server and its stubs."""
    libraries = [
        triton.parent.parent / "nvidia_pytriton.libs",
        _shared_libpython(),
        os.environ.get("LD_LIBRARY_PATH"),
    ]
    return ":".join(str(folder) for folder in libraries if folder)


def _environment(triton: Path) -> dict[str, str]:
    return (
        {"MALLOC_ARENA_MAX": str(MALLOC_ARENAS)}
        | os.environ
        | {
            "LD_LIBRARY_PATH": library_folders(triton),
            # The stub asks the first python3 on PATH where its packages are.
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        }
    )


def claimed(ports: Ports) -> Ports:
    """Replace each 0 by a free port and refuse a port that somebody listens on.

    A server that is just stopping may still have the port: wait `PORT_SECONDS` for it.
    """
    with contextlib.ExitStack() as stack:
        claimed = {}
        deadline = time.monotonic() + PORT_SECONDS
        for field in dataclasses.fields(ports):
            listener = stack.enter_context(_listener(field.name, getattr(ports, field.name), deadline))
            claimed[field.name] = listener.getsockname()[1]
    return Ports(**claimed)


def _listener(endpoint: str, port: int, deadline: float) -> socket.socket:
    while True:
        listener = socket.socket()
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((HOST, port))
            listener.listen()
            return listener
        except OSError as error:
            listener.close()
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise ServerError(
                    f"port {port} on {HOST} is taken ({error.strerror}): set "
                    f"{endpoint.upper()}_PORT to a free one"
                ) from error
        time.sleep(0.1)


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
        """Return what an endpoint answers, or None; also when it refuses."""
        connection = http.client.HTTPConnection(HOST, self._port, timeout=STOP_SECONDS)
        with contextlib.closing(connection):
            connection.request("POST", f"/v2/repository/{path}", "{}", self._headers)
            body = connection.getresponse().read()
        return json.loads(body) if body else None

    def is_unloading(self) -> bool:
        """Tell whether a model still answers what it has accepted."""
        models = self.post("index")
        return isinstance(models, list) and any(model.get("state") == "UNLOADING" for model in models)


def _end_with_parent() -> None:
    """Have the kernel stop the server in order when the process (its thread) that started it is gone."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _end_group(leader: int) -> None:
    """End the stubs of a server that was killed, which share its process group and outlive it."""
    deadline = time.monotonic() + KILL_SECONDS
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(leader, signal.SIGKILL)
            time.sleep(0.05)


def _log_reason(log_path: Path) -> str:
    """Pick the line of the log that says why: the first one about a model, else the last error."""
    lines = log_path.read_text(errors="replace").splitlines()
    errors = [line.partition("] ")[2] for line in lines if line.startswith("E")]
    about_models = [line for line in errors if "failed to load" in line]
    reason = next(iter(about_models or errors[-1:] or lines[-1:]), "it wrote no log")
    return reason.strip()
