"""The TCP ports of a local server."""

import contextlib
import dataclasses
import errno
import socket
import time

from deploy.local.errors import ServerError

HOST = "127.0.0.1"

WAIT_SECONDS = 5.0
"""Maximum wait for a port in use: a server that is stopping may be about to release it."""


@dataclasses.dataclass(frozen=True)
class Ports:
    """TCP ports on `HOST`; 0 stands for any free port."""

    http: int = 0
    grpc: int = 0
    metrics: int = 0


class Endpoints:
    """Addresses of the endpoints of a server that listens on `HOST`."""

    ports: Ports

    @property
    def http_url(self) -> str:
        """Host and port of the HTTP endpoint."""
        return f"{HOST}:{self.ports.http}"

    @property
    def grpc_url(self) -> str:
        """Host and port of the gRPC endpoint."""
        return f"{HOST}:{self.ports.grpc}"

    @property
    def metrics_url(self) -> str:
        """Host and port of the metrics endpoint."""
        return f"{HOST}:{self.ports.metrics}"


def choose_ports(ports: Ports) -> Ports:
    """Replace each 0 by a free port; wait up to `WAIT_SECONDS` for ports in use.

    Raises
    ------
    ServerError
        If a port stays in use.
    """
    with contextlib.ExitStack() as stack:
        chosen = {}
        deadline = time.monotonic() + WAIT_SECONDS
        for field in dataclasses.fields(ports):
            listener = stack.enter_context(_listen(field.name, getattr(ports, field.name), deadline))
            chosen[field.name] = listener.getsockname()[1]
    return Ports(**chosen)


def _listen(endpoint: str, port: int, deadline: float) -> socket.socket:
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
