"""`python -m export update-pose`: models that are rebuilt, and models that are kept."""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest

from export.errors import ExportError
from export.pose import update
from export.pose.command import export_pose
from export.pose.origin import UNMARKED_PROJECT_WEIGHTS
from tests.support.fixtures import write_pose_checkpoint

Change = Callable[[onnx.ModelProto], None]


@pytest.fixture
def target(repository: Path, tmp_path: Path) -> Path:
    """Return a repository with a current model of the project's checkpoint."""
    return Path(shutil.copytree(repository, tmp_path / "repository"))


@pytest.fixture
def model_file(target: Path) -> Iterator[Path]:
    """Yield the pose model's file; check afterwards that no temporary file is left beside it."""
    path = target / "pose_mlp" / "1" / "model.onnx"
    yield path
    assert [entry.name for entry in path.parent.iterdir() if entry.suffix] == ["model.onnx"]


def run_update(target: Path) -> None:
    update.run(argparse.Namespace(repository=target))


def set_metadata(**facts: str | None) -> Change:
    """Return a change of metadata; None removes an entry."""

    def change(model: onnx.ModelProto) -> None:
        merged = {entry.key: entry.value for entry in model.metadata_props} | facts
        kept = {key: value for key, value in merged.items() if value is not None}
        onnx.helper.set_model_props(model, kept)

    return change


def drop_landmarks_out(model: onnx.ModelProto) -> None:
    del model.graph.output[1]


def change_model(path: Path, change: Change) -> bytes:
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path.read_bytes()


def test_missing_model_is_built(target: Path, model_file: Path):
    expected = model_file.read_bytes()
    model_file.unlink()
    run_update(target)
    assert model_file.read_bytes() == expected


def test_current_model_is_kept(target: Path, model_file: Path, capsys: pytest.CaptureFixture[str]):
    before = model_file.stat().st_ino
    run_update(target)
    assert model_file.stat().st_ino == before, "the file was replaced"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "change",
    [
        drop_landmarks_out,
        set_metadata(weights_sha256="0" * 64),
        set_metadata(meta_sha256="0" * 64),
        set_metadata(exporter_sha256="0" * 64),
        set_metadata(project_checkpoint=None, exporter_sha256=None),
        set_metadata(project_checkpoint=None, weights_sha256=UNMARKED_PROJECT_WEIGHTS[0]),
    ],
    ids=["output missing", "weights", "description", "exporter", "unmarked", "earlier weights"],
)
def test_outdated_model_of_the_project_is_rebuilt(target: Path, model_file: Path, change: Change):
    current = model_file.read_bytes()
    change_model(model_file, change)
    run_update(target)
    assert model_file.read_bytes() == current


def test_model_of_other_weights_is_kept(
    target: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    weights, _ = write_pose_checkpoint(tmp_path, "v1")
    export_pose(target, weights)
    expected = change_model(model_file, set_metadata(exporter_sha256="0" * 64))
    run_update(target)
    assert model_file.read_bytes() == expected
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("facts", "command"),
    [
        ({"weights": "mine.safetensors", "weights_sha256": "0" * 64}, "--weights mine.safetensors"),
        ({"weights": None, "weights_sha256": None}, "--weights FILE.safetensors"),
    ],
)
def test_model_of_other_weights_without_landmarks_out_is_kept_and_named(
    target: Path,
    model_file: Path,
    capsys: pytest.CaptureFixture[str],
    facts: dict[str, str | None],
    command: str,
):
    change_model(model_file, set_metadata(project_checkpoint=None, **facts))
    expected = change_model(model_file, drop_landmarks_out)
    run_update(target)
    assert model_file.read_bytes() == expected
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1
    assert str(model_file) in printed[0]
    assert printed[0].endswith(f"python -m export pose {command}")


def test_unreadable_model_is_an_error_and_is_kept(target: Path, model_file: Path):
    model_file.write_bytes(b"not a model")
    with pytest.raises(ExportError, match=r"cannot read .*model.onnx.*python -m export pose"):
        run_update(target)
    assert model_file.read_bytes() == b"not a model"


def test_check_of_a_current_model_does_not_import_torch(target: Path, model_file: Path):
    script = (
        "import sys; from export.__main__ import main; status = main(); "
        "sys.exit('torch' in sys.modules or status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "update-pose", "--repository", str(target)],
        cwd=Path(__file__).parents[2],
        env=os.environ,
        check=False,
    )
    assert done.returncode == 0
