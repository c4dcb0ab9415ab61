"""Alignment: the affine map of a face's 68 landmarks onto the aligned face (SPEC section 1).

Convention
----------
Landmarks are (x, y) pixels in the iBUG/OpenFace order of 68 points; the origin is the centre of the top left
pixel. An affine matrix ``[2, 3]`` maps frame pixels to aligned pixels (source to destination):
``aligned = affine @ (x, y, 1)``. The anchors are five points: the two eye centres, the nose tip and the
mouth corners.

Everything here is float64 on the CPU, whichever device holds the frames: float32 would move HOG features by
about 1e-4, enough for a tree of the AU classifiers to select another leaf. The order of the operations is
part of the contract, too: the batched products (`torch.bmm`) round like py-feat's. The last bit decides
whether a landmark at a whole pixel is truncated to this pixel or to its neighbour.
"""

import dataclasses

import torch
import torch.nn.functional as F

EYES = slice(36, 48)
POINTS_PER_EYE = 6
NOSE_TIP_AND_MOUTH_CORNERS = torch.tensor([30, 48, 54])

MIN_DIVISOR = 1e-12
"""Lengths are clamped to this before a division (SPEC section 1), in pixels."""


@dataclasses.dataclass(frozen=True)
class Alignment:
    """The alignment of N faces.

    Attributes
    ----------
    affine : Tensor of float64, shape (N, 2, 3)
        Frame pixels to aligned pixels.
    landmarks : Tensor of int64, shape (N, 68, 2)
        The landmarks in aligned pixels, truncated toward zero; they may lie outside the aligned face.
    eye_distance : Tensor of float64, shape (N,)
        Distance between the two eye centres in the frame, pixels.
    """

    affine: torch.Tensor
    landmarks: torch.Tensor
    eye_distance: torch.Tensor


def align(landmarks: torch.Tensor, face_size: int, box_enlarge: float) -> Alignment:
    """Fit the affine matrix that levels the eyes and centres the anchors; map the landmarks with it.

    Parameters
    ----------
    landmarks : Tensor, shape (N, 68, 2)
        Landmarks in frame pixels, on the CPU. The result for a NaN or infinite landmark is undefined.
    face_size : int
        Side of the square aligned face, pixels.
    box_enlarge : float
        Side of the aligned square divided by the larger side of the anchors' bounding box.

    Returns
    -------
    Alignment
    """
    points = landmarks.to(torch.float64)
    eyes = points[:, EYES].reshape(len(points), 2, POINTS_PER_EYE, 2).mean(dim=2)
    axis = eyes[:, 1] - eyes[:, 0]
    eye_distance = torch.linalg.vector_norm(axis, dim=1)

    rotation = _leveling_rotation(axis, eye_distance)
    anchors = torch.cat([eyes, points[:, NOSE_TIP_AND_MOUTH_CORNERS]], dim=1)
    scale, shift = _scale_and_shift(rotation, anchors, face_size, box_enlarge)
    affine = torch.cat([rotation * scale.unsqueeze(2), shift.unsqueeze(2)], dim=2)
    return Alignment(affine, _project(affine, points).to(torch.int64), eye_distance)


def _leveling_rotation(axis: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """Return rotations ``[N, 2, 2]`` that turn the eye axis, ``[N, 2]`` with lengths ``[N]``, onto +x."""
    cosine, sine = (axis / length.clamp(min=MIN_DIVISOR).unsqueeze(1)).unbind(dim=1)
    return torch.stack([cosine, sine, -sine, cosine], dim=1).reshape(-1, 2, 2)


def _scale_and_shift(
    rotation: torch.Tensor, anchors: torch.Tensor, face_size: int, box_enlarge: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scale ``[N, 1]`` and shift ``[N, 2]`` from rotated to aligned coordinates.

    They map the enlarged bounding box of the rotated anchors, ``[N, 5, 2]`` before the rotation, onto the
    aligned face.
    """
    rotated = torch.bmm(anchors, rotation.transpose(1, 2))
    low, high = rotated.amin(dim=1), rotated.amax(dim=1)
    half = 0.5 * box_enlarge * (high - low).amax(dim=1, keepdim=True)
    scale = (face_size - 1) * 0.5 / half.clamp(min=MIN_DIVISOR)
    centre = (high + low) * 0.5
    return scale, scale * (half - centre)


def _project(affine: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    homogeneous = F.pad(points, (0, 1), value=1.0)
    return torch.bmm(homogeneous, affine.transpose(1, 2))
