"""Invalid faces, each with the reason that the server must name."""

from collections.abc import Callable

import numpy as np

Invalidate = Callable[[np.ndarray, np.ndarray], None]
"""Makes face 2 of frames ``[N, 3, H, W]`` in [0, 1] and landmarks ``[N, 68, 2]`` invalid, in place."""


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


def _on_a_horizontal_line(frames: np.ndarray, landmarks: np.ndarray) -> None:
    landmarks[2, :, 1] = 50


def _all_equal(frames: np.ndarray, landmarks: np.ndarray) -> None:
    landmarks[2] = 40


def _all_zero(frames: np.ndarray, landmarks: np.ndarray) -> None:
    landmarks[2] = 0


def _no_eye_distance(frames: np.ndarray, landmarks: np.ndarray) -> None:
    landmarks[2, 42:48] = landmarks[2, 36:42]


def _far_right(frames: np.ndarray, landmarks: np.ndarray) -> None:
    landmarks[2, 8] = [1e6, 50]


def _huge_landmarks(frames: np.ndarray, landmarks: np.ndarray) -> None:
    landmarks[2] *= 1e30


def _eyes_nose_mouth_coincide(frames: np.ndarray, landmarks: np.ndarray) -> None:
    landmarks[2, 27:] = 50 + landmarks[2, 27:] * 1e-5


def _huge_pixel(frames: np.ndarray, landmarks: np.ndarray) -> None:
    frames[2] *= 1e25


def _huge_negative_pixel(frames: np.ndarray, landmarks: np.ndarray) -> None:
    frames[2, 1, 30, 40] = -1e25


def _minus_infinite_pixel(frames: np.ndarray, landmarks: np.ndarray) -> None:
    frames[2, 0, 5, 6] = -np.inf


def _far_left(frames: np.ndarray, landmarks: np.ndarray) -> None:
    landmarks[2, 4, 0] = -1e6


def _far_above(frames: np.ndarray, landmarks: np.ndarray) -> None:
    landmarks[2, 60, 1] = -1e6


INVALID_FACES: dict[str, tuple[Invalidate, str]] = {
    "NaN landmark": (_nan_landmark, "face 2: non-finite landmark: point 17"),
    "infinite landmark": (_infinite_landmark, "face 2: non-finite landmark: point 5"),
    "NaN pixel": (_nan_pixel, "face 2: non-finite pixel"),
    "infinite pixel": (_infinite_pixel, "face 2: non-finite pixel"),
    "huge pixel": (_huge_pixel, "face 2: pixel absurdly large"),
    "huge negative pixel": (_huge_negative_pixel, "face 2: pixel absurdly large"),
    "minus infinite pixel": (_minus_infinite_pixel, "face 2: non-finite pixel"),
    "far left": (_far_left, "face 2: landmark absurdly far off: point 4 lies 1e+06 pixels outside"),
    "far above": (_far_above, "face 2: landmark absurdly far off: point 60 lies 1e+06 pixels outside"),
    "on a line": (_on_a_line, "face 2: points on one line"),
    "on a horizontal line": (_on_a_horizontal_line, "face 2: points on one line"),
    "all equal": (_all_equal, "face 2: all landmarks are equal"),
    "all zero": (_all_zero, "face 2: all landmarks are equal"),
    "no eye distance": (_no_eye_distance, "face 2: no eye distance"),
    "far right": (_far_right, "face 2: landmark absurdly far off: point 8"),
    "huge landmarks": (_huge_landmarks, "face 2: landmark absurdly far off"),
    "eyes, nose and mouth coincide": (_eyes_nose_mouth_coincide, "face 2: landmark absurdly far off"),
}
"""Kind -> function that makes a face invalid, and the start of the error message: index, reason, point."""
