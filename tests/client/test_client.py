"""`FaceFeatureClient` with a real server: calls of any size, shape and type."""

import contextlib
import gc
import itertools
import resource
import socket
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from deploy.local import LocalServer
from tests.support import oracles
from tests.support.face_data import photo_faces
from tests.support.raw_requests import infer
from triton_face_client import FaceFeatureClient, FaceServiceError, InvalidFacesError, subject_pose
from triton_face_client.requests.faces import MAX_REQUEST_BYTES, Faces

ALL_OUTPUTS = ("HOG", "POSE", "ALIGNED_LANDMARKS", "AFFINE", "MASK")

INVALID_FACES = [3, 4, 40, 99]
"""Indices of the invalid faces of `faces_with_invalid`."""

FRAMES = np.zeros((2, 3, 20, 20), dtype=np.float32)
LANDMARKS = np.zeros((2, 68, 2), dtype=np.float32)

MIB = 2**20


def computed_counts(client: FaceFeatureClient, model: str) -> tuple[int, int]:
    """Return the numbers of requests and of faces that a model has computed, once the counters are stable."""
    counts = [(-1, -1)]
    while len(counts) < 2 or counts[-1] != counts[-2]:
        time.sleep(0.1)
        statistics = client.connection.get_inference_statistics(model).model_stats[0]
        counts.append((statistics.inference_stats.success.count, statistics.inference_count))
    return counts[-1]


def test_splits_a_call_into_requests_and_keeps_the_order_of_faces(
    client: FaceFeatureClient, server: LocalServer
):
    frames, landmarks = photo_faces(100, 301)
    with FaceFeatureClient(server.grpc_url, batch_size=7, in_flight=5) as small_batches:
        answers = small_batches.features(frames, landmarks, ALL_OUTPUTS)
    assert tuple(answers) == ALL_OUTPUTS
    for face in range(0, 100, 9):
        tensors = {"FRAMES": frames[face : face + 1], "LANDMARKS": landmarks[face : face + 1]}
        alone = infer(client, "ensemble", tensors, ALL_OUTPUTS)
        for name in ALL_OUTPUTS:
            np.testing.assert_array_equal(answers[name][face], alone[name][0], err_msg=name)
    np.testing.assert_allclose(answers["AFFINE"][50], oracles.affine(landmarks[50]), rtol=1e-5)


def test_batch_size_is_limited_by_the_server(client: FaceFeatureClient, server: LocalServer):
    _, landmarks = photo_faces(300, 302)
    # The server's maximum is 128, the client's default 32.
    for batch_size, requests in ((100, 3), (1000, 3), (None, 10)):
        with FaceFeatureClient(server.grpc_url, batch_size=batch_size) as client_under_test:
            before = computed_counts(client, "pose_mlp")
            client_under_test.pose(landmarks)
            after = computed_counts(client, "pose_mlp")
        assert (after[0] - before[0], after[1] - before[1]) == (requests, 300)


def test_memory_of_a_large_call_is_bounded(server: LocalServer):
    """Only the memory of the answers grows with the number of faces."""
    frames, landmarks = photo_faces(250, 303)
    uint8_frames = (255 * frames).round().astype(np.uint8)
    repeated = np.arange(4_000) % 250
    many_frames, many_landmarks = uint8_frames[repeated], landmarks[repeated]
    with FaceFeatureClient(server.grpc_url) as client:
        expected = client.features(uint8_frames, landmarks, ["POSE", "HOG"])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        answers = client.features(many_frames, many_landmarks, ["POSE", "HOG"])
        increase = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    for name in expected:
        np.testing.assert_array_equal(answers[name], expected[name][repeated])
    # Four requests of 32 faces are in flight. Each has about 2 MB with its response; gRPC adds buffers.
    assert increase < sum(array.nbytes for array in answers.values()) + 64 * MIB


