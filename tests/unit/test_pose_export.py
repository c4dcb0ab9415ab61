"""Pose checkpoints exported to ONNX: both layouts against torch, and checkpoints that are rejected."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from export.__main__ import main
from export.errors import ExportError
from export.pose.command import export_pose
from export.pose.graph import build_pose_graph
from export.pose.network import load_network
from tests.support.face_data import extreme_landmarks, photo_faces
from tests.support.fixtures import write_pose_checkpoint
from tests.support.oracles import PoseNet

PROJECT = Path(__file__).parents[2]

Checkpoint = tuple[Path, PoseNet]
Statistics = tuple[np.ndarray, np.ndarray]


class ExportedModel:
    """A checkpoint exported to ONNX, on ONNX Runtime's CPU provider."""

    def __init__(self, weights: Path) -> None:
        model = build_pose_graph(load_network(weights))
        self._session = onnxruntime.InferenceSession(model.SerializeToString())

    def __call__(self, landmarks: np.ndarray, output: str = "POSE") -> np.ndarray:
        """Return an output for landmarks ``[N, 68, 2]``."""
        return self._session.run([output], {"LANDMARKS": landmarks})[0]


@pytest.fixture
def exported(pose_checkpoint: Checkpoint) -> ExportedModel:
    return ExportedModel(pose_checkpoint[0])


def test_poses_equal_torch(exported: ExportedModel, pose_checkpoint: Checkpoint, statistics: Statistics):
    landmarks = np.concatenate([photo_faces(40, 41)[1], extreme_landmarks(40, 42)])
    expected = pose_checkpoint[1].pose(landmarks, *statistics)
    np.testing.assert_allclose(exported(landmarks), expected, rtol=1e-5, atol=1e-5)


def test_landmarks_out_are_the_landmarks(exported: ExportedModel):
    landmarks = photo_faces(3, 49)[1]
    landmarks[1, 4] = np.nan
    np.testing.assert_array_equal(exported(landmarks, "LANDMARKS_OUT"), landmarks)


def test_pose_does_not_depend_on_position_and_scale(exported: ExportedModel):
    landmarks = photo_faces(10, 43)[1]
    np.testing.assert_allclose(exported(4 * landmarks + 100), exported(landmarks), atol=2e-3)


def test_coinciding_eye_corners_give_a_finite_pose(
    exported: ExportedModel, pose_checkpoint: Checkpoint, statistics: Statistics
):
    landmarks = photo_faces(1, 44)[1]
    landmarks[0, 45] = landmarks[0, 36]
    pose = exported(landmarks)
    assert np.isfinite(pose).all()
    np.testing.assert_allclose(pose, pose_checkpoint[1].pose(landmarks, *statistics), rtol=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_landmark_changes_no_other_face(exported: ExportedModel, value: float):
    landmarks = photo_faces(16, 45)[1]
    valid = exported(landmarks)
    landmarks[5, 20, 1] = value
    mixed = exported(landmarks)
    assert not np.isfinite(mixed[5]).any()
    np.testing.assert_array_equal(np.delete(mixed, 5, axis=0), np.delete(valid, 5, axis=0))


@pytest.mark.parametrize("batch", [1, 2, 7, 32])
def test_pose_does_not_depend_on_the_batch(exported: ExportedModel, batch: int):
    landmarks = photo_faces(64, 46)[1]
    in_batches = [exported(landmarks[first : first + batch]) for first in range(0, 64, batch)]
    np.testing.assert_array_equal(np.concatenate(in_batches), exported(landmarks))


def test_metadata_name_checkpoint_and_check(repository: Path, pose_checkpoint: Checkpoint, tmp_path: Path):
    path, difference = export_pose(_copy(repository, tmp_path), pose_checkpoint[0])
    facts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert facts["weights"] == "pose.safetensors"
    assert len(facts["weights_sha256"]) == 64
    assert facts["checked_against"] == f"torch {torch.__version__}"
    assert difference <= 1e-5


def test_export_is_reproducible_and_contains_no_path(
    repository: Path, pose_checkpoint: Checkpoint, tmp_path: Path
):
    target = _copy(repository, tmp_path)
    first, again = (export_pose(target, pose_checkpoint[0])[0].read_bytes() for _ in range(2))
    assert first == again
    for path in (str(PROJECT), str(tmp_path), torch.__path__[0], ".py"):
        assert path.encode() not in first


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.05), (torch.bfloat16, 0.4)])
def test_reduced_precision_weights_are_accepted(
    tmp_path: Path, statistics: Statistics, dtype: torch.dtype, tolerance: float
):
    weights, net = write_pose_checkpoint(tmp_path, "v2")
    save_file({key: tensor.to(dtype) for key, tensor in load_file(weights).items()}, weights)
    landmarks = photo_faces(5, 47)[1]
    expected = net.pose(landmarks, *statistics)
    np.testing.assert_allclose(ExportedModel(weights)(landmarks), expected, atol=tolerance)


def _truncate(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:5000])


def _empty(weights: Path) -> None:
    weights.write_bytes(b"")


