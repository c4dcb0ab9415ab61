"""Outputs equal the oracles' and do not depend on batching, frame type or the requested model."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from export.pose.checkpoint import load_pose_checkpoint
from tests.acceptance.agreement import POSE_TOLERANCE, VALUE_TOLERANCE
from tests.acceptance.conftest import AssertAgree
from tests.acceptance.target import frame_inputs, infer
from tests.support import oracles
from tests.support.face_data import photo_faces
from tests.support.interface import ALIGN_OUTPUTS, ENSEMBLE_OUTPUTS
from triton_face_client import FaceFeatureClient
from triton_face_client.hog_settings import HogSettings

HOG_TOLERANCE = 1e-5

MAX_UNEQUAL_FRACTION = {oracles.hog_by_definition: 0.03, oracles.hog_features: 0.15}
"""Oracle -> fraction of faces whose HOG may differ by more than `HOG_TOLERANCE`.

HOG assigns each gradient to one orientation bin (SPEC section 4); rounding decides the bin of a gradient near
a border. `hog_by_definition` rounds as py-feat does, and no face has differed from it on a CPU. scikit-image
(`hog_features`) rounds differently: 2 to 7 % of faces have differed.
"""


@pytest.mark.checks("Alignment, landmarks and masks equal the oracle's; aligned faces within 2e-4")
@pytest.mark.parametrize("size", [(112, 112), (90, 140)])
def test_align_mask_equals_oracle(client: FaceFeatureClient, size: tuple[int, int]):
    frames, landmarks = photo_faces(24, 52, size)
    results = infer(client, "align_mask", frame_inputs(frames, landmarks), ALIGN_OUTPUTS)
    for face in range(24):
        matrix = oracles.affine(landmarks[face])
        np.testing.assert_array_equal(results["AFFINE"][face], matrix.astype(np.float32))
        points = landmarks[face].astype(np.float64) @ matrix[:, :2].T + matrix[:, 2]
        np.testing.assert_array_equal(results["ALIGNED_LANDMARKS"][face], np.trunc(points))
        mask = oracles.mask(results["ALIGNED_LANDMARKS"][face])
        np.testing.assert_array_equal(results["MASK"][face], mask)
        expected, certain = oracles.warped(frames[face], results["AFFINE"][face])
        np.testing.assert_allclose(
            results["ALIGNED_FACES"][face][:, certain], expected[:, certain], atol=VALUE_TOLERANCE
        )
        np.testing.assert_array_equal(
            results["MASKED_FACES"][face], results["ALIGNED_FACES"][face] * mask.astype(np.float32)
        )


@pytest.mark.checks("HOG equals the oracle's on the masked faces, 97 % of them within 1e-5")
def test_hog_of_masked_faces_equals_oracle(client: FaceFeatureClient, assert_agree: AssertAgree):
    assert HogSettings.from_parameters(client.model("hog").parameters) == HogSettings()
    faces = frame_inputs(*photo_faces(60, 53))
    masked = infer(client, "align_mask", faces, ["MASKED_FACES"])
    features = infer(client, "hog", masked, ["HOG"])
    for oracle, max_fraction in MAX_UNEQUAL_FRACTION.items():
        expected = np.array([oracle(face) for face in masked["MASKED_FACES"]])
        beyond = np.abs(features["HOG"] - expected).max(axis=1) > HOG_TOLERANCE
        assert beyond.mean() <= max_fraction, f"{oracle.__name__}: faces {np.flatnonzero(beyond)}"
    assert_agree(infer(client, "ensemble", faces, ["HOG"]), features)


@pytest.fixture
def pose_net(request: pytest.FixtureRequest) -> tuple[oracles.PoseNet, np.ndarray, np.ndarray]:
    """Return the torch network of the server's pose checkpoint, and its mean and standard deviation."""
    weights: Path = request.config.getoption("pose_weights")
    if weights == Path("none"):
        pytest.skip("--pose-weights none: no checkpoint to compare with")
    checkpoint = load_pose_checkpoint(weights)
    net = oracles.PoseNet(checkpoint.hidden, checkpoint.layout == "v2")
    net.load_state_dict(load_file(weights))
    return net, checkpoint.mean, checkpoint.std


