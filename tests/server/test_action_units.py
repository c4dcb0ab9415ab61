"""The models `au` and `action_units` on a real server: equal bits in every batch, steps, full queues."""

import concurrent.futures
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from tritonclient.utils import InferenceServerException

from deploy.local import LocalServer
from tests.acceptance.target import Tensors, faces_computed, frame_inputs
from tests.support.face_data import photo_faces
from tests.support.raw_requests import infer
from tests.support.waiting import wait_until
from triton_face_client import FaceFeatureClient

OUTPUTS = ("AU", "HOG", "POSE", "ALIGNED_LANDMARKS", "AFFINE", "MASK")

CALLERS = 24
ROUNDS = 4

RESPONSE_SECONDS = 60.0

NEEDED_MODELS = {
    "AU": {"pose_mlp", "align_mask", "hog", "au"},
    "HOG": {"pose_mlp", "align_mask", "hog", "au"},
    "ALIGNED_LANDMARKS": {"pose_mlp", "align_mask", "hog", "au"},
    "AFFINE": {"pose_mlp", "align_mask"},
    "MASK": {"pose_mlp", "align_mask"},
    "POSE": {"pose_mlp"},
}
"""Output -> the steps of action_units that compute it; au returns HOG and ALIGNED_LANDMARKS, too."""


@pytest.fixture
def au_client(au_server: LocalServer) -> Iterator[FaceFeatureClient]:
    with FaceFeatureClient(au_server.grpc_url) as connected:
        yield connected


@pytest.fixture(scope="module")
def session(au_repository: Path) -> onnxruntime.InferenceSession:
    """Return the model of `au` in this process."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        str(au_repository / "au" / "1" / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )


def single_face_requests() -> list[Tensors]:
    """Return one request for each caller: frames of different sizes and types."""
    requests = []
    for number in range(CALLERS):
        frames, landmarks = photo_faces(1, 1500 + number, [(112, 112), (96, 128)][number % 2])
        if number % 3 == 0:
            frames = (255 * frames).astype(np.uint8)
        requests.append(frame_inputs(frames, landmarks))
    return requests


def send_together(server: LocalServer, requests: list[Tensors]) -> list[list[Tensors | str]]:
    """Send each request several times, each from its own caller, all callers at once.

    Return for each request its responses, or the messages of its rejections.
    """

    def send_repeatedly(tensors: Tensors) -> list[Tensors | str]:
        with FaceFeatureClient(server.grpc_url) as caller:
            return [outcome(caller, tensors) for _ in range(ROUNDS)]

    with concurrent.futures.ThreadPoolExecutor(CALLERS) as pool:
        return list(pool.map(send_repeatedly, requests))


def outcome(client: FaceFeatureClient, tensors: Tensors) -> Tensors | str:
    """Return the response to a request, or the message of its rejection."""
    try:
        return infer(client, "action_units", tensors, OUTPUTS, timeout=RESPONSE_SECONDS)
    except InferenceServerException as error:
        return f"{error.status()} {error.message()}"


def test_action_units_equal_the_model_in_process_bit_for_bit(
    au_client: FaceFeatureClient, session: onnxruntime.InferenceSession
):
    frames, landmarks = photo_faces(16, 1490)
    response = infer(au_client, "action_units", frame_inputs(frames, landmarks), OUTPUTS)
    inputs = {name: response[name] for name in ("HOG", "ALIGNED_LANDMARKS")}
    (expected,) = session.run(["AU"], inputs)
    np.testing.assert_array_equal(response["AU"], expected)
    np.testing.assert_array_equal(infer(au_client, "au", inputs, ["AU"])["AU"], expected)


def test_bits_do_not_depend_on_the_dynamic_batch_and_an_invalid_face_rejects_only_its_request(
    au_client: FaceFeatureClient, au_server: LocalServer
):
    requests = single_face_requests()
    expected = [infer(au_client, "action_units", request, OUTPUTS) for request in requests]
    assert len({response["AU"].tobytes() for response in expected}) == CALLERS
    for number in range(0, CALLERS, 6):
        requests[number]["LANDMARKS"] = np.full_like(requests[number]["LANDMARKS"], 40)
    before = au_client.connection.get_inference_statistics("au").model_stats[0]
    for number, responses in enumerate(send_together(au_server, requests)):
        for response in responses:
            if number % 6 == 0:
                assert response.startswith("StatusCode.INVALID_ARGUMENT")
                assert "face 0: all landmarks are equal" in response
            else:
                for name in OUTPUTS:
                    np.testing.assert_array_equal(response[name], expected[number][name])
    after = au_client.connection.get_inference_statistics("au").model_stats[0]
    requests_computed = CALLERS * ROUNDS * 5 // 6
    assert after.execution_count - before.execution_count < requests_computed, "no dynamic batch of two"


def test_non_finite_feature_sent_to_au_makes_only_its_face_nan(
    au_client: FaceFeatureClient, au_server: LocalServer
):
    frames, landmarks = photo_faces(4, 1491)
    faces = infer(au_client, "action_units", frame_inputs(frames, landmarks), OUTPUTS)
    invalid = {name: faces[name].copy() for name in ("HOG", "ALIGNED_LANDMARKS")}
    invalid["HOG"][2, 100] = np.nan
    response = infer(au_client, "au", invalid, ["AU"])["AU"]
    assert np.isnan(response[2]).all()
    np.testing.assert_array_equal(np.delete(response, 2, axis=0), np.delete(faces["AU"], 2, axis=0))


@pytest.mark.parametrize("output", OUTPUTS)
def test_only_the_steps_of_an_output_run(au_client: FaceFeatureClient, output: str):
    tensors = frame_inputs(*photo_faces(3, 1492))
    before = faces_computed(au_client)
    infer(au_client, "action_units", tensors, [output])
    expected = {name: before[name] + 3 * (name in NEEDED_MODELS[output]) for name in NEEDED_MODELS["AU"]}
    # Triton updates its statistics after the response.
    assert wait_until(lambda: expected.items() <= faces_computed(au_client).items(), RESPONSE_SECONDS)


@pytest.mark.slow
def test_full_queue_of_au_rejects_requests_and_answers_the_others(
    repository: Path, au_repository: Path, tmp_path: Path
):
    """The last step of action_units rejects a request; Triton 2.51 loses requests if two steps reject one."""
    small = Path(shutil.copytree(au_repository, tmp_path / "au_repository"))
    config = small / "au" / "config.pbtxt"
    config.write_text(config.read_text().replace("max_queue_size: 256", "max_queue_size: 1"))
    requests = single_face_requests()
    with LocalServer(repository, au_repository=small) as server:
        with FaceFeatureClient(server.grpc_url) as client:
            expected = [infer(client, "action_units", request, OUTPUTS) for request in requests]
        together = send_together(server, requests)
        rejected = [item for responses in together for item in responses if isinstance(item, str)]
        assert 0 < len(rejected) < CALLERS * ROUNDS
        assert all("Exceeds maximum queue size" in message for message in rejected)
        for responses, alone in zip(together, expected, strict=True):
            for response in responses:
                if not isinstance(response, str):
                    np.testing.assert_array_equal(response["AU"], alone["AU"])
        with FaceFeatureClient(server.grpc_url) as client:
            assert set(infer(client, "action_units", requests[0], OUTPUTS)) == set(OUTPUTS)
