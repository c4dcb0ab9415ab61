"""What of an aligned face counts: the convex hull of its landmarks and the forehead (SPEC section 3).

The mask is what makes the AU classifiers robust to occlusion [1]_, and they were trained on exactly
these pixels. So it is built by the same two calls as at training time, scipy's `ConvexHull` and
scikit-image's `grid_points_in_poly`, and every quirk of the forehead's box is kept.

References
----------
.. [1] Cheong et al., "Py-Feat: Python Facial Expression Analysis Toolbox", Affective Science, 2023.
"""

import numpy as np
from scipy.spatial import ConvexHull, QhullError
from skimage.measure import grid_points_in_poly

JAW_ENDS = (0, 16)


def hull_masks(landmarks: np.ndarray, face_size: int) -> tuple[np.ndarray, list[int]]:
    """Mask the hull of the landmarks, edges and vertices included, and the forehead above the jaw's ends.

    Parameters
    ----------
    landmarks : ndarray of int64, shape (N, 68, 2)
        Aligned landmarks (x, y); they may lie outside the face.
    face_size : int
        Side of the square aligned face, pixels.

    Returns
    -------
    masks : ndarray of bool, shape (N, face_size, face_size)
        Rows are y, columns x. All False for a face of `without_hull`.
    without_hull : list of int
        The faces whose points Qhull takes for a single line or point.
    """
    masks = np.zeros((len(landmarks), face_size, face_size), dtype=bool)
    without_hull = []
    for index, points in enumerate(landmarks):
        try:
            vertices = points[ConvexHull(points).vertices]
        except QhullError:
            without_hull.append(index)
            continue
        masks[index] = grid_points_in_poly((face_size, face_size), vertices[:, ::-1])
        _stamp_forehead(masks[index], points)
    return masks, without_hull


def _stamp_forehead(mask: np.ndarray, points: np.ndarray) -> None:
    """Fill the box above the jaw's ends, in place.

    A jaw's end off the face has a negative coordinate, which NumPy counts from the far side. Left of the
    face, that mostly empties the box; above it, the box runs down nearly the whole face. The classifiers
    were trained with that.
    """
    (left, left_top), (right, right_top) = points[list(JAW_ENDS)]
    mask[0 : min(left_top, right_top), left:right] = True
