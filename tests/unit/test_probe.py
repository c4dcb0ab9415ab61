"""Liveness probe without a server: the reasons for a failure, and the file with its history."""

import os
import time
from pathlib import Path

import pytest

from deploy.docker import probe


def counters(answered: int, failed: int, waiting: int = 0, rejected: int = 0, model: str = "hog") -> str:
    """Return Triton's metrics of a model, including metrics that the probe must ignore."""
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


def successive_probes(*metrics: str) -> list[list[str]]:
    """Return the problems that each of several probes finds; they share their history."""
    history: probe.CounterHistory = {}
    return [probe.find_problems(text, history) for text in metrics]


def test_failures_in_a_row_fail_the_probe_until_an_answer():
    problems = successive_probes(
        counters(10, 5), counters(10, 7), counters(10, 8), counters(10, 8), counters(11, 8), counters(11, 9)
    )
    failing = ["hog has failed 3 requests and answered none since"]
    assert problems == [[], [], failing, failing, [], []]


def test_failures_between_answers_pass():
    assert successive_probes(*(counters(number, 10 * number) for number in range(10))) == [[]] * 10


def test_rejected_requests_are_not_failures():
    assert successive_probes(counters(10, 0), counters(10, 0, rejected=50)) == [[], []]


def test_reset_counters_mean_a_restarted_server():
    assert successive_probes(counters(10, 0), counters(0, 4), counters(0, 6)) == [[], [], []]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the monotonic clock by a list whose only item is the time; tests change it."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_waiting_requests_without_progress_fail_the_probe(clock: list[float]):
    history: probe.CounterHistory = {}
    problems = []
    for text in (counters(10, 0, 3), counters(10, 0, 9, rejected=4), counters(11, 0, 9), counters(11, 0)):
        problems.append(probe.find_problems(text, history))
        clock[0] += 5
    assert problems == [[], ["hog has completed no request for 5 s while 9 wait"], [], []]


def test_idle_model_passes(clock: list[float]):
    history: probe.CounterHistory = {}
    for _ in range(5):
        assert probe.find_problems(counters(10, 0), history) == []
        clock[0] += 5
    assert probe.find_problems(counters(10, 0, 2), history) == []


@pytest.mark.parametrize("model", ["align_mask", "ensemble", "action_units"])
def test_triton_counters_of_align_mask_and_the_ensembles_are_ignored(clock: list[float], model: str):
    history: probe.CounterHistory = {}
    for failed in (0, 5):
        assert probe.find_problems(counters(10, failed, 2, model=model), history) == []
        clock[0] += 60


def test_failing_action_units_fail_the_probe():
    problems = successive_probes(counters(10, 0, model="au"), counters(10, 3, model="au"))
    assert problems == [[], ["au has failed 3 requests and answered none since"]]


@pytest.mark.parametrize("offset", [-60.0, 60.0, float("nan")], ids=["old", "in the future", "nan"])
def test_heartbeat_that_shows_no_progress_fails_the_probe(offset: float):
    text = 'align_mask_heartbeat_seconds{{model="align_mask",model_instance="align_mask_0_{}"}} {}\n'
    fresh, stale = text.format(0, time.time() - 1), text.format(1, time.time() + offset)
    assert probe.find_problems(fresh, {}) == []
    (problem,) = probe.find_problems(fresh + stale, {})
    assert problem.startswith("align_mask_0_1 has made no progress")


HISTORY = {"hog": probe.Counters(10, 5, 2, 4, 123.25)}


def test_history_is_kept_between_probes(tmp_path: Path):
    path = tmp_path / "history"
    assert probe.load_history(path) == {}
    probe.save_history(path, HISTORY | {"pose_mlp": HISTORY["hog"]})
    probe.save_history(path, HISTORY)
    assert probe.load_history(path) == HISTORY
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", '{"hog": 7}', '{"hog": [1, 2]}', '{"hog": ["a", 1, 2, 3, 4]}']
)
def test_damaged_history_is_empty(tmp_path: Path, text: str):
    path = tmp_path / "history"
    path.write_text(text)
    assert probe.load_history(path) == {}
    probe.save_history(path, HISTORY)
    assert probe.load_history(path) == HISTORY


def test_binary_history_is_empty(tmp_path: Path):
    (tmp_path / "history").write_bytes(b"\xff\xfe\x00")
    assert probe.load_history(tmp_path / "history") == {}


def test_links_pipes_and_folders_are_neither_read_nor_written(tmp_path: Path):
    """Another user may have created such a file in /tmp."""
    linked_file = tmp_path / "linked_file"
    probe.save_history(linked_file, HISTORY)
    (tmp_path / "link").symlink_to(linked_file)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    before = linked_file.read_bytes()
    for name in ("link", "pipe", "folder"):
        assert probe.load_history(tmp_path / name) == {}
        with pytest.raises(OSError, match=name):
            probe.save_history(tmp_path / name, {})
    assert linked_file.read_bytes() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the owner of a file")
def test_file_of_another_user_is_neither_read_nor_written(tmp_path: Path):
    path = tmp_path / "history"
    probe.save_history(path, HISTORY)
    os.chown(path, 65534, 65534)
    before = path.read_bytes()
    assert probe.load_history(path) == {}
    with pytest.raises(PermissionError, match="not a file of this user"):
        probe.save_history(path, {})
    assert path.read_bytes() == before
