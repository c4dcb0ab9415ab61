"""A bad face fails its own request, with its index and a reason."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from tests.acceptance.conftest import AssertAgree
from tests.acceptance.target import Facts, Tensors, by_frames, infer
from tests.support import oracles
from tests.support.face_data import photo_faces
from tests.support.invalid_faces import BAD_FACES
from triton_face_client import FaceFeatureClient

refusals = pytest.mark.checks("Every bad face is refused as INVALID_ARGUMENT, with its index and the reason")

OUTPUT_OF = {"ensemble": "HOG", "align_mask": "MASKED_FACES"}


def refusal(client: FaceFeatureClient, model: str, tensors: Tensors, output: str) -> str:
    """Return the message of a refusal as INVALID_ARGUMENT; anything else fails the test."""
    with pytest.raises(InferenceServerException) as caught:
        infer(client, model, tensors, [output])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT", caught.value
    return caught.value.message()


@refusals
@pytest.mark.parametrize("model", OUTPUT_OF)
@pytest.mark.parametrize("kind", BAD_FACES)
def test_the_face_and_the_reason_are_named(client: FaceFeatureClient, kind: str, model: str):
    spoil, message = BAD_FACES[kind]
    frames, landmarks = photo_faces(4, 61)
    spoil(frames, landmarks)
    assert message in refusal(client, model, by_frames(frames, landmarks), OUTPUT_OF[model])


@refusals
@pytest.mark.parametrize("output", ["ALIGNED_FACES", "ALIGNED_LANDMARKS", "AFFINE", "MASK"])
@pytest.mark.parametrize("kind", BAD_FACES)
def test_a_face_is_refused_whatever_is_asked_of_it(client: FaceFeatureClient, kind: str, output: str):
    spoil, message = BAD_FACES[kind]
    frames, landmarks = photo_faces(4, 62)
    spoil(frames, landmarks)
    assert message in refusal(client, "align_mask", by_frames(frames, landmarks), output)


@refusals
def test_several_bad_faces_are_all_named_up_to_eight(client: FaceFeatureClient):
    frames, landmarks = photo_faces(12, 64)
    landmarks[[1, 3]] = np.nan
    two = refusal(client, "align_mask", by_frames(frames, landmarks), "MASK")
    assert "face 1: " in two
    assert "; face 3: " in two
    landmarks[:11] = np.nan
    eleven = refusal(client, "align_mask", by_frames(frames, landmarks), "MASK")
    assert "; face 7: " in eleven
    assert eleven.endswith("; and 3 more")


limits = pytest.mark.checks("The server's configured limits of landmarks and frames hold exactly")


@limits
def test_landmarks_at_the_limit_and_beyond(client: FaceFeatureClient, facts: Facts):
    far = int(facts.parameters["max_landmark_distance"])
    frames, landmarks = photo_faces(4, 62)
    landmarks[:, 0] = [[-far, 10], [112 + far, 10], [10, -far], [10, 112 + far]]
    answers = infer(client, "align_mask", by_frames(frames, landmarks), ["ALIGNED_LANDMARKS", "MASK"])
    for points, mask in zip(answers["ALIGNED_LANDMARKS"], answers["MASK"], strict=True):
        np.testing.assert_array_equal(mask, oracles.mask(points))
    for face, (axis, beyond) in enumerate([(0, -1), (0, 1), (1, -1), (1, 1)]):
        further = landmarks.copy()
        further[face, 0, axis] += beyond
        message = refusal(client, "align_mask", by_frames(frames, further), "MASK")
        assert f"face {face}: landmark absurdly far off: point 0 lies {far + 1:.6g} pixels outside" in message


@limits
def test_frames_at_the_smallest_side_and_below(client: FaceFeatureClient, facts: Facts):
    side = int(facts.parameters["min_frame_side"])
    _, landmarks = photo_faces(1, 63)
    smallest = by_frames(np.zeros((1, 3, side, 112), np.uint8), landmarks)
    assert infer(client, "ensemble", smallest, ["MASK"])["MASK"].any()
    for height, width in ((side - 1, 112), (112, side - 1), (1, 1)):
        smaller = by_frames(np.zeros((1, 3, height, width), np.uint8), landmarks)
        message = f"face 0: frame too small: {width}x{height} pixels, each side needs at least {side}"
        assert message in refusal(client, "ensemble", smaller, "HOG")


@limits
def test_frames_at_the_pixel_limit_and_beyond(client: FaceFeatureClient, facts: Facts):
    most = int(facts.parameters["max_frame_pixels"])
    width = math.isqrt(most)
    height = most // width + 1
    frames, (_, landmarks) = np.zeros((1, 3, height, width), np.uint8), photo_faces(1, 63)
    largest = by_frames(frames[:, :, :-1], landmarks)
    assert infer(client, "ensemble", largest, ["MASK"])["MASK"].any()
    message = refusal(client, "ensemble", by_frames(frames, landmarks), "HOG")
    assert f"face 0: frame over the pixel limit: {width}x{height} = {width * height} pixels" in message


@pytest.mark.checks("150 good and 150 bad requests in turn: none lost, the answers unchanged")
def test_refusals_with_pose_do_not_stall_the_ensemble(client: FaceFeatureClient, assert_agree: AssertAgree):
    """A step that refuses while another one starts has hung and crashed Triton 2.51: the steps' order."""
    check_good_and_bad_in_turn(
        lambda tensors: infer(client, "ensemble", tensors, ["HOG", "POSE"]), assert_agree
    )


def check_good_and_bad_in_turn(ask: Callable[[Tensors], Tensors], assert_agree: AssertAgree) -> None:
    """Send good and bad requests in turn.

    Parameters
    ----------
    ask : callable
        Sends one request for HOG and POSE to the ensemble.
    assert_agree : callable
        Asserts that two answers agree.
    """
    frames, landmarks = photo_faces(4, 69)
    spoilt = landmarks.copy()
    spoilt[0, 3] = np.nan
    bad, good = by_frames(frames[:1], spoilt[:1]), by_frames(frames, landmarks)
    expected = ask(good)
    for _ in range(150):
        with pytest.raises(InferenceServerException, match="face 0: non-finite landmark"):
            ask(bad)
        assert_agree(ask(good), expected)
