"""Faces that the service refuses, each with the reason that it must give."""

from collections.abc import Callable

import numpy as np

Spoil = Callable[[np.ndarray, np.ndarray], None]
"""Spoils face 2 of frames ``[N, 3, H, W]`` in [0, 1] and landmarks ``[N, 68, 2]``, in place."""


def _nan_landmark(frames: np.ndarray, landmarks: np.ndarray) -> None:
    landmarks[2, 17, 0] = np.nan


def _infinite_landmark(frames: np.ndarray, landmarks: np.ndarray) -> None:
    landmarks[2, 5] = -np.inf


def _nan_pixel(frames: np.ndarray, landmarks: np.ndarray) -> None:
    frames[2, 1, 60, 60] = np.nan


def _infinite_pixel(frames: np.ndarray, landmarks: np.ndarray) -> None:
    frames[2, 0, 0, 0] = np.inf


def _on_a_line(frames: np.ndarray, landmarks: np.ndarray) -> None:
    landmarks[2] = np.stack([np.arange(68), 3 * np.arange(68)], axis=1)


def _on_a_level_line(frames: np.ndarray, landmarks: np.ndarray) -> None:
    landmarks[2, :, 1] = 50


def _all_equal(frames: np.ndarray, landmarks: np.ndarray) -> None:
    landmarks[2] = 40


def _all_zero(frames: np.ndarray, landmarks: np.ndarray) -> None:
    landmarks[2] = 0


def _no_eye_distance(frames: np.ndarray, landmarks: np.ndarray) -> None:
    landmarks[2, 42:48] = landmarks[2, 36:42]


def _far_off(frames: np.ndarray, landmarks: np.ndarray) -> None:
    landmarks[2, 8] = [1e6, 50]


def _overflowing(frames: np.ndarray, landmarks: np.ndarray) -> None:
    landmarks[2] *= 1e30


def _anchors_in_a_point(frames: np.ndarray, landmarks: np.ndarray) -> None:
    landmarks[2, 27:] = 50 + landmarks[2, 27:] * 1e-5


def _enormous_pixel(frames: np.ndarray, landmarks: np.ndarray) -> None:
    frames[2] *= 1e25


def _enormous_negative_pixel(frames: np.ndarray, landmarks: np.ndarray) -> None:
    frames[2, 1, 30, 40] = -1e25


def _minus_infinite_pixel(frames: np.ndarray, landmarks: np.ndarray) -> None:
    frames[2, 0, 5, 6] = -np.inf


def _far_left(frames: np.ndarray, landmarks: np.ndarray) -> None:
    landmarks[2, 4, 0] = -1e6


def _far_above(frames: np.ndarray, landmarks: np.ndarray) -> None:
    landmarks[2, 60, 1] = -1e6


BAD_FACES: dict[str, tuple[Spoil, str]] = {
    "NaN landmark": (_nan_landmark, "face 2: non-finite landmark: point 17"),
    "infinite landmark": (_infinite_landmark, "face 2: non-finite landmark: point 5"),
    "NaN pixel": (_nan_pixel, "face 2: non-finite pixel"),
    "infinite pixel": (_infinite_pixel, "face 2: non-finite pixel"),
    "enormous pixel": (_enormous_pixel, "face 2: pixel absurdly large"),
    "enormous negative pixel": (_enormous_negative_pixel, "face 2: pixel absurdly large"),
    "minus infinite pixel": (_minus_infinite_pixel, "face 2: non-finite pixel"),
    "far left": (_far_left, "face 2: landmark absurdly far off: point 4 lies 1e+06 pixels outside"),
    "far above": (_far_above, "face 2: landmark absurdly far off: point 60 lies 1e+06 pixels outside"),
    "on a line": (_on_a_line, "face 2: points on one line"),
    "on a level line": (_on_a_level_line, "face 2: points on one line"),
    "all equal": (_all_equal, "face 2: all landmarks are equal"),
    "all zero": (_all_zero, "face 2: all landmarks are equal"),
    "no eye distance": (_no_eye_distance, "face 2: no eye distance"),
    "far off": (_far_off, "face 2: landmark absurdly far off: point 8"),
    "overflowing": (_overflowing, "face 2: landmark absurdly far off"),
    "anchors in a point": (_anchors_in_a_point, "face 2: landmark absurdly far off"),
}
"""Kind -> how to spoil a face, and the beginning of the refusal: index, reason and point."""
