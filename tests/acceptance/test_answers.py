"""Answers against the oracles, and against other ways to ask for the same faces."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from export.pose.checkpoint import load_pose_checkpoint
from tests.acceptance.agreement import POSE_TOLERANCE, VALUE_TOLERANCE
from tests.acceptance.conftest import AssertAgree
from tests.acceptance.target import by_frames, infer
from tests.support import oracles
from tests.support.face_data import photo_faces
from tests.support.interface import ALIGN_OUTPUTS, ENSEMBLE_OUTPUTS
from triton_face_client import FaceFeatureClient

HOG_TOLERANCE = 1e-5

MOST_UNEQUAL = {oracles.hog_by_definition: 0.03, oracles.hog_features: 0.15}
"""Oracle -> fraction of faces whose HOG may differ by more. Orientation bins are hard (SPEC section 4): a
gradient within rounding of a border may be counted in either bin. The definition rounds as py-feat does, and
no face has differed from it on a CPU; scikit-image rounds otherwise, and 2 to 7 % have."""


@pytest.mark.checks("Alignment, landmarks and masks equal the oracle's; aligned faces within 2e-4")
@pytest.mark.parametrize("size", [(112, 112), (90, 140)])
def test_align_mask_is_the_oracle(client: FaceFeatureClient, size: tuple[int, int]):
    frames, landmarks = photo_faces(24, 52, size)
    answers = infer(client, "align_mask", by_frames(frames, landmarks), ALIGN_OUTPUTS)
    for face in range(24):
        matrix = oracles.affine(landmarks[face])
        np.testing.assert_array_equal(answers["AFFINE"][face], matrix.astype(np.float32))
        points = landmarks[face].astype(np.float64) @ matrix[:, :2].T + matrix[:, 2]
        np.testing.assert_array_equal(answers["ALIGNED_LANDMARKS"][face], np.trunc(points))
        mask = oracles.mask(answers["ALIGNED_LANDMARKS"][face])
        np.testing.assert_array_equal(answers["MASK"][face], mask)
        expected, certain = oracles.warped(frames[face], answers["AFFINE"][face])
        np.testing.assert_allclose(
            answers["ALIGNED_FACES"][face][:, certain], expected[:, certain], atol=VALUE_TOLERANCE
        )
        np.testing.assert_array_equal(
            answers["MASKED_FACES"][face], answers["ALIGNED_FACES"][face] * mask.astype(np.float32)
        )


@pytest.mark.checks("HOG is that of the masked faces, 97 % of them within 1e-5")
def test_hog_is_that_of_the_masked_faces(client: FaceFeatureClient, assert_agree: AssertAgree):
    faces = by_frames(*photo_faces(60, 53))
    masked = infer(client, "align_mask", faces, ["MASKED_FACES"])
    features = infer(client, "hog", masked, ["HOG"])
    for oracle, most_unequal in MOST_UNEQUAL.items():
        expected = np.array([oracle(face) for face in masked["MASKED_FACES"]])
        beyond = np.abs(features["HOG"] - expected).max(axis=1) > HOG_TOLERANCE
        assert beyond.mean() <= most_unequal, f"{oracle.__name__}: faces {np.flatnonzero(beyond)}"
    assert_agree(infer(client, "ensemble", faces, ["HOG"]), features)


@pytest.fixture
def pose_net(request: pytest.FixtureRequest) -> tuple[oracles.PoseNet, np.ndarray, np.ndarray]:
    """Give the torch network of the checkpoint that the server's pose model is of, and its statistics."""
    weights: Path = request.config.getoption("pose_weights")
    if weights == Path("none"):
        pytest.skip("--pose-weights none: the server's checkpoint is not at hand")
    checkpoint = load_pose_checkpoint(weights)
    net = oracles.PoseNet(checkpoint.hidden, checkpoint.layout == "v2")
    net.load_state_dict(load_file(weights))
    return net, checkpoint.mean, checkpoint.std


