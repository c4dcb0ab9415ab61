"""`FaceFeatureClient` against the real server: what a call of any size, shape and kind gets."""

import itertools
import resource
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
from triton_face_client import FaceFeatureClient, InvalidFacesError, subject_pose

ALL_OUTPUTS = ("HOG", "POSE", "ALIGNED_LANDMARKS", "AFFINE", "MASK")

MEGABYTE = 2**20


def executions(client: FaceFeatureClient, model: str) -> tuple[int, int]:
    """Return how many requests and how many faces a model has answered, once the counters stand still."""
    counts = [(-1, -1)]
    while len(counts) < 2 or counts[-1] != counts[-2]:
        time.sleep(0.1)
        statistics = client.connection.get_inference_statistics(model).model_stats[0]
        counts.append((statistics.inference_stats.success.count, statistics.inference_count))
    return counts[-1]


def test_a_call_of_many_requests_is_one_of_its_faces_in_their_order(
    client: FaceFeatureClient, server: LocalServer
):
    frames, landmarks = photo_faces(100, 301)
    with FaceFeatureClient(server.grpc_url, batch_size=7, in_flight=5) as small:
        answers = small.features(frames, landmarks, ALL_OUTPUTS)
    assert tuple(answers) == ALL_OUTPUTS
    for face in range(0, 100, 9):
        tensors = {"FRAMES": frames[face : face + 1], "LANDMARKS": landmarks[face : face + 1]}
        alone = infer(client, "ensemble", tensors, ALL_OUTPUTS)
        for name in ALL_OUTPUTS:
            np.testing.assert_array_equal(answers[name][face], alone[name][0], err_msg=name)
    np.testing.assert_allclose(answers["AFFINE"][50], oracles.affine(landmarks[50]), rtol=1e-5)


def test_requests_are_as_large_as_asked_and_as_the_server_takes(
    client: FaceFeatureClient, server: LocalServer
):
    _, landmarks = photo_faces(300, 302)
    for asked, requests in ((100, 3), (1000, 3), (None, 10)):  # 1000: the config says 128; None: 32
        with FaceFeatureClient(server.grpc_url, batch_size=asked) as own:
            before = executions(client, "pose_mlp")
            own.pose(landmarks)
            after = executions(client, "pose_mlp")
        assert (after[0] - before[0], after[1] - before[1]) == (requests, 300)


def test_ten_thousand_faces_in_one_call(server: LocalServer):
    """Beside the answers themselves the call takes no memory that grows with the number of faces."""
    frames, landmarks = photo_faces(250, 303)
    in_bytes = (255 * frames).round().astype(np.uint8)
    many = np.arange(10_000) % 250
    many_frames, many_landmarks = in_bytes[many], landmarks[many]
    with FaceFeatureClient(server.grpc_url) as client:
        expected = client.features(in_bytes, landmarks, ["POSE", "HOG"])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        answers = client.features(many_frames, many_landmarks, ["POSE", "HOG"])
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    for name in expected:
        np.testing.assert_array_equal(answers[name], expected[name][many])
    # Four requests of 32 faces under way, each some 2 MB with its answer; gRPC keeps buffers of its own.
    assert grown < sum(array.nbytes for array in answers.values()) + 64 * MEGABYTE


def test_no_face_is_an_empty_answer(client: FaceFeatureClient):
    frames, landmarks = np.zeros((0, 3, 112, 112), np.uint8), np.zeros((0, 68, 2))
    answers = client.features(frames, landmarks, ALL_OUTPUTS)
    assert [answers[name].shape for name in ALL_OUTPUTS] == [
        (0, 5408),
        (0, 6),
        (0, 68, 2),
        (0, 2, 3),
        (0, 112, 112),
    ]
    assert client.features([], landmarks)["HOG"].shape == (0, 5408)
    assert client.pose(landmarks).shape == (0, 6)


def test_crops_of_mixed_sizes_and_kinds(client: FaceFeatureClient):
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


