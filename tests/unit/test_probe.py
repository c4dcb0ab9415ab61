"""The liveness probe's judgement and its memory between two looks, without a server."""

import os
import time
from pathlib import Path

import pytest

from deploy.docker import probe


def counters(answered: int, failed: int, waiting: int = 0, rejected: int = 0, model: str = "hog") -> str:
    """Return the metrics of a model."""
    return "".join(
        f'nv_inference_{metric}{{model="{model}",{reason}version="1"}} {value}\n'
        for metric, reason, value in (
            ("request_success", "", answered),
            ("request_failure", 'reason="BACKEND",', failed),
            ("request_failure", 'reason="REJECTED",', rejected),
            ("request_failure", 'reason="OTHER",', 100 * rejected),
            ("pending_request_count", "", waiting),
            ("request_duration_us", "", 1000 * answered),
        )
    )


def looks(*metrics: str) -> list[list[str]]:
    memory: probe.Memory = {}
    return [probe.troubles(text, memory) for text in metrics]


def test_failures_in_a_row():
    said = looks(
        counters(10, 5), counters(10, 7), counters(10, 8), counters(10, 8), counters(11, 8), counters(11, 9)
    )
    failing = ["hog has failed 3 requests and answered none since"]
    assert said == [[], [], failing, failing, [], []]


def test_failures_among_answers():
    assert looks(*(counters(look, 10 * look) for look in range(10))) == [[]] * 10


def test_rejected_requests_are_not_failures():
    assert looks(counters(10, 0), counters(10, 0, rejected=50)) == [[], []]


def test_counters_that_start_again_are_another_server():
    assert looks(counters(10, 0), counters(0, 4), counters(0, 6)) == [[], [], []]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Give the monotonic clock's time, to be set."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_requests_that_wait_while_none_ends(clock: list[float]):
    memory: probe.Memory = {}
    said = []
    for text in (counters(10, 0, 3), counters(10, 0, 9, rejected=4), counters(11, 0, 9), counters(11, 0)):
        said.append(probe.troubles(text, memory))
        clock[0] += 5
    assert said == [[], ["hog has ended no request for 5 s while 9 wait"], [], []]


def test_a_model_that_nobody_calls(clock: list[float]):
    memory: probe.Memory = {}
    for _ in range(5):
        assert probe.troubles(counters(10, 0), memory) == []
        clock[0] += 5
    assert probe.troubles(counters(10, 0, 2), memory) == []


def test_align_masks_own_counters_may_stand_still(clock: list[float]):
    memory: probe.Memory = {}
    for failed in (0, 5):
        assert probe.troubles(counters(10, failed, 2, model="align_mask"), memory) == []
        clock[0] += 60


@pytest.mark.parametrize("off", [-60.0, 60.0, float("nan")])
def test_heartbeats(off: float):
    text = 'align_mask_heartbeat_seconds{{model="align_mask",model_instance="align_mask_0_{}"}} {}\n'
    good, bad = text.format(0, time.time() - 1), text.format(1, time.time() + off)
    assert probe.troubles(good, {}) == []
    (trouble,) = probe.troubles(good + bad, {})
    assert trouble.startswith("align_mask_0_1 has made no progress")


MEMORY = {"hog": probe.Counters(10, 5, 2, 4, 123.25)}


def test_the_memory_lasts(tmp_path: Path):
    path = tmp_path / "memory"
    assert probe.load(path) == {}
    probe.save(path, MEMORY | {"pose_mlp": MEMORY["hog"]})
    probe.save(path, MEMORY)
    assert probe.load(path) == MEMORY
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", '{"hog": 7}', '{"hog": [1, 2]}', '{"hog": ["a", 1, 2, 3, 4]}']
)
def test_a_corrupt_memory_is_none(tmp_path: Path, text: str):
    path = tmp_path / "memory"
    path.write_text(text)
    assert probe.load(path) == {}
    probe.save(path, MEMORY)
    assert probe.load(path) == MEMORY


def test_bytes_that_are_no_text(tmp_path: Path):
    (tmp_path / "memory").write_bytes(b"\xff\xfe\x00")
    assert probe.load(tmp_path / "memory") == {}


def test_nobody_elses_file_is_read_or_written(tmp_path: Path):
    """The folder may be everybody's: links, pipes and files of others are left alone."""
    precious = tmp_path / "precious"
    probe.save(precious, MEMORY)
    (tmp_path / "link").symlink_to(precious)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    before = precious.read_bytes()
    for name in ("link", "pipe", "folder"):
        assert probe.load(tmp_path / name) == {}
        with pytest.raises(OSError, match=name):
            probe.save(tmp_path / name, {})
    assert precious.read_bytes() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_another_users_file(tmp_path: Path):
    path = tmp_path / "memory"
    probe.save(path, MEMORY)
    os.chown(path, 65534, 65534)
    before = path.read_bytes()
    assert probe.load(path) == {}
    with pytest.raises(PermissionError, match="not a file of this user"):
        probe.save(path, {})
    assert path.read_bytes() == before