def test_no_faces_give_empty_arrays(client: FaceFeatureClient):
    frames, landmarks = np.zeros((0, 3, 112, 112), np.uint8), np.zeros((0, 68, 2))
    answers = client.features(frames, landmarks, ALL_OUTPUTS)
    shapes = [(0, 5408), (0, 6), (0, 68, 2), (0, 2, 3), (0, 112, 112)]
    assert [answers[name].shape for name in ALL_OUTPUTS] == shapes
    assert client.features([], landmarks)["HOG"].shape == (0, 5408)
    assert client.pose(landmarks).shape == (0, 6)


def test_accepts_frames_of_mixed_sizes_and_types(client: FaceFeatureClient):
    sizes = [(112, 112), (97, 131), (112, 112), (60, 60), (97, 131), (300, 200)]
    faces = [photo_faces(1, 310 + i, size) for i, size in enumerate(sizes)]
    frames = [frame[0] for frame, _ in faces]
    frames[2] = (255 * frames[2]).astype(np.uint8)
    landmarks = np.concatenate([points for _, points in faces])
    together = client.features(frames, landmarks, ALL_OUTPUTS)
    for face, frame in enumerate(frames):
        alone = client.features(frame[None], landmarks[face : face + 1], ALL_OUTPUTS)
        for name in ALL_OUTPUTS:
            np.testing.assert_array_equal(together[name][face], alone[name][0])


def test_large_frames_are_sent_in_small_requests(client: FaceFeatureClient, server: LocalServer):
    frame, points = photo_faces(1, 304, (1500, 2000))  # 36 MB
    frames, landmarks = np.repeat(frame, 3, axis=0), np.repeat(points, 3, axis=0)
    before = computed_counts(client, "align_mask")
    answers = client.align(frames, landmarks, ["MASK"])
    after = computed_counts(client, "align_mask")
    assert answers["MASK"].any(axis=(1, 2)).all()
    assert after[0] - before[0] == 3


def test_requests_stay_below_the_size_limit():
    frames = np.broadcast_to(np.uint8(0), (41, 3, 2160, 3840))
    small_and_large = [np.broadcast_to(np.float32(0), (3, side, side)) for side in (100, 3000)] * 5
    for faces in (Faces(np.zeros((41, 68, 2)), frames), Faces(np.zeros((10, 68, 2)), small_and_large)):
        batches = list(faces.batches(batch_size=128))
        np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(len(faces)))
        for rows in batches:
            size = sum(faces.frames[row].nbytes for row in rows)
            assert len(rows) == 1 or size <= MAX_REQUEST_BYTES


def test_rejects_a_frame_larger_than_a_grpc_message(client: FaceFeatureClient):
    frame = np.broadcast_to(np.uint8(0), (3, 30_000, 30_000))
    for frames in ([frame], frame[None]):
        with pytest.raises(ValueError, match=r"\[3, 30000, 30000\] has 2.7 GB.*send a crop"):
            client.features(frames, LANDMARKS[:1])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floating_frames_are_sent_as_float32(client: FaceFeatureClient, dtype: type):
    frames, landmarks = photo_faces(2, 305)
    frames, landmarks = frames.astype(dtype), landmarks.astype(np.float64)
    expected = client.features(frames.astype(np.float32), landmarks.astype(np.float32))
    np.testing.assert_array_equal(client.features(frames, landmarks)["HOG"], expected["HOG"])


def test_accepts_any_memory_layout(client: FaceFeatureClient):
    frames, landmarks = photo_faces(4, 306)
    expected = client.features(frames[::-2], landmarks[::-2])
    images = np.moveaxis(frames, 1, -1).copy()  # [N, H, W, 3]
    strided = client.features(np.moveaxis(images, -1, 1)[::-2], np.asfortranarray(landmarks)[::-2])
    np.testing.assert_array_equal(strided["HOG"], expected["HOG"])


def test_returns_tensors_for_tensors(client: FaceFeatureClient):
    frames, landmarks = photo_faces(3, 307)
    expected = client.features(frames, landmarks, ALL_OUTPUTS)
    answers = client.features(
        torch.from_numpy(frames).requires_grad_(), torch.from_numpy(landmarks), ALL_OUTPUTS
    )
    for name, tensor in answers.items():
        assert isinstance(tensor, torch.Tensor)
        np.testing.assert_array_equal(tensor.numpy(), expected[name])
    assert isinstance(client.pose(torch.from_numpy(landmarks)), torch.Tensor)


