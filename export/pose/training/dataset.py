"""Synthetic faces with known pose (head, camera, noise), and the network's input made of them."""

import dataclasses

import numpy as np
import torch

from export.errors import ExportError
from export.pose.network import EYE_CORNERS, SMALLEST_EYE_DISTANCE
from export.pose.training import camera, landmarker_noise
from export.pose.training.head import EXPRESSIONS, MIRRORED_LANDMARK, HeadModel, head_model

MIRRORED_SIGN = (1.0, -1.0, -1.0, -1.0, 1.0, 1.0)
"""What a horizontal mirror does to (Pitch, Roll, Yaw, X, Y, Z)."""

RELAXED = 0.15
"""Standard deviation of all expression weights in a relaxed face."""


@dataclasses.dataclass(frozen=True)
class Faces:
    """A batch of synthetic faces.

    Attributes
    ----------
    landmarks : Tensor, shape (N, 68, 2)
        Image positions at unit focal length, y down.
    poses : Tensor, shape (N, 6)
        Raw Pitch, Roll, Yaw in radians; X, Y, Z in head units (about cm).
    """

    landmarks: torch.Tensor
    poses: torch.Tensor


def synthetic_faces(
    count: int, generator: torch.Generator, point_habit: float = landmarker_noise.POINT_HABIT
) -> Faces:
    """Draw faces, each of an identity of its own.

    Parameters
    ----------
    count : int
        How many.
    generator : torch.Generator
        Source of randomness; equal states give equal faces.
    point_habit : float
        Standard deviation of a landmarker's own idea of where a point is, in eye distances.

    Returns
    -------
    Faces
    """
    model = head_model()
    points = model.deform(_sample_weights(model, count, generator))
    angles = camera.sample_angles(count, generator)
    rotations = camera.rotation_matrices(angles)
    distances = camera.sample_distances(count, generator)
    placed, translations = camera.place(points, rotations, distances)
    projected = camera.project(placed)
    landmarks = landmarker_noise.slide_contour(
        projected, rotations[:, :2, 0], _sample_slide(count, generator)
    )
    left, right = EYE_CORNERS
    eye_distance = (points[:, left] - points[:, right]).norm(dim=-1) / distances
    landmarks = landmarker_noise.disturb(landmarks, eye_distance, generator, point_habit)
    return Faces(landmarks, torch.cat([angles, translations], dim=1))


def with_mirrored(faces: Faces) -> Faces:
    """Return the faces followed by their mirror images."""
    mirror = mirror_landmarks(faces.landmarks)
    poses = faces.poses * torch.tensor(MIRRORED_SIGN)
    return Faces(torch.cat([faces.landmarks, mirror]), torch.cat([faces.poses, poses]))


def mirror_landmarks(landmarks: torch.Tensor) -> torch.Tensor:
    """Mirror ``[N, 68, 2]`` about the vertical: negate x and swap left with right landmarks."""
    return landmarks[:, list(MIRRORED_LANDMARK)] * torch.tensor([-1.0, 1.0])


def check_landmarks(landmarks: np.ndarray, source: str) -> None:
    """Refuse landmarks that have no pose.

    Parameters
    ----------
    landmarks : ndarray, shape (N, 68, 2)
    source : str
        Where they came from, for the message.

    Raises
    ------
    ExportError
        When a face has a non-finite coordinate or no distance between its outer eye corners; the
        message names the face's index.
    """
    finite = np.isfinite(landmarks).all(axis=(1, 2))
    if not finite.all():
        face = int(np.argmin(finite))
        point = int(np.argmin(np.isfinite(landmarks[face]).all(axis=1)))
        raise ExportError(f"{source}: face {face} has a non-finite landmark (point {point})")
    left, right = EYE_CORNERS
    size = np.linalg.norm(landmarks[:, left] - landmarks[:, right], axis=1)
    if not (size > SMALLEST_EYE_DISTANCE).all():
        face = int(np.argmin(size > SMALLEST_EYE_DISTANCE))
        raise ExportError(
            f"{source}: face {face} has no eye distance: points {left} and {right} coincide, and "
            "the landmarks are scaled by their distance"
        )


def _sample_weights(model: HeadModel, count: int, generator: torch.Generator) -> torch.Tensor:
    identity = torch.randn(count, model.identity_modes, generator=generator)
    identity = identity + model.typical_identity()
    return torch.cat([identity, _sample_expressions(count, generator)], dim=1)


def _sample_expressions(count: int, generator: torch.Generator) -> torch.Tensor:
    """Draw expression weights: each absent in half of the faces, else anything up to full."""
    shape = (count, len(EXPRESSIONS))
    active = torch.rand(shape, generator=generator) < 0.5
    weights = active * torch.rand(shape, generator=generator)
    sideways = EXPRESSIONS.index("mouth_sideways")
    weights[:, sideways] *= torch.rand(count, generator=generator) - 0.5
    return weights + RELAXED * torch.randn(shape, generator=generator)


def _sample_slide(count: int, generator: torch.Generator) -> torch.Tensor:
    """Draw silhouette strengths: half of the landmarkers never slide, the others more or less."""
    slides = torch.rand(count, generator=generator) < 0.5
    return slides * torch.rand(count, generator=generator)