def _delete(weights: Path) -> None:
    weights.unlink()


def _delete_meta(weights: Path) -> None:
    weights.with_suffix(".json").unlink()


def _change_tensors(**changes: torch.Tensor | None) -> Callable[[Path], None]:
    def change(weights: Path) -> None:
        tensors = load_file(weights) | {key.replace("_", "."): value for key, value in changes.items()}
        save_file({key: value for key, value in tensors.items() if value is not None}, weights)

    return change


def _change_meta(**changes: object) -> Callable[[Path], None]:
    def change(weights: Path) -> None:
        path = weights.with_suffix(".json")
        meta = json.loads(path.read_text())
        for key, value in changes.items():
            section = meta["architecture"]
            if key in ("mean", "std"):
                section = section["output_normalization"]
            if value is None:
                del section[key]
            else:
                section[key] = value
        path.write_text(json.dumps(meta))

    return change


def _truncate_meta(weights: Path) -> None:
    weights.with_suffix(".json").write_text('{"architecture": {"hidden": [512')


INVALID_CHECKPOINTS = {
    "truncated": (_truncate, "not a complete safetensors file"),
    "empty": (_empty, "not a complete safetensors file"),
    "missing": (_delete, "cannot read .*pose.safetensors.*--weights"),
    "meta missing": (_delete_meta, "cannot read .*pose.json.*--meta"),
    "meta not JSON": (_truncate_meta, "does not describe a pose checkpoint"),
    "layer missing": (_change_tensors(net_4_weight=None), "net.4.weight is missing"),
    "wrong shape": (_change_tensors(net_4_bias=torch.zeros(3)), r"net.4.bias is of shape \[3\]"),
    "extra tensor": (
        _change_tensors(net_99_bias=torch.zeros(3)),
        "does not describe these tensors: net.99.bias",
    ),
    "unknown tensor": (_change_tensors(conv_weight=torch.zeros(3)), "unexpected tensor 'conv.weight'"),
    "not finite": (_change_tensors(net_0_bias=torch.full((512,), torch.nan)), "'net.0.bias'.*must be finite"),
    "integers": (
        _change_tensors(net_0_bias=torch.zeros(512, dtype=torch.int32)),
        "'net.0.bias'.*must be finite",
    ),
    "other widths": (_change_meta(hidden=[256, 128, 64]), "Do the weights and the JSON belong together"),
    "widths not a list": (_change_meta(hidden="512"), "architecture.hidden must be a list"),
    "no widths": (_change_meta(hidden=None), "it needs architecture.hidden"),
    "huge mean": (_change_meta(mean=[10**400, 0, 0, 0, 0, 0]), "mean must be 6 finite numbers"),
    "five means": (_change_meta(mean=[0, 0, 0, 0, 0]), "mean must be 6 finite numbers"),
    "std not finite": (_change_meta(std=[1, 1, 1, 1, 1, float("nan")]), "std must be 6 finite numbers"),
    "std missing": (_change_meta(std=None), "output_normalization"),
}


@pytest.mark.parametrize("folder", ["/", "."])
def test_rejects_folder_as_weights(repository: Path, folder: str):
    with pytest.raises(ExportError, match="cannot read"):
        export_pose(repository, Path(folder))


@pytest.mark.parametrize("kind", INVALID_CHECKPOINTS)
def test_rejects_invalid_checkpoint_and_keeps_the_old_model(repository: Path, tmp_path: Path, kind: str):
    damage, message = INVALID_CHECKPOINTS[kind]
    weights, _ = write_pose_checkpoint(tmp_path, "v2")
    damage(weights)
    target = _copy(repository, tmp_path)
    model = target / "pose_mlp" / "1" / "model.onnx"
    before = model.read_bytes()
    with pytest.raises(ExportError, match=message):
        export_pose(target, weights)
    assert model.read_bytes() == before
    assert [path.name for path in model.parent.iterdir() if path.suffix] == ["model.onnx"]


def test_error_of_the_command_is_one_line(
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    options = ["--weights", str(tmp_path / "missing.safetensors"), "--repository", str(repository)]
    monkeypatch.setattr(sys, "argv", ["export", "pose", *options])
    assert main() == 1
    error = capsys.readouterr().err
    assert error.startswith("export: cannot read")
    assert len(error.splitlines()) == 1


def test_command_exports_and_prints_the_difference(
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    weights, _ = write_pose_checkpoint(tmp_path, "v1")
    options = ["--weights", str(weights), "--repository", str(_copy(repository, tmp_path))]
    monkeypatch.setattr(sys, "argv", ["export", "pose", *options])
    assert main() == 0
    assert "angles differ from torch by at most" in capsys.readouterr().out


def test_unreachable_hub_is_an_error_of_one_line(repository: Path, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "export", "pose", "--hub", "--repository", str(repository)],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)},
        cwd=PROJECT,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("export: the Hugging Face hub is unreachable")
    assert len(done.stderr.splitlines()) == 1


def _copy(repository: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(repository, tmp_path / "repository"))
