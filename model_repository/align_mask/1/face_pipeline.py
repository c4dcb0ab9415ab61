"""Alignment, warp and mask of a batch of faces, in one pass and without a word of Triton.

A batch may hold the faces of several requests. Every stage treats its faces row by row, so a face has the
same bits alone, in company and beside a faulty one.

Landmarks are small: alignment, checks and masks go through all faces at once. Pixels are large: on a CPU they
go through warp and mask a few faces at a time, so that what one step writes is still in the cache when the
next one reads it.
"""

import dataclasses
from collections import Counter
from collections.abc import Set

import numpy as np
import torch

import face_checks
from alignment import Alignment, align
from hull_mask import convex_hulls, hull_masks
from settings import Settings
from stage_clock import StageClock
from warp import warp

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
    seconds : Counter of str
        Time spent, by stage.
    """

    outputs: dict[str, torch.Tensor]
    faults: face_checks.Faults
    seconds: Counter[str]


@torch.inference_mode()
def process(frames: torch.Tensor, landmarks: torch.Tensor, wanted: Set[str], settings: Settings) -> Faces:
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

    Returns
    -------
    Faces
    """
    clock = StageClock()
    with clock.stage("align"):
        alignment = align(landmarks, settings.face_size, settings.box_enlarge)
        hulls = convex_hulls(alignment.landmarks.numpy())
        faults = _faults(frames, landmarks, alignment, hulls, settings)
    outputs = {
        "ALIGNED_LANDMARKS": alignment.landmarks,
        "AFFINE": alignment.affine.to(torch.float32),
    }
    sound = [face for face in range(len(frames)) if face not in faults]
    if not sound:
        return Faces({}, faults, clock.seconds)
    if wanted - set(outputs):
        if not faults:
            outputs |= _images(frames, outputs, hulls, wanted, settings, clock)
        else:
            rows = {name: values[sound] for name, values in outputs.items()}
            images = _images(frames[sound], rows, [hulls[face] for face in sound], wanted, settings, clock)
            outputs |= {name: _spread(values, sound, len(frames)) for name, values in images.items()}
    return Faces({name: outputs[name] for name in wanted}, faults, clock.seconds)


def _faults(
    frames: torch.Tensor,
    landmarks: torch.Tensor,
    alignment: Alignment,
    hulls: list[np.ndarray],
    settings: Settings,
) -> face_checks.Faults:
    """Find the faulty faces; where a face has several faults, the last one here is named."""
    height, width = frames.shape[2:]
    refusal = face_checks.frame_fault(height, width, settings.min_frame_side, settings.max_frame_pixels)
    if refusal:
        return dict.fromkeys(range(len(frames)), refusal)
    return (
        face_checks.hull_faults(hulls)
        | face_checks.aligned_faults(alignment.landmarks.numpy())
        | face_checks.pixel_faults(frames)
        | face_checks.eye_faults(alignment.eye_distance)
        | face_checks.landmark_faults(landmarks.numpy(), height, width, settings.max_landmark_distance)
    )


def _images(
    frames: torch.Tensor,
    aligned: dict[str, torch.Tensor],
    hulls: list[np.ndarray],
    wanted: Set[str],
    settings: Settings,
    clock: StageClock,
) -> dict[str, torch.Tensor]:
    """Compute the wanted ones of MASK, ALIGNED_FACES and MASKED_FACES of sound, `aligned` faces."""
    images = {}
    if wanted & MASK_OUTPUTS:
        with clock.stage("mask"):
            masks = hull_masks(aligned["ALIGNED_LANDMARKS"].numpy(), hulls, settings.face_size)
            images["MASK"] = torch.from_numpy(masks)
    names = sorted(wanted & PIXEL_OUTPUTS)
    if names:
        with clock.stage("warp"):
            size = (len(frames), frames.shape[1], settings.face_size, settings.face_size)
            images |= {name: torch.empty(size, device=frames.device) for name in names}
            at_once = FACES_IN_CACHE if frames.device.type == "cpu" else len(frames)
            for first in range(0, len(frames), at_once):
                _fill_pixels(images, slice(first, first + at_once), frames, aligned["AFFINE"], settings)
    return images


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
    spread = rows.new_zeros((count, *rows.shape[1:]))
    spread[faces] = rows
    return spread
