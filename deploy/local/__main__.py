"""`python -m deploy.local`: serve the model repository until Ctrl-C or SIGTERM.

A supervisor restarts the server on the same ports if a process of the server ends, or if the server hangs or
fails every request.

Environment variables:

HTTP_PORT, GRPC_PORT, METRICS_PORT
    Ports on 127.0.0.1, by default 8000, 8001, 8002; 0 selects a free port.
MODEL_REPOSITORY
    Model repository, by default the project's.
AU_REPOSITORY
    Further model repository, with the models `au` and `action_units`; by default none.
MODEL_CONFIG_NAME
    Profile (cpu, gpu): a model with a file `configs/PROFILE.pbtxt` uses it instead of `config.pbtxt`.
ADMIN_KEY
    Key of the restricted endpoints, by default random.
"""

import functools
import os
import signal
import sys
import types
from pathlib import Path
from typing import NoReturn

from deploy.local.errors import ServerError
from deploy.local.ports import Ports
from deploy.local.server import DEFAULT_REPOSITORY, LocalServer
from deploy.local.supervisor import Supervisor

DEFAULT_PORTS = Ports(http=8000, grpc=8001, metrics=8002)
"""Triton's default ports."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    """Serve; return 0 after a stop by signal, 1 if the server cannot start or keeps failing."""
    for stop_signal in STOP_SIGNALS:
        signal.signal(stop_signal, _stop_once)
    try:
        repository = Path(os.environ.get("MODEL_REPOSITORY", DEFAULT_REPOSITORY))
        au_repository = os.environ.get("AU_REPOSITORY")
        with LocalServer(
            repository,
            _ports_from_environment(),
            _profile_option(repository),
            admin_key=os.environ.get("ADMIN_KEY") or None,
            au_repository=Path(au_repository) if au_repository else None,
        ) as server:
            log = functools.partial(print, "serve:", file=sys.stderr, flush=True)
            supervisor = Supervisor(server, log)
            print(f"gRPC     {server.grpc_url}")
            print(f"HTTP     http://{server.http_url}/v2")
            print(f"metrics  http://{server.metrics_url}/metrics")
            print(f"log      {server.log_path}")
            print(f"admin    key in {server.admin_key_path}")
            print("ready; Ctrl-C stops", flush=True)
            supervisor.watch()
    except ServerError as error:
        print(f"serve: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", flush=True)
        return 0


def _stop_once(_signal: int, _frame: types.FrameType | None) -> NoReturn:
    """Interrupt `main`; ignore further signals, which must not interrupt the clean-up."""
    for stop_signal in STOP_SIGNALS:
        signal.signal(stop_signal, signal.SIG_IGN)
    print("stopping ...", flush=True)
    raise KeyboardInterrupt


def _profile_option(repository: Path) -> tuple[str, ...]:
    """Return tritonserver's option for the profile. Triton itself ignores a name without a file."""
    name = os.environ.get("MODEL_CONFIG_NAME")
    if not name:
        return ()
    profiles = {path.stem for path in repository.glob("*/configs/*.pbtxt")}
    if name not in profiles:
        raise ServerError(
            f"MODEL_CONFIG_NAME={name}: no model has a profile configs/{name}.pbtxt; set it to one of "
            f"{sorted(profiles)}"
        )
    return (f"--model-config-name={name}",)


def _ports_from_environment() -> Ports:
    ports = {}
    for name in ("http", "grpc", "metrics"):
        text = os.environ.get(f"{name.upper()}_PORT", str(getattr(DEFAULT_PORTS, name)))
        if not text.isdecimal() or int(text) > 65535:
            raise ServerError(f"{name.upper()}_PORT must be a port number, it is {text!r}")
        ports[name] = int(text)
    return Ports(**ports)


if __name__ == "__main__":
    sys.exit(main())
