"""Pose checkpoints to ONNX: both layouts against torch, and what happens to files that are not right."""

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

from export.errors import ExportError
from export.pose.command import export_pose
from export.pose.graph import build_pose_graph
from export.pose.network import load_network
from tests.support.face_data import extreme_landmarks, photo_faces
from tests.support.fixtures import write_pose_checkpoint
from tests.support.oracles import PoseNet

Checkpoint = tuple[Path, PoseNet]
Statistics = tuple[np.ndarray, np.ndarray]


def run(weights: Path, landmarks: np.ndarray) -> np.ndarray:
    model = build_pose_graph(load_network(weights))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"LANDMARKS": landmarks})[0]


def test_poses_are_those_of_torch(pose_checkpoint: Checkpoint, statistics: Statistics):
    weights, net = pose_checkpoint
    landmarks = np.concatenate([photo_faces(40, 41)[1], extreme_landmarks(40, 42)])
    np.testing.assert_allclose(
        run(weights, landmarks), net.pose(landmarks, *statistics), rtol=1e-5, atol=1e-5
    )


def test_place_and_scale_do_not_matter(pose_checkpoint: Checkpoint):
    weights, _ = pose_checkpoint
    landmarks = photo_faces(10, 43)[1]
    np.testing.assert_allclose(run(weights, 4 * landmarks + 100), run(weights, landmarks), atol=2e-3)


def test_equal_eye_corners_give_a_finite_pose(pose_checkpoint: Checkpoint, statistics: Statistics):
    """The distance is clamped to 1e-6, as in py-feat; what comes out means nothing but is a number."""
    weights, net = pose_checkpoint
    landmarks = photo_faces(1, 44)[1]
    landmarks[0, 45] = landmarks[0, 36]
    pose = run(weights, landmarks)
    assert np.isfinite(pose).all()
    np.testing.assert_allclose(pose, net.pose(landmarks, *statistics), rtol=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_non_finite_face_harms_no_other(pose_checkpoint: Checkpoint, value: float):
    weights, _ = pose_checkpoint
    landmarks = photo_faces(16, 45)[1]
    clean = run(weights, landmarks)
    landmarks[5, 20, 1] = value
    spoilt = run(weights, landmarks)
    assert not np.isfinite(spoilt[5]).any()
    np.testing.assert_array_equal(np.delete(spoilt, 5, axis=0), np.delete(clean, 5, axis=0))


def test_a_face_has_the_same_bits_alone_and_in_a_batch(pose_checkpoint: Checkpoint):
    weights, _ = pose_checkpoint
    landmarks = photo_faces(64, 46)[1]
    together = run(weights, landmarks)
    for face in range(0, 64, 5):
        np.testing.assert_array_equal(run(weights, landmarks[face : face + 1])[0], together[face])


def test_metadata_names_the_source(repository: Path, pose_checkpoint: Checkpoint, tmp_path: Path):
    weights, _ = pose_checkpoint
    target = _copy(repository, tmp_path)
    path, difference = export_pose(target, weights)
    facts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert facts["weights"] == "pose.safetensors"
    assert len(facts["weights_sha256"]) == 64
    assert facts["checked_against"] == f"torch {torch.__version__}"
    assert difference <= 1e-5


def test_half_precision_weights_are_taken(tmp_path: Path, statistics: Statistics):
    weights, net = write_pose_checkpoint(tmp_path, "v2")
    save_file({key: tensor.half() for key, tensor in load_file(weights).items()}, weights)
    landmarks = photo_faces(5, 47)[1]
    np.testing.assert_allclose(run(weights, landmarks), net.pose(landmarks, *statistics), atol=0.05)


def _truncate(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:5000])


def _empty(weights: Path) -> None:
    weights.write_bytes(b"")


def _remove(weights: Path) -> None:
    weights.unlink()


def _remove_meta(weights: Path) -> None:
    weights.with_suffix(".json").unlink()


def _tensors(**changes: torch.Tensor | None) -> Callable[[Path], None]:
    def change(weights: Path) -> None:
        tensors = load_file(weights) | {key.replace("_", "."): value for key, value in changes.items()}
        save_file({key: value for key, value in tensors.items() if value is not None}, weights)

    return change


def _meta(**changes: object) -> Callable[[Path], None]:
    def change(weights: Path) -> None:
        path = weights.with_suffix(".json")
        meta = json.loads(path.read_text())
        for key, value in changes.items():
            place = meta["architecture"]
            if key in ("mean", "std"):
                place = place["output_normalization"]
            if value is None:
                del place[key]
            else:
                place[key] = value
        path.write_text(json.dumps(meta))

    return change


