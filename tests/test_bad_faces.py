"""A bad face fails its own request, with its index and a reason; its neighbours are answered."""

import concurrent.futures
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException

from deploy.local import LocalServer
from tests import oracles
from tests.faces import photo_faces
from tests.raw import infer
from tests.test_serving import infer_http
from triton_face_client import FaceFeatureClient

Spoil = Callable[[np.ndarray, np.ndarray], None]


def _nan_landmark(frames: np.ndarray, landmarks: np.ndarray) -> None:
    landmarks[2, 17, 0] = np.nan


def _infinite_landmark(frames: np.ndarray, landmarks: np.ndarray) -> None:
    landmarks[2, 5] = -np.inf


def _nan_pixel(frames: np.ndarray, landmarks: np.ndarray) -> None:
    frames[2, 1, 60, 60] = np.nan


def _infinite_pixel(frames: np.ndarray, landmarks: np.ndarray) -> None:
    frames[2, 0, 0, 0] = np.inf


def _on_a_line(frames: np.ndarray, landmarks: np.ndarray) -> None:
    landmarks[2] = np.stack([np.arange(68), 3 * np.arange(68)], axis=1)


def _on_a_level_line(frames: np.ndarray, landmarks: np.ndarray) -> None:
    landmarks[2, :, 1] = 50


def _all_equal(frames: np.ndarray, landmarks: np.ndarray) -> None:
    landmarks[2] = 40


def _all_zero(frames: np.ndarray, landmarks: np.ndarray) -> None:
    landmarks[2] = 0


def _no_eye_distance(frames: np.ndarray, landmarks: np.ndarray) -> None:
    landmarks[2, 42:48] = landmarks[2, 36:42]


def _far_off(frames: np.ndarray, landmarks: np.ndarray) -> None:
    landmarks[2, 8] = [1e6, 50]


def _overflowing(frames: np.ndarray, landmarks: np.ndarray) -> None:
    landmarks[2] *= 1e30


def _anchors_in_a_point(frames: np.ndarray, landmarks: np.ndarray) -> None:
    landmarks[2, 27:] = 50 + landmarks[2, 27:] * 1e-5


def _enormous_pixel(frames: np.ndarray, landmarks: np.ndarray) -> None:
    frames[2] *= 1e25


def _enormous_negative_pixel(frames: np.ndarray, landmarks: np.ndarray) -> None:
    frames[2, 1, 30, 40] = -1e25


def _minus_infinite_pixel(frames: np.ndarray, landmarks: np.ndarray) -> None:
    frames[2, 0, 5, 6] = -np.inf


def _far_left(frames: np.ndarray, landmarks: np.ndarray) -> None:
    landmarks[2, 4, 0] = -8193


def _far_above(frames: np.ndarray, landmarks: np.ndarray) -> None:
    landmarks[2, 60, 1] = -8193


BAD_FACES: dict[str, tuple[Spoil, str]] = {
    "NaN landmark": (_nan_landmark, "face 2: non-finite landmark: point 17"),
    "infinite landmark": (_infinite_landmark, "face 2: non-finite landmark: point 5"),
    "NaN pixel": (_nan_pixel, "face 2: non-finite pixel"),
    "infinite pixel": (_infinite_pixel, "face 2: non-finite pixel"),
    "enormous pixel": (_enormous_pixel, "face 2: pixel absurdly large"),
    "enormous negative pixel": (_enormous_negative_pixel, "face 2: pixel absurdly large"),
    "minus infinite pixel": (_minus_infinite_pixel, "face 2: non-finite pixel"),
    "far left": (_far_left, "face 2: landmark absurdly far off: point 4 lies 8193 pixels outside"),
    "far above": (_far_above, "face 2: landmark absurdly far off: point 60 lies 8193 pixels outside"),
    "on a line": (_on_a_line, "face 2: points on one line"),
    "on a level line": (_on_a_level_line, "face 2: points on one line"),
    "all equal": (_all_equal, "face 2: all landmarks are equal"),
    "all zero": (_all_zero, "face 2: all landmarks are equal"),
    "no eye distance": (_no_eye_distance, "face 2: no eye distance"),
    "far off": (_far_off, "face 2: landmark absurdly far off: point 8"),
    "overflowing": (_overflowing, "face 2: landmark absurdly far off"),
    "anchors in a point": (_anchors_in_a_point, "face 2: landmark absurdly far off"),
}

