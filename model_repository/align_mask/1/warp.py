"""The aligned face: a bilinear affine warp of its frame (SPEC section 2).

Convention
----------
``affine`` maps frame pixels to aligned pixels, as kornia's ``warp_affine`` takes it; the sampler needs
the inverse, in normalized coordinates where a side of ``n`` pixels spans [-1, 1] from the outer edge of
its first pixel to the outer edge of its last (``align_corners=False``). A pixel ``p`` of that side is at
``(p - (n - 1) / 2) * 2 / n``, for the frame and for the aligned face alike.

All of it is float32 on the device of the frames, in the order of the reference: one float32 ulp in the
sampling grid is enough to put a pixel of the HOG into the next orientation bin.
"""

import torch
import torch.nn.functional as F


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
    count, channels, height, width = frames.shape
    to_frame = torch.linalg.inv(_normalized_affine(affine, (height, width), face_size))[:, :2]
    grid = F.affine_grid(to_frame, [count, channels, face_size, face_size], align_corners=False)
    sampled = F.grid_sample(frames, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    inside = (grid.abs() <= 1).all(dim=-1).unsqueeze(1)
    return torch.where(inside, sampled, fill)


def _normalized_affine(affine: torch.Tensor, frame_shape: tuple[int, int], face_size: int) -> torch.Tensor:
    """Return the ``[N, 3, 3]`` maps from normalized frame to normalized aligned coordinates."""
    last_row = affine.new_tensor([0.0, 0.0, 1.0]).expand(affine.shape[0], 1, 3)
    homogeneous = torch.cat([affine, last_row], dim=1)
    face_to_normalized = torch.linalg.inv(_pixels_of_normalized(affine, (face_size, face_size)))
    return face_to_normalized @ homogeneous @ _pixels_of_normalized(affine, frame_shape)


def _pixels_of_normalized(like: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Return the 3x3 map from normalized to pixel coordinates of an image, with `like`'s dtype and device."""
    height, width = shape
    return like.new_tensor(
        [
            [width / 2, 0.0, (width - 1) / 2],
            [0.0, height / 2, (height - 1) / 2],
            [0.0, 0.0, 1.0],
        ]
    )