def test_accepts_lists_of_tensors_and_bfloat16(client: FaceFeatureClient):
    frames, landmarks = photo_faces(2, 312)
    listed = client.features([torch.from_numpy(frame) for frame in frames], torch.from_numpy(landmarks))
    assert isinstance(listed["HOG"], torch.Tensor)
    bfloat16 = torch.from_numpy(frames).to(torch.bfloat16)
    np.testing.assert_array_equal(
        client.features(bfloat16, landmarks)["HOG"], client.features(bfloat16.float(), landmarks)["HOG"]
    )


def test_warns_of_floating_frames_of_0_to_255(client: FaceFeatureClient):
    frames, landmarks = photo_faces(2, 313)
    with pytest.warns(UserWarning, match="divide frames of 0 to 255 by 255"):
        client.features(255 * frames, landmarks)


def test_stream_reads_few_chunks_ahead_and_keeps_their_order(server: LocalServer):
    frames, landmarks = photo_faces(90, 308)
    chunks_read = []

    def chunks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for number, count in enumerate(itertools.islice(itertools.cycle([1, 0, 5, 12]), 60)):
            chunks_read.append(number)
            yield frames[number : number + count], landmarks[number : number + count]

    chunks_ahead = []
    with FaceFeatureClient(server.grpc_url, in_flight=3) as client:
        expected = client.features(frames, landmarks, ["POSE", "MASK"])
        for number, answers in enumerate(client.stream(chunks(), ["POSE", "MASK"])):
            chunks_ahead.append(len(chunks_read) - number)
            for name, rows in answers.items():
                np.testing.assert_array_equal(rows, expected[name][number : number + len(rows)])
    assert len(chunks_ahead) == 60
    # Twice in_flight, and the chunk that was just answered.
    assert max(chunks_ahead) <= 2 * 3 + 1


@pytest.mark.parametrize("sizes", [[0] * 50, [1] * 50, [0] * 20 + [3] + [0] * 20, []])
def test_stream_yields_one_answer_per_chunk(client: FaceFeatureClient, sizes: list[int]):
    frames, landmarks = photo_faces(3, 311)
    chunks = ((frames[:size], landmarks[:size]) for size in sizes)
    assert [len(answers["POSE"]) for answers in client.stream(chunks, ["POSE", "MASK"])] == sizes


def test_pose_needs_no_frames(client: FaceFeatureClient):
    _, landmarks = photo_faces(5, 309)
    np.testing.assert_array_equal(client.features(None, landmarks, ["POSE"])["POSE"], client.pose(landmarks))


def test_garbage_collected_client_ends_its_thread(server: LocalServer):
    client = FaceFeatureClient(server.grpc_url)
    client.pose(photo_faces(1, 314)[1])
    thread = client._io_thread._thread
    del client
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()


def test_closing_twice_and_calls_after_closing_do_not_hang(server: LocalServer):
    client = FaceFeatureClient(server.grpc_url)
    client.pose(photo_faces(1, 314)[1])
    client.close()
    client.close()
    with pytest.raises(FaceServiceError, match="the client is closed"):
        client.pose(photo_faces(1, 314)[1])


def test_deadline_holds_while_another_thread_waits_for_a_hanging_server():
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        client = FaceFeatureClient(f"127.0.0.1:{hanging.getsockname()[1]}")

        def wait() -> None:
            with contextlib.suppress(FaceServiceError):
                client.wait_until_ready(5)

        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.2)
        start = time.monotonic()
        with pytest.raises(FaceServiceError):
            client.pose(photo_faces(1, 314)[1], deadline=0.5)
        assert time.monotonic() - start < 4, "the other call ends after 5 s"
        waiting.join()


