"""`evaluate-pose`: its table, its plot and its errors."""

from pathlib import Path

import numpy as np
import pytest

from export.errors import ExportError
from export.pose.origin import DEFAULT_CHECKPOINT
from export.pose.training import evaluate
from tests.unit.pose_training.conftest import LabelledFaces, RunCommand


def test_table_has_the_mean_errors_of_each_bin():
    angles = np.array([[0.0, 5.0, 0.0], [0.0, -14.0, 0.0], [0.0, 50.0, 0.0], [0.0, 75.0, 0.0]])
    errors = np.array([[1.0, -2.0, 3.0], [3.0, 4.0, -5.0], [7.0, 7.0, 7.0], [-9.0, 1.0, 5.0]])
    table = evaluate.format_table(evaluate.Comparison("few", angles, {"mlp": errors}))
    assert "| all | 4 | 5.00 / 3.50 / 5.00 |" in table
    assert "| ≤ 60° | 3 | 3.67 / 4.33 / 5.00 |" in table
    assert "| 0–15° | 2 | 2.00 / 3.00 / 4.00 |" in table
    assert "| 45–60° | 1 | 7.00 / 7.00 / 7.00 |" in table
    assert "| 60–75° | 1 | 9.00 / 1.00 / 5.00 |" in table
    assert "15–30°" not in table
    assert "largest error: 9.00 / 7.00 / 7.00" in table


def test_errors_are_wrapped_to_180_degrees():
    np.testing.assert_allclose(evaluate._wrapped(np.array([359.0, -350.0, 10.0])), [-1, 10, 10])


def test_command_prints_a_table_per_set_and_draws_the_plot(
    run_command: RunCommand,
    tmp_path: Path,
    labelled_faces: LabelledFaces,
    capsys: pytest.CaptureFixture[str],
):
    landmarks, angles = labelled_faces
    np.savez(tmp_path / "mine.npz", landmarks=landmarks, angles_deg=angles)
    plot = tmp_path / "plot.png"
    run_command(evaluate, "--faces", tmp_path / "mine.npz", "--synthetic", 50, "--plot", plot)
    printed = capsys.readouterr().out
    for text in ("mine: mean", "held-out synthetic faces", "mean head, PnP", "mean head, Procrustes"):
        assert text in printed
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert plot.stat().st_size > 10_000


def test_truncated_checkpoint_is_an_error_and_no_plot_is_drawn(run_command: RunCommand, tmp_path: Path):
    weights = tmp_path / "copy.safetensors"
    weights.write_bytes(DEFAULT_CHECKPOINT.read_bytes()[:-100])
    weights.with_suffix(".json").write_bytes(DEFAULT_CHECKPOINT.with_suffix(".json").read_bytes())
    plot = tmp_path / "plot.png"
    with pytest.raises(ExportError, match="copy.safetensors"):
        run_command(evaluate, "--weights", weights, "--plot", plot)
    assert not plot.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--synthetic", "-1"], "--synthetic must not be negative"),
        (["--synthetic", "0"], "nothing to evaluate"),
        (["--plot", "plot.pdf"], "--plot must end in .png"),
    ],
)
def test_invalid_option_is_an_error(options: list[str], message: str, run_command: RunCommand):
    with pytest.raises(ExportError, match=message):
        run_command(evaluate, *options)
