"""Requests with an invalid face are rejected with its index and the reason; other requests are unaffected."""

import concurrent.futures
import math
from collections.abc import Callable

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from tests.acceptance.conftest import AssertAgree
from tests.acceptance.target import ServerInfo, Target, Tensors, frame_inputs, infer
from tests.support import oracles
from tests.support.face_data import photo_faces
from tests.support.invalid_faces import INVALID_FACES
from triton_face_client import FaceFeatureClient

rejection = pytest.mark.checks(
    "Every invalid face is rejected with INVALID_ARGUMENT, its index and the reason"
)
isolation = pytest.mark.checks(
    "An invalid face affects no other request: 24 concurrent callers, 300 alternating requests"
)
limits = pytest.mark.checks("The server's configured limits of landmarks and frames hold exactly")

TESTED_OUTPUT = {"ensemble": "HOG", "align_mask": "MASKED_FACES"}


def rejection_message(client: FaceFeatureClient, model: str, tensors: Tensors, output: str) -> str:
    """Return the error message of a request that must be rejected with INVALID_ARGUMENT."""
    with pytest.raises(InferenceServerException) as caught:
        infer(client, model, tensors, [output])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT", caught.value
    return caught.value.message()


@rejection
@pytest.mark.parametrize("model", TESTED_OUTPUT)
@pytest.mark.parametrize("kind", INVALID_FACES)
def test_error_names_the_face_and_the_reason(client: FaceFeatureClient, kind: str, model: str):
    invalidate, message = INVALID_FACES[kind]
    frames, landmarks = photo_faces(4, 61)
    invalidate(frames, landmarks)
    assert message in rejection_message(client, model, frame_inputs(frames, landmarks), TESTED_OUTPUT[model])


@rejection
@pytest.mark.parametrize("output", ["ALIGNED_FACES", "ALIGNED_LANDMARKS", "AFFINE", "MASK"])
@pytest.mark.parametrize("kind", INVALID_FACES)
def test_invalid_face_is_rejected_for_every_output(client: FaceFeatureClient, kind: str, output: str):
    invalidate, message = INVALID_FACES[kind]
    frames, landmarks = photo_faces(4, 62)
    invalidate(frames, landmarks)
    assert message in rejection_message(client, "align_mask", frame_inputs(frames, landmarks), output)


@rejection
def test_error_names_up_to_eight_invalid_faces(client: FaceFeatureClient):
    frames, landmarks = photo_faces(12, 64)
    landmarks[[1, 3]] = np.nan
    two = rejection_message(client, "align_mask", frame_inputs(frames, landmarks), "MASK")
    assert "face 1: " in two
    assert "; face 3: " in two
    landmarks[:11] = np.nan
    eleven = rejection_message(client, "align_mask", frame_inputs(frames, landmarks), "MASK")
    assert "; face 7: " in eleven
    assert eleven.endswith("; and 3 more")


@limits
def test_landmark_distance_limit_is_exact(client: FaceFeatureClient, server_info: ServerInfo):
    limit = int(server_info.parameters["max_landmark_distance"])
    frames, landmarks = photo_faces(4, 62)
    landmarks[:, 0] = [[-limit, 10], [112 + limit, 10], [10, -limit], [10, 112 + limit]]
    results = infer(client, "align_mask", frame_inputs(frames, landmarks), ["ALIGNED_LANDMARKS", "MASK"])
    for points, mask in zip(results["ALIGNED_LANDMARKS"], results["MASK"], strict=True):
        np.testing.assert_array_equal(mask, oracles.mask(points))
    for face, (axis, step) in enumerate([(0, -1), (0, 1), (1, -1), (1, 1)]):
        beyond = landmarks.copy()
        beyond[face, 0, axis] += step
        message = rejection_message(client, "align_mask", frame_inputs(frames, beyond), "MASK")
        assert (
            f"face {face}: landmark absurdly far off: point 0 lies {limit + 1:.6g} pixels outside" in message
        )