@pytest.mark.checks("POSE is that of the checkpoint in torch, within 1e-5")
def test_pose_is_that_of_torch(
    client: FaceFeatureClient, pose_net: tuple[oracles.PoseNet, np.ndarray, np.ndarray]
):
    _, landmarks = photo_faces(30, 54)
    net, mean, std = pose_net
    np.testing.assert_allclose(
        infer(client, "pose_mlp", {"LANDMARKS": landmarks}, ["POSE"])["POSE"],
        net.pose(landmarks, mean, std),
        rtol=POSE_TOLERANCE,
        atol=POSE_TOLERANCE,
        err_msg="another checkpoint? name it with --pose-weights FILE, or give --pose-weights none",
    )


@pytest.mark.checks("POSE is finite, the same from pose_mlp and ensemble, with and without frames")
def test_pose_is_the_same_wherever_it_is_asked_for(client: FaceFeatureClient, assert_agree: AssertAgree):
    frames, landmarks = photo_faces(30, 54)
    direct = infer(client, "pose_mlp", {"LANDMARKS": landmarks}, ["POSE"])
    assert np.isfinite(direct["POSE"]).all()
    assert_agree(infer(client, "ensemble", by_frames(frames, landmarks), ["POSE"]), direct)
    assert_agree(infer(client, "ensemble", {"LANDMARKS": landmarks}, ["POSE"]), direct)


@pytest.mark.checks("A non-finite face has a non-finite POSE and changes no other face's")
def test_pose_of_a_non_finite_face_is_its_own_row_alone(client: FaceFeatureClient, assert_agree: AssertAgree):
    """pose_mlp refuses no face, nor does the ensemble when POSE alone is asked for."""
    _, landmarks = photo_faces(8, 67)
    clean = infer(client, "pose_mlp", {"LANDMARKS": landmarks}, ["POSE"])["POSE"]
    landmarks[3, 30] = np.nan
    for model in ("pose_mlp", "ensemble"):
        pose = infer(client, model, {"LANDMARKS": landmarks}, ["POSE"])["POSE"]
        assert not np.isfinite(pose[3]).any()
        assert_agree({"POSE": np.delete(pose, 3, axis=0)}, {"POSE": np.delete(clean, 3, axis=0)})


@pytest.mark.checks("UINT8 frames give the answers of the same frames in FP32")
@pytest.mark.parametrize(
    ("model", "outputs"), [("ensemble", ENSEMBLE_OUTPUTS), ("align_mask", ALIGN_OUTPUTS)]
)
def test_bytes_are_the_floats_they_stand_for(
    client: FaceFeatureClient, assert_agree: AssertAgree, model: str, outputs: tuple[str, ...]
):
    """All 256 of them; and MASKED_FACES shows the quotients' last bits."""
    frames, landmarks = photo_faces(20, 58, (120, 100))
    in_bytes = np.round(255 * frames).astype(np.uint8)
    in_bytes[0, :, :16, :16] = np.arange(256).reshape(16, 16)
    as_floats = in_bytes.astype(np.float32) / np.float32(255)
    assert_agree(
        infer(client, model, by_frames(in_bytes, landmarks), outputs),
        infer(client, model, by_frames(as_floats, landmarks), outputs),
    )


@pytest.mark.checks("A face alone gets the answer that it gets in a batch of 64")
@pytest.mark.parametrize(
    ("model", "outputs"), [("ensemble", ENSEMBLE_OUTPUTS), ("align_mask", ALIGN_OUTPUTS)]
)
def test_same_answer_alone_and_in_a_batch_of_64(
    client: FaceFeatureClient, assert_agree: AssertAgree, model: str, outputs: tuple[str, ...]
):
    frames, landmarks = photo_faces(64, 57)
    together = infer(client, model, by_frames(frames, landmarks), outputs)
    for face in range(0, 64, 9):
        one = np.s_[face : face + 1]
        alone = infer(client, model, by_frames(frames[one], landmarks[one]), outputs)
        assert_agree(alone, {name: rows[one] for name, rows in together.items()})
