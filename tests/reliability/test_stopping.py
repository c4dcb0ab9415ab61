"""A stop loses no accepted request; `make chaos` repeats these tests."""

from pathlib import Path

import pytest

from tests.reliability.stopping import StopReport, stop_under_load

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("model", "output"), [("ensemble", "HOG"), ("align_mask", "MASKED_FACES")])
def test_stop_loses_no_accepted_request(repository: Path, model: str, output: str):
    check(stop_under_load(repository, model, output))


def test_stop_loses_no_accepted_request_for_action_units(repository: Path, au_repository: Path):
    check(stop_under_load(repository, "action_units", "AU", au_repository))


def check(report: StopReport) -> None:
    """Assert that every accepted request succeeded and that nothing of the server remains."""
    assert report.succeeded == report.accepted
    assert report.in_flight > 0, "all requests had responses before the stop"
    assert report.later > 0
    assert report.without_response == 0
    assert report.remains == []
