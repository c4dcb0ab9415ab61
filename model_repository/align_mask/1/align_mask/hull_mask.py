"""Face mask: convex hull of the landmarks plus the forehead box (SPEC section 3).

The AU classifiers were trained on masked faces, which makes them robust to occlusion [1]_. The mask has
exactly the pixels of scipy's `ConvexHull` filled by scikit-image's `grid_points_in_poly`
(`benchmarks.speed.mask_equality` compares them), but the computation differs: testing every pixel against
every edge takes 0.8 ms per face; here each array operation handles all faces of a batch, which takes 0.02 ms
per face for 50 faces. Aligned landmarks are whole pixels, so a hull covers one interval of pixels in each
row, and integer arithmetic finds its ends exactly.

The mask does not depend on the vertex at which a hull starts, its direction, or additional points on an edge.
So the hulls may come from OpenCV, which finds them in exact integers and 20 times faster than SciPy's Qhull.
Qhull is the fallback without OpenCV. (GEOS 3.13 and 3.14 would handle a whole batch in one call, but returned
hulls that are not convex when many landmarks share a few pixels.)

References
----------
.. [1] Cheong et al., "Py-Feat: Python Facial Expression Analysis Toolbox", Affective Science, 2023.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

try:
    import cv2
except ImportError:
    cv2 = None  # type: ignore[assignment]

HULL_ERRORS: tuple[type[Exception], ...] = (cv2.error,) if cv2 else ()
"""Exceptions of `convex_hulls` other than Python's built-in ones."""

JAW_ENDS = (0, 16)
"""Indices of the first and the last landmark of the jaw."""


def convex_hulls(landmarks: NDArray[np.int64]) -> list[NDArray[np.int32]]:
    """Find the convex hulls of landmarks on whole pixels.

    Parameters
    ----------
    landmarks : ndarray of int64, shape (N, 68, 2)
        Landmarks (x, y), each coordinate within int32.

    Returns
    -------
    list of ndarray of int32, shape (V, 2)
        The vertices of each hull in cyclic order; fewer than 3 if the landmarks lie on one line.
    """
    return [_hull_vertices(points) for points in landmarks.astype(np.int32)]


def hull_masks(
    landmarks: NDArray[np.int64], hulls: Sequence[NDArray[np.int32]], face_size: int
) -> NDArray[np.bool_]:
    """Mask the hull of the landmarks, edges and vertices included, and the forehead above the jaw ends.

    Parameters
    ----------
    landmarks : ndarray of int64, shape (N, 68, 2)
        Aligned landmarks (x, y); they may lie outside the aligned face.
    hulls : sequence of ndarray of int32, shape (V, 2)
        The hull of each face, from `convex_hulls`: 3 vertices or more, each coordinate within 2**20.
    face_size : int
        Side of the square aligned face, pixels.

    Returns
    -------
    ndarray of bool, shape (N, face_size, face_size)
        Rows are y, columns x.
    """
    first, stop = _row_intervals(hulls, face_size)
    column = np.arange(face_size, dtype=first.dtype)
    masks: NDArray[np.bool_] = column >= first
    masks &= column < stop
    _add_forehead_boxes(masks, landmarks)
    return masks


def _hull_vertices(points: NDArray[np.int32]) -> NDArray[np.int32]:
    if cv2 is not None:
        return cv2.convexHull(points)[:, 0].astype(np.int32, copy=False)
    # Imported only here: the container image has OpenCV and no SciPy.
    from scipy.spatial import ConvexHull, QhullError  # type: ignore[import-untyped]

    try:
        return points[ConvexHull(points).vertices]
    except QhullError:
        return points[:1]


def _row_intervals(hulls: Sequence[NDArray[np.int32]], face_size: int) -> NDArray[np.int16]:
    """Return each hull's first column and the column after its last, per row, ``[2, N, face_size, 1]``.

    If a hull extends from x to x' in a row, the interval is ceil(x) to floor(x'). In a row that the hull does
    not reach, or in which it contains no whole pixel, the interval is empty: first >= stop.
    """
    start, vector, face = _edges(hulls)
    end_y = start[:, 1] + vector[:, 1]
    first_row = np.maximum(np.minimum(start[:, 1], end_y), 0)
    last_row = np.minimum(np.maximum(start[:, 1], end_y), face_size - 1)
    # Horizontal edges are skipped: the adjacent edges already contribute their end points.
    row_counts = np.where(vector[:, 1] != 0, np.maximum(last_row + 1 - first_row, 0), 0)

    # One entry for each pair of an edge and a row that it crosses.
    edge = np.arange(len(row_counts)).repeat(row_counts)
    first_entry = row_counts.cumsum() - row_counts
    row = np.arange(len(edge)) - (first_entry - first_row)[edge]
    x, y = start[edge].T
    dx, dy = vector[edge].T
    offset = (row - y) * dx
    flat_index = face[edge] * face_size + row
    intervals = np.empty((2, len(hulls) * face_size), dtype=np.int64)
    intervals[0], intervals[1] = face_size, 0
    np.minimum.at(intervals[0], flat_index, x - (-offset // dy))
    np.maximum.at(intervals[1], flat_index, x + offset // dy + 1)
    # int16 makes the later comparison with every column of every row faster.
    narrow = np.minimum(np.maximum(intervals, 0), face_size).astype(np.int16)
    return narrow.reshape(2, len(hulls), face_size, 1)


def _edges(
    hulls: Sequence[NDArray[np.int32]],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the start and the vector ``[E, 2]`` of each edge of all hulls, and its face's index ``[E]``."""
    sizes = np.array([len(hull) for hull in hulls])
    ends = sizes.cumsum()
    vertices = np.concatenate(hulls).astype(np.int64)
    previous = np.arange(-1, len(vertices) - 1)
    previous[ends - sizes] = ends - 1
    start = vertices[previous]
    return start, vertices - start, np.arange(len(hulls)).repeat(sizes)


def _add_forehead_boxes(masks: NDArray[np.bool_], landmarks: NDArray[np.int64]) -> None:
    """Fill the box above the jaw ends of every face, in place.

    NumPy counts a negative index from the end of the axis. So the box is usually empty if a jaw end lies left
    of the aligned face, and extends over nearly the whole face if a jaw end lies above it. The classifiers
    were trained with such boxes.
    """
    for mask, ((left_x, left_y), (right_x, right_y)) in zip(
        masks, landmarks[:, JAW_ENDS].tolist(), strict=True
    ):
        mask[0 : min(left_y, right_y), left_x:right_x] = True
