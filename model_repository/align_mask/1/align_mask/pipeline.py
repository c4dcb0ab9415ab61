"""Alignment, checks, mask and warp of a batch of faces, independent of Triton.

A batch may hold the faces of several requests. Every stage computes each face independently, so the bits of a
face's outputs do not depend on the other faces of the batch, valid or invalid.

Alignment, checks and masks handle all faces at once, because landmarks are small. Pixels are large: on a CPU,
the warp and the mask product handle a few faces at a time, so that intermediate results stay in the cache.
"""

import dataclasses
from collections.abc import Iterator, Sequence, Set

import numpy as np
import torch
from numpy.typing import NDArray

from align_mask import face_checks
from align_mask.alignment import Alignment, align
from align_mask.hull_mask import convex_hulls, hull_masks
from align_mask.settings import Settings
from align_mask.stage_clock import StageClock
from align_mask.warp import warp

PIXEL_OUTPUTS = frozenset({"MASKED_FACES", "ALIGNED_FACES"})
MASK_OUTPUTS = frozenset({"MASKED_FACES", "MASK"})

FACES_IN_CACHE = 8
"""Faces per pass over pixels on a CPU. With 50, each face took 1.6 times as long; 2 were not faster."""


@dataclasses.dataclass(frozen=True)
class FaceResults:
    """The results for a batch of N faces.

    Attributes
    ----------
    outputs : dict of str to Tensor
        The requested tensors by Triton name, N rows each; empty if every face is invalid. The row of an
        invalid face is undefined.
    invalid : dict of int to str
        The invalid faces by index, each with its message.
    """

    outputs: dict[str, torch.Tensor]
    invalid: face_checks.InvalidFaces


@torch.inference_mode()
def process(
    frames: torch.Tensor, landmarks: torch.Tensor, requested: Set[str], settings: Settings, clock: StageClock
) -> FaceResults:
    """Align, warp and mask the faces of frames that share a size.

    Parameters
    ----------
    frames : Tensor of float32 or uint8, shape (N, 3, H, W)
        Values in [0, 1], or 0 to 255. The warp runs on the device that holds them.
    landmarks : Tensor of float32, shape (N, 68, 2)
        Landmarks (x, y) in frame pixels, on the CPU.
    requested : set of str
        Names of the outputs to compute.
    settings : Settings
        Sizes and limits.
    clock : StageClock
        Times the stages; on a CPU each chunk of `FACES_IN_CACHE` faces is a separate run of the stage "warp".

    Returns
    -------
    FaceResults
    """
    with clock.stage("align"):
        alignment = align(landmarks, settings.face_size, settings.box_enlarge)
        hulls = convex_hulls(alignment.landmarks.numpy())
    invalid = _check(frames, landmarks, alignment, hulls, settings, clock)
    outputs = {
        "ALIGNED_LANDMARKS": alignment.landmarks,
        "AFFINE": alignment.affine.to(torch.float32),
    }
    valid = [face for face in range(len(frames)) if face not in invalid]
    if not valid:
        return FaceResults({}, invalid)
    if requested - set(outputs):
        outputs |= _images(frames, outputs, hulls, valid, requested, settings, clock)
    return FaceResults({name: outputs[name] for name in requested}, invalid)


def _check(
    frames: torch.Tensor,
    landmarks: torch.Tensor,
    alignment: Alignment,
    hulls: list[NDArray[np.int32]],
    settings: Settings,
    clock: StageClock,
) -> face_checks.InvalidFaces:
    """Find the invalid faces. A face that fails several checks gets the message of the last one."""
    height, width = frames.shape[2:]
    size_error = face_checks.frame_size_error(
        height, width, settings.min_frame_side, settings.max_frame_pixels
    )
    if size_error:
        return dict.fromkeys(range(len(frames)), size_error)
    invalid = face_checks.check_hulls(hulls)
    invalid |= face_checks.check_aligned_landmarks(alignment.landmarks.numpy())
    for rows in _chunks(range(len(frames)), frames.device):
        with clock.stage("align"):
            found = face_checks.check_pixels(frames[rows])
        invalid |= {rows.start + row: message for row, message in found.items()}
    return (
        invalid
        | face_checks.check_eye_distance(alignment.eye_distance)
        | face_checks.check_landmarks(landmarks.numpy(), height, width, settings.max_landmark_distance)
    )


def _images(
    frames: torch.Tensor,
    aligned: dict[str, torch.Tensor],
    hulls: list[NDArray[np.int32]],
    valid: list[int],
    requested: Set[str],
    settings: Settings,
    clock: StageClock,
) -> dict[str, torch.Tensor]:
    """Compute the requested images (MASK, ALIGNED_FACES, MASKED_FACES) of the valid faces."""
    images = {}
    if requested & MASK_OUTPUTS:
        with clock.stage("mask"):
            landmarks = aligned["ALIGNED_LANDMARKS"].numpy()[valid]
            masks = hull_masks(landmarks, [hulls[face] for face in valid], settings.face_size)
            images["MASK"] = _scatter(torch.from_numpy(masks), valid, len(frames))
    names = sorted(requested & PIXEL_OUTPUTS)
    if names:
        size = (len(frames), frames.shape[1], settings.face_size, settings.face_size)
        images |= {name: torch.empty(size, device=frames.device) for name in names}
        for rows in _chunks(valid, frames.device):
            with clock.stage("warp"):
                _fill_pixels(images, rows, frames, aligned["AFFINE"], settings)
    return images


def _chunks(faces: Sequence[int], device: torch.device) -> Iterator[slice]:
    """Split ascending face indices into contiguous slices, on a CPU of at most `FACES_IN_CACHE` faces."""
    longest = FACES_IN_CACHE if device.type == "cpu" else len(faces)
    first = 0
    for stop in range(1, len(faces) + 1):
        if stop == len(faces) or stop - first == longest or faces[stop] != faces[stop - 1] + 1:
            yield slice(faces[first], faces[stop - 1] + 1)
            first = stop


def _fill_pixels(
    images: dict[str, torch.Tensor],
    rows: slice,
    frames: torch.Tensor,
    affine: torch.Tensor,
    settings: Settings,
) -> None:
    """Compute some rows of ALIGNED_FACES and MASKED_FACES in place, if `images` has them."""
    faces = warp(
        _to_unit_range(frames[rows]), affine[rows].to(frames.device), settings.face_size, settings.fill
    )
    if "ALIGNED_FACES" in images:
        images["ALIGNED_FACES"][rows] = faces
    if "MASKED_FACES" in images:
        mask = images["MASK"][rows].to(faces.device, faces.dtype).unsqueeze(1)
        torch.mul(faces, mask, out=images["MASKED_FACES"][rows])


def _to_unit_range(frames: torch.Tensor) -> torch.Tensor:
    """Return float32 frames unchanged; convert uint8 frames to float32 and divide them by 255."""
    if frames.dtype != torch.uint8:
        return frames
    # For a Python number as divisor, CUDA multiplies by the reciprocal, which may differ by one ulp.
    return frames.to(torch.float32).div_(torch.tensor(255.0, device=frames.device))


def _scatter(rows: torch.Tensor, faces: list[int], count: int) -> torch.Tensor:
    """Return a tensor of `count` rows with `rows` at the indices `faces` and zeros elsewhere."""
    if len(faces) == count:
        return rows
    scattered = rows.new_zeros((count, *rows.shape[1:]))
    scattered[faces] = rows
    return scattered
