"""Alignment, warp and mask of a batch of faces, in one pass and without a word of Triton.

A batch may hold the faces of several requests. Every stage treats its faces row by row, so a face has the
same bits alone, in company and beside a faulty one.
"""

import dataclasses
from collections.abc import Set

import torch

import face_checks
from alignment import align, eye_distance
from hull_mask import hull_masks
from settings import Settings
from warp import warp

PIXEL_OUTPUTS = frozenset({"MASKED_FACES", "ALIGNED_FACES"})
MASK_OUTPUTS = frozenset({"MASKED_FACES", "MASK"})


@dataclasses.dataclass(frozen=True)
class Faces:
    """What came of a batch of N faces.

    Attributes
    ----------
    outputs : dict of str to Tensor
        The wanted tensors by their Triton names, N rows each, or none where every face is faulty. The row
        of a faulty face means nothing.
    faults : dict of int to str
        The faulty faces and why.
    """

    outputs: dict[str, torch.Tensor]
    faults: face_checks.Faults


def process(frames: torch.Tensor, landmarks: torch.Tensor, wanted: Set[str], settings: Settings) -> Faces:
    """Align, warp and mask the faces of frames that share a size.

    Parameters
    ----------
    frames : Tensor of float32, shape (N, 3, H, W)
        Values in [0, 1]. The warp runs on the device that holds them.
    landmarks : Tensor of float32, shape (N, 68, 2)
        Landmarks (x, y) in frame pixels, on the CPU.
    wanted : set of str
        Which outputs to compute.
    settings : Settings
        Sizes and limits.

    Returns
    -------
    Faces
    """
    count = len(frames)
    faults = _input_faults(frames, landmarks, settings)
    sound = [face for face in range(count) if face not in faults]
    if not sound:
        return Faces({}, faults)
    if faults:
        frames, landmarks = frames[sound], landmarks[sound]
    outputs, late_faults = _compute(frames, landmarks, wanted, settings)
    if faults:
        outputs = {name: _spread(rows, sound, count) for name, rows in outputs.items()}
    return Faces(outputs, faults | {sound[row]: reason for row, reason in late_faults.items()})


def _input_faults(frames: torch.Tensor, landmarks: torch.Tensor, settings: Settings) -> face_checks.Faults:
    height, width = frames.shape[2:]
    refusal = face_checks.frame_fault(height, width, settings.min_frame_side, settings.max_frame_pixels)
    if refusal:
        return dict.fromkeys(range(len(frames)), refusal)
    return (
        face_checks.pixel_faults(frames)
        | face_checks.eye_faults(eye_distance(landmarks))
        | face_checks.landmark_faults(landmarks.numpy(), height, width, settings.max_landmark_distance)
    )


def _compute(
    frames: torch.Tensor, landmarks: torch.Tensor, wanted: Set[str], settings: Settings
) -> tuple[dict[str, torch.Tensor], face_checks.Faults]:
    """Compute the wanted outputs of faces that passed the input checks."""
    alignment = align(landmarks, settings.face_size, settings.box_enlarge)
    aligned_landmarks = alignment.landmarks.numpy()
    faults = face_checks.aligned_faults(aligned_landmarks)
    outputs = {
        "ALIGNED_LANDMARKS": alignment.landmarks,
        "AFFINE": alignment.affine.to(torch.float32),
    }
    if wanted & MASK_OUTPUTS:
        masks, without_hull = hull_masks(aligned_landmarks, settings.face_size)
        faults = dict.fromkeys(without_hull, face_checks.NO_HULL) | faults
        outputs["MASK"] = torch.from_numpy(masks)
    if wanted & PIXEL_OUTPUTS:
        affine = outputs["AFFINE"].to(frames.device)
        outputs["ALIGNED_FACES"] = warp(frames, affine, settings.face_size, settings.fill)
    if "MASKED_FACES" in wanted:
        outputs["MASKED_FACES"] = _masked(outputs["ALIGNED_FACES"], outputs["MASK"])
    return {name: outputs[name] for name in wanted}, faults


def _masked(aligned: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    return aligned * masks.to(aligned.device, aligned.dtype).unsqueeze(1)


def _spread(rows: torch.Tensor, faces: list[int], count: int) -> torch.Tensor:
    """Put the rows of some faces back in their places among `count`; the other rows are zero."""
    spread = rows.new_zeros((count, *rows.shape[1:]))
    spread[faces] = rows
    return spread
