"""A server that is started as the image starts it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.docker.shm_regions import remove_leftovers
from tests.deploy.production_server import ProductionServer


@pytest.fixture(scope="session")
def production(repository: Path) -> Iterator[ProductionServer]:
    """Give one server for all tests that leave it as it is."""
    with ProductionServer(repository) as server:
        yield server


@pytest.fixture(scope="session", autouse=True)
def no_leftovers() -> Iterator[None]:
    """Remove the locks of the last servers, for which no next one comes."""
    yield
    remove_leftovers()
