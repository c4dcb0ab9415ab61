"""A short film of the demo's photograph and its landmark table in OpenFace's format."""

from pathlib import Path

import numpy as np

from examples import make_film

FRAMES = 12
FAILED_ROW, NAN_ROW, LINE_ROW = 3, 7, 9


def write_film(folder: Path) -> np.ndarray:
    """Write ``film.avi``; return the landmarks ``[FRAMES, 68, 2]`` in it."""
    return make_film.write_film(folder / "film.avi", FRAMES)


def write_table(path: Path, landmarks: np.ndarray) -> None:
    """Write a table with three invalid rows: no detected face, a NaN, and all landmarks on one line."""
    points = landmarks.copy()
    points[NAN_ROW, 5, 1] = np.nan
    points[LINE_ROW, :, 1] = 100
    make_film.write_openface_table(path, points, frame_without_face=FAILED_ROW)


def write_long_film(folder: Path, rows: int) -> None:
    """Write ``film.avi``, its table ``film.csv``, and ``long.npz`` with many different faces per frame."""
    landmarks = write_film(folder)
    write_table(folder / "film.csv", landmarks)
    frame = np.sort(np.arange(rows) % FRAMES)
    jitter = np.random.default_rng(0).normal(0, 0.5, (rows, 68, 2))
    np.savez(folder / "long.npz", landmarks=landmarks[frame] + jitter, frame=frame)
