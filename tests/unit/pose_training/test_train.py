"""`train-pose`: learning, reproducibility, the files it writes, and its errors."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from export.errors import ExportError
from export.pose.checkpoint import load_pose_checkpoint
from export.pose.training import train
from tests.unit.pose_training.conftest import RunCommand


@pytest.fixture(autouse=True)
def short_training(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use few held-out faces, and one thread: on a busy machine small batches are slower on several."""
    monkeypatch.setattr(train, "HELD_OUT_FACES", 256)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_training_is_reproducible_and_reduces_the_error():
    first, again = (train.train(steps=20, seed=1, faces_per_step=32) for _ in range(2))
    other = train.train(steps=1, seed=2, faces_per_step=32)
    for left, right in zip(first.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(left, right)
    assert not torch.equal(next(first.network.parameters()), next(other.network.parameters()))
    assert first.facts["held_out_mae_degrees"] == again.facts["held_out_mae_degrees"]
    trained, untrained = (sum(result.facts["held_out_mae_degrees"].values()) for result in (first, other))
    assert trained < 0.5 * untrained
    assert first.facts["best_step"] == first.facts["steps"] == 20


def test_training_does_not_change_the_global_random_state():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train.train(steps=1, seed=9, faces_per_step=8)
    assert torch.equal(torch.rand(3), expected)


def test_command_writes_a_checkpoint(
    run_command: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    weights = tmp_path / "new" / "pose.safetensors"
    run_command(train, "--out", weights, "--steps", 2, "--seed", 7)
    assert sorted(path.name for path in weights.parent.iterdir()) == ["pose.json", "pose.safetensors"]
    checkpoint = load_pose_checkpoint(weights)
    assert (checkpoint.layout, checkpoint.hidden) == ("v2", (512, 256, 128))
    training = json.loads(weights.with_suffix(".json").read_text())["training"]
    assert (training["seed"], training["steps"]) == (7, 2)
    assert "held-out MAE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "pose.bin"], "--out must end in .safetensors"),
        (["--out", "pose.safetensors", "--steps", "0"], "--steps must be at least 1"),
        (["--out", "pose.safetensors", "--threads", "0"], "--threads must be at least 1"),
    ],
)
def test_invalid_option_is_an_error_and_nothing_is_written(
    options: list[str],
    message: str,
    run_command: RunCommand,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match=message):
        run_command(train, *options)
    assert not list(tmp_path.iterdir())


def test_unwritable_folder_is_an_error_before_training(
    run_command: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ExportError, match="file/pose.safetensors"):
        run_command(train, "--out", tmp_path / "file" / "pose.safetensors", "--steps", 1)
    assert "training" not in capsys.readouterr().err
