"""Fixtures: the container engine, the image and one running container."""

import signal
from collections.abc import Iterator

import pytest

from tests.container.base import build_base, build_images
from tests.container.container import Container, SharedMemory, pod_options
from tests.container.engine import Echo, Engine, enter_private_network, missing_requirement
from tests.support.au_checkpoints import make_au_checkpoints


@pytest.fixture(scope="session")
def echo(pytestconfig: pytest.Config) -> Echo:
    """Return a function that prints a line at once, although pytest captures output."""
    reporter = pytestconfig.pluginmanager.getplugin("terminalreporter")
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")

    def write(line: str) -> None:
        with capture.global_and_fixture_disabled():
            reporter.write_line("")
            reporter.write(f"    {line} ", flush=True)

    return write


@pytest.fixture(scope="session")
def engine(echo: Echo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Yield the engine with all images built; this process then runs in separate namespaces."""
    reason = missing_requirement()
    if reason:
        pytest.skip(f"make container-check cannot run here: {reason}")
    # SIGTERM, from `timeout`, raises KeyboardInterrupt, so that the fixtures remove their containers.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    running = Engine(echo)
    weights = tmp_path_factory.mktemp("au_weights") / "svm.skops"
    make_au_checkpoints({weights: "--kind svm --names AU1 AU4 AU12 --training-faces 200"})
    build_images(running, build_base(running, echo), weights, echo)
    enter_private_network()
    yield running
    running.podman("rm", "--all", "--force", "--time=0")


@pytest.fixture(scope="session")
def shared_memory(engine: Engine) -> Iterator[SharedMemory]:
    with SharedMemory() as mounted:
        yield mounted


@pytest.fixture(scope="module")
def container(engine: Engine, shared_memory: SharedMemory) -> Iterator[Container]:
    """Yield a ready server with the manifests' settings to all tests that do not change it."""
    with Container(engine, pod_options(shared_memory.folder)) as running:
        yield running.wait_until_ready()