FRAME_SIZES = {
    "too small": ((15, 112), "face 0: frame too small: 112x15 pixels, each side needs at least 16"),
    "one pixel": ((1, 1), "face 0: frame too small"),
    "over the limit": ((3000, 2800), "face 0: frame over the pixel limit: 2800x3000"),
}


@pytest.mark.parametrize("model", ["ensemble", "align_mask"])
@pytest.mark.parametrize("kind", BAD_FACES)
def test_the_face_and_the_reason_are_named(client: FaceFeatureClient, kind: str, model: str):
    spoil, message = BAD_FACES[kind]
    frames, landmarks = photo_faces(4, 61)
    spoil(frames, landmarks)
    ask = client.features if model == "ensemble" else client.align
    with pytest.raises(InferenceServerException) as caught:
        ask(frames, landmarks)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert message in caught.value.message()


@pytest.mark.parametrize("output", ["ALIGNED_FACES", "ALIGNED_LANDMARKS", "AFFINE", "MASK"])
@pytest.mark.parametrize("kind", BAD_FACES)
def test_a_face_is_refused_whatever_is_asked_of_it(client: FaceFeatureClient, kind: str, output: str):
    spoil, message = BAD_FACES[kind]
    frames, landmarks = photo_faces(4, 62)
    spoil(frames, landmarks)
    with pytest.raises(InferenceServerException, match=message):
        client.align(frames, landmarks, [output])


def test_a_landmark_at_the_limit_is_served(client: FaceFeatureClient):
    frames, landmarks = photo_faces(4, 62)
    landmarks[:, 0] = [[-8192, 10], [112 + 8192, 10], [10, -8192], [10, 112 + 8192]]
    answers = client.align(frames, landmarks, ["ALIGNED_LANDMARKS", "MASK"])
    for points, mask in zip(answers["ALIGNED_LANDMARKS"], answers["MASK"], strict=True):
        np.testing.assert_array_equal(mask, oracles.mask(points))


@pytest.mark.parametrize("kind", FRAME_SIZES)
def test_frames_of_unserved_sizes(client: FaceFeatureClient, kind: str):
    size, message = FRAME_SIZES[kind]
    frames = np.zeros((1, 3, *size), dtype=np.float32)
    with pytest.raises(InferenceServerException) as caught:
        client.features(frames, photo_faces(1, 63)[1])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert message in caught.value.message()


def test_several_bad_faces_are_all_named_up_to_eight(client: FaceFeatureClient):
    frames, landmarks = photo_faces(12, 64)
    landmarks[[1, 3]] = np.nan
    with pytest.raises(InferenceServerException, match=r"face 1: .*; face 3: "):
        client.align(frames, landmarks)
    landmarks[:11] = np.nan
    with pytest.raises(InferenceServerException, match=r"face 7: .*; and 3 more"):
        client.align(frames, landmarks)


def test_over_http_it_is_a_client_error(http: httpclient.InferenceServerClient):
    frames, landmarks = photo_faces(1, 65)
    landmarks[0, 0] = np.nan
    with pytest.raises(InferenceServerException) as caught:
        infer_http(http, "ensemble", {"FRAMES": frames, "LANDMARKS": landmarks}, ["HOG"])
    assert caught.value.status() == "400"
    assert "face 0: non-finite landmark" in caught.value.message()


