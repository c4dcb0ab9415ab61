"""Poses, and the camera that sees them.

The camera is a pinhole whose optical axis passes through the centroid of the face's 68 points, as
in a crop centred on the face: x right, y down, z away from the camera. A head point p (in the axes
of `export.pose.training.head`) is seen at ``(q_x / q_z, q_y / q_z)`` with ``q = R p + t`` and
``R = Rz(yaw) · Ry(roll) · Rx(pitch)``. Mind the names: the raw "Roll" is the turn about the
vertical axis that people call yaw, and the raw "Yaw" is the tilt in the image plane.
"""

import math

import torch

PITCH_LIMIT, ROLL_LIMIT, YAW_LIMIT = (math.radians(degrees) for degrees in (60.0, 75.0, 60.0))
"""Largest raw Pitch, Roll and Yaw, in radians."""

NEAR, FAR = 28.0, 52.0
"""Camera distances in head units (about cm), as far as tracked faces show them.

The meshes that MediaPipe gives shrink with depth as if nearly all were seen from 30 to 55 cm.
"""

FRONTAL_SHARE = 0.6
"""Share of poses from the bell around the frontal pose; the rest is uniform within the limits."""

FRONTAL_SPREAD = tuple(math.radians(degrees) for degrees in (14.0, 20.0, 10.0))
"""Standard deviation of that bell for raw Pitch, Roll, Yaw, in radians."""


def sample_angles(
    count: int, generator: torch.Generator, frontal_share: float = FRONTAL_SHARE
) -> torch.Tensor:
    """Draw poses, denser near frontal.

    Parameters
    ----------
    count : int
        How many.
    generator : torch.Generator
        Source of randomness.
    frontal_share : float
        Share of poses from the bell around the frontal pose, 0 to 1; 0 is uniform.

    Returns
    -------
    Tensor, shape (count, 3)
        Raw Pitch, Roll, Yaw in radians.
    """
    limits = torch.tensor([PITCH_LIMIT, ROLL_LIMIT, YAW_LIMIT])
    uniform = (2 * torch.rand(count, 3, generator=generator) - 1) * limits
    bell = torch.randn(count, 3, generator=generator) * torch.tensor(FRONTAL_SPREAD)
    frontal = torch.rand(count, 1, generator=generator) < frontal_share
    return torch.where(frontal, bell.clamp(-limits, limits), uniform)


def sample_distances(count: int, generator: torch.Generator) -> torch.Tensor:
    """Draw camera distances ``[count]``, `NEAR` to `FAR`, uniform in 1/distance (perspective)."""
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


def place(
    points: torch.Tensor, rotations: torch.Tensor, distances: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put heads in front of the camera, the centroid of their 68 landmarks on its axis.

    Parameters
    ----------
    points : Tensor, shape (N, P, 3)
        Head points, the 68 landmarks first.
    rotations : Tensor, shape (N, 3, 3)
    distances : Tensor, shape (N,)
        Depth of the landmarks' centroid.

    Returns
    -------
    placed : Tensor, shape (N, P, 3)
        Points in camera axes.
    translations : Tensor, shape (N, 3)
        X, Y, Z: where the head model's origin, the middle of the head between the ears, lies.
    """
    turned = points @ rotations.transpose(1, 2)
    translations = -turned[:, :68].mean(dim=1)
    translations[:, 2] += distances
    return turned + translations[:, None], translations


def project(placed: torch.Tensor) -> torch.Tensor:
    """Project camera-axes points ``[N, P, 3]``, z > 0, at unit focal length to ``[N, P, 2]``."""
    return placed[..., :2] / placed[..., 2:]
