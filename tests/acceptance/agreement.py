"""Comparison of two responses for the same faces: bit-identical on a CPU, within rounding on a GPU.

The tests send the same face alone, in a batch, as UINT8 and concurrently with other requests. On a CPU the
outputs are bit-identical. On a GPU, matrix products of another batch size may round differently: in the
warp's sampling grid and in the pose network. AFFINE, ALIGNED_LANDMARKS and MASK are always computed on the
CPU and stay exact.
"""

from collections.abc import Mapping, Set

import numpy as np

MODELS_BY_OUTPUT = {
    "ALIGNED_FACES": {"align_mask"},
    "MASKED_FACES": {"align_mask"},
    "HOG": {"align_mask", "hog"},
    "POSE": {"pose_mlp"},
    "AU": {"align_mask", "hog"},
}
"""Output -> the models on whose devices its bits depend. The other outputs are always computed on the CPU."""

POSE_TOLERANCE = 1e-5
"""Absolute and relative; the difference between two versions of ONNX Runtime was 7.6e-6."""

VALUE_TOLERANCE = 2e-4
"""Absolute, for pixels in [0, 1] and HOG features; covers the rounding of a float32 sampling position."""

MIN_EQUAL_FRACTION = 0.95
"""Fraction of a face's values that must be within the tolerance on a GPU. Rounding may turn a pixel on the
frame's border into the fill value and may move a gradient to the next orientation bin, which changes up to
128 of the 5,408 features. Two different faces agree in a much smaller fraction."""


MIN_EQUAL_AU_FRACTION = 0.9
"""Fraction of a response's AU values that must be within the tolerance on a GPU. AU is computed on the CPU,
but a tree may branch differently for a rounded HOG feature."""


def inexact_outputs(models_on_gpu: Set[str]) -> frozenset[str]:
    """Return the outputs that may differ in their last bits between requests."""
    return frozenset(name for name, models in MODELS_BY_OUTPUT.items() if models & models_on_gpu)


def assert_agree(
    response: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], inexact: Set[str]
) -> None:
    """Assert that two responses for the same faces agree.

    Parameters
    ----------
    response, expected : mapping of str to ndarray
        Output -> its rows, one per face. They have the same outputs.
    inexact : set of str
        Outputs that are compared within rounding. Other outputs must be bit-identical.
    """
    assert set(response) == set(expected)
    for name, rows in response.items():
        if name not in inexact:
            np.testing.assert_array_equal(rows, expected[name], err_msg=name)
        elif name == "POSE":
            np.testing.assert_allclose(
                rows, expected[name], rtol=POSE_TOLERANCE, atol=POSE_TOLERANCE, err_msg=name
            )
        elif name == "AU":
            fraction = equal_fractions(rows, expected[name]).mean()
            assert fraction >= MIN_EQUAL_AU_FRACTION, f"{name}: {fraction}"
        else:
            fractions = equal_fractions(rows, expected[name])
            assert fractions.min(initial=1.0) >= MIN_EQUAL_FRACTION, f"{name}: {fractions}"


def equal_fractions(rows: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return each face's fraction of values, float64 ``[N]``, that differ by at most `VALUE_TOLERANCE`."""
    assert rows.shape == expected.shape
    equal = np.abs(rows.astype(np.float64) - expected) <= VALUE_TOLERANCE
    return equal.reshape(len(rows), -1).mean(axis=1)
