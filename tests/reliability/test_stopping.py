"""A stop loses no accepted request; `make chaos` repeats these tests."""

from pathlib import Path

import pytest

from tests.reliability.stopping import stop_under_load

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("model", "output"), [("ensemble", "HOG"), ("align_mask", "MASKED_FACES")])
def test_stop_loses_no_accepted_request(repository: Path, model: str, output: str):
    report = stop_under_load(repository, model, output)
    assert report.succeeded == report.accepted
    assert report.in_flight > 0, "all requests had responses before the stop"
    assert report.later > 0
    assert report.without_response == 0
    assert report.remains == []
