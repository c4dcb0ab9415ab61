"""Servers started by serve.sh, the entry point of the image."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.docker.shm_regions import remove_leftovers
from tests.deploy.production_server import ProductionServer


@pytest.fixture(scope="session")
def production(repository: Path) -> Iterator[ProductionServer]:
    """Yield one server to all tests that do not change it."""
    with ProductionServer(repository) as server:
        yield server


@pytest.fixture(scope="session", autouse=True)
def no_leftovers() -> Iterator[None]:
    """Remove the shared memory of servers that the tests have killed."""
    yield
    remove_leftovers()