@pytest.mark.checks("POSE equals torch's with the same checkpoint, within 1e-5")
def test_pose_equals_torch(
    client: FaceFeatureClient, pose_net: tuple[oracles.PoseNet, np.ndarray, np.ndarray]
):
    _, landmarks = photo_faces(30, 54)
    net, mean, std = pose_net
    np.testing.assert_allclose(
        infer(client, "pose_mlp", {"LANDMARKS": landmarks}, ["POSE"])["POSE"],
        net.pose(landmarks, mean, std),
        rtol=POSE_TOLERANCE,
        atol=POSE_TOLERANCE,
        err_msg="does the server use another checkpoint? name it with --pose-weights FILE, or `none` to skip",
    )


@pytest.mark.checks("POSE is finite, the same from pose_mlp and ensemble, with and without frames")
def test_pose_is_the_same_from_pose_mlp_and_ensemble(client: FaceFeatureClient, assert_agree: AssertAgree):
    frames, landmarks = photo_faces(30, 54)
    direct = infer(client, "pose_mlp", {"LANDMARKS": landmarks}, ["POSE"])
    assert np.isfinite(direct["POSE"]).all()
    assert_agree(infer(client, "ensemble", frame_inputs(frames, landmarks), ["POSE"]), direct)
    assert_agree(infer(client, "ensemble", {"LANDMARKS": landmarks}, ["POSE"]), direct)


@pytest.mark.checks("A NaN landmark makes that face's POSE non-finite and changes no other face's")
def test_nan_landmark_affects_only_its_own_pose(client: FaceFeatureClient, assert_agree: AssertAgree):
    """pose_mlp rejects no face, nor does the ensemble when POSE is the only requested output."""
    _, landmarks = photo_faces(8, 67)
    clean = infer(client, "pose_mlp", {"LANDMARKS": landmarks}, ["POSE"])["POSE"]
    landmarks[3, 30] = np.nan
    for model in ("pose_mlp", "ensemble"):
        pose = infer(client, model, {"LANDMARKS": landmarks}, ["POSE"])["POSE"]
        assert not np.isfinite(pose[3]).any()
        assert_agree({"POSE": np.delete(pose, 3, axis=0)}, {"POSE": np.delete(clean, 3, axis=0)})


@pytest.mark.checks("UINT8 frames give the outputs of the same frames in FP32")
@pytest.mark.parametrize(
    ("model", "outputs"), [("ensemble", ENSEMBLE_OUTPUTS), ("align_mask", ALIGN_OUTPUTS)]
)
def test_uint8_and_fp32_frames_give_the_same_outputs(
    client: FaceFeatureClient, assert_agree: AssertAgree, model: str, outputs: tuple[str, ...]
):
    """The frames contain all 256 values; MASKED_FACES exposes the last bits of value / 255."""
    frames, landmarks = photo_faces(20, 58, (120, 100))
    uint8_frames = np.round(255 * frames).astype(np.uint8)
    uint8_frames[0, :, :16, :16] = np.arange(256).reshape(16, 16)
    fp32_frames = uint8_frames.astype(np.float32) / np.float32(255)
    assert_agree(
        infer(client, model, frame_inputs(uint8_frames, landmarks), outputs),
        infer(client, model, frame_inputs(fp32_frames, landmarks), outputs),
    )


@pytest.mark.checks("A face alone gets the outputs that it gets in a batch of 64")
@pytest.mark.parametrize(
    ("model", "outputs"), [("ensemble", ENSEMBLE_OUTPUTS), ("align_mask", ALIGN_OUTPUTS)]
)
def test_outputs_are_the_same_alone_and_in_a_batch_of_64(
    client: FaceFeatureClient, assert_agree: AssertAgree, model: str, outputs: tuple[str, ...]
):
    frames, landmarks = photo_faces(64, 57)
    together = infer(client, model, frame_inputs(frames, landmarks), outputs)
    for face in range(0, 64, 9):
        row = slice(face, face + 1)
        alone = infer(client, model, frame_inputs(frames[row], landmarks[row]), outputs)
        assert_agree(alone, {name: rows[row] for name, rows in together.items()})
