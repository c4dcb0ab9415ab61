"""Every subset of the ensemble's outputs has the same results, and only the needed steps run."""

import itertools
import time

import numpy as np
import pytest

from tests.acceptance.conftest import AssertAgree
from tests.acceptance.target import Tensors, faces_computed, frame_inputs, infer
from tests.support.face_data import photo_faces
from tests.support.interface import ENSEMBLE_OUTPUTS
from triton_face_client import FaceFeatureClient

SUBSETS = [
    subset
    for count in range(1, len(ENSEMBLE_OUTPUTS) + 1)
    for subset in itertools.combinations(ENSEMBLE_OUTPUTS, count)
]

NEEDED_MODELS = {
    "HOG": {"pose_mlp", "align_mask", "hog"},
    "POSE": {"pose_mlp"},
    "ALIGNED_LANDMARKS": {"pose_mlp", "align_mask"},
    "AFFINE": {"pose_mlp", "align_mask"},
    "MASK": {"pose_mlp", "align_mask"},
}
"""Output -> the ensemble's steps that compute it. pose_mlp passes the landmarks on to align_mask."""

FACES = 3

PAUSE_SECONDS = 0.1
"""Triton updates its statistics after the response; two equal readings this far apart count as final."""

FINAL_COUNTS_SECONDS = 5.0
"""Time limit for final statistics; they never become final while other callers send requests."""

ATTEMPTS = 3
"""Attempts per subset: another caller's request to a single model looks like an unnecessary step."""

BUSY_REASON = "other callers' requests change the server's statistics"


def inputs(dtype: type) -> Tensors:
    frames, landmarks = photo_faces(FACES, 56)
    return frame_inputs((255 * frames).astype(np.uint8) if dtype is np.uint8 else frames, landmarks)


@pytest.fixture(scope="module")
def all_outputs(client: FaceFeatureClient) -> dict[type, Tensors]:
    """Return all outputs, by the type of the frames."""
    return {
        dtype: infer(client, "ensemble", inputs(dtype), ENSEMBLE_OUTPUTS) for dtype in (np.float32, np.uint8)
    }


@pytest.mark.checks("All 31 subsets of outputs, FP32 and UINT8: the same results")
@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_every_subset_has_the_same_results(
    client: FaceFeatureClient,
    all_outputs: dict[type, Tensors],
    assert_agree: AssertAgree,
    names: tuple[str, ...],
    dtype: type,
):
    subset = infer(client, "ensemble", inputs(dtype), names)
    assert_agree(subset, {name: all_outputs[dtype][name] for name in names})


@pytest.fixture(scope="module")
def idle_server(client: FaceFeatureClient) -> None:
    """Skip the tests on a server that other callers use."""
    if final_counts(client, 0) is None:
        pytest.skip(BUSY_REASON)


def final_counts(client: FaceFeatureClient, min_faces: int) -> dict[str, int] | None:
    """Return the faces that each model has computed, once they stay constant; None on a busy server.

    Parameters
    ----------
    client : FaceFeatureClient
        Connection to the server.
    min_faces : int
        Minimum number of faces that the ensemble must have computed.
    """
    end = time.monotonic() + FINAL_COUNTS_SECONDS
    latest = faces_computed(client)
    while time.monotonic() < end:
        time.sleep(PAUSE_SECONDS)
        previous, latest = latest, faces_computed(client)
        if latest == previous and latest["ensemble"] >= min_faces:
            return latest
    return None


def faces_by_model(client: FaceFeatureClient, dtype: type, names: tuple[str, ...]) -> dict[str, int] | None:
    """Return the faces that each model computed for one request; None if others' requests are included."""
    before = faces_computed(client)
    infer(client, "ensemble", inputs(dtype), names)
    expected = before["ensemble"] + FACES
    after = final_counts(client, expected)
    if after is None or after["ensemble"] != expected:
        return None
    return {name: after[name] - before[name] for name in after if after[name] > before[name]}


@pytest.mark.checks("All 31 subsets of outputs, FP32 and UINT8: only the needed steps run")
@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
@pytest.mark.usefixtures("idle_server")
def test_every_subset_runs_only_the_needed_steps(
    client: FaceFeatureClient, names: tuple[str, ...], dtype: type
):
    expected = dict.fromkeys({"ensemble"}.union(*(NEEDED_MODELS[name] for name in names)), FACES)
    for _ in range(ATTEMPTS):
        computed = faces_by_model(client, dtype, names)
        if computed == expected:
            return
    if computed is None:
        pytest.skip(BUSY_REASON)
    assert computed == expected
