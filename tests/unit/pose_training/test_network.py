"""The network: its input, checkpoints loaded and saved."""

from pathlib import Path

import numpy as np
import pytest
import torch

from export.errors import ExportError
from export.pose import network
from tests.support.oracles import PoseNet
from tests.unit.pose_training.mean_head import project_mean_head


def test_input_is_centred_scaled_and_has_x_before_y():
    face = project_mean_head((5, 20, -10), 50.0)
    centred = face - face.mean(axis=0)
    centred = centred / np.linalg.norm(face[36] - face[45])
    expected = np.concatenate([centred[:, 0], centred[:, 1]])
    for landmarks in (face, face * 1234.5 + [300.0, -20.0]):
        computed = network.network_input(torch.from_numpy(landmarks)[None])[0].numpy()
        np.testing.assert_allclose(computed, expected, atol=1e-9)


def test_loaded_network_equals_the_oracle(
    pose_checkpoint: tuple[Path, PoseNet], statistics: tuple[np.ndarray, np.ndarray]
):
    weights, oracle = pose_checkpoint
    faces = [project_mean_head(angles, 50.0) for angles in ((0, 10, 5), (-30, 60, 40))]
    landmarks = np.float32(faces) * 500 + 250
    computed = network.estimate_poses(network.load_network(weights), landmarks)
    np.testing.assert_allclose(computed, oracle.pose(landmarks, *statistics), atol=2e-4, rtol=1e-5)


def test_saved_network_is_loaded_unchanged(tmp_path: Path):
    saved = network.new_network(torch.arange(6.0), torch.arange(1.0, 7.0)).eval()
    network.save_network(saved, tmp_path / "pose.safetensors", {})
    loaded = network.load_network(tmp_path / "pose.safetensors")
    for name, tensor in saved.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_non_finite_weight_is_not_saved(tmp_path: Path):
    weights = tmp_path / "pose.safetensors"
    weights.write_bytes(b"old")
    diverged = network.new_network(torch.zeros(6), torch.ones(6))
    with torch.no_grad():
        diverged.net[4].weight[3, 5] = torch.nan
    with pytest.raises(ExportError, match="not finite"):
        network.save_network(diverged, weights, {})
    assert [path.name for path in tmp_path.iterdir()] == ["pose.safetensors"]
    assert weights.read_bytes() == b"old"


def test_error_names_the_file_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    untrained = network.new_network(torch.zeros(6), torch.ones(6))
    with pytest.raises(ExportError, match="file/pose.safetensors"):
        network.save_network(untrained, tmp_path / "file" / "pose.safetensors", {})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