@pytest.mark.parametrize(
    ("frames", "landmarks"),
    [
        (np.zeros((1, 1, 112, 112), np.float32), np.zeros((1, 68, 2), np.float32)),
        (np.zeros((1, 3, 112, 112), np.float32), np.zeros((1, 478, 2), np.float32)),
        (np.zeros((1, 3, 112, 112), np.float32), np.zeros((1, 136), np.float32)),
        (np.zeros((1, 3, 112, 112), np.float64), np.zeros((1, 68, 2), np.float32)),
        (np.zeros((2, 3, 112, 112), np.float32), np.zeros((1, 68, 2), np.float32)),
        (np.zeros((129, 3, 16, 16), np.float32), np.zeros((129, 68, 2), np.float32)),
    ],
    ids=["one channel", "478 points", "flat landmarks", "float64", "counts differ", "over the batch size"],
)
def test_wrong_tensors_are_invalid_arguments(
    client: FaceFeatureClient, frames: np.ndarray, landmarks: np.ndarray
):
    with pytest.raises(InferenceServerException) as caught:
        infer(client, "ensemble", {"FRAMES": frames, "LANDMARKS": landmarks}, ["HOG", "POSE"])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_bad_neighbours_change_no_bit_of_the_good(server: LocalServer):
    """Good and bad requests share dynamic batches; the good ones get what they get alone."""
    frames, landmarks = photo_faces(24, 66)
    spoilers = list(BAD_FACES.values())[:12]

    def ask(number: int) -> dict[str, np.ndarray] | str:
        own_frames, own_landmarks = frames[number : number + 1].copy(), landmarks[number : number + 1].copy()
        if number % 2:
            three = np.repeat(own_frames, 3, axis=0), np.repeat(own_landmarks, 3, axis=0)
            spoilers[number // 2][0](*three)
            own_frames, own_landmarks = three
        with FaceFeatureClient(server.grpc_url) as own:
            try:
                return own.features(own_frames, own_landmarks, ["HOG", "POSE", "MASK", "AFFINE"])
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
            for name, values in expected.items():
                np.testing.assert_array_equal(answer[name], values)


@pytest.mark.parametrize("protocol", ["gRPC", "HTTP"])
def test_refusals_with_pose_do_not_stall_the_ensemble(server: LocalServer, protocol: str):
    """A step that refuses while another one starts has hung and crashed Triton 2.51: the steps' order."""
    module, url = (grpcclient, server.grpc_url) if protocol == "gRPC" else (httpclient, server.http_url)
    frames, landmarks = photo_faces(4, 69)
    spoilt = landmarks.copy()
    spoilt[0, 3] = np.nan
    outputs = [module.InferRequestedOutput(name) for name in ("HOG", "POSE")]

    def inputs(faces: slice, points: np.ndarray) -> list[Any]:
        tensors = []
        for name, values in (("FRAMES", frames[faces]), ("LANDMARKS", points[faces])):
            tensor = module.InferInput(name, list(values.shape), "FP32")
            tensor.set_data_from_numpy(values)
            tensors.append(tensor)
        return tensors

    refused, answered = inputs(np.s_[:1], spoilt), inputs(np.s_[:], landmarks)
    with module.InferenceServerClient(url) as connection:
        expected = connection.infer("ensemble", answered, outputs=outputs).as_numpy("HOG")
        for _ in range(150):
            with pytest.raises(InferenceServerException, match="face 0: non-finite landmark"):
                connection.infer("ensemble", refused, outputs=outputs)
            served = connection.infer("ensemble", answered, outputs=outputs).as_numpy("HOG")
            np.testing.assert_array_equal(served, expected)


def test_pose_of_a_non_finite_face_is_its_own_row_alone(client: FaceFeatureClient):
    """pose_mlp asked directly, or through the ensemble for POSE alone, answers a non-finite row."""
    _, landmarks = photo_faces(8, 67)
    clean = client.pose(landmarks)
    landmarks[3, 30] = np.nan
    for model in ("pose_mlp", "ensemble"):
        pose = infer(client, model, {"LANDMARKS": landmarks}, ["POSE"])["POSE"]
        assert np.isnan(pose[3]).all()
        np.testing.assert_array_equal(np.delete(pose, 3, axis=0), np.delete(clean, 3, axis=0))


def test_the_server_is_as_good_as_before(client: FaceFeatureClient):
    frames, landmarks = photo_faces(2, 68)
    assert np.isfinite(client.features(frames, landmarks)["HOG"]).all()
