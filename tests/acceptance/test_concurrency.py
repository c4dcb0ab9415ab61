"""Concurrent requests get the responses that they get alone."""

import concurrent.futures

import numpy as np
import pytest

from tests.acceptance.conftest import AssertAgree
from tests.acceptance.target import Target, Tensors, frame_inputs, infer, wait_until
from tests.support.face_data import photo_faces
from tests.support.interface import ENSEMBLE_OUTPUTS
from triton_face_client import FaceFeatureClient

CALLERS = 32
REQUESTS_EACH = 6
ROUNDS = 10
COUNTED_SECONDS = 60.0
"""Longest delay between a response and the server's statistics."""

SIZES = [(112, 112), (112, 112), (96, 128), (150, 120)]


def different_requests() -> list[Tensors]:
    """Return one request for each caller: one face, in one of four frame sizes and two types."""
    requests = []
    for number in range(CALLERS):
        frames, landmarks = photo_faces(1, 600 + number, SIZES[number % len(SIZES)])
        if number % 3 == 0:
            frames = (255 * frames).astype(np.uint8)
        requests.append(frame_inputs(frames, landmarks))
    return requests


@pytest.mark.checks("32 concurrent callers, frames of many sizes and types: each gets its own faces")
def test_concurrent_requests_get_their_own_faces(
    target: Target, client: FaceFeatureClient, assert_agree: AssertAgree
):
    """The requests share dynamic batches although their frames differ in size and type."""
    requests = different_requests()
    alone = [infer(client, "ensemble", request, ENSEMBLE_OUTPUTS) for request in requests]
    assert len({response["HOG"].tobytes() for response in alone}) == CALLERS

    def send_repeatedly(number: int) -> list[Tensors]:
        with target.connect() as own:
            return [infer(own, "ensemble", requests[number], ENSEMBLE_OUTPUTS) for _ in range(REQUESTS_EACH)]

    for _ in range(ROUNDS):
        before = requests_and_batches(client)
        with concurrent.futures.ThreadPoolExecutor(CALLERS) as pool:
            together = list(pool.map(send_repeatedly, range(CALLERS)))
        for responses, expected in zip(together, alone, strict=True):
            for response in responses:
                assert_agree(response, expected)
        complete = before[0] + CALLERS * REQUESTS_EACH
        assert wait_until(
            lambda complete=complete: requests_and_batches(client)[0] >= complete, COUNTED_SECONDS
        )
        sent, executed = np.subtract(requests_and_batches(client), before)
        if executed < sent:
            return
    pytest.skip("no two requests shared a dynamic batch: the server or the caller was too slow")


def requests_and_batches(client: FaceFeatureClient) -> tuple[int, int]:
    """Return the number of requests that align_mask has computed, and of its batches."""
    model = client.connection.get_inference_statistics("align_mask").model_stats[0]
    return model.inference_stats.success.count, model.execution_count
