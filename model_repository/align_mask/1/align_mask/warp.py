"""Warp: bilinear affine sampling of the aligned face from its frame (SPEC section 2).

Convention
----------
``affine`` maps frame pixels to aligned pixels, like the argument of kornia's ``warp_affine``; the sampler
needs the inverse, in normalized coordinates where a side of ``n`` pixels spans [-1, 1] from the outer edge of
its first pixel to the outer edge of its last (``align_corners=False``). Pixel ``p`` of that side is at ``(p -
(n - 1) / 2) * 2 / n``, in the frame and in the aligned face.

The computation is float32 on the device of the frames, in py-feat's order of operations: one float32 ulp in
the sampling grid can move a pixel's gradient to the next orientation bin of HOG.

The reference for the sampling grid is `F.affine_grid`, the product of pixel coordinates and each face's
matrix. On a CPU it takes longer than the sampling itself, because it builds the coordinates for each call and
multiplies matrices of three columns. The transposed product with cached coordinates is ten times faster, but
the machine's BLAS decides whether its bits are the same. So `has_reference_bits` compares it once with the
reference, and `warp` uses it only if no bit differs. (A sum of an x and a y term is faster still but differs
in 61 % of the values.)
"""

import functools

import torch
import torch.nn.functional as F

COMPARED_AFFINES = 64
"""Number of random matrices in the comparison with the reference."""


def warp(frames: torch.Tensor, affine: torch.Tensor, face_size: int, fill: float) -> torch.Tensor:
    """Sample the aligned faces from their frames.

    Parameters
    ----------
    frames : Tensor of float32, shape (N, C, H, W)
        One frame per face.
    affine : Tensor of float32, shape (N, 2, 3)
        Invertible maps from frame pixels to aligned pixels, on the device of `frames`.
    face_size : int
        Side of the square aligned face, pixels.
    fill : float
        Fill value: the value of every aligned pixel whose sampling point lies outside the frame. The
        classifiers were trained with 128, although frames are in [0, 1].

    Returns
    -------
    Tensor of float32, shape (N, C, face_size, face_size)
    """
    height, width = frames.shape[2:]
    to_frame = torch.linalg.inv(_normalized_affine(affine, height, width, face_size))[:, :2]
    grid = _sampling_grid(to_frame, face_size)
    faces = F.grid_sample(
        frames, grid.permute(0, 2, 3, 1), mode="bilinear", padding_mode="zeros", align_corners=False
    )
    # 1.0 inside the frame and 0.0 outside: products take a tenth of the time of torch.where.
    inside = torch.maximum(grid[:, :1].abs(), grid[:, 1:].abs()).le_(1)
    return faces.mul_(inside).add_((1 - inside).mul_(fill))


@functools.lru_cache(maxsize=8)
def has_reference_bits(face_size: int) -> bool:
    """Return whether the transposed product has the bits of `F.affine_grid` on this machine's CPU.

    Parameters
    ----------
    face_size : int
        Side of the square aligned face, pixels. The result is cached for each size.
    """
    generator = torch.Generator().manual_seed(0)
    to_frame = torch.randn((COMPARED_AFFINES, 2, 3), generator=generator)
    coordinates = _aligned_coordinates(face_size).expand(COMPARED_AFFINES, 3, -1)
    return torch.equal(
        torch.bmm(to_frame, coordinates),
        _reference_grid(to_frame, face_size).reshape(COMPARED_AFFINES, 2, -1),
    )


def _normalized_affine(affine: torch.Tensor, height: int, width: int, face_size: int) -> torch.Tensor:
    """Return the ``[N, 3, 3]`` maps from normalized frame to normalized aligned coordinates."""
    last_row = _last_row(affine.device).expand(len(affine), 1, 3)
    homogeneous = torch.cat([affine, last_row], dim=1)
    frame_pixels = _pixels_from_normalized(height, width, affine.device)
    return _normalized_from_aligned(face_size, affine.device) @ homogeneous @ frame_pixels


@functools.lru_cache(maxsize=8)
def _last_row(device: torch.device) -> torch.Tensor:
    return torch.tensor([0.0, 0.0, 1.0], device=device)


@functools.lru_cache(maxsize=8)
def _normalized_from_aligned(face_size: int, device: torch.device) -> torch.Tensor:
    """Return the 3x3 map from pixel to normalized coordinates of the aligned face."""
    inverse: torch.Tensor = torch.linalg.inv(_pixels_from_normalized(face_size, face_size, device))
    return inverse


@functools.lru_cache(maxsize=64)
def _pixels_from_normalized(height: int, width: int, device: torch.device) -> torch.Tensor:
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
    """Return the normalized frame coordinates (x, y) of each aligned pixel, ``[N, 2, S, S]``.

    S is `face_size`; `to_frame`, ``[N, 2, 3]``, maps normalized aligned to normalized frame coordinates.
    """
    count = len(to_frame)
    if to_frame.device.type == "cpu" and has_reference_bits(face_size):
        coordinates = _aligned_coordinates(face_size).expand(count, 3, face_size**2)
        return torch.bmm(to_frame, coordinates).view(count, 2, face_size, face_size)
    return _reference_grid(to_frame, face_size)


def _reference_grid(to_frame: torch.Tensor, face_size: int) -> torch.Tensor:
    size = [len(to_frame), 1, face_size, face_size]
    return F.affine_grid(to_frame, size, align_corners=False).permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=8)
def _aligned_coordinates(face_size: int) -> torch.Tensor:
    """Return normalized x and y and 1 of every aligned pixel, ``[3, S * S]``, with the reference's bits."""
    identity = torch.eye(2, 3).unsqueeze(0)
    coordinates = _reference_grid(identity, face_size).reshape(2, -1)
    return torch.cat([coordinates, torch.ones_like(coordinates[:1])])
