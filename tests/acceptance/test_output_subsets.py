"""Every subset of the ensemble's outputs: unchanged results, and no unnecessary step runs."""

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

SETTLING_SECONDS = 5.0

ATTEMPTS = 3
"""Another caller's request to a single model looks like an unnecessary step."""

BUSY = "other callers' requests change the server's statistics"


def inputs(kind: type) -> Tensors:
    frames, landmarks = photo_faces(FACES, 56)
    return frame_inputs((255 * frames).astype(np.uint8) if kind is np.uint8 else frames, landmarks)


@pytest.fixture(scope="module")
def all_outputs(client: FaceFeatureClient) -> dict[type, Tensors]:
    """Return all outputs, by the type of the frames."""
    return {
        kind: infer(client, "ensemble", inputs(kind), ENSEMBLE_OUTPUTS) for kind in (np.float32, np.uint8)
    }


@pytest.mark.checks("All 31 subsets of outputs, FP32 and UINT8: the same results")
@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
@pytest.mark.parametrize("kind", [np.float32, np.uint8])
def test_every_subset_has_the_same_results(
    client: FaceFeatureClient,
    all_outputs: dict[type, Tensors],
    assert_agree: AssertAgree,
    names: tuple[str, ...],
    kind: type,
):
    subset = infer(client, "ensemble", inputs(kind), names)
    assert_agree(subset, {name: all_outputs[kind][name] for name in names})


@pytest.fixture(scope="module")
def idle(client: FaceFeatureClient) -> None:
    """Skip on a server that other callers use."""
    if settled(client, 0) is None:
        pytest.skip(BUSY)


def settled(client: FaceFeatureClient, least: int) -> dict[str, int] | None:
    """Return the faces each model has computed, once the ensemble has `least`; None on a busy server."""
    end = time.monotonic() + SETTLING_SECONDS
    latest = faces_computed(client)
    while time.monotonic() < end:
        time.sleep(PAUSE_SECONDS)
        previous, latest = latest, faces_computed(client)
        if latest == previous and latest["ensemble"] >= least:
            return latest
    return None


def faces_by_model(client: FaceFeatureClient, kind: type, names: tuple[str, ...]) -> dict[str, int] | None:
    """Return the faces each model computed for one request; None if other callers' faces were counted."""
    before = faces_computed(client)
    infer(client, "ensemble", inputs(kind), names)
    expected = before["ensemble"] + FACES
    after = settled(client, expected)
    if after is None or after["ensemble"] != expected:
        return None
    return {name: after[name] - before[name] for name in after if after[name] > before[name]}


@pytest.mark.checks("All 31 subsets of outputs, FP32 and UINT8: only the needed steps run")
@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
@pytest.mark.parametrize("kind", [np.float32, np.uint8])
@pytest.mark.usefixtures("idle")
def test_every_subset_runs_only_the_needed_steps(
    client: FaceFeatureClient, names: tuple[str, ...], kind: type
):
    expected = dict.fromkeys({"ensemble"}.union(*(NEEDED_MODELS[name] for name in names)), FACES)
    for _ in range(ATTEMPTS):
        computed = faces_by_model(client, kind, names)
        if computed == expected:
            return
    if computed is None:
        pytest.skip(BUSY)
    assert computed == expected
