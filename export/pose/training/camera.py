"""Random poses, and their projection by a pinhole camera.

The optical axis passes through the centroid of the face's 68 points, as in a crop centred on the face.
Axes are x right, y down, z away from the camera. A head point p, in the axes of
`export.pose.training.head`, is projected to ``(q_x / q_z, q_y / q_z)`` with ``q = R p + t`` and
``R = Rz(yaw) · Ry(roll) · Rx(pitch)``.

The angles are raw: named as in py-feat's network. Raw Roll is the turn about the vertical axis, usually
called yaw; raw Yaw is the tilt in the image plane, usually called roll.
"""

import math

import torch

PITCH_LIMIT, ROLL_LIMIT, YAW_LIMIT = (math.radians(degrees) for degrees in (60.0, 75.0, 60.0))
"""Largest raw Pitch, Roll and Yaw, in radians."""

NEAR, FAR = 28.0, 52.0
"""Limits of the camera's distance in head units (about cm).

MediaPipe's meshes have the perspective of faces seen from about 30 to 55 cm.
"""

FRONTAL_FRACTION = 0.6
"""Fraction of poses drawn from a normal distribution about the frontal pose; the rest is uniform."""

FRONTAL_SPREAD = tuple(math.radians(degrees) for degrees in (14.0, 20.0, 10.0))
"""Standard deviations of raw Pitch, Roll, Yaw in that distribution, in radians."""


def sample_angles(
    count: int, generator: torch.Generator, frontal_fraction: float = FRONTAL_FRACTION
) -> torch.Tensor:
    """Draw the angles of poses; near-frontal poses are more frequent.

    Parameters
    ----------
    count : int
        Number of poses.
    generator : torch.Generator
        Source of randomness.
    frontal_fraction : float
        Fraction of poses drawn about the frontal pose, 0 to 1.

    Returns
    -------
    Tensor, shape (count, 3)
        Raw Pitch, Roll, Yaw in radians.
    """
    limits = torch.tensor([PITCH_LIMIT, ROLL_LIMIT, YAW_LIMIT])
    uniform = (2 * torch.rand(count, 3, generator=generator) - 1) * limits
    near_frontal = torch.randn(count, 3, generator=generator) * torch.tensor(FRONTAL_SPREAD)
    is_near_frontal = torch.rand(count, 1, generator=generator) < frontal_fraction
    return torch.where(is_near_frontal, near_frontal.clamp(-limits, limits), uniform)


def sample_distances(count: int, generator: torch.Generator) -> torch.Tensor:
    """Draw camera distances ``[count]`` from `NEAR` to `FAR`, uniform in 1/distance."""
    inverse = torch.rand(count, generator=generator) * (1 / NEAR - 1 / FAR) + 1 / FAR
    return 1 / inverse


def rotation_matrices(angles: torch.Tensor) -> torch.Tensor:
    """Return ``Rz(yaw) · Ry(roll) · Rx(pitch)``.

    Parameters
    ----------
    angles : Tensor, shape (N, 3)
        Raw Pitch, Roll, Yaw in radians.

    Returns
    -------
    Tensor, shape (N, 3, 3)
    """
    (sa, sb, sc), (ca, cb, cc) = angles.sin().unbind(-1), angles.cos().unbind(-1)
    rows = [
        torch.stack([cc * cb, cc * sb * sa - sc * ca, cc * sb * ca + sc * sa], dim=-1),
        torch.stack([sc * cb, sc * sb * sa + cc * ca, sc * sb * ca - cc * sa], dim=-1),
        torch.stack([-sb, cb * sa, cb * ca], dim=-1),
    ]
    return torch.stack(rows, dim=-2)


def place_heads(
    points: torch.Tensor, rotations: torch.Tensor, distances: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate heads and move the centroid of their 68 landmarks onto the camera's axis.

    Parameters
    ----------
    points : Tensor, shape (N, P, 3)
        Head points, the 68 landmarks first.
    rotations : Tensor, shape (N, 3, 3)
    distances : Tensor, shape (N,)
        Distances of the centroids from the camera, in head units.

    Returns
    -------
    placed : Tensor, shape (N, P, 3)
        Points in camera axes.
    translations : Tensor, shape (N, 3)
        X, Y, Z of the head model's origin, in the middle of the head between the ears.
    """
    rotated = points @ rotations.transpose(1, 2)
    translations = -rotated[:, :68].mean(dim=1)
    translations[:, 2] += distances
    return rotated + translations[:, None], translations


def project(placed: torch.Tensor) -> torch.Tensor:
    """Project points ``[N, P, 3]`` in camera axes, z > 0, to ``[N, P, 2]`` at unit focal length."""
    return placed[..., :2] / placed[..., 2:]
