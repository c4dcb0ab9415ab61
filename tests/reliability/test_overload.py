"""An overloaded server rejects requests that it cannot queue; `make chaos` measures the latencies."""

import pytest

from deploy.local import LocalServer
from tests.reliability.overload import RECOVERY_SECONDS, overload

pytestmark = pytest.mark.slow

QUEUED_REQUESTS = 64
"""align_mask's queue limit."""


def test_overloaded_server_computes_or_rejects_every_request_and_recovers(own_server: LocalServer):
    report = overload(own_server, 5.0)
    assert report.lost == 0
    assert set(report.statuses) == {"UNAVAILABLE"}
    assert report.accepted + report.statuses["UNAVAILABLE"] == report.sent
    assert report.accepted > QUEUED_REQUESTS, "the server computes requests while it rejects others"
    assert report.recovery < RECOVERY_SECONDS
