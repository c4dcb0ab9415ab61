"""The masks, against scipy and scikit-image and against exact integer geometry."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import hull_mask
from hull_mask import hull_masks
from tests import oracles
from tests.faces import extreme_aligned_landmarks

# Clockwise around a square of 21 x 21 pixels, with points inside.
SQUARE = np.array([[40, 30]] * 16 + [[60, 50], [60, 30], [40, 50]] + [[50, 40]] * 49, dtype=np.int64)


def test_masks_are_those_of_scipy_and_scikit_image():
    landmarks = extreme_aligned_landmarks(600, 21)
    for mask, points in zip(hull_masks(landmarks, 112), landmarks, strict=True):
        np.testing.assert_array_equal(mask, oracles.mask(points))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 2**20), st.integers(-60, 170))
def test_masks_of_few_places_and_of_far_ones(seed: int, places: int, spread: int, centre: int):
    """Many landmarks in one pixel, few in all, up to the largest coordinates that are served."""
    generator = np.random.default_rng(seed)
    candidates = centre + generator.integers(-spread, spread + 1, (max(places, 3), 2))
    points = np.clip(candidates[generator.integers(0, len(candidates), 68)], -(2**20), 2**20)
    assume(np.linalg.matrix_rank(points - points[0]) == 2)
    np.testing.assert_array_equal(hull_masks(points[None], 112)[0], oracles.mask(points))


def test_masks_without_opencv_are_the_same(monkeypatch: pytest.MonkeyPatch):
    landmarks = extreme_aligned_landmarks(200, 23)
    by_opencv = hull_masks(landmarks, 112)
    monkeypatch.setattr(hull_mask, "convexHull", None)
    np.testing.assert_array_equal(hull_masks(landmarks, 112), by_opencv)


def test_hulls_are_exact_in_integers():
    landmarks = extreme_aligned_landmarks(300, 22)
    landmarks[:, [0, 16], 1] = 0  # no rows above the jaw's ends: the hull alone
    for mask, points in zip(hull_masks(landmarks, 112), landmarks, strict=True):
        np.testing.assert_array_equal(mask, oracles.hull_by_integers(points))


def test_edges_and_vertices_are_inside():
    mask = hull_masks(SQUARE[None], 112)[0]
    expected = np.zeros((112, 112), dtype=bool)
    expected[30:51, 40:61] = True  # the square, both ends included
    expected[:30, 40:60] = True  # the forehead, a NumPy slice: its end is not
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(
    ("jaw_left", "stamped"),
    [
        ((-5, 30), np.s_[:0, :0]),  # left of the face: -5 wraps to 107, the box is empty
        ((40, -3), np.s_[:109, 40:60]),  # above the face: -3 wraps to 109
    ],
)
def test_forehead_follows_numpy_slices(jaw_left: tuple[int, int], stamped: tuple[slice, slice]):
    points = SQUARE.copy()
    points[0] = jaw_left
    expected = oracles.hull_by_integers(points)
    expected[stamped] = True
    np.testing.assert_array_equal(hull_masks(points[None], 112)[0], expected)


@pytest.mark.parametrize("opencv", [True, False])
def test_faces_without_a_hull_harm_no_other(monkeypatch: pytest.MonkeyPatch, opencv: bool):
    if not opencv:
        monkeypatch.setattr(hull_mask, "convexHull", None)
    line = np.stack([np.arange(68), 2 * np.arange(68)], axis=1)
    point = np.full((68, 2), 9)
    masks = hull_masks(np.stack([SQUARE, line, point, SQUARE]), 112)
    np.testing.assert_array_equal(masks[0], oracles.mask(SQUARE))
    np.testing.assert_array_equal(masks[3], masks[0])
