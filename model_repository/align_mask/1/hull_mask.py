"""What of an aligned face counts: the convex hull of its landmarks and the forehead (SPEC section 3).

The mask is what makes the AU classifiers robust to occlusion [1]_, and they were trained on exactly
the pixels that scipy's `ConvexHull`, filled by scikit-image's `grid_points_in_poly`, gives. Testing every
pixel against every edge takes 0.8 ms a face. Here all faces of a batch go through one set of array
operations, 0.02 ms a face at 50 of them, with the same pixels: the landmarks are whole pixels, so each row
of a hull is one run of pixels whose ends are exact in integers (`benchmarks/mask_equality.py` compares).

Of the hulls' vertices only the points matter, neither their order around the hull nor points in between on
an edge. OpenCV finds them in exact integers, 20 times faster than Qhull; without it, Qhull does. (GEOS 3.13
and 3.14 would find them for a whole batch at once, but have given hulls that are not convex for many
landmarks in few pixels.)

References
----------
.. [1] Cheong et al., "Py-Feat: Python Facial Expression Analysis Toolbox", Affective Science, 2023.
"""

import dataclasses

import numpy as np

try:
    from cv2 import convexHull
except ImportError:
    convexHull = None  # noqa: N816 - OpenCV's own spelling

from scipy.spatial import ConvexHull, QhullError

JAW_ENDS = (0, 16)


@dataclasses.dataclass(frozen=True)
class Edges:
    """The edges of many hulls that are not horizontal and meet a row of their face; K in all.

    Attributes
    ----------
    face : ndarray of int64, shape (K,)
        Whose hull the edge belongs to.
    top, bottom : ndarray of int64, shape (K, 2)
        Ends (x, y) of the edge; y of `top` is the smaller.
    """

    face: np.ndarray
    top: np.ndarray
    bottom: np.ndarray


def hull_masks(landmarks: np.ndarray, face_size: int) -> np.ndarray:
    """Mask the hull of the landmarks, edges and vertices included, and the forehead above the jaw's ends.

    Parameters
    ----------
    landmarks : ndarray of int64, shape (N, 68, 2)
        Aligned landmarks (x, y); they may lie outside the face. The mask of a face whose landmarks lie on
        one line means nothing.
    face_size : int
        Side of the square aligned face, pixels.

    Returns
    -------
    ndarray of bool, shape (N, face_size, face_size)
        Rows are y, columns x.
    """
    first, stop = _row_runs(_hull_edges(landmarks, face_size), len(landmarks), face_size)
    column = np.arange(face_size, dtype=first.dtype)
    masks = column >= first[..., None]
    masks &= column < stop[..., None]
    _stamp_foreheads(masks, landmarks)
    return masks


def _hull_edges(landmarks: np.ndarray, face_size: int) -> Edges:
    hulls = [_hull_vertices(points) for points in landmarks.astype(np.int32)]
    vertices = np.concatenate(hulls).astype(np.int64)
    # Each edge goes from the vertex before it in the ring, the first one's from the ring's last.
    before = np.arange(-1, len(vertices) - 1)
    ring_sizes = np.array([len(hull) for hull in hulls])
    ring_ends = ring_sizes.cumsum()
    before[ring_ends - ring_sizes] = ring_ends - 1
    previous = vertices[before]

    downward = (vertices[:, 1] > previous[:, 1])[:, None]
    top, bottom = np.where(downward, previous, vertices), np.where(downward, vertices, previous)
    meets_face = (bottom[:, 1] > top[:, 1]) & (bottom[:, 1] >= 0) & (top[:, 1] < face_size)
    face = np.arange(len(hulls)).repeat(ring_sizes)
    return Edges(face[meets_face], top[meets_face], bottom[meets_face])


def _hull_vertices(points: np.ndarray) -> np.ndarray:
    """Return the vertices int32 ``[V, 2]`` of the hull of points int32 ``[68, 2]``, in order around it."""
    if convexHull is not None:
        return convexHull(points)[:, 0]
    try:
        return points[ConvexHull(points).vertices]
    except QhullError:
        return points[:1]


def _row_runs(edges: Edges, count: int, face_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first column in the hull and the one after the last, ``[count, face_size]`` each.

    A row that a hull's edges cross between x and x' holds the whole pixels from ceil(x) to floor(x'). A row
    that no edge meets, or that holds no whole pixel, has its `first` at or after its `stop`.
    """
    from_row = np.maximum(edges.top[:, 1], 0)
    rows = np.minimum(edges.bottom[:, 1], face_size - 1) + 1 - from_row
    edge = np.arange(len(rows)).repeat(rows)
    row = np.arange(len(edge)) - (rows.cumsum() - rows - from_row)[edge]

    run, rise = (edges.bottom - edges.top).T
    x, y = edges.top.T
    offset = (row - y[edge]) * run[edge]
    cell = edges.face[edge] * face_size + row
    first = np.full(count * face_size, face_size)
    stop = np.zeros(count * face_size, dtype=np.int64)
    np.minimum.at(first, cell, x[edge] - (-offset // rise[edge]))
    np.maximum.at(stop, cell, x[edge] + offset // rise[edge] + 1)
    return tuple(
        # Narrow integers: these are compared with every column of every row.
        np.minimum(np.maximum(ends, 0), face_size).astype(np.int16).reshape(count, face_size)
        for ends in (first, stop)
    )


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
