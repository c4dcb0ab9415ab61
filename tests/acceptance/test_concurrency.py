"""Requests side by side: each gets the answer that it gets alone."""

import concurrent.futures

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from tests.acceptance.conftest import AssertAgree
from tests.acceptance.target import Target, Tensors, by_frames, infer, wait_until
from tests.support.face_data import photo_faces
from tests.support.interface import ENSEMBLE_OUTPUTS
from tests.support.invalid_faces import BAD_FACES
from triton_face_client import FaceFeatureClient

CALLERS = 32
REQUESTS_EACH = 6
ROUNDS = 10
COUNTED_SECONDS = 60.0
"""How far the server's statistics may trail its answers."""

SIZES = [(112, 112), (112, 112), (96, 128), (150, 120)]


def mixed_faces() -> list[Tensors]:
    """Return a request of one face for each caller, of four sizes and both types."""
    requests = []
    for number in range(CALLERS):
        frames, landmarks = photo_faces(1, 600 + number, SIZES[number % len(SIZES)])
        if number % 3 == 0:
            frames = (255 * frames).astype(np.uint8)
        requests.append(by_frames(frames, landmarks))
    return requests


@pytest.mark.checks("32 callers at once, frames of many sizes and types: no face is mixed up")
def test_concurrent_faces_of_many_sizes_are_never_mixed(
    target: Target, client: FaceFeatureClient, assert_agree: AssertAgree
):
    """Requests that share a dynamic batch, whatever their frames' size and type, each get their own face."""
    requests = mixed_faces()
    alone = [infer(client, "ensemble", request, ENSEMBLE_OUTPUTS) for request in requests]
    assert len({answer["HOG"].tobytes() for answer in alone}) == CALLERS

    def answers_to(number: int) -> list[Tensors]:
        with target.connect() as own:
            return [infer(own, "ensemble", requests[number], ENSEMBLE_OUTPUTS) for _ in range(REQUESTS_EACH)]

    for _ in range(ROUNDS):
        before = requests_and_batches(client)
        with concurrent.futures.ThreadPoolExecutor(CALLERS) as pool:
            together = list(pool.map(answers_to, range(CALLERS)))
        for answers, expected in zip(together, alone, strict=True):
            for answer in answers:
                assert_agree(answer, expected)
        complete = before[0] + CALLERS * REQUESTS_EACH
        assert wait_until(
            lambda complete=complete: requests_and_batches(client)[0] >= complete, COUNTED_SECONDS
        )
        sent, executed = np.subtract(requests_and_batches(client), before)
        if executed < sent:
            return
    pytest.skip("the requests came too slowly to share a batch")


def requests_and_batches(client: FaceFeatureClient) -> tuple[int, int]:
    """Return how many requests align_mask has answered, and in how many batches."""
    model = client.connection.get_inference_statistics("align_mask").model_stats[0]
    return model.inference_stats.success.count, model.execution_count


@pytest.mark.checks("Bad faces are refused and change no answer of requests that share their batch")
def test_bad_neighbours_change_no_bit_of_the_good(target: Target, assert_agree: AssertAgree):
    """Good and bad requests share dynamic batches; the good ones get what they get alone."""
    frames, landmarks = photo_faces(24, 66)
    spoilers = list(BAD_FACES.values())[:12]

    def ask(number: int) -> Tensors | str:
        own_frames, own_landmarks = frames[number : number + 1].copy(), landmarks[number : number + 1].copy()
        if number % 2:
            own_frames, own_landmarks = np.repeat(own_frames, 3, axis=0), np.repeat(own_landmarks, 3, axis=0)
            spoilers[number // 2][0](own_frames, own_landmarks)
        tensors = by_frames(own_frames, own_landmarks)
        with target.connect() as own:
            try:
                return infer(own, "ensemble", tensors, ["HOG", "POSE", "MASK", "AFFINE"])
            except InferenceServerException as error:
                return f"{error.status()} {error.message()}"

    alone = [ask(number) for number in range(24)]
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        together = [answer for _ in range(5) for answer in pool.map(ask, range(24))]
    for number, answer in enumerate(together):
        expected = alone[number % 24]
        if number % 2:
            assert isinstance(answer, str), number
            assert answer == expected
            assert answer.startswith("StatusCode.INVALID_ARGUMENT")
            assert spoilers[number % 24 // 2][1] in answer
        else:
            assert isinstance(answer, dict), answer
            assert_agree(answer, expected)