def _garble_meta(weights: Path) -> None:
    weights.with_suffix(".json").write_text('{"architecture": {"hidden": [512')


BAD_CHECKPOINTS = {
    "truncated": (_truncate, "not a complete safetensors file"),
    "empty": (_empty, "not a complete safetensors file"),
    "missing": (_remove, "cannot read .*pose.safetensors.*--weights"),
    "meta missing": (_remove_meta, "cannot read .*pose.json.*--meta"),
    "meta garbled": (_garble_meta, "does not describe a pose checkpoint"),
    "layer missing": (_tensors(net_4_weight=None), "net.4.weight is missing"),
    "other shape": (_tensors(net_4_bias=torch.zeros(3)), r"net.4.bias is of shape \[3\]"),
    "extra tensor": (_tensors(net_99_bias=torch.zeros(3)), "does not describe these tensors: net.99.bias"),
    "foreign tensor": (_tensors(conv_weight=torch.zeros(3)), "unexpected tensor 'conv.weight'"),
    "not finite": (_tensors(net_0_bias=torch.full((512,), torch.nan)), "'net.0.bias'.*must be finite"),
    "integers": (_tensors(net_0_bias=torch.zeros(512, dtype=torch.int32)), "'net.0.bias'.*must be finite"),
    "other widths": (_meta(hidden=[256, 128, 64]), "Do the weights and the JSON belong together"),
    "widths no list": (_meta(hidden="512"), "architecture.hidden must be a list"),
    "no widths": (_meta(hidden=None), "it needs architecture.hidden"),
    "huge mean": (_meta(mean=[10**400, 0, 0, 0, 0, 0]), "mean must be 6 finite numbers"),
    "five means": (_meta(mean=[0, 0, 0, 0, 0]), "mean must be 6 finite numbers"),
    "std not finite": (_meta(std=[1, 1, 1, 1, 1, float("nan")]), "std must be 6 finite numbers"),
    "std missing": (_meta(std=None), "output_normalization"),
}


def test_bfloat16_weights_are_taken(tmp_path: Path):
    weights, _ = write_pose_checkpoint(tmp_path, "v2")
    save_file({key: tensor.bfloat16() for key, tensor in load_file(weights).items()}, weights)
    assert np.isfinite(run(weights, photo_faces(5, 48)[1])).all()


@pytest.mark.parametrize("folder", ["/", "."])
def test_a_folder_is_no_checkpoint(repository: Path, folder: str):
    with pytest.raises(ExportError, match="cannot read"):
        export_pose(repository, Path(folder))


@pytest.mark.parametrize("kind", BAD_CHECKPOINTS)
def test_a_bad_checkpoint_is_refused_and_the_old_model_stays(repository: Path, tmp_path: Path, kind: str):
    spoil, message = BAD_CHECKPOINTS[kind]
    weights, _ = write_pose_checkpoint(tmp_path, "v2")
    spoil(weights)
    target = _copy(repository, tmp_path)
    model = target / "pose_mlp" / "1" / "model.onnx"
    before = model.read_bytes()
    with pytest.raises(ExportError, match=message):
        export_pose(target, weights)
    assert model.read_bytes() == before
    assert [path.name for path in model.parent.iterdir() if path.suffix] == ["model.onnx"]


def test_the_command_says_it_in_one_line(repository: Path, tmp_path: Path):
    outcome = _command(
        "pose", "--weights", str(tmp_path / "none.safetensors"), "--repository", str(repository)
    )
    assert outcome.returncode == 1
    assert outcome.stderr.startswith("export: cannot read")
    assert len(outcome.stderr.splitlines()) == 1


def test_the_command_exports(repository: Path, pose_checkpoint: Checkpoint, tmp_path: Path):
    weights, _ = pose_checkpoint
    target = _copy(repository, tmp_path)
    outcome = _command("pose", "--weights", str(weights), "--repository", str(target))
    assert outcome.returncode == 0, outcome.stderr
    assert "angles differ from torch by at most" in outcome.stdout


def test_an_unreachable_hub_is_said_plainly(repository: Path, tmp_path: Path):
    outcome = _command(
        "pose",
        "--hub",
        "--repository",
        str(repository),
        environment={"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)},
    )
    assert outcome.returncode == 1
    assert outcome.stderr.startswith("export: no model hub is reachable from here")
    assert len(outcome.stderr.splitlines()) == 1


def _command(
    *arguments: str, environment: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "export", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | (environment or {}),
        cwd=Path(__file__).parents[2],
        check=False,
    )


def _copy(repository: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(repository, tmp_path / "repository"))