@limits
def test_minimum_frame_side_is_exact(client: FaceFeatureClient, server_info: ServerInfo):
    side = int(server_info.parameters["min_frame_side"])
    _, landmarks = photo_faces(1, 63)
    smallest = frame_inputs(np.zeros((1, 3, side, 112), np.uint8), landmarks)
    assert infer(client, "ensemble", smallest, ["MASK"])["MASK"].any()
    for height, width in ((side - 1, 112), (112, side - 1), (1, 1)):
        smaller = frame_inputs(np.zeros((1, 3, height, width), np.uint8), landmarks)
        message = f"face 0: frame too small: {width}x{height} pixels, each side needs at least {side}"
        assert message in rejection_message(client, "ensemble", smaller, "HOG")


@limits
def test_frame_pixel_limit_is_exact(client: FaceFeatureClient, server_info: ServerInfo):
    limit = int(server_info.parameters["max_frame_pixels"])
    width = math.isqrt(limit)
    height = limit // width + 1
    frames, (_, landmarks) = np.zeros((1, 3, height, width), np.uint8), photo_faces(1, 63)
    largest = frame_inputs(frames[:, :, :-1], landmarks)
    assert infer(client, "ensemble", largest, ["MASK"])["MASK"].any()
    message = rejection_message(client, "ensemble", frame_inputs(frames, landmarks), "HOG")
    assert f"face 0: frame over the pixel limit: {width}x{height} = {width * height} pixels" in message


@isolation
def test_invalid_face_never_affects_other_requests(target: Target, assert_agree: AssertAgree):
    """Valid and invalid requests may share dynamic batches; each gets the response that it gets alone."""
    frames, landmarks = photo_faces(24, 66)
    invalid_faces = list(INVALID_FACES.values())[:12]

    def send(number: int) -> Tensors | str:
        """Send a valid face if `number` is even, else three faces of which the last is invalid."""
        faces = np.full(3 if number % 2 else 1, number)
        own_frames, own_landmarks = frames[faces], landmarks[faces]
        if number % 2:
            invalidate, _ = invalid_faces[number // 2]
            invalidate(own_frames, own_landmarks)
        with target.connect() as client:
            try:
                tensors = frame_inputs(own_frames, own_landmarks)
                return infer(client, "ensemble", tensors, ["HOG", "POSE", "MASK", "AFFINE"])
            except InferenceServerException as error:
                return f"{error.status()} {error.message()}"

    alone = [send(number) for number in range(24)]
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        together = [response for _ in range(5) for response in pool.map(send, range(24))]
    for number, response in enumerate(together):
        caller = number % 24
        expected = alone[caller]
        if number % 2:
            assert isinstance(response, str), number
            assert response == expected
            assert response.startswith("StatusCode.INVALID_ARGUMENT")
            assert invalid_faces[caller // 2][1] in response
        else:
            assert isinstance(response, dict), response
            assert_agree(response, expected)


@isolation
def test_rejections_never_block_the_ensemble(client: FaceFeatureClient, assert_agree: AssertAgree):
    """Triton 2.51 loses requests or crashes if steps run in parallel, so the ensemble runs them in turn."""
    check_alternating_valid_and_invalid(
        lambda tensors: infer(client, "ensemble", tensors, ["HOG", "POSE"]), assert_agree
    )


def check_alternating_valid_and_invalid(
    send: Callable[[Tensors], Tensors], assert_agree: AssertAgree
) -> None:
    """Send 150 valid and 150 invalid requests alternately and check every response.

    Parameters
    ----------
    send : callable
        Sends one request for HOG and POSE to the ensemble.
    assert_agree : callable
        Asserts that two responses agree.
    """
    frames, landmarks = photo_faces(4, 69)
    with_nan = landmarks.copy()
    with_nan[0, 3] = np.nan
    invalid, valid = frame_inputs(frames[:1], with_nan[:1]), frame_inputs(frames, landmarks)
    expected = send(valid)
    for _ in range(150):
        with pytest.raises(InferenceServerException, match="face 0: non-finite landmark"):
            send(invalid)
        assert_agree(send(valid), expected)
