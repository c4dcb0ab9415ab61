"""Every promise of docs/reliability.md names tests that exist."""

import re

import pytest

from deploy.local.server import PROJECT

PAGE = (PROJECT / "docs" / "reliability.md").read_text()
PROMISES = [line for line in PAGE.splitlines() if line.startswith("| **")]


@pytest.mark.parametrize("promise", PROMISES, ids=lambda line: line[4:40])
def test_promise_names_existing_tests(promise: str):
    paths = re.findall(r"`([\w/]+\.py)`", promise)
    assert paths
    for path in paths:
        assert "def test_" in (PROJECT / "tests" / path).read_text()
