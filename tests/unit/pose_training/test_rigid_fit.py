"""The geometric baselines, against known poses and scipy's least squares."""

import numpy as np
import pytest
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from export.pose.training.rigid_fit import fitted_angles
from tests.unit.pose_training.conftest import LabelledFaces
from tests.unit.pose_training.mean_head import mean_landmarks, project_mean_head


@pytest.mark.parametrize(("method", "distance"), [("procrustes", None), ("pnp", 35.0)])
def test_fit_recovers_the_pose_of_the_mean_head(method: str, distance: float | None):
    poses = [(0, 0, 0), (25, -40, 30), (-50, 70, -55), (55, -10, 58)]
    faces = np.stack([project_mean_head(pose, distance) * 700 + 300 for pose in poses])
    estimated = np.degrees(fitted_angles(faces, method))
    np.testing.assert_allclose(estimated, poses, atol=0.02)


def test_fit_is_as_good_as_scipys_least_squares(held_out: LabelledFaces):
    faces = held_out[0][:12]
    for face, angles in zip(faces, fitted_angles(faces), strict=True):
        assert _cost(face, angles, fit_angles=False) <= _cost(face, angles, fit_angles=True) + 1e-6


def _cost(face: np.ndarray, angles: np.ndarray, fit_angles: bool) -> float:
    """Return scipy's least cost for scale and shift, and, with `fit_angles`, for the angles, too."""
    target = face - face.mean(axis=0)
    target = target / np.sqrt((target**2).sum(axis=1).mean())

    def residuals(parameters: np.ndarray) -> np.ndarray:
        rotation = Rotation.from_euler("xyz", parameters[3:] if fit_angles else angles)
        projected = np.exp(parameters[0]) * rotation.apply(mean_landmarks())[:, :2] + parameters[1:3]
        return (projected - target).ravel()

    start = np.array([-1.8, 0.0, 0.0, *(angles if fit_angles else ())])
    return least_squares(residuals, start, method="lm").cost
