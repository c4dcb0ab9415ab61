"""Concurrent requests get the responses that they get alone."""

import concurrent.futures

import numpy as np
import pytest

from tests.acceptance.conftest import AssertAgree
from tests.acceptance.target import Target, Tensors, frame_inputs, infer
from tests.support.face_data import photo_faces
from tests.support.interface import ENSEMBLE_OUTPUTS
from tests.support.waiting import wait_until
from triton_face_client import FaceFeatureClient

CALLERS = 32
REQUESTS_PER_CALLER = 6
MAX_ROUNDS = 10
STATISTICS_SECONDS = 60.0
"""Maximum delay between a response and the update of the server's statistics."""

FRAME_SIZES = [(112, 112), (112, 112), (96, 128), (150, 120)]


def different_requests() -> list[Tensors]:
    """Return one request for each caller: one face, in frames of different sizes and types."""
    requests = []
    for number in range(CALLERS):
        frames, landmarks = photo_faces(1, 600 + number, FRAME_SIZES[number % len(FRAME_SIZES)])
        if number % 3 == 0:
            frames = (255 * frames).astype(np.uint8)
        requests.append(frame_inputs(frames, landmarks))
    return requests


@pytest.mark.checks(
    "32 concurrent callers, frames of many sizes and types: each gets the results of its own face"
)
def test_concurrent_requests_get_their_own_faces(
    target: Target, client: FaceFeatureClient, assert_agree: AssertAgree
):
    """The requests share dynamic batches although their frames differ in size and type."""
    requests = different_requests()
    alone = [infer(client, "ensemble", request, ENSEMBLE_OUTPUTS) for request in requests]
    assert len({response["HOG"].tobytes() for response in alone}) == CALLERS

    def send_repeatedly(number: int) -> list[Tensors]:
        with target.connect() as caller:
            return [
                infer(caller, "ensemble", requests[number], ENSEMBLE_OUTPUTS)
                for _ in range(REQUESTS_PER_CALLER)
            ]

    for _ in range(MAX_ROUNDS):
        before = requests_and_batches(client)
        with concurrent.futures.ThreadPoolExecutor(CALLERS) as pool:
            together = list(pool.map(send_repeatedly, range(CALLERS)))
        for responses, expected in zip(together, alone, strict=True):
            for response in responses:
                assert_agree(response, expected)
        expected_count = before[0] + CALLERS * REQUESTS_PER_CALLER
        assert wait_until(
            lambda minimum=expected_count: requests_and_batches(client)[0] >= minimum, STATISTICS_SECONDS
        )
        request_count, batch_count = np.subtract(requests_and_batches(client), before)
        if batch_count < request_count:
            return
    pytest.skip("no two requests shared a dynamic batch: the server or the caller was too slow")


def requests_and_batches(client: FaceFeatureClient) -> tuple[int, int]:
    """Return the numbers of requests and of dynamic batches that align_mask has computed."""
    model = client.connection.get_inference_statistics("align_mask").model_stats[0]
    return model.inference_stats.success.count, model.execution_count