def test_large_frames_make_small_requests(client: FaceFeatureClient, server: LocalServer):
    frames, landmarks = photo_faces(6, 304, (1500, 2000))  # 36 MB each
    before = executions(client, "align_mask")
    answers = client.align(frames, landmarks, ["MASK"])
    after = executions(client, "align_mask")
    assert answers["MASK"].any(axis=(1, 2)).all()
    assert after[0] - before[0] == 6


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_of_any_width_are_float32(client: FaceFeatureClient, kind: type):
    frames, landmarks = photo_faces(2, 305)
    frames, landmarks = frames.astype(kind), landmarks.astype(np.float64)
    expected = client.features(frames.astype(np.float32), landmarks.astype(np.float32))
    np.testing.assert_array_equal(client.features(frames, landmarks)["HOG"], expected["HOG"])


def test_arrays_of_any_layout_in_memory(client: FaceFeatureClient):
    frames, landmarks = photo_faces(4, 306)
    expected = client.features(frames[::-2], landmarks[::-2])
    pictures = np.moveaxis(frames, 1, -1).copy()  # [N, H, W, 3], as images come
    strided = client.features(np.moveaxis(pictures, -1, 1)[::-2], np.asfortranarray(landmarks)[::-2])
    np.testing.assert_array_equal(strided["HOG"], expected["HOG"])


def test_torch_tensors_are_taken_and_given_back(client: FaceFeatureClient):
    frames, landmarks = photo_faces(3, 307)
    expected = client.features(frames, landmarks, ALL_OUTPUTS)
    answers = client.features(
        torch.from_numpy(frames).requires_grad_(), torch.from_numpy(landmarks), ALL_OUTPUTS
    )
    for name, tensor in answers.items():
        assert isinstance(tensor, torch.Tensor)
        np.testing.assert_array_equal(tensor.numpy(), expected[name])
    assert isinstance(client.pose(torch.from_numpy(landmarks)), torch.Tensor)


def test_tensors_of_other_kinds(client: FaceFeatureClient):
    frames, landmarks = photo_faces(2, 312)
    listed = client.features([torch.from_numpy(frame) for frame in frames], torch.from_numpy(landmarks))
    assert isinstance(listed["HOG"], torch.Tensor)
    halves = torch.from_numpy(frames).to(torch.bfloat16)
    np.testing.assert_array_equal(
        client.features(halves, landmarks)["HOG"], client.features(halves.float(), landmarks)["HOG"]
    )


def test_floats_from_0_to_255_are_warned_of(client: FaceFeatureClient):
    frames, landmarks = photo_faces(2, 313)
    with pytest.warns(UserWarning, match="divide those from 0 to 255"):
        client.features(255 * frames, landmarks)


def test_a_stream_is_read_a_little_ahead_and_answered_in_order(server: LocalServer):
    frames, landmarks = photo_faces(90, 308)
    read = []

    def chunks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for number, count in enumerate(itertools.islice(itertools.cycle([1, 0, 5, 12]), 60)):
            read.append(number)
            yield frames[number : number + count], landmarks[number : number + count]

    ahead = []
    with FaceFeatureClient(server.grpc_url, in_flight=3) as client:
        expected = client.features(frames, landmarks, ["POSE", "MASK"])
        for number, answers in enumerate(client.stream(chunks(), ["POSE", "MASK"])):
            ahead.append(len(read) - number)
            for name, rows in answers.items():
                np.testing.assert_array_equal(rows, expected[name][number : number + len(rows)])
    assert len(ahead) == 60
    assert max(ahead) <= 7


@pytest.mark.parametrize("sizes", [[0] * 50, [1] * 50, [0] * 20 + [3] + [0] * 20, []])
def test_a_stream_ends_with_its_chunks_and_not_before(client: FaceFeatureClient, sizes: list[int]):
    frames, landmarks = photo_faces(3, 311)
    chunks = ((frames[:size], landmarks[:size]) for size in sizes)
    assert [len(answers["POSE"]) for answers in client.stream(chunks, ["POSE", "MASK"])] == sizes


def test_pose_alone_takes_no_frames(client: FaceFeatureClient):
    _, landmarks = photo_faces(5, 309)
    np.testing.assert_array_equal(client.features(None, landmarks, ["POSE"])["POSE"], client.pose(landmarks))


