"""Alignment, warp and mask of a batch of faces, in one pass and without a word of Triton.

A batch may hold the faces of several requests. Every stage treats its faces row by row, so a face has the
same bits alone, in company and beside a faulty one.

Landmarks are small: alignment, checks and masks go through all faces at once. Pixels are large: on a CPU they
go through warp and mask a few faces at a time, so that what one step writes is still in the cache when the
next one reads it.
"""

import dataclasses
from collections.abc import Iterator, Sequence, Set

import numpy as np
import torch

from align_mask import face_checks
from align_mask.alignment import Alignment, align
from align_mask.hull_mask import convex_hulls, hull_masks
from align_mask.settings import Settings
from align_mask.stage_clock import StageClock
from align_mask.warp import warp

PIXEL_OUTPUTS = frozenset({"MASKED_FACES", "ALIGNED_FACES"})
MASK_OUTPUTS = frozenset({"MASKED_FACES", "MASK"})

FACES_IN_CACHE = 8
"""Faces in one pass over pixels on a CPU. 50 at once took 1.6 times as long a face, 2 were no faster."""


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


@torch.inference_mode()
def process(
    frames: torch.Tensor, landmarks: torch.Tensor, wanted: Set[str], settings: Settings, clock: StageClock
) -> Faces:
    """Align, warp and mask the faces of frames that share a size.

    Parameters
    ----------
    frames : Tensor of float32 or uint8, shape (N, 3, H, W)
        Values in [0, 1], or 0 to 255. The warp runs on the device that holds them.
    landmarks : Tensor of float32, shape (N, 68, 2)
        Landmarks (x, y) in frame pixels, on the CPU.
    wanted : set of str
        Which outputs to compute.
    settings : Settings
        Sizes and limits.
    clock : StageClock
        Times the stages; on a CPU each chunk of `FACES_IN_CACHE` faces is a run of the stage "warp".

    Returns
    -------
    Faces
    """
    with clock.stage("align"):
        alignment = align(landmarks, settings.face_size, settings.box_enlarge)
        hulls = convex_hulls(alignment.landmarks.numpy())
    faults = _faults(frames, landmarks, alignment, hulls, settings, clock)
    outputs = {
        "ALIGNED_LANDMARKS": alignment.landmarks,
        "AFFINE": alignment.affine.to(torch.float32),
    }
    sound = [face for face in range(len(frames)) if face not in faults]
    if not sound:
        return Faces({}, faults)
    if wanted - set(outputs):
        outputs |= _images(frames, outputs, hulls, sound, wanted, settings, clock)
    return Faces({name: outputs[name] for name in wanted}, faults)


def _faults(
    frames: torch.Tensor,
    landmarks: torch.Tensor,
    alignment: Alignment,
    hulls: list[np.ndarray],
    settings: Settings,
    clock: StageClock,
) -> face_checks.Faults:
    """Find the faulty faces; where a face has several faults, the last one here is named."""
    height, width = frames.shape[2:]
    refusal = face_checks.frame_fault(height, width, settings.min_frame_side, settings.max_frame_pixels)
    if refusal:
        return dict.fromkeys(range(len(frames)), refusal)
    faults = face_checks.hull_faults(hulls) | face_checks.aligned_faults(alignment.landmarks.numpy())
    for rows in _chunks(range(len(frames)), frames.device):
        with clock.stage("align"):
            found = face_checks.pixel_faults(frames[rows])
        faults |= {rows.start + row: why for row, why in found.items()}
    return (
        faults
        | face_checks.eye_faults(alignment.eye_distance)
        | face_checks.landmark_faults(landmarks.numpy(), height, width, settings.max_landmark_distance)
    )


def _images(
    frames: torch.Tensor,
    aligned: dict[str, torch.Tensor],
    hulls: list[np.ndarray],
    sound: list[int],
    wanted: Set[str],
    settings: Settings,
    clock: StageClock,
) -> dict[str, torch.Tensor]:
    """Compute the wanted ones of MASK, ALIGNED_FACES and MASKED_FACES, in the rows of `sound` faces."""
    images = {}
    if wanted & MASK_OUTPUTS:
        with clock.stage("mask"):
            landmarks = aligned["ALIGNED_LANDMARKS"].numpy()[sound]
            masks = hull_masks(landmarks, [hulls[face] for face in sound], settings.face_size)
            images["MASK"] = _spread(torch.from_numpy(masks), sound, len(frames))
    names = sorted(wanted & PIXEL_OUTPUTS)
    if names:
        size = (len(frames), frames.shape[1], settings.face_size, settings.face_size)
        images |= {name: torch.empty(size, device=frames.device) for name in names}
        for rows in _chunks(sound, frames.device):
            with clock.stage("warp"):
                _fill_pixels(images, rows, frames, aligned["AFFINE"], settings)
    return images


def _chunks(faces: Sequence[int], device: torch.device) -> Iterator[slice]:
    """Split ascending faces into runs without a gap, each as long as one pass over pixels takes."""
    at_once = FACES_IN_CACHE if device.type == "cpu" else len(faces)
    first = 0
    for stop in range(1, len(faces) + 1):
        if stop == len(faces) or stop - first == at_once or faces[stop] != faces[stop - 1] + 1:
            yield slice(faces[first], faces[stop - 1] + 1)
            first = stop


def _fill_pixels(
    images: dict[str, torch.Tensor],
    rows: slice,
    frames: torch.Tensor,
    affine: torch.Tensor,
    settings: Settings,
) -> None:
    """Compute some rows of the pixel images there are, in place."""
    faces = warp(
        _unit_pixels(frames[rows]), affine[rows].to(frames.device), settings.face_size, settings.fill
    )
    if "ALIGNED_FACES" in images:
        images["ALIGNED_FACES"][rows] = faces
    if "MASKED_FACES" in images:
        mask = images["MASK"][rows].to(faces.device, faces.dtype).unsqueeze(1)
        torch.mul(faces, mask, out=images["MASKED_FACES"][rows])


def _unit_pixels(frames: torch.Tensor) -> torch.Tensor:
    """Return float32 frames in [0, 1]; those of 0 to 255 are divided by 255 in float32."""
    if frames.dtype != torch.uint8:
        return frames
    # By a tensor: CUDA divides by a number as a product with its inverse, which is off by an ulp.
    return frames.to(torch.float32).div_(torch.tensor(255.0, device=frames.device))


def _spread(rows: torch.Tensor, faces: list[int], count: int) -> torch.Tensor:
    """Put the rows of some faces back in their places among `count`; the other rows are zero."""
    if len(faces) == count:
        return rows
    spread = rows.new_zeros((count, *rows.shape[1:]))
    spread[faces] = rows
    return spread
