"""The server under test, and the table of what was checked.

With `--server` the tests send requests to the server at that address and change nothing there; without, they
use the local server of the test session.
"""

from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.acceptance import agreement
from tests.acceptance.table import table
from tests.acceptance.target import Facts, NotOurServerError, Target, examine
from triton_face_client import FaceFeatureClient, Tls

ROWS = pytest.StashKey[list[str]]()
"""The rows of the table, in the order of the tests."""

FACTS = pytest.StashKey[Facts]()
"""Of the server that `--server` names."""

ROW = "acceptance"
"""The property of a test report that holds its row of the table."""

AssertAgree = Callable[[dict[str, np.ndarray], dict[str, np.ndarray]], None]


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> Target:
    """Give the address of the server under test."""
    if request.config.getoption("server"):
        return _named_target(request.config)
    local = request.getfixturevalue("server")
    return Target(local.grpc_url, local.metrics_url)


@pytest.fixture(scope="session")
def client(target: Target) -> Iterator[FaceFeatureClient]:
    """Give a connection to the server under test, without the admin key."""
    with target.connect() as connected:
        yield connected


@pytest.fixture(scope="session")
def facts(request: pytest.FixtureRequest, target: Target) -> Facts:
    """Give what the server says about itself."""
    return request.config.stash.get(FACTS, None) or examine(target)


@pytest.fixture(scope="session")
def assert_agree(facts: Facts) -> AssertAgree:
    """Give the assertion that two answers for the same faces agree on this server's devices."""
    return partial(agreement.assert_agree, inexact=agreement.inexact_outputs(facts.models_on_gpu))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Give each test report its row; end the run at once when there is no server of ours."""
    tests = [item for item in session.items if item.path.is_relative_to(Path(__file__).parent)]
    for item in tests:
        item.user_properties.append((ROW, item.get_closest_marker("checks").args[0]))
    config = session.config
    config.stash[ROWS] = list(dict.fromkeys(item.user_properties[-1][1] for item in tests))
    if tests and config.getoption("server") and not config.getoption("collectonly"):
        try:
            config.stash[FACTS] = examine(_named_target(config))
        except NotOurServerError as error:
            raise pytest.UsageError(str(error)) from error


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None, None, None]:
    """Print the table below everything else."""
    yield
    config = terminalreporter.config
    if FACTS in config.stash:
        facts = config.stash[FACTS]
        devices = (
            "GPU: " + ", ".join(sorted(facts.models_on_gpu)) if facts.models_on_gpu else "no model on a GPU"
        )
        terminalreporter.section(f"{config.getoption('server')}: Triton {facts.version}, {devices}")
        for line in table(terminalreporter.stats, config.stash[ROWS], ROW):
            terminalreporter.line(line)


def _named_target(config: pytest.Config) -> Target:
    folder = config.getoption("tls_folder")
    tls = folder and Tls(
        folder / "ca.crt", folder / "tls.crt", folder / "tls.key", server_name=config.getoption("tls_name")
    )
    return Target(config.getoption("server"), config.getoption("metrics"), tls)
