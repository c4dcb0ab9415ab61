"""Every subset of the ensemble's outputs: the same answers, from no more steps than it needs."""

import itertools
import time

import numpy as np
import pytest

from tests.acceptance.conftest import AssertAgree
from tests.acceptance.target import Tensors, by_frames, faces_computed, infer
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
"""Output -> the ensemble's steps behind it. pose_mlp hands the landmarks on to align_mask."""

FACES = 3

PAUSE_SECONDS = 0.1
"""The server's statistics trail its answers; two equal readings with this pause between them are complete."""

SETTLING_SECONDS = 5.0

ATTEMPTS = 3
"""Another caller's request to a single model would look like a step too many."""

BUSY = "other callers' requests move the server's statistics"


def faces(kind: type) -> Tensors:
    frames, landmarks = photo_faces(FACES, 56)
    return by_frames((255 * frames).astype(np.uint8) if kind is np.uint8 else frames, landmarks)


@pytest.fixture(scope="module")
def everything(client: FaceFeatureClient) -> dict[type, Tensors]:
    """Give the answers with all outputs, by the type of the frames."""
    return {kind: infer(client, "ensemble", faces(kind), ENSEMBLE_OUTPUTS) for kind in (np.float32, np.uint8)}


@pytest.mark.checks("All 31 subsets of outputs, FP32 and UINT8: the same answers")
@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
@pytest.mark.parametrize("kind", [np.float32, np.uint8])
def test_any_subset_has_the_same_answers(
    client: FaceFeatureClient,
    everything: dict[type, Tensors],
    assert_agree: AssertAgree,
    names: tuple[str, ...],
    kind: type,
):
    subset = infer(client, "ensemble", faces(kind), names)
    assert_agree(subset, {name: everything[kind][name] for name in names})


@pytest.fixture(scope="module")
def idle(client: FaceFeatureClient) -> None:
    """Skip on a server whose statistics do not stand still."""
    if settled(client, 0) is None:
        pytest.skip(BUSY)


def settled(client: FaceFeatureClient, least: int) -> dict[str, int] | None:
    """Return the faces each model has computed, at least so many of the ensemble; None on a busy server."""
    end = time.monotonic() + SETTLING_SECONDS
    latest = faces_computed(client)
    while time.monotonic() < end:
        time.sleep(PAUSE_SECONDS)
        previous, latest = latest, faces_computed(client)
        if latest == previous and latest["ensemble"] >= least:
            return latest
    return None


def faces_by_model(client: FaceFeatureClient, kind: type, names: tuple[str, ...]) -> dict[str, int] | None:
    """Return the faces each model computed for a request, or None when other callers' were counted too."""
    before = faces_computed(client)
    infer(client, "ensemble", faces(kind), names)
    complete = before["ensemble"] + FACES
    after = settled(client, complete)
    if after is None or after["ensemble"] != complete:
        return None
    return {name: after[name] - before[name] for name in after if after[name] > before[name]}


@pytest.mark.checks("All 31 subsets of outputs, FP32 and UINT8: only the needed steps run")
@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
@pytest.mark.parametrize("kind", [np.float32, np.uint8])
@pytest.mark.usefixtures("idle")
def test_any_subset_runs_only_what_it_needs(client: FaceFeatureClient, names: tuple[str, ...], kind: type):
    expected = dict.fromkeys({"ensemble"}.union(*(NEEDED_MODELS[name] for name in names)), FACES)
    for _ in range(ATTEMPTS):
        computed = faces_by_model(client, kind, names)
        if computed == expected:
            return
    if computed is None:
        pytest.skip(BUSY)
    assert computed == expected
