"""The mean head's landmarks, projected with scipy's rotations."""

import numpy as np
from scipy.spatial.transform import Rotation

from export.pose.training import head

Angles = tuple[float, float, float]


def mean_landmarks() -> np.ndarray:
    """Return the 68 points of the mean head, centred."""
    points = head.mean_mesh()[list(head.LANDMARK_VERTICES)]
    return points - points.mean(axis=0)


def project_mean_head(angles_deg: Angles, distance: float | None) -> np.ndarray:
    """Rotate the mean head by raw angles and project it; `distance` None means orthographic."""
    points = Rotation.from_euler("xyz", angles_deg, degrees=True).apply(mean_landmarks())
    if distance is None:
        return points[:, :2]
    return points[:, :2] / (points[:, 2:] + distance)
