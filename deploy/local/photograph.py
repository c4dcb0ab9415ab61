"""The demo's photograph and its landmarks.

The photograph is scikit-image's `astronaut` (Eileen Collins, NASA, public domain).
"""

from pathlib import Path

import numpy as np
from skimage.data import astronaut

LANDMARKS_FILE = Path(__file__).resolve().parent / "data" / "astronaut_landmarks.csv"
"""68 landmarks in pixels of the photograph, derived from MediaPipe's face mesh."""

CROP_ENLARGE = 1.6
"""Side of the crop divided by that of the landmarks' box; the aligned face extends beyond the landmarks."""


def photograph() -> tuple[np.ndarray, np.ndarray]:
    """Return the crop of the face and its landmarks.

    Returns
    -------
    crop : ndarray of float32, shape (3, H, W)
        Values in [0, 1].
    landmarks : ndarray of float32, shape (68, 2)
        In pixels of the crop.
    """
    points = np.loadtxt(LANDMARKS_FILE, delimiter=",", skiprows=1, dtype=np.float32)
    low, high = points.min(axis=0), points.max(axis=0)
    half = CROP_ENLARGE * (high - low).max() / 2
    left, top = np.maximum((low + high) / 2 - half, 0).astype(int)
    side = int(2 * half)
    crop = astronaut()[top : top + side, left : left + side]
    pixels = np.ascontiguousarray(crop.transpose(2, 0, 1), dtype=np.float32) / 255
    return pixels, points - np.float32([left, top])
