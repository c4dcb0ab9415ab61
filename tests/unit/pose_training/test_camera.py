"""The camera: rotations and projection against scipy, and the distribution of poses."""

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from export.pose.training import camera, head
from tests.unit.pose_training.mean_head import Angles, project_mean_head


def test_projection_equals_scipys_rotation_and_a_pinhole():
    angles = np.array([[0.3, -0.8, 0.5], [-1.0, 1.2, -0.9]])
    points = torch.from_numpy(np.stack([head.mean_mesh()[list(head.LANDMARK_VERTICES)]] * 2))
    distances = torch.tensor([40.0, 300.0], dtype=torch.float64)
    rotations = camera.rotation_matrices(torch.from_numpy(angles))
    placed, translations = camera.place_heads(points, rotations, distances)
    projected = camera.project(placed).numpy()
    for face in range(2):
        rotation = Rotation.from_euler("xyz", angles[face])
        np.testing.assert_allclose(rotations[face].numpy(), rotation.as_matrix(), atol=1e-12)
        expected = rotation.apply(points[face].numpy()) + translations[face].numpy()
        np.testing.assert_allclose(
            expected.mean(axis=0), [0, 0, distances[face]], atol=1e-9, err_msg="centroid on the axis"
        )
        np.testing.assert_allclose(projected[face], expected[:, :2] / expected[:, 2:], atol=1e-12)


def test_positive_raw_angles_turn_in_the_documented_direction():
    def nose_from_eyes(angles: Angles) -> np.ndarray:
        points = project_mean_head(angles, 60.0)
        return points[30] - (points[36] + points[45]) / 2

    assert nose_from_eyes((20, 0, 0))[1] > nose_from_eyes((0, 0, 0))[1], "raw Pitch > 0 nods down"
    assert nose_from_eyes((0, 20, 0))[0] < -0.01, "raw Roll > 0 turns to the subject's right, image left"
    tilted = project_mean_head((0, 0, 20), 60.0)
    assert tilted[45, 1] > tilted[36, 1], "raw Yaw > 0 tilts clockwise in the image"


def test_poses_fill_the_limits_and_are_denser_near_frontal(generator: torch.Generator):
    limits = torch.tensor([camera.PITCH_LIMIT, camera.ROLL_LIMIT, camera.YAW_LIMIT])
    angles = camera.sample_angles(20000, generator).abs()
    assert (angles.amax(dim=0) <= limits + 1e-5).all()
    assert (angles.amax(dim=0) > 0.96 * limits).all()
    assert (angles < np.radians(15)).float().mean(dim=0).min() > 0.3
    uniform = camera.sample_angles(20000, generator, frontal_fraction=0.0).abs()
    np.testing.assert_allclose((uniform[:, 1] < limits[1] / 2).float().mean(), 0.5, atol=0.02)


def test_distances_fill_their_range(generator: torch.Generator):
    distances = camera.sample_distances(20000, generator)
    assert camera.NEAR <= distances.min() < 1.05 * camera.NEAR
    assert 0.8 * camera.FAR < distances.max() <= camera.FAR * 1.001
