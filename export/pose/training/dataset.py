"""Synthetic faces with known pose: a deformed head, seen by a camera, with a landmarker's noise."""

import dataclasses

import numpy as np
import torch

from export.errors import ExportError
from export.pose.network import EYE_CORNERS, SMALLEST_EYE_DISTANCE
from export.pose.training import camera, landmarker_noise
from export.pose.training.head import EXPRESSIONS, MIRRORED_LANDMARK, HeadModel, head_model

MIRRORED_SIGN = (1.0, -1.0, -1.0, -1.0, 1.0, 1.0)
"""Factors of (Pitch, Roll, Yaw, X, Y, Z) under a horizontal mirror."""

EXPRESSION_NOISE = 0.15
"""Standard deviation of the noise that is added to each expression weight."""


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
    count: int, generator: torch.Generator, point_offset: float = landmarker_noise.POINT_OFFSET
) -> Faces:
    """Draw faces, each of a new identity.

    Parameters
    ----------
    count : int
        Number of faces.
    generator : torch.Generator
        Source of randomness. Equal states give equal faces.
    point_offset : float
        Standard deviation of a landmarker's offset at each point, in eye distances.

    Returns
    -------
    Faces
    """
    model = head_model()
    points = model.deform(_sample_weights(model, count, generator))
    angles = camera.sample_angles(count, generator)
    rotations = camera.rotation_matrices(angles)
    distances = camera.sample_distances(count, generator)
    placed, translations = camera.place_heads(points, rotations, distances)
    projected = camera.project(placed)
    landmarks = landmarker_noise.slide_contour(
        projected, rotations[:, :2, 0], _sample_slide_strengths(count, generator)
    )
    left, right = EYE_CORNERS
    eye_distance = (points[:, left] - points[:, right]).norm(dim=-1) / distances
    landmarks = landmarker_noise.add_noise(landmarks, eye_distance, generator, point_offset)
    return Faces(landmarks, torch.cat([angles, translations], dim=1))


def with_mirrored(faces: Faces) -> Faces:
    """Return the faces followed by their mirror images."""
    mirror = mirror_landmarks(faces.landmarks)
    poses = faces.poses * torch.tensor(MIRRORED_SIGN)
    return Faces(torch.cat([faces.landmarks, mirror]), torch.cat([faces.poses, poses]))


def mirror_landmarks(landmarks: torch.Tensor) -> torch.Tensor:
    """Mirror landmarks ``[N, 68, 2]`` horizontally: negate x and swap left and right landmarks."""
    return landmarks[:, list(MIRRORED_LANDMARK)] * torch.tensor([-1.0, 1.0])


def check_landmarks(landmarks: np.ndarray, source: str) -> None:
    """Raise an error for landmarks from which no pose can be computed.

    Parameters
    ----------
    landmarks : ndarray, shape (N, 68, 2)
    source : str
        Name of the landmarks' source for the message.

    Raises
    ------
    ExportError
        When a face has a non-finite coordinate, or its outer eye corners coincide. The message names
        the face's index.
    """
    finite = np.isfinite(landmarks).all(axis=(1, 2))
    if not finite.all():
        face = int(np.argmin(finite))
        point = int(np.argmin(np.isfinite(landmarks[face]).all(axis=1)))
        raise ExportError(f"{source}: face {face} has a non-finite landmark (point {point})")
    left, right = EYE_CORNERS
    has_eye_distance = (
        np.linalg.norm(landmarks[:, left] - landmarks[:, right], axis=1) > SMALLEST_EYE_DISTANCE
    )
    if not has_eye_distance.all():
        raise ExportError(
            f"{source}: face {int(np.argmin(has_eye_distance))} has no eye distance: points {left} and "
            f"{right} coincide, but landmarks are scaled by the distance between them"
        )


def _sample_weights(model: HeadModel, count: int, generator: torch.Generator) -> torch.Tensor:
    identity = torch.randn(count, model.identity_modes, generator=generator)
    identity = identity + model.typical_identity()
    return torch.cat([identity, _sample_expressions(count, generator)], dim=1)


def _sample_expressions(count: int, generator: torch.Generator) -> torch.Tensor:
    """Draw expression weights: 0 in half of the faces, uniform in [0, 1] in the other half, plus noise."""
    shape = (count, len(EXPRESSIONS))
    active = torch.rand(shape, generator=generator) < 0.5
    weights = active * torch.rand(shape, generator=generator)
    sideways = EXPRESSIONS.index("mouth_sideways")
    weights[:, sideways] *= torch.rand(count, generator=generator) - 0.5
    return weights + EXPRESSION_NOISE * torch.randn(shape, generator=generator)


def _sample_slide_strengths(count: int, generator: torch.Generator) -> torch.Tensor:
    """Draw strengths of `slide_contour`: 0 for half of the faces, uniform in [0, 1] for the other half."""
    is_2d_landmarker = torch.rand(count, generator=generator) < 0.5
    return is_2d_landmarker * torch.rand(count, generator=generator)