def faces_with_invalid(defect: str) -> tuple[np.ndarray, np.ndarray]:
    """Return 100 faces, of which `INVALID_FACES` have an invalid pixel, an invalid landmark or no hull."""
    frames, landmarks = photo_faces(100, 320)
    if defect == "pixels":
        frames[INVALID_FACES, 1, 50, 50] = np.nan
    elif defect == "landmarks":
        landmarks[INVALID_FACES, 30] = np.inf
    else:
        landmarks[INVALID_FACES] = 50.0
    return frames, landmarks


@pytest.mark.parametrize("defect", ["pixels", "landmarks", "no hull"])
def test_invalid_face_gets_nan_and_a_reason(client: FaceFeatureClient, defect: str):
    frames, landmarks = faces_with_invalid(defect)
    valid = np.setdiff1d(np.arange(100), INVALID_FACES)
    answers = client.features(frames, landmarks, ALL_OUTPUTS, on_invalid="nan")
    assert sorted(answers.refused) == INVALID_FACES
    expected = client.features(frames[valid], landmarks[valid], ALL_OUTPUTS)
    for name in ALL_OUTPUTS:
        np.testing.assert_array_equal(answers[name][valid], expected[name])
    for name in ("HOG", "POSE", "AFFINE"):
        assert np.isnan(answers[name][INVALID_FACES]).all()
    assert not answers["MASK"][INVALID_FACES].any()
    assert (answers["ALIGNED_LANDMARKS"][INVALID_FACES] == np.iinfo(np.int64).min).all()
    expected_reason = {
        "pixels": "non-finite pixel",
        "landmarks": "non-finite landmark",
        "no hull": "all landmarks are equal",
    }[defect]
    assert all(expected_reason in reason for reason in answers.refused.values())


def test_error_has_the_index_of_the_face_in_the_call(client: FaceFeatureClient):
    frames, landmarks = faces_with_invalid("landmarks")
    with pytest.raises(InvalidFacesError, match="face 35: non-finite landmark: point 30") as caught:
        client.features(frames[5:95], landmarks[5:95])
    assert list(caught.value.reasons) == [35]
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_reports_more_invalid_faces_than_a_message_names(client: FaceFeatureClient):
    frames, landmarks = photo_faces(60, 321)
    landmarks[1::2] = np.nan
    answers = client.features(frames, landmarks, on_invalid="nan")
    assert sorted(answers.refused) == list(range(1, 60, 2))
    np.testing.assert_array_equal(np.isnan(answers["HOG"]).all(axis=1), np.arange(60) % 2 == 1)
    with pytest.raises(InvalidFacesError, match=r"; and \d+ more"):
        client.features(frames, landmarks)


def test_call_with_only_invalid_faces_returns_nan(client: FaceFeatureClient):
    frames, landmarks = photo_faces(40, 322)
    answers = client.features(frames, np.full_like(landmarks, np.nan), on_invalid="nan")
    assert len(answers.refused) == 40
    assert np.isnan(answers["HOG"]).all()


def test_pose_of_invalid_faces_is_nan_or_an_error(client: FaceFeatureClient):
    frames, landmarks = photo_faces(6, 323)
    expected = client.pose(landmarks)
    landmarks = landmarks.astype(np.float64)
    landmarks[1, 5], landmarks[4, 45] = np.nan, landmarks[4, 36]
    landmarks[2, 7] = 1e39  # infinite as float32
    with pytest.raises(
        InvalidFacesError, match="face 1: non-finite landmark: point 5.*; face 2: .*; face 4: no eye distance"
    ):
        client.pose(landmarks)
    for pose in (
        client.pose(landmarks, on_invalid="nan"),
        client.features(frames, landmarks, ["POSE"], on_invalid="nan")["POSE"],
    ):
        assert np.isnan(pose[[1, 2, 4]]).all()
        np.testing.assert_array_equal(pose[[0, 3, 5]], expected[[0, 3, 5]])


