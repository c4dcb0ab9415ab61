"""The shipped checkpoint: its accuracy on held-out faces, and its robustness to noise."""

import numpy as np
import pytest
import torch

from export.pose.network import PoseNetwork, estimate_poses
from export.pose.training import dataset
from export.pose.training.rigid_fit import METHODS, fitted_angles
from tests.unit.pose_training.conftest import LabelledFaces
from tests.unit.pose_training.mean_head import project_mean_head


@pytest.fixture
def near_frontal(held_out: LabelledFaces) -> np.ndarray:
    """Return held-out faces with angles of at most 45 degrees, in units of their eye distance."""
    landmarks = held_out[0][(np.abs(held_out[1]) <= 45).all(axis=1)]
    eye_distance = np.linalg.norm(landmarks[:, 36] - landmarks[:, 45], axis=1)
    return landmarks / eye_distance[:, None, None]


def estimated_degrees(network: PoseNetwork, landmarks: np.ndarray) -> np.ndarray:
    return np.degrees(estimate_poses(network, landmarks)[:, :3])


def test_error_is_below_the_goal_and_below_the_baselines(
    shipped_network: PoseNetwork, held_out: LabelledFaces
):
    landmarks, angles = held_out
    up_to_60 = np.abs(angles[:, 1]) <= 60
    errors = np.abs(estimated_degrees(shipped_network, landmarks) - angles)[up_to_60]
    assert (errors.mean(axis=0) <= 1.5).all(), errors.mean(axis=0)
    sample = np.flatnonzero(up_to_60)[:300]
    for method in METHODS:
        fitted = np.degrees(fitted_angles(landmarks[sample], method)) - angles[sample]
        assert (np.abs(fitted).mean(axis=0) > errors.mean(axis=0)).all(), method


def test_pose_of_the_mean_head_is_within_3_degrees(shipped_network: PoseNetwork):
    poses = [(0, 0, 0), (0, 30, 0), (0, 0, 40), (20, -20, 10), (-20, 45, -30)]
    faces = np.stack([project_mean_head(pose, 70.0) for pose in poses])
    errors = estimated_degrees(shipped_network, faces) - poses
    assert np.abs(errors).max() < 3.0, errors


def test_mirrored_face_gets_the_mirrored_pose(shipped_network: PoseNetwork, held_out: LabelledFaces):
    landmarks = held_out[0][:1000]
    mirrored = dataset.mirror_landmarks(torch.from_numpy(landmarks)).numpy()
    expected = estimated_degrees(shipped_network, landmarks) * np.array(dataset.MIRRORED_SIGN[:3])
    difference = np.abs(estimated_degrees(shipped_network, mirrored) - expected)
    assert difference.mean(axis=0).max() < 0.5, difference.mean(axis=0)


@pytest.mark.parametrize("factor", [0.96, 1.04])
def test_scaled_contour_changes_angles_by_less_than_2_degrees(
    factor: float, shipped_network: PoseNetwork, near_frontal: np.ndarray
):
    scaled = near_frontal.copy()
    centre = near_frontal[:, 27:36].mean(axis=1, keepdims=True)
    scaled[:, :17] = centre + factor * (near_frontal[:, :17] - centre)
    change = np.abs(
        estimated_degrees(shipped_network, scaled) - estimated_degrees(shipped_network, near_frontal)
    )
    assert change.mean(axis=0).max() < 2.0
    assert change.max() > 0.01, "the contour must have an influence"


@pytest.mark.parametrize("deviation", [0.01, 0.02])
def test_landmark_noise_changes_angles_by_less_than_2_degrees(
    deviation: float, shipped_network: PoseNetwork, near_frontal: np.ndarray
):
    noisy = near_frontal + deviation * np.random.default_rng(1).normal(size=near_frontal.shape)
    change = np.abs(
        estimated_degrees(shipped_network, noisy) - estimated_degrees(shipped_network, near_frontal)
    )
    assert 0.01 < change.mean(axis=0).max() < 2.0


def test_nan_landmark_changes_no_other_face(shipped_network: PoseNetwork, held_out: LabelledFaces):
    batch = held_out[0][:3].copy()
    valid = estimate_poses(shipped_network, batch)
    batch[1, 20, 0] = np.nan
    mixed = estimate_poses(shipped_network, batch)
    np.testing.assert_allclose(mixed[[0, 2]], valid[[0, 2]], atol=1e-5)
    assert np.isnan(mixed[1]).all()
