"""Masks, compared with scipy and scikit-image and with exact integer geometry."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from align_mask import hull_mask
from align_mask.hull_mask import convex_hulls
from tests.support import oracles
from tests.support.face_data import extreme_aligned_landmarks

SQUARE = np.array([[40, 30]] * 16 + [[60, 50], [60, 30], [40, 50]] + [[50, 40]] * 49, dtype=np.int64)
"""The corners of a square of 21 x 21 pixels; the other landmarks repeat a corner or the centre."""


def masks_of(landmarks: np.ndarray) -> np.ndarray:
    return hull_mask.hull_masks(landmarks, convex_hulls(landmarks), 112)


def test_masks_equal_scipy_and_scikit_image():
    landmarks = extreme_aligned_landmarks(600, 21)
    for mask, points in zip(masks_of(landmarks), landmarks, strict=True):
        np.testing.assert_array_equal(mask, oracles.mask(points))


@pytest.mark.parametrize("face_size", [1, 16, 97, 300])
def test_masks_of_other_face_sizes_equal_scipy_and_scikit_image(face_size: int):
    landmarks = extreme_aligned_landmarks(100, 25) * face_size // 112
    landmarks = landmarks[[len(hull) > 2 for hull in convex_hulls(landmarks)]]
    masks = hull_mask.hull_masks(landmarks, convex_hulls(landmarks), face_size)
    assert len(masks) > 50
    for mask, points in zip(masks, landmarks, strict=True):
        np.testing.assert_array_equal(mask, oracles.mask(points, face_size))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 2**20), st.integers(-60, 170))
def test_masks_of_repeated_and_distant_landmarks(seed: int, distinct: int, spread: int, centre: int):
    """The 68 landmarks share few distinct pixels, up to the largest valid coordinates."""
    generator = np.random.default_rng(seed)
    candidates = centre + generator.integers(-spread, spread + 1, (max(distinct, 3), 2))
    points = np.clip(candidates[generator.integers(0, len(candidates), 68)], -(2**20), 2**20)
    assume(np.linalg.matrix_rank(points - points[0]) == 2)
    np.testing.assert_array_equal(masks_of(points[None])[0], oracles.mask(points))


def test_masks_are_equal_without_opencv(monkeypatch: pytest.MonkeyPatch):
    landmarks = extreme_aligned_landmarks(200, 23)
    with_opencv = masks_of(landmarks)
    monkeypatch.setattr(hull_mask, "cv2", None)
    np.testing.assert_array_equal(masks_of(landmarks), with_opencv)


def test_hulls_equal_integer_geometry():
    landmarks = extreme_aligned_landmarks(300, 22)
    landmarks[:, [0, 16], 1] = 0  # no rows above the jaw ends, so no forehead box
    for mask, points in zip(masks_of(landmarks), landmarks, strict=True):
        np.testing.assert_array_equal(mask, oracles.exact_hull_mask(points))


def test_mask_includes_edges_and_vertices():
    mask = masks_of(SQUARE[None])[0]
    expected = np.zeros((112, 112), dtype=bool)
    expected[30:51, 40:61] = True  # the square with its right and bottom edge
    expected[:30, 40:60] = True  # the forehead box, a NumPy slice without its end
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(
    ("jaw_left", "box"),
    [
        ((-5, 30), np.s_[:0, :0]),  # left of the face: -5 means 107, so the box is empty
        ((40, -3), np.s_[:109, 40:60]),  # above the face: -3 means 109
    ],
)
def test_forehead_box_follows_numpy_slices(jaw_left: tuple[int, int], box: tuple[slice, slice]):
    points = SQUARE.copy()
    points[0] = jaw_left
    expected = oracles.exact_hull_mask(points)
    expected[box] = True
    np.testing.assert_array_equal(masks_of(points[None])[0], expected)


@pytest.mark.parametrize("opencv", [True, False])
def test_landmarks_on_one_line_have_no_hull(monkeypatch: pytest.MonkeyPatch, opencv: bool):
    if not opencv:
        monkeypatch.setattr(hull_mask, "cv2", None)
    steps = np.random.default_rng(24).integers(-(2**16), 2**16, (7, 68, 1))
    lines = 5 + steps * np.array([[1, 0], [0, 1], [1, 2], [3, -7], [1, 1], [-2, 5], [0, 0]])[:, None]
    assert all(len(hull) < 3 for hull in convex_hulls(lines))
    # Move one landmark off each line. The last line is a single point, and two points have no hull either.
    lines[:, 0] += [1, 3]
    assert all(len(hull) >= 3 for hull in convex_hulls(lines[:-1]))
