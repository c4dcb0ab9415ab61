"""The server under test and the table of results.

With `--server` the tests send requests to that address and change nothing there. Without it they use the
shared local server.
"""

from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.acceptance import agreement
from tests.acceptance.acceptance_table import table
from tests.acceptance.target import ServerInfo, Target, WrongServerError, read_server_info
from triton_face_client import FaceFeatureClient, Tls

TABLE_ROWS = pytest.StashKey[list[str]]()
"""First column of the table, in the order of the tests."""

SERVER_INFO = pytest.StashKey[ServerInfo]()
"""Version, configuration and devices of the server of `--server`."""

ROW_PROPERTY = "acceptance"
"""User property of a test report: the first column of the test's row in the table."""

AssertAgree = Callable[[dict[str, np.ndarray], dict[str, np.ndarray]], None]


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> Target:
    """Return the address of the server under test."""
    if request.config.getoption("server"):
        return _target_from_options(request.config)
    local = request.getfixturevalue("server")
    return Target(local.grpc_url, local.metrics_url)


@pytest.fixture(scope="session")
def client(target: Target) -> Iterator[FaceFeatureClient]:
    """Yield a connection to the server under test, without the admin key."""
    with target.connect() as connected:
        yield connected


@pytest.fixture(scope="session")
def server_info(request: pytest.FixtureRequest, target: Target) -> ServerInfo:
    """Return version, configuration and devices of the server under test."""
    return request.config.stash.get(SERVER_INFO, None) or read_server_info(target)


@pytest.fixture(scope="session")
def assert_agree(server_info: ServerInfo) -> AssertAgree:
    """Return a function that asserts that two responses agree: in all bits, or within rounding on a GPU."""
    return partial(agreement.assert_agree, inexact=agreement.inexact_outputs(server_info.models_on_gpu))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Assign a row to each test; end the run at once if `--server` is not a server of this project."""
    tests = [item for item in session.items if item.path.is_relative_to(Path(__file__).parent)]
    for item in tests:
        item.user_properties.append((ROW_PROPERTY, item.get_closest_marker("checks").args[0]))
    config = session.config
    config.stash[TABLE_ROWS] = list(dict.fromkeys(item.user_properties[-1][1] for item in tests))
    if tests and config.getoption("server") and not config.getoption("collectonly"):
        try:
            config.stash[SERVER_INFO] = read_server_info(_target_from_options(config))
        except WrongServerError as error:
            raise pytest.UsageError(str(error)) from error


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None, None, None]:
    """Print the table at the end of pytest's output."""
    yield
    config = terminalreporter.config
    if SERVER_INFO in config.stash:
        server_info = config.stash[SERVER_INFO]
        devices = (
            "GPU: " + ", ".join(sorted(server_info.models_on_gpu))
            if server_info.models_on_gpu
            else "no model on a GPU"
        )
        terminalreporter.section(f"{config.getoption('server')}: Triton {server_info.version}, {devices}")
        for line in table(terminalreporter.stats, config.stash[TABLE_ROWS], ROW_PROPERTY):
            terminalreporter.line(line)


def _target_from_options(config: pytest.Config) -> Target:
    folder = config.getoption("tls_folder")
    tls = folder and Tls(
        folder / "ca.crt", folder / "tls.crt", folder / "tls.key", server_name=config.getoption("tls_name")
    )
    return Target(config.getoption("server"), config.getoption("metrics"), tls)
