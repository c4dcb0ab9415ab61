"""The aligned face: a bilinear affine warp of its frame (SPEC section 2).

Convention
----------
``affine`` maps frame pixels to aligned pixels, as kornia's ``warp_affine`` takes it; the sampler needs
the inverse, in normalized coordinates where a side of ``n`` pixels spans [-1, 1] from the outer edge of
its first pixel to the outer edge of its last (``align_corners=False``). A pixel ``p`` of that side is at
``(p - (n - 1) / 2) * 2 / n``, for the frame and for the aligned face alike.

All of it is float32 on the device of the frames, in the order of the reference: one float32 ulp in the
sampling grid is enough to put a pixel of the HOG into the next orientation bin.

The reference's grid is `F.affine_grid`, a product of the pixels' places and each face's matrix. On a CPU it
takes longer than the sampling itself, because it lays out the places anew and multiplies matrices of three
columns. The same product the other way round, over places that are kept, is ten times faster. Whether it has
the same bits is up to the machine's BLAS, so it is compared once with the reference and used only when no
bit differs. (A sum of an x and a y term, cheaper still, differs in 61 % of the values.)
"""

import functools

import torch
import torch.nn.functional as F

COMPARED_AFFINES = 64
"""How many random matrices decide whether the faster product has the reference's bits."""


def warp(frames: torch.Tensor, affine: torch.Tensor, face_size: int, fill: float) -> torch.Tensor:
    """Sample the aligned faces out of their frames.

    Parameters
    ----------
    frames : Tensor of float32, shape (N, C, H, W)
        One frame per face.
    affine : Tensor of float32, shape (N, 2, 3)
        Frame pixels to aligned pixels, on the device of `frames`; each must be invertible.
    face_size : int
        Side of the square aligned face, pixels.
    fill : float
        Value of every aligned pixel whose sampling point lies outside the frame. The classifiers were
        trained with 128, on frames in [0, 1] too.

    Returns
    -------
    Tensor of float32, shape (N, C, face_size, face_size)
    """
    to_frame = torch.linalg.inv(_normalized_affine(affine, frames.shape[2:], face_size))[:, :2]
    grid = _sampling_grid(to_frame, face_size)
    faces = F.grid_sample(
        frames, grid.permute(0, 2, 3, 1), mode="bilinear", padding_mode="zeros", align_corners=False
    )
    # 1 inside the frame and 0 outside, as floats: products take a tenth of the time of a selection.
    inside = torch.maximum(grid[:, :1].abs(), grid[:, 1:].abs()).le_(1)
    return faces.mul_(inside).add_((1 - inside).mul_(fill))


@functools.lru_cache(maxsize=8)
def has_reference_bits(face_size: int) -> bool:
    """Tell whether the faster product gives the bits of `F.affine_grid` on this machine's CPU.

    Parameters
    ----------
    face_size : int
        Side of the square aligned face, pixels. The comparison is made once for each.
    """
    generator = torch.Generator().manual_seed(0)
    to_frame = torch.randn((COMPARED_AFFINES, 2, 3), generator=generator)
    places = _pixel_places(face_size).expand(COMPARED_AFFINES, 3, -1)
    return torch.equal(
        torch.bmm(to_frame, places), _reference_grid(to_frame, face_size).reshape(COMPARED_AFFINES, 2, -1)
    )


def _normalized_affine(affine: torch.Tensor, frame_shape: tuple[int, int], face_size: int) -> torch.Tensor:
    """Return the ``[N, 3, 3]`` maps from normalized frame to normalized aligned coordinates."""
    height, width = frame_shape
    last_row = _last_row(affine.device).expand(len(affine), 1, 3)
    homogeneous = torch.cat([affine, last_row], dim=1)
    pixels_of_frame = _pixels_of_normalized(height, width, affine.device)
    return _normalized_of_pixels(face_size, affine.device) @ homogeneous @ pixels_of_frame


@functools.lru_cache(maxsize=8)
def _last_row(device: torch.device) -> torch.Tensor:
    return torch.tensor([0.0, 0.0, 1.0], device=device)


@functools.lru_cache(maxsize=8)
def _normalized_of_pixels(face_size: int, device: torch.device) -> torch.Tensor:
    """Return the 3x3 map from pixel to normalized coordinates of the aligned face."""
    return torch.linalg.inv(_pixels_of_normalized(face_size, face_size, device))


@functools.lru_cache(maxsize=64)
def _pixels_of_normalized(height: int, width: int, device: torch.device) -> torch.Tensor:
    """Return the 3x3 map from normalized to pixel coordinates of an image."""
    return torch.tensor(
        [
            [width / 2, 0.0, (width - 1) / 2],
            [0.0, height / 2, (height - 1) / 2],
            [0.0, 0.0, 1.0],
        ],
        device=device,
    )


def _sampling_grid(to_frame: torch.Tensor, face_size: int) -> torch.Tensor:
    """Return where in the normalized frame each aligned pixel lies, planes of x and y ``[N, 2, S, S]``."""
    count = len(to_frame)
    if to_frame.device.type == "cpu" and has_reference_bits(face_size):
        places = _pixel_places(face_size).expand(count, 3, face_size**2)
        return torch.bmm(to_frame, places).view(count, 2, face_size, face_size)
    return _reference_grid(to_frame, face_size)


def _reference_grid(to_frame: torch.Tensor, face_size: int) -> torch.Tensor:
    size = [len(to_frame), 1, face_size, face_size]
    return F.affine_grid(to_frame, size, align_corners=False).permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=8)
def _pixel_places(face_size: int) -> torch.Tensor:
    """Return x, y and 1 of every aligned pixel, normalized, ``[3, S * S]``, with the reference's bits."""
    identity = torch.eye(2, 3).unsqueeze(0)
    places = _reference_grid(identity, face_size).reshape(2, -1)
    return torch.cat([places, torch.ones_like(places[:1])])
