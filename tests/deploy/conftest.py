"""What the Dockerfile's lines leave, and a server started from it."""

from collections.abc import Iterator

import pytest

from tests.deploy.dockerfile import Image, built
from tests.deploy.production_server import ProductionServer


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Give what the Dockerfile's lines leave to serve."""
    serve = built(tmp_path_factory.mktemp("image"))["serve"]
    # The stand-in for NVIDIA's C++ backend wants it; the image has that backend.
    serve.run("grep ^onnxruntime== /build/requirements.txt > runtime.txt")
    serve.run("python3 -m pip install --requirement runtime.txt --constraint /build/constraints.txt")
    return serve


@pytest.fixture(scope="session")
def production(image: Image) -> Iterator[ProductionServer]:
    """Give one server for all tests that leave it as it is."""
    with ProductionServer(image) as server:
        yield server
