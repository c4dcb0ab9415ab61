"""`python -m deploy.local`: serve the model repository until Ctrl-C or SIGTERM.

A server that has lost one of its processes, or hangs, is started again on the same ports.

HTTP_PORT, GRPC_PORT and METRICS_PORT name the ports, 0 takes a free one; MODEL_REPOSITORY names another
repository than the project's, MODEL_CONFIG_NAME a tuning in the models' `configs/` (cpu, gpu). ADMIN_KEY is
what opens the server's administrative endpoints, by default a random key.
"""

import functools
import os
import signal
import sys
import types
from pathlib import Path
from typing import NoReturn

from deploy.local.server import DEFAULT_REPOSITORY, LocalServer, Ports, ServerError
from deploy.local.supervisor import Supervisor

DEFAULT_PORTS = Ports(http=8000, grpc=8001, metrics=8002)
"""Triton's own."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    """Serve; return 0 after an ordered stop and 1 when the server cannot start, or not be kept running."""
    for number in STOP_SIGNALS:
        signal.signal(number, _stop_once)
    try:
        repository = Path(os.environ.get("MODEL_REPOSITORY", DEFAULT_REPOSITORY))
        with LocalServer(
            repository,
            _ports_from_environment(),
            _tuning_from_environment(repository),
            admin_key=os.environ.get("ADMIN_KEY") or None,
        ) as server:
            print(f"gRPC     {server.grpc_url}")
            print(f"HTTP     http://{server.http_url}/v2")
            print(f"metrics  http://{server.metrics_url}/metrics")
            print(f"log      {server.log_path}")
            print(f"admin    key in {server.admin_key_path}")
            print("ready; Ctrl-C stops", flush=True)
            Supervisor(server, functools.partial(print, "serve:", file=sys.stderr, flush=True)).watch()
    except ServerError as error:
        print(f"serve: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", flush=True)
        return 0


def _stop_once(_number: int, _frame: types.FrameType | None) -> NoReturn:
    """End the wait; what follows, an impatient second Ctrl-C included, must not cut the clean-up short."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    print("stopping ...", flush=True)
    raise KeyboardInterrupt


def _tuning_from_environment(repository: Path) -> tuple[str, ...]:
    """Return the option for the tuning; Triton itself takes the default where there is none of a name."""
    name = os.environ.get("MODEL_CONFIG_NAME")
    if not name:
        return ()
    known = {path.stem for path in repository.glob("*/configs/*.pbtxt")}
    if name not in known:
        raise ServerError(f"MODEL_CONFIG_NAME={name}: no model has configs/{name}.pbtxt, but {sorted(known)}")
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