def spoiled(kind: str, count: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Return faces of which those at 3, 4, 40 and 99 are bad."""
    frames, landmarks = photo_faces(count, 320)
    bad = [3, 4, 40, 99]
    if kind == "pixels":
        frames[bad, 1, 50, 50] = np.nan
    elif kind == "landmarks":
        landmarks[bad, 30] = np.inf
    else:
        landmarks[bad] = 50.0
    return frames, landmarks


@pytest.mark.parametrize("kind", ["pixels", "landmarks", "no hull"])
def test_a_bad_face_is_a_row_of_nan_and_its_reason(client: FaceFeatureClient, kind: str):
    frames, landmarks = spoiled(kind)
    bad, good = [3, 4, 40, 99], np.setdiff1d(np.arange(100), [3, 4, 40, 99])
    answers = client.features(frames, landmarks, ALL_OUTPUTS, on_invalid="nan")
    assert sorted(answers.refused) == bad
    expected = client.features(frames[good], landmarks[good], ALL_OUTPUTS)
    for name in ALL_OUTPUTS:
        np.testing.assert_array_equal(answers[name][good], expected[name])
    for name in ("HOG", "POSE", "AFFINE"):
        assert np.isnan(answers[name][bad]).all()
    assert not answers["MASK"][bad].any()
    assert (answers["ALIGNED_LANDMARKS"][bad] == np.iinfo(np.int64).min).all()
    word = {"pixels": "non-finite pixel", "landmarks": "non-finite landmark", "no hull": "all landmarks"}
    assert all(word[kind] in reason for reason in answers.refused.values())


def test_a_bad_face_raises_with_its_place_in_the_call(client: FaceFeatureClient):
    frames, landmarks = spoiled("landmarks")
    with pytest.raises(InvalidFacesError, match="face 35: non-finite landmark: point 30") as caught:
        client.features(frames[5:95], landmarks[5:95])
    assert list(caught.value.reasons) == [35]
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_more_bad_faces_than_a_refusal_names(client: FaceFeatureClient):
    frames, landmarks = photo_faces(60, 321)
    landmarks[1::2] = np.nan
    answers = client.features(frames, landmarks, on_invalid="nan")
    assert sorted(answers.refused) == list(range(1, 60, 2))
    np.testing.assert_array_equal(np.isnan(answers["HOG"]).all(axis=1), np.arange(60) % 2 == 1)
    with pytest.raises(InvalidFacesError, match=r"; and \d+ more"):
        client.features(frames, landmarks)


def test_no_good_face_at_all(client: FaceFeatureClient):
    frames, landmarks = photo_faces(40, 322)
    answers = client.features(frames, np.full_like(landmarks, np.nan), on_invalid="nan")
    assert len(answers.refused) == 40
    assert np.isnan(answers["HOG"]).all()


def test_pose_of_bad_faces(client: FaceFeatureClient):
    frames, landmarks = photo_faces(6, 323)
    expected = client.pose(landmarks)
    landmarks = landmarks.astype(np.float64)
    landmarks[1, 5], landmarks[4, 45] = np.nan, landmarks[4, 36]
    landmarks[2, 7] = 1e39  # infinite as float32
    with pytest.raises(
        InvalidFacesError, match="face 1: non-finite landmark: point 5.*; face 2: .*; face 4: no eye dis"
    ):
        client.pose(landmarks)
    for pose in (
        client.pose(landmarks, on_invalid="nan"),
        client.features(frames, landmarks, ["POSE"], on_invalid="nan")["POSE"],
    ):
        assert np.isnan(pose[[1, 2, 4]]).all()
        np.testing.assert_array_equal(pose[[0, 3, 5]], expected[[0, 3, 5]])


FRAMES = np.zeros((2, 3, 20, 20), dtype=np.float32)
LANDMARKS = np.zeros((2, 68, 2), dtype=np.float32)


@pytest.mark.parametrize(
    ("frames", "landmarks", "outputs", "message"),
    [
        (np.zeros((2, 20, 20, 3), np.float32), LANDMARKS, ["HOG"], "channels go first"),
        (np.zeros((2, 1, 20, 20), np.float32), LANDMARKS, ["HOG"], r"\[2, 1, 20, 20\], not \[N, 3, H, W\]"),
        (FRAMES.astype(np.int64), LANDMARKS, ["HOG"], "int64: send uint8"),
        (np.zeros((2, 3, 0, 20), np.float32), LANDMARKS, ["HOG"], r"\[2, 3, 0, 20\], not \[N, 3, H, W\]"),
        (FRAMES, np.ma.masked_less(LANDMARKS, 1), ["HOG"], "masked array is given: fill it"),
        (FRAMES[0], LANDMARKS, ["HOG"], r"\[3, 20, 20\], not \[N, 3"),
        ([FRAMES[0], FRAMES[0][0]], LANDMARKS, ["HOG"], r"a frame has the shape \[20, 20\]"),
        (FRAMES[:1], LANDMARKS, ["HOG"], "1 frames, but landmarks of 2 faces"),
        (FRAMES, np.zeros((2, 478, 2)), ["HOG"], "from_mediapipe"),
        (FRAMES, np.zeros((2, 136)), ["HOG"], "extract_hog_features"),
        (FRAMES, LANDMARKS.astype(complex), ["HOG"], "complex128, not numbers"),
        (FRAMES, np.random.default_rng(0).random((2, 68, 2)), ["HOG"], "multiply them by its width"),
        (FRAMES, LANDMARKS, ["HOGG"], "ensemble has no output HOGG: ask for any of HOG, POSE"),
        (FRAMES, LANDMARKS, [], "ask for any of HOG, POSE"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_sent(
    client: FaceFeatureClient, frames: object, landmarks: np.ndarray, outputs: list[str], message: str
):
    with pytest.raises(ValueError, match=message):
        client.features(frames, landmarks, outputs)


def test_settings_that_cannot_be():
    for settings, message in (
        ({"in_flight": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"timeout": 0.0}, "more than 0"),
        ({"url": ["127.0.0.1:1", "127.0.0.1:2"], "shm": True}, "one address"),
        ({"url": "http://127.0.0.1:8000"}, "is not HOST:PORT"),
        ({"url": "somewhere"}, "is not HOST:PORT"),
        ({"url": []}, "no address given"),
        ({"url": ["no-such-host.invalid:1", "127.0.0.1:2"]}, "not known"),
    ):
        with pytest.raises(ValueError, match=message):
            FaceFeatureClient(**settings)
    with FaceFeatureClient() as client, pytest.raises(ValueError, match="give 'raise' or 'nan'"):
        client.pose(LANDMARKS, on_invalid="skip")


def nose_direction(pitch: float, roll: float, yaw: float) -> np.ndarray:
    """Where the nose of a head points in camera axes (x right, y down, z away), from raw angles."""
    return Rotation.from_euler("xyz", [pitch, roll, yaw]).apply([0, 0, -1])


def test_the_subjects_convention_has_the_signs_it_says():
    pitch_up, roll_right, yaw_right = 0.3, 0.2, 0.25
    raw_up = np.array([[-pitch_up, 0, 0, 1, 2, 3]])
    assert nose_direction(*raw_up[0, :3])[1] < 0  # up in the image
    np.testing.assert_allclose(subject_pose(raw_up), [[pitch_up, 0, 0, 1, 2, 3]])

    raw_turned = np.array([[0, yaw_right, 0, 1, 2, 3]])
    assert nose_direction(*raw_turned[0, :3])[0] < 0  # the subject's right is the image's left
    np.testing.assert_allclose(subject_pose(raw_turned), [[0, 0, yaw_right, 1, 2, 3]])

    raw_tilted = np.array([[0, 0, -roll_right, 1, 2, 3]])
    crown = Rotation.from_euler("xyz", raw_tilted[0, :3]).apply([0, -1, 0])
    assert crown[0] < 0  # the crown goes to the image's left
    np.testing.assert_allclose(subject_pose(raw_tilted), [[0, roll_right, 0, 1, 2, 3]])
