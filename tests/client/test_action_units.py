"""Action units: both clients and py-feat's `detect_au`, with a server that has an AU checkpoint."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import numpy as np
import pytest
import torch

from deploy.local import LocalServer
from export.au.classifiers import AuCheckpoint
from export.au.reference import reference_action_units
from tests.support.face_data import photo_faces
from triton_face_client import (
    AsyncFaceFeatureClient,
    DeadlineError,
    FaceFeatureClient,
    InvalidFacesError,
    ServiceUnavailableError,
    pyfeat,
)

OUTPUTS = ("AU", "HOG", "POSE", "ALIGNED_LANDMARKS", "AFFINE", "MASK")

NO_ACTION_UNITS = r"computes no action units.*make serve AU_WEIGHTS=FILE\.skops"


@pytest.fixture
def client(au_server: LocalServer) -> Iterator[FaceFeatureClient]:
    with FaceFeatureClient(au_server.grpc_url, headers=au_server.admin_headers) as connected:
        yield connected


@pytest.mark.parametrize("shm", [False, True])
def test_equal_the_classifiers_of_hog_and_aligned_landmarks(
    client: FaceFeatureClient, au_server: LocalServer, au_checkpoint: AuCheckpoint, shm: bool
):
    frames, landmarks = photo_faces(70, 401)
    with FaceFeatureClient(
        au_server.grpc_url, headers=au_server.admin_headers, batch_size=9, shm=shm
    ) as small_batches:
        answers = small_batches.features(frames, landmarks, OUTPUTS)
    assert tuple(answers) == OUTPUTS
    assert (answers["AU"].shape, answers["AU"].dtype) == ((70, len(au_checkpoint.units)), np.float32)
    expected = reference_action_units(au_checkpoint, answers["HOG"], answers["ALIGNED_LANDMARKS"])
    # In float32, a feature within rounding of a threshold may take the other branch of a tree.
    assert np.mean(np.abs(answers["AU"] - expected) <= 1e-5) >= 0.99
    is_logistic = [unit.classifier.objective == "binary:logistic" for unit in au_checkpoint.units]
    assert np.ptp(answers["AU"][:, is_logistic], axis=0).min() > 0, "every classifier depends on the face"
    others = client.features(frames, landmarks, OUTPUTS[1:])
    for name, values in others.items():
        np.testing.assert_array_equal(answers[name], values, err_msg=name)
    np.testing.assert_array_equal(client.action_units(frames, landmarks), answers["AU"])


def test_names_are_those_of_the_checkpoint(client: FaceFeatureClient, au_checkpoint: AuCheckpoint):
    assert client.action_unit_names() == tuple(unit.name for unit in au_checkpoint.units)


def test_invalid_faces_are_nan_or_an_error(client: FaceFeatureClient):
    frames, landmarks = photo_faces(40, 402)
    expected = client.action_units(frames, landmarks)
    landmarks[[3, 38], 30] = np.nan
    frames[7, 1, 50, 50] = np.inf
    valid = np.setdiff1d(np.arange(40), [3, 7, 38])
    answers = client.features(frames, landmarks, ["AU"], on_invalid="nan")
    assert sorted(answers.refused) == [3, 7, 38]
    assert "non-finite landmark" in answers.refused[38]
    assert np.isnan(answers["AU"][[3, 7, 38]]).all()
    np.testing.assert_array_equal(answers["AU"][valid], expected[valid])
    np.testing.assert_array_equal(client.action_units(frames, landmarks, on_invalid="nan"), answers["AU"])
    with pytest.raises(InvalidFacesError, match="face 28: non-finite landmark: point 30"):
        client.action_units(frames[10:], landmarks[10:])


def test_tensors_deadlines_and_no_faces(client: FaceFeatureClient):
    frames, landmarks = photo_faces(3, 403)
    tensor = client.action_units(torch.from_numpy(frames), torch.from_numpy(landmarks))
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_array_equal(tensor.numpy(), client.action_units(frames, landmarks))
    with pytest.raises(DeadlineError):
        client.action_units(frames, landmarks, deadline=1e-6)
    count = len(client.action_unit_names())
    assert client.action_units(frames[:0], landmarks[:0]).shape == (0, count)


def test_stream_and_asynchronous_client_return_the_same(client: FaceFeatureClient, au_server: LocalServer):
    frames, landmarks = photo_faces(30, 404)
    expected = client.features(frames, landmarks, ["AU", "POSE"])
    slices = [slice(first, first + 4) for first in range(0, 30, 4)]
    streamed = list(client.stream(((frames[rows], landmarks[rows]) for rows in slices), ["POSE", "AU"]))
    for name, values in expected.items():
        np.testing.assert_array_equal(np.concatenate([answers[name] for answers in streamed]), values)

    async def chunks() -> AsyncIterator[tuple[np.ndarray, np.ndarray]]:
        for rows in slices:
            yield frames[rows], landmarks[rows]

    async def check() -> None:
        async with AsyncFaceFeatureClient(au_server.grpc_url) as async_client:
            assert await async_client.action_unit_names() == client.action_unit_names()
            parts = [answers["AU"] async for answers in async_client.stream(chunks(), ["AU"])]
            for action_units in (
                await async_client.action_units(frames, landmarks),
                (await async_client.features(frames, landmarks, ["AU", "MASK"]))["AU"],
                np.concatenate(parts),
            ):
                np.testing.assert_array_equal(action_units, expected["AU"])

    asyncio.run(check())


@pytest.mark.parametrize("shm", [False, True])
def test_detect_au_computes_action_units_of_hog_features(
    client: FaceFeatureClient, au_server: LocalServer, shm: bool
):
    frames, landmarks = photo_faces(40, 405)
    normalized = landmarks / np.float32(112)
    expected = client.action_units(frames, normalized * np.float32(112))
    with pyfeat.connect(au_server.grpc_url, headers=au_server.admin_headers, batch_size=16, shm=shm):
        hog, aligned = pyfeat.extract_hog_features_batched(frames, normalized.reshape(40, 136))
        np.testing.assert_array_equal(pyfeat.detect_au(frame=hog, landmarks=[aligned]), expected)
    pyfeat._default.clear()


def test_detect_au_accepts_arrays_tensors_and_several_parts(client: FaceFeatureClient):
    frames, landmarks = photo_faces(10, 406)
    answers = client.features(frames, landmarks, ["HOG", "ALIGNED_LANDMARKS", "AU"])
    hog, points = answers["HOG"], answers["ALIGNED_LANDMARKS"]
    for frame, parts in (
        (hog, [points[:3], points[3:3], list(points[3:])]),
        (torch.from_numpy(hog), [list(torch.from_numpy(points))]),
        (hog.astype(np.float64), [points.astype(np.float64)]),
    ):
        action_units = pyfeat.detect_au(frame, parts, client=client)
        assert isinstance(action_units, np.ndarray)
        np.testing.assert_array_equal(action_units, answers["AU"])
    for parts in ([], [[]], [points[:0]]):
        assert pyfeat.detect_au(hog[:0], parts, client=client).shape == (0, answers["AU"].shape[1])


def test_detect_au_rejects_invalid_arguments(client: FaceFeatureClient):
    hog, points = np.zeros((2, 5408), np.float32), np.zeros((2, 68, 2), np.int64)
    not_finite = hog.copy()
    not_finite[1, 17] = np.nan
    for frame, landmarks, message in (
        (hog[:, :4000], [points], r"\[2, 4000\], but the server's AU classifiers read \[N, 5408\]"),
        (hog, points, r"has the shape \[68, 2\], not \[n, 68, 2\]: pass a list"),
        (hog, [points[:, :5]], r"\[2, 5, 2\], not \[N, 68, 2\]"),
        (hog, [points[:1]], "HOG features of 2 faces, but aligned landmarks of 1"),
        (not_finite, [points], "face 1: a HOG feature is NaN or infinite"),
        (hog, [points + 0.5], "face 0: an aligned landmark is not a whole number"),
        (hog, [np.full((2, 68, 2), np.nan)], "face 0: an aligned landmark is not a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            pyfeat.detect_au(frame, landmarks, client=client)


@pytest.mark.parametrize(
    "call",
    [
        lambda client, *faces: client.action_units(*faces),
        lambda client, *faces: client.features(*faces, ["HOG", "AU"]),
        lambda client, *faces: next(client.stream([faces], ["AU"])),
        lambda client, *_faces: client.action_unit_names(),
        lambda client, _frames, points: pyfeat.detect_au(np.zeros((1, 5408)), [points], client=client),
    ],
)
def test_server_without_a_checkpoint_gives_an_error(
    server: LocalServer, call: Callable[[FaceFeatureClient, np.ndarray, np.ndarray], object]
):
    frames, landmarks = photo_faces(1, 408)
    with FaceFeatureClient(server.grpc_url) as client:
        with pytest.raises(ServiceUnavailableError, match=NO_ACTION_UNITS) as caught:
            call(client, frames, landmarks)
        assert caught.value.status() == "StatusCode.NOT_FOUND"
        assert client.features(frames, landmarks)["HOG"].shape == (1, 5408)
