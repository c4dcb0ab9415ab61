"""Where a face lies: the affine map of its 68 landmarks onto the aligned face (SPEC section 1).

Convention
----------
Landmarks are (x, y) pixels with the origin at the top left pixel's centre, in the iBUG/OpenFace order of
68 points. An affine is a ``[2, 3]`` matrix that maps frame pixels to aligned pixels (source to
destination), ``aligned = affine @ (x, y, 1)``.

Everything here is float64 on the CPU, whatever holds the frames: float32 would move HOG features by
about 1e-4, enough to flip a leaf of the trained AU classifiers. For the same reason the order of the
operations is part of the contract: the batched products below are what makes the last bit, and so the
truncation of a landmark that falls on a whole pixel, come out as in py-feat.
"""

import dataclasses

import torch

LEFT_EYE = slice(36, 42)
RIGHT_EYE = slice(42, 48)
NOSE_TIP = 30
MOUTH_CORNERS = (48, 54)

SMALLEST_LENGTH = 1e-12
"""Lengths are clamped to this before they divide (SPEC section 1), pixels."""


@dataclasses.dataclass(frozen=True)
class Alignment:
    """The alignment of N faces.

    Attributes
    ----------
    affine : Tensor of float64, shape (N, 2, 3)
        Frame pixels to aligned pixels.
    landmarks : Tensor of int64, shape (N, 68, 2)
        The landmarks in aligned pixels, truncated toward zero; they may lie outside the face.
    """

    affine: torch.Tensor
    landmarks: torch.Tensor


def eye_distance(landmarks: torch.Tensor) -> torch.Tensor:
    """Return the distance of the two eye centres in pixels, float64 ``[N]``, of landmarks ``[N, 68, 2]``."""
    return torch.linalg.norm(_eye_axis(landmarks.to(torch.float64)), dim=1)


def align(landmarks: torch.Tensor, face_size: int, box_enlarge: float) -> Alignment:
    """Fit the affine that levels the eyes and frames the face, and project the landmarks with it.

    Parameters
    ----------
    landmarks : Tensor, shape (N, 68, 2)
        Finite landmarks in frame pixels, on the CPU.
    face_size : int
        Side of the square aligned face, pixels.
    box_enlarge : float
        Side of the framed square over the larger side of the anchors' box.

    Returns
    -------
    Alignment
    """
    points = landmarks.to(torch.float64)
    rotation = _leveling_rotation(points)
    scale, shift = _framing(rotation, points, face_size, box_enlarge)
    affine = torch.cat([_scaled(rotation, scale), shift.unsqueeze(2)], dim=2)
    return Alignment(affine=affine, landmarks=_project(affine, points).to(torch.int64).contiguous())


def _eye_axis(points: torch.Tensor) -> torch.Tensor:
    return points[:, RIGHT_EYE].mean(dim=1) - points[:, LEFT_EYE].mean(dim=1)


def _leveling_rotation(points: torch.Tensor) -> torch.Tensor:
    """Return the rotations ``[N, 2, 2]`` that turn the eye axis onto +x."""
    axis = _eye_axis(points)
    length = torch.linalg.norm(axis, dim=1).clamp(min=SMALLEST_LENGTH)
    cosine, sine = axis[:, 0] / length, axis[:, 1] / length
    return torch.stack([torch.stack([cosine, sine], dim=1), torch.stack([-sine, cosine], dim=1)], dim=1)


def _framing(
    rotation: torch.Tensor, points: torch.Tensor, face_size: int, box_enlarge: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scale ``[N]`` and the shift ``[N, 2]`` that put the enlarged box on the aligned face."""
    anchors = torch.stack(
        [
            points[:, LEFT_EYE].mean(dim=1),
            points[:, RIGHT_EYE].mean(dim=1),
            points[:, NOSE_TIP],
            *(points[:, corner] for corner in MOUTH_CORNERS),
        ],
        dim=1,
    )
    level = torch.einsum("nij,naj->nai", rotation, anchors)
    low, high = level.min(dim=1).values, level.max(dim=1).values
    half = 0.5 * box_enlarge * (high - low).max(dim=1).values
    scale = (face_size - 1) * 0.5 / half.clamp(min=SMALLEST_LENGTH)
    centre = (high + low) * 0.5
    return scale, scale.unsqueeze(1) * (half.unsqueeze(1) - centre)


def _scaled(rotation: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return torch.einsum("nij,njk->nik", torch.diag_embed(scale.unsqueeze(1).expand(-1, 2)), rotation)


def _project(affine: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    homogeneous = torch.cat([points, torch.ones_like(points[:, :, :1])], dim=2)
    return torch.einsum("nij,nkj->nki", affine, homogeneous)
