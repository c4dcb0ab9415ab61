"""Cut face crops and map landmarks into them, as py-feat 2.1.5 does (`extract_face_from_bbox_torch`).

Convention
----------
Images are ``[H, W, 3]`` with y down and x right. Landmarks (x, y) are in pixels of the image. A box
``x1, y1, x2, y2`` is enlarged about its centre. py-feat uses the enlarged box in two ways:

- *Pixels* come from the unrounded box. Crop pixel ``i`` lies at
  ``p = left + (i + 0.5) / size * (right - left)``. py-feat normalizes it as ``2 p / (W - 1) - 1`` and calls
  ``grid_sample(align_corners=False)``, which reads the image at ``p * W / (W - 1) - 0.5``, where pixel 0 has
  its centre at 0. The exact position is ``p - 0.5``, so the sampled position is off by ``p / (W - 1)``: up to
  one pixel, at the right and bottom of the image. py-feat feeds its models such crops, so this module has the
  same offset.
- *Landmarks* refer to the box rounded to whole pixels, as in py-feat's `inverse_transform_landmarks_torch`.
  `crop_landmarks` is the inverse of that function.

Pixels outside the image are black. Positions are computed in float32 with py-feat's order of operations: in a
large image, one ulp of a normalized position is a ten-thousandth of a pixel.
"""

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.floating[Any]]


def landmark_boxes(landmarks: Float) -> Float:
    """Return the bounding box of each face's landmarks.

    Parameters
    ----------
    landmarks : ndarray of float, shape (N, 68, 2)
        Landmarks (x, y), pixels.

    Returns
    -------
    ndarray of float, shape (N, 4)
        x1, y1, x2, y2; NaN for a face with a NaN landmark.
    """
    return np.concatenate([landmarks.min(axis=1), landmarks.max(axis=1)], axis=1)


def cut_faces(
    image: NDArray[np.uint8], boxes: Float, size: int = 112, enlarge: float = 1.2
) -> NDArray[np.float32]:
    """Cut faces out of an image.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        RGB.
    boxes : ndarray of float, shape (n, 4)
        x1, y1, x2, y2 in pixels. A box with NaN or outside the image gives a black crop.
    size : int
        Side of the crops, pixels.
    enlarge : float
        Factor for the boxes' sides.

    Returns
    -------
    ndarray of float32, shape (n, 3, size, size)
        Values in [0, 1].
    """
    height, width = image.shape[:2]
    with _ignore_float_errors():
        left, top, right, bottom = _enlarged(boxes, enlarge).T
        columns, column_weights = _neighbours(left, right, width, size)
        rows, row_weights = _neighbours(top, bottom, height, size)
    pixels = image.reshape(-1, 3)
    rows *= width
    faces = np.empty((len(boxes), 3, size, size), dtype=np.float32)
    for i, face in enumerate(faces):
        neighbours = pixels.take(rows[i].reshape(-1, 1) + columns[i].reshape(-1), axis=0, mode="clip")
        face[:] = _interpolated(neighbours, row_weights[i], column_weights[i])
    return faces


def crop_landmarks(
    landmarks: Float, boxes: Float, size: int = 112, enlarge: float = 1.2
) -> NDArray[np.float32]:
    """Map landmarks from pixels of the image to pixels of the crops of `cut_faces`.

    Parameters
    ----------
    landmarks : ndarray of float, shape (n, 68, 2)
        Landmarks (x, y), pixels of the image.
    boxes, size, enlarge
        As in `cut_faces`.

    Returns
    -------
    ndarray of float32, shape (n, 68, 2)
        Landmarks (x, y), pixels of the crops. The rounded box spans 0 to `size`; a width or height of 0
        counts as one pixel.
    """
    with _ignore_float_errors():
        corners = np.rint(_enlarged(boxes, enlarge)).astype(np.float64)
        extent = np.maximum(corners[:, 2:] - corners[:, :2], 1)
        points: Float = (landmarks - corners[:, None, :2]) / extent[:, None] * size
        return points.astype(np.float32)


def _ignore_float_errors() -> AbstractContextManager[None]:
    """Silence NumPy's warnings for boxes with NaN or infinity and for images one pixel wide."""
    return np.errstate(over="ignore", invalid="ignore", divide="ignore")


def _enlarged(boxes: Float, enlarge: float) -> NDArray[np.float32]:
    """Enlarge boxes about their centres, float32 ``[n, 4]``."""
    corners = np.asarray(boxes, dtype=np.float32)
    upper_left, lower_right = corners[:, :2], corners[:, 2:]
    centre = (upper_left + lower_right) / 2
    half_size = (lower_right - upper_left) * enlarge / 2
    return np.concatenate([centre - half_size, centre + half_size], axis=1)


def _neighbours(
    start: NDArray[np.float32], stop: NDArray[np.float32], extent: int, size: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find the two image pixels on either side of each crop pixel along one axis, and their weights.

    Parameters
    ----------
    start, stop : ndarray of float32, shape (n,)
        Ends of the enlarged boxes.
    extent : int
        Pixels of the image along the axis.
    size : int
        Pixels of the crops along the axis.

    Returns
    -------
    pixels : ndarray of int64, shape (n, 2, size)
        Indices inside the image.
    weights : ndarray of float32, shape (n, 2, size)
        0 for a pixel outside the image.
    """
    steps = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    positions = steps * (stop - start)[:, None] + start[:, None]
    normalized = 2 * positions / (extent - 1) - 1
    # PyTorch computes this product and difference with a fused multiply-add, on CPUs and on GPUs. float64
    # gives the same single rounding.
    positions = ((normalized + 1).astype(np.float64) * (extent / 2) - 0.5).astype(np.float32)
    # Positions up to -1 and from `extent` on are black, so clipping changes no pixel and avoids an int64
    # overflow. NaN is replaced because its conversion to an integer depends on the machine.
    positions = np.clip(np.nan_to_num(positions, nan=-1), -1, extent)
    before = np.floor(positions)
    fraction = positions - before
    pixels = np.stack([before, before + 1], axis=1).astype(np.int64)
    weights = np.stack([1 - fraction, fraction], axis=1)
    weights[(pixels < 0) | (pixels >= extent)] = 0
    return np.clip(pixels, 0, extent - 1), weights


def _interpolated(
    neighbours: NDArray[np.uint8], row_weights: NDArray[np.float32], column_weights: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Interpolate one face bilinearly.

    Parameters
    ----------
    neighbours : ndarray of uint8, shape (2 * size, 2 * size, 3)
        The upper neighbours of all crop rows, then the lower ones; in each row the left neighbours of all
        crop columns, then the right ones.
    row_weights, column_weights : ndarray of float32, shape (2, size)

    Returns
    -------
    ndarray of float32, shape (3, size, size)
    """
    size = len(neighbours) // 2
    # Like py-feat, divide by 255 before the interpolation. The channels stay interleaved because NumPy is
    # faster on long rows.
    above, below = neighbours.reshape(2, size, -1).astype(np.float32) / np.float32(255)
    above *= row_weights[0, :, None]
    below *= row_weights[1, :, None]
    above += below
    left, right = above.reshape(size, 2, -1).transpose(1, 0, 2)
    left *= column_weights[0].repeat(3)
    right *= column_weights[1].repeat(3)
    left += right
    face: NDArray[np.float32] = left.reshape(size, size, 3).transpose(2, 0, 1)
    return face
