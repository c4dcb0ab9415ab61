"""The server does not leak memory, and the test detects a leak; `make soak` runs for half an hour."""

from pathlib import Path

import numpy as np
import pytest

from deploy.local import LocalServer
from tests.reliability.memory_growth import LEAK_MB, growth
from tests.reliability.soak import leaking_repository, process_name, soak

LEAK_BYTES = 2**20

SAMPLES = 30


@pytest.mark.slow
def test_memory_does_not_grow_under_a_mixed_load(own_server: LocalServer):
    soak(own_server, 10.0, 0.5)  # a new server still fills its pools
    report = soak(own_server, 15.0, 15.0 / SAMPLES)
    assert report.failures == []
    assert report.faces > 0
    assert report.wrong == 0
    assert max(report.growth_mb.values()) < LEAK_MB, report.growth_mb


@pytest.mark.slow
def test_detects_a_leak(repository: Path, tmp_path: Path):
    """The load lasts until the leak is large enough, because a slow machine computes fewer batches."""
    with LocalServer(leaking_repository(repository, tmp_path, LEAK_BYTES)) as server:
        for seconds in (20.0, 40.0, 80.0):
            report = soak(server, seconds, seconds / SAMPLES)
            growth_mb = {process_name(name): megabytes for name, megabytes in report.growth_mb.items()}
            if growth_mb["align_mask"] > LEAK_MB:
                break
    assert growth_mb["align_mask"] > LEAK_MB
    assert growth_mb["hog"] < LEAK_MB


def test_growth_ignores_fluctuations_and_the_warm_up():
    wave = 30 * np.sin(np.arange(400))
    assert abs(growth(wave)) < 5
    assert growth(wave + np.linspace(0, 300, 400)) == pytest.approx(150, abs=10)
    warm_up = np.concatenate([np.linspace(0, 500, 100), np.full(300, 500.0)])
    assert growth(warm_up) == 0
    assert growth([1, 1000]) == 0
