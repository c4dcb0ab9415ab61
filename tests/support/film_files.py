"""A small film of the demo's photograph, and the table that OpenFace would have made of it."""

from pathlib import Path

import numpy as np

from examples.make_film import write_film as write_film_of
from examples.make_film import write_openface_table

FRAMES = 12
FAILED_ROW, NAN_ROW, FLAT_ROW = 3, 7, 9


def write_film(folder: Path) -> np.ndarray:
    """Write ``film.avi``; return the landmarks ``[FRAMES, 68, 2]`` in it."""
    return write_film_of(folder / "film.avi", FRAMES)


def write_table(path: Path, landmarks: np.ndarray) -> None:
    """Write a table with one frame that failed, one with a NaN and one face on a line."""
    points = landmarks.copy()
    points[NAN_ROW, 5, 1] = np.nan
    points[FLAT_ROW, :, 1] = 100
    write_openface_table(path, points, lost_frame=FAILED_ROW)