@pytest.mark.parametrize(
    ("frames", "landmarks", "outputs", "message"),
    [
        (np.zeros((2, 20, 20, 3), np.float32), LANDMARKS, ["HOG"], "channels go first"),
        (np.zeros((2, 1, 20, 20), np.float32), LANDMARKS, ["HOG"], r"\[2, 1, 20, 20\], not \[N, 3, H, W\]"),
        (FRAMES.astype(np.int64), LANDMARKS, ["HOG"], "int64: send uint8"),
        (np.zeros((2, 3, 0, 20), np.float32), LANDMARKS, ["HOG"], r"\[2, 3, 0, 20\], not \[N, 3, H, W\]"),
        (FRAMES, np.ma.masked_less(LANDMARKS, 1), ["HOG"], "masked elements: fill them"),
        (FRAMES[0], LANDMARKS, ["HOG"], r"\[3, 20, 20\], not \[N, 3"),
        ([FRAMES[0], FRAMES[0][0]], LANDMARKS, ["HOG"], r"a frame has the shape \[20, 20\]"),
        (FRAMES[:1], LANDMARKS, ["HOG"], "1 frames, but landmarks of 2 faces"),
        (FRAMES, np.zeros((2, 478, 2)), ["HOG"], "from_mediapipe"),
        (FRAMES, np.zeros((2, 136)), ["HOG"], "extract_hog_features"),
        (FRAMES, LANDMARKS.astype(complex), ["HOG"], "complex128, not real numbers"),
        (FRAMES, np.random.default_rng(0).random((2, 68, 2)), ["HOG"], "multiply them by the frame's width"),
        (FRAMES, LANDMARKS, ["HOGG"], "ensemble has no output HOGG: it has HOG, POSE"),
        (FRAMES, LANDMARKS, [], "no output is requested: ensemble has HOG, POSE"),
    ],
)
def test_rejects_invalid_arguments_before_sending(
    client: FaceFeatureClient, frames: object, landmarks: np.ndarray, outputs: list[str], message: str
):
    with pytest.raises(ValueError, match=message):
        client.features(frames, landmarks, outputs)


def test_rejects_invalid_settings():
    for settings, message in (
        ({"in_flight": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"timeout": 0.0}, "more than 0"),
        ({"url": ["127.0.0.1:1", "127.0.0.1:2"], "shm": True}, "one address"),
        ({"url": "http://127.0.0.1:8000"}, "is not HOST:PORT"),
        ({"url": "somewhere"}, "is not HOST:PORT"),
        ({"url": []}, "no address given"),
        ({"url": ["no-such-host.invalid:1", "127.0.0.1:2"]}, "cannot be resolved"),
    ):
        with pytest.raises(ValueError, match=message):
            FaceFeatureClient(**settings)
    with FaceFeatureClient() as client, pytest.raises(ValueError, match="pass 'raise' or 'nan'"):
        client.pose(LANDMARKS, on_invalid="skip")


def nose_direction(raw_pitch: float, raw_roll: float, raw_yaw: float) -> np.ndarray:
    """Return the direction of the nose in camera axes (x right, y down, z away) for raw angles in radians."""
    return Rotation.from_euler("xyz", [raw_pitch, raw_roll, raw_yaw]).apply([0, 0, -1])


def test_subject_pose_has_the_documented_signs():
    pitch_up, roll_right, yaw_right = 0.3, 0.2, 0.25
    raw_up = np.array([[-pitch_up, 0, 0, 1, 2, 3]])
    assert nose_direction(*raw_up[0, :3])[1] < 0, "the nose points up in the image"
    np.testing.assert_allclose(subject_pose(raw_up), [[pitch_up, 0, 0, 1, 2, 3]])

    raw_turned = np.array([[0, yaw_right, 0, 1, 2, 3]])
    assert nose_direction(*raw_turned[0, :3])[0] < 0, "the subject's right is the image's left"
    np.testing.assert_allclose(subject_pose(raw_turned), [[0, 0, yaw_right, 1, 2, 3]])

    raw_tilted = np.array([[0, 0, -roll_right, 1, 2, 3]])
    head_top = Rotation.from_euler("xyz", raw_tilted[0, :3]).apply([0, -1, 0])
    assert head_top[0] < 0, "the top of the head is on the image's left"
    np.testing.assert_allclose(subject_pose(raw_tilted), [[0, roll_right, 0, 1, 2, 3]])
