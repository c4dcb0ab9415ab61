"""Face crops and the landmarks in them, as py-feat 2.1.5 cuts them (`extract_face_from_bbox_torch`).

Convention
----------
Images are ``[H, W, 3]``, rows y down, columns x right, and so are the landmarks (x, y) in pixels of the
image. A box ``x1, y1, x2, y2`` is enlarged about its centre. py-feat then uses it twice, and not as one grid:

- *Pixels* come from the unrounded enlarged box. Crop pixel ``i`` lies at
  ``p = left + (i + 0.5) / size * (right - left)``, which py-feat normalizes as ``2 p / (W - 1) - 1`` and
  hands to ``grid_sample(align_corners=False)``. That reads the image at ``p * W / (W - 1) - 0.5``, pixel 0
  being centred on 0: against ``p - 0.5`` the crop drifts by up to a pixel towards the far side of the image.
  The models have always been fed so; it stays.
- *Landmarks* belong to the enlarged box rounded to whole pixels, the one that py-feat's
  `inverse_transform_landmarks_torch` maps out of; `crop_landmarks` maps into it.

Outside the image there is black. Where a crop pixel lies is computed as py-feat does, operation by operation
in float32: an ulp of a normalized place is a ten-thousandth of a pixel in a large image.
"""

import numpy as np

SILENT = {"over": "ignore", "invalid": "ignore", "divide": "ignore"}
"""A box that is NaN, infinite or beyond float32, or an image one pixel wide, gives black and no warning."""


def landmark_boxes(landmarks: np.ndarray) -> np.ndarray:
    """Find the boxes of faces whose landmarks are all that is known of them.

    Parameters
    ----------
    landmarks : ndarray of float, shape (N, 68, 2)
        Landmarks (x, y), pixels.

    Returns
    -------
    ndarray of float, shape (N, 4)
        x1, y1, x2, y2 of the points; NaN where a face has a NaN.
    """
    return np.concatenate([landmarks.min(axis=1), landmarks.max(axis=1)], axis=1)


def cut_faces(image: np.ndarray, boxes: np.ndarray, size: int = 112, enlarge: float = 1.2) -> np.ndarray:
    """Cut faces out of an image.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        RGB.
    boxes : ndarray of float, shape (n, 4)
        x1, y1, x2, y2 in pixels; anything, a NaN box or one off the image gives a black face.
    size : int
        Side of the crops, pixels.
    enlarge : float
        What the boxes' sides are multiplied by.

    Returns
    -------
    ndarray of float32, shape (n, 3, size, size)
        Values in [0, 1].
    """
    height, width = image.shape[:2]
    with np.errstate(**SILENT):
        left, top, right, bottom = _enlarged(boxes, enlarge).T
        columns, column_weights = _taps(left, right, width, size)
        rows, row_weights = _taps(top, bottom, height, size)
    pixels = image.reshape(-1, 3)
    rows *= width
    faces = np.empty((len(boxes), 3, size, size), dtype=np.float32)
    for i, face in enumerate(faces):
        taps = pixels.take(rows[i].reshape(-1, 1) + columns[i].reshape(-1), axis=0, mode="clip")
        face[:] = _blended(taps, row_weights[i], column_weights[i])
    return faces


def crop_landmarks(
    landmarks: np.ndarray, boxes: np.ndarray, size: int = 112, enlarge: float = 1.2
) -> np.ndarray:
    """Map landmarks of the image to pixels of the crops that `cut_faces` gives.

    Parameters
    ----------
    landmarks : ndarray of float, shape (n, 68, 2)
        Landmarks (x, y), pixels of the image.
    boxes, size, enlarge
        As in `cut_faces`.

    Returns
    -------
    ndarray of float32, shape (n, 68, 2)
        Landmarks (x, y), pixels of the crops; the rounded box goes from 0 to `size`. Where it has no width or
        height, that counts as one pixel.
    """
    with np.errstate(**SILENT):
        corners = np.rint(_enlarged(boxes, enlarge)).astype(np.float64)
        extent = np.maximum(corners[:, 2:] - corners[:, :2], 1)
        places = (landmarks - corners[:, None, :2]) / extent[:, None] * size
        return places.astype(np.float32)


def _enlarged(boxes: np.ndarray, enlarge: float) -> np.ndarray:
    """Enlarge boxes about their centres, float32 ``[n, 4]``."""
    corners = np.asarray(boxes, dtype=np.float32)
    first, last = corners[:, :2], corners[:, 2:]
    centre = (first + last) / 2
    half = (last - first) * enlarge / 2
    return np.concatenate([centre - half, centre + half], axis=1)


def _taps(start: np.ndarray, stop: np.ndarray, extent: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the two image pixels that each crop pixel lies between along one axis, and their weights.

    Parameters
    ----------
    start, stop : ndarray of float32, shape (n,)
        The enlarged boxes' ends.
    extent : int
        The image's pixels along the axis.
    size : int
        The crops' pixels along the axis.

    Returns
    -------
    pixels : ndarray of int64, shape (n, 2, size)
        Within the image.
    weights : ndarray of float32, shape (n, 2, size)
        0 for a pixel that is not in the image.
    """
    steps = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    places = steps * (stop - start)[:, None] + start[:, None]
    normalized = 2 * places / (extent - 1) - 1
    # PyTorch fuses this product and difference, on CPUs and on GPUs: one rounding, which float64 gives.
    places = ((normalized + 1).astype(np.float64) * (extent / 2) - 0.5).astype(np.float32)
    # From -1 and from `extent` outwards all is black: integers need not hold how far a place is off.
    # Which integer a NaN becomes depends on the machine.
    places = np.clip(np.nan_to_num(places, nan=-1), -1, extent)
    before = np.floor(places)
    share = places - before
    pixels = np.stack([before, before + 1], axis=1).astype(np.int64)
    weights = np.stack([1 - share, share], axis=1)
    weights[(pixels < 0) | (pixels >= extent)] = 0
    return np.clip(pixels, 0, extent - 1), weights


def _blended(taps: np.ndarray, row_weights: np.ndarray, column_weights: np.ndarray) -> np.ndarray:
    """Interpolate one face.

    Parameters
    ----------
    taps : ndarray of uint8, shape (2 * size, 2 * size, 3)
        First the pixels above, then those below; in each row first those on the left, then on the right.
    row_weights, column_weights : ndarray of float32, shape (2, size)

    Returns
    -------
    ndarray of float32, shape (3, size, size)
    """
    size = len(taps) // 2
    # py-feat divides the frame before it cuts. Colours stay beside each other: long rows are NumPy's speed.
    above, below = taps.reshape(2, size, -1).astype(np.float32) / np.float32(255)
    above *= row_weights[0, :, None]
    below *= row_weights[1, :, None]
    above += below
    left, right = above.reshape(size, 2, -1).transpose(1, 0, 2)
    left *= column_weights[0].repeat(3)
    right *= column_weights[1].repeat(3)
    left += right
    return left.reshape(size, size, 3).transpose(2, 0, 1)
