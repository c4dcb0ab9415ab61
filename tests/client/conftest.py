"""Fixtures of the client's tests."""

import socket
from collections.abc import Iterator

import pytest


@pytest.fixture
def unused_address() -> Iterator[str]:
    """Yield an address without a server. Its port stays bound, so that no server can start there."""
    with socket.socket() as bound_socket:
        bound_socket.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound_socket.getsockname()[1]}"
