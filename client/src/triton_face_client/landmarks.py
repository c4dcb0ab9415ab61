"""Conversion of MediaPipe's face mesh to the 68 landmarks of the service.

The mesh has 468 vertices, or 478 with the irises. `MEDIAPIPE_TO_68` assigns one vertex to each point of the
68-point layout (iBUG, dlib, OpenFace). The vertices were chosen by comparison with a 68-point landmarker;
`docs/landmarks.md` lists the remaining distances. Eyes, nose and lips agree closely, brows less so; the jaw
is approximate.

The synthetic heads of the pose network's training use another list (`LANDMARK_VERTICES` in
`export/pose/training/head.py`), which differs at the jaw's points 3 to 7 and 9 to 13. Do not change that
list: the weights of the network depend on it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

MEDIAPIPE_TO_68 = (
    # Jaw along the mesh's outline, from the ear on the image's left over the chin (152) to the other ear. 215
    # and 435 lie one vertex inside the outline: no vertex on it is nearer to points 3 and 13.
    127, 234, 93, 215, 172, 136, 149, 148, 152, 377, 378, 365, 397, 435, 323, 454, 356,
    # Brows, along the upper edge, from the image's left to its right.
    70, 63, 105, 66, 107, 336, 296, 334, 293, 300,
    # Bridge of the nose, from between the eyes down to the tip.
    168, 197, 5, 4,
    # Under the nose, from one nostril's outer edge to the other's.
    75, 97, 2, 326, 305,
    # Eyes, clockwise in the image from the corner on its left: each corner, then two points of a lid.
    33, 160, 158, 133, 153, 144,
    362, 385, 387, 263, 373, 380,
    # Lips' outer edge, clockwise in the image from the corner on its left.
    61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181,
    # Lips' inner edge, in the same order.
    78, 82, 13, 312, 308, 317, 14, 87,
)  # fmt: skip
"""The mesh vertex of each of the 68 points."""

MESH_SIZES = (478, 468)
"""Number of vertices of a face mesh, with and without irises."""

ROW_LAYOUTS = {vertices * axes: (vertices, axes) for vertices in MESH_SIZES for axes in (2, 3)}
"""Numbers of vertices and coordinates by the length of a flat row; all lengths differ."""


def from_mediapipe(points: Any, *, image_size: Sequence[float] | None = None) -> Any:
    """Convert MediaPipe face meshes to 68 landmarks.

    Parameters
    ----------
    points : ndarray or tensor, shape (N, V, C), (V, C), (N, V * C) or (V * C,)
        V vertices (478 or 468) of N faces or of one face, with C coordinates: (x, y) or (x, y, z), y down.
        Flat rows are interleaved, ``x_0, y_0, z_0, x_1, ...``, like the tables of py-feat's MPDetector. The
        tables of py-feat's Detectorv2 have all x, then all y, then all z: pass
        ``rows.reshape(-1, 3, 478).swapaxes(1, 2)``. Nested lists and data frames are accepted too.
    image_size : (width, height), optional
        Size in pixels of the image in which MediaPipe found the faces. Pass it for MediaPipe's own results,
        whose x and y are normalized to the image's width and height. Omit it for py-feat's tables, which are
        in pixels; x and y then keep their unit.

    Returns
    -------
    ndarray or tensor, shape (N, 68, 2), or (68, 2) for one face
        A copy of the landmarks (x, y); a tensor gives a tensor on the same device. Floating types are kept;
        integers become the default floating type of NumPy or torch. NaN, which marks rows without a face in
        py-feat's tables, stays NaN.

    Raises
    ------
    ValueError
        If the shape is not that of face meshes, the values are not real numbers, or `image_size` is not two
        positive numbers.

    Examples
    --------
    >>> mesh = np.array([[[p.x, p.y] for p in face.landmark] for face in result.multi_face_landmarks])
    >>> landmarks = from_mediapipe(mesh, image_size=(width, height))
    """
    # Arrays and tensors have the same indexing, so torch need not be imported.
    mesh = _meshes(points if hasattr(points, "reshape") else np.asarray(points))
    landmarks = mesh[..., list(MEDIAPIPE_TO_68), :2]
    if image_size is None:
        return landmarks
    width, height = _checked_size(image_size)
    landmarks[..., 0] *= width
    landmarks[..., 1] *= height
    return landmarks


def _meshes(points: Any) -> Any:
    """Return points of any accepted layout as floating ``[N, V, C]`` or ``[V, C]``."""
    shape = tuple(points.shape)
    if len(shape) in (1, 2) and shape[-1] in ROW_LAYOUTS:
        points = points.reshape(*shape[:-1], *ROW_LAYOUTS[shape[-1]])
    elif not (len(shape) in (2, 3) and shape[-2] in MESH_SIZES and shape[-1] in (2, 3)):
        raise ValueError(
            f"points of shape {list(shape)} are no MediaPipe face meshes: pass [N, V, C] with V = 478 or "
            "468 vertices and C = 2 or 3 coordinates, [V, C] for one face, or rows of V * C numbers "
            f"({', '.join(map(str, sorted(ROW_LAYOUTS)))})"
        )
    return _floating(points)


def _floating(points: Any) -> Any:
    dtype_name = str(points.dtype)
    if "float" in dtype_name:
        return points
    if "int" in dtype_name:
        return points * 1.0
    raise ValueError(f"points must be real numbers, not {dtype_name}")


def _checked_size(image_size: Sequence[float]) -> tuple[float, float]:
    try:
        width, height = (float(side) for side in image_size)
    except (TypeError, ValueError):
        width = height = np.nan
    if not (0 < width < np.inf and 0 < height < np.inf):
        raise ValueError(f"image_size must be the image's (width, height) in pixels, not {image_size!r}")
    return width, height
