"""What of an aligned face counts: the convex hull of its landmarks and the forehead (SPEC section 3).

The mask is what makes the AU classifiers robust to occlusion [1]_, and they were trained on exactly
the pixels that scipy's `ConvexHull`, filled by scikit-image's `grid_points_in_poly`, gives. Testing every
pixel against every edge takes 0.8 ms a face. Here all faces of a batch go through one set of array
operations, 0.02 ms a face at 50 of them, with the same pixels: the landmarks are whole pixels, so each row
of a hull is one run of pixels whose ends are exact in integers; `benchmarks.speed.mask_equality` compares.

Of the hulls' vertices only the points matter, neither their order around the hull nor points in between on
an edge. OpenCV finds them in exact integers, 20 times faster than Qhull; without it, Qhull does. (GEOS 3.13
and 3.14 would find them for a whole batch at once, but have given hulls that are not convex for many
landmarks in few pixels.)

References
----------
.. [1] Cheong et al., "Py-Feat: Python Facial Expression Analysis Toolbox", Affective Science, 2023.
"""

from collections.abc import Sequence

import numpy as np

try:
    from cv2 import convexHull
except ImportError:
    convexHull = None  # noqa: N816 - OpenCV's own spelling

JAW_ENDS = (0, 16)


def convex_hulls(landmarks: np.ndarray) -> list[np.ndarray]:
    """Find the hulls of landmarks on whole pixels.

    Parameters
    ----------
    landmarks : ndarray of int64, shape (N, 68, 2)
        Landmarks (x, y), each coordinate within int32.

    Returns
    -------
    list of ndarray of int, shape (V, 2)
        The vertices of each face's hull in order around it; fewer than 3 where the landmarks lie on one line.
    """
    return [_hull_vertices(points) for points in landmarks.astype(np.int32)]


def hull_masks(landmarks: np.ndarray, hulls: Sequence[np.ndarray], face_size: int) -> np.ndarray:
    """Mask the hull of the landmarks, edges and vertices included, and the forehead above the jaw's ends.

    Parameters
    ----------
    landmarks : ndarray of int64, shape (N, 68, 2)
        Aligned landmarks (x, y); they may lie outside the face.
    hulls : sequence of ndarray of int, shape (V, 2)
        Their hulls, of 3 vertices or more, each coordinate within 2**20.
    face_size : int
        Side of the square aligned face, pixels.

    Returns
    -------
    ndarray of bool, shape (N, face_size, face_size)
        Rows are y, columns x.
    """
    first, stop = _row_runs(hulls, face_size)
    column = np.arange(face_size, dtype=first.dtype)
    masks = column >= first
    masks &= column < stop
    _stamp_foreheads(masks, landmarks)
    return masks


def _hull_vertices(points: np.ndarray) -> np.ndarray:
    if convexHull is not None:
        return convexHull(points)[:, 0]
    from scipy.spatial import ConvexHull, QhullError  # only here: the image has OpenCV and no SciPy

    try:
        return points[ConvexHull(points).vertices]
    except QhullError:
        return points[:1]


def _row_runs(hulls: Sequence[np.ndarray], face_size: int) -> np.ndarray:
    """Return the first column in each hull and the one after the last, ``[2, N, face_size, 1]``.

    A row that a hull's edges cross between x and x' holds the whole pixels from ceil(x) to floor(x'). A row
    that no edge meets, or that holds no whole pixel, has its first column at or after its stop.
    """
    start, step, face = _edges(hulls)
    end_y = start[:, 1] + step[:, 1]
    from_row = np.maximum(np.minimum(start[:, 1], end_y), 0)
    to_row = np.minimum(np.maximum(start[:, 1], end_y), face_size - 1)
    # Level edges add nothing to the runs of the edges that they meet.
    rows = np.where(step[:, 1] != 0, np.maximum(to_row + 1 - from_row, 0), 0)

    edge = np.arange(len(rows)).repeat(rows)
    row = np.arange(len(edge)) - (rows.cumsum() - rows - from_row)[edge]
    x, y = start[edge].T
    run, rise = step[edge].T
    offset = (row - y) * run
    place = face[edge] * face_size + row
    runs = np.empty((2, len(hulls) * face_size), dtype=np.int64)
    runs[0], runs[1] = face_size, 0
    np.minimum.at(runs[0], place, x - (-offset // rise))
    np.maximum.at(runs[1], place, x + offset // rise + 1)
    # Narrow integers: these are compared with every column of every row.
    runs = np.minimum(np.maximum(runs, 0), face_size).astype(np.int16)
    return runs.reshape(2, len(hulls), face_size, 1)


def _edges(hulls: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where each edge of all hulls starts and how far it goes, ``[E, 2]`` each, and whose it is."""
    sizes = np.array([len(hull) for hull in hulls])
    ends = sizes.cumsum()
    vertices = np.concatenate(hulls).astype(np.int64)
    before = np.arange(-1, len(vertices) - 1)
    before[ends - sizes] = ends - 1
    start = vertices[before]
    return start, vertices - start, np.arange(len(hulls)).repeat(sizes)


def _stamp_foreheads(masks: np.ndarray, landmarks: np.ndarray) -> None:
    """Fill the box above the jaw's ends of every face, in place.

    A jaw's end off the face has a negative coordinate, which NumPy counts from the far side. Left of the
    face, that mostly empties the box; above it, the box runs down nearly the whole face. The classifiers
    were trained with that.
    """
    for mask, ((left, left_top), (right, right_top)) in zip(
        masks, landmarks[:, JAW_ENDS].tolist(), strict=True
    ):
        mask[0 : min(left_top, right_top), left:right] = True
