"""`AsyncFaceFeatureClient` returns what `FaceFeatureClient` returns, and its calls can be cancelled."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import numpy as np
import pytest

from deploy.local import LocalServer
from tests.support.face_data import photo_faces
from triton_face_client import (
    Answers,
    AsyncFaceFeatureClient,
    DeadlineError,
    FaceFeatureClient,
    InvalidFacesError,
    ServiceUnavailableError,
)

OUTPUTS = ("HOG", "POSE", "MASK", "ALIGNED_LANDMARKS")


def run_with_client(
    server: LocalServer, function: Callable[[AsyncFaceFeatureClient], Awaitable[object]], **settings: object
) -> object:
    """Run an asynchronous function with a client in a new event loop."""

    async def run() -> object:
        async with AsyncFaceFeatureClient(
            server.grpc_url, headers=server.admin_headers, **settings
        ) as client:
            return await function(client)

    return asyncio.run(run())


@pytest.mark.parametrize("shm", [False, True])
def test_returns_the_same_as_the_blocking_client(server: LocalServer, client: FaceFeatureClient, shm: bool):
    frames, landmarks = photo_faces(60, 341)
    expected = client.features(frames, landmarks, OUTPUTS)
    aligned = client.align(frames, landmarks)

    async def check(async_client: AsyncFaceFeatureClient) -> None:
        answers = await async_client.features(frames, landmarks, OUTPUTS)
        for name in OUTPUTS:
            np.testing.assert_array_equal(answers[name], expected[name])
        np.testing.assert_array_equal(
            (await async_client.align(frames, landmarks))["MASKED_FACES"], aligned["MASKED_FACES"]
        )
        np.testing.assert_array_equal(await async_client.pose(landmarks), expected["POSE"])

    run_with_client(server, check, batch_size=9, in_flight=3, shm=shm)


def test_concurrent_calls_return_the_features_of_their_faces(server: LocalServer, client: FaceFeatureClient):
    frames, landmarks = photo_faces(60, 342)
    expected = client.features(frames, landmarks)

    async def check(async_client: AsyncFaceFeatureClient) -> None:
        slices = [slice(first, first + 6) for first in range(0, 60, 6)]
        calls = [async_client.features(frames[faces], landmarks[faces]) for faces in slices]
        for faces, answers in zip(slices, await asyncio.gather(*calls), strict=True):
            np.testing.assert_array_equal(answers["HOG"], expected["HOG"][faces])

    run_with_client(server, check)


def test_stream_keeps_the_order_of_chunks(server: LocalServer, client: FaceFeatureClient):
    frames, landmarks = photo_faces(30, 343)
    expected = client.features(frames, landmarks)

    async def chunks() -> AsyncIterator[tuple[np.ndarray, np.ndarray]]:
        for first in range(0, 30, 4):
            await asyncio.sleep(0)
            yield frames[first : first + 4], landmarks[first : first + 4]

    async def check(async_client: AsyncFaceFeatureClient) -> np.ndarray:
        return np.concatenate([answers["HOG"] async for answers in async_client.stream(chunks())])

    np.testing.assert_array_equal(run_with_client(server, check), expected["HOG"])


@pytest.mark.parametrize("sizes", [[0] * 50, [1] * 50, []])
def test_stream_yields_one_answer_per_chunk(server: LocalServer, sizes: list[int]):
    frames, landmarks = photo_faces(1, 347)

    async def chunks() -> AsyncIterator[tuple[np.ndarray, np.ndarray]]:
        for size in sizes:
            yield frames[:size], landmarks[:size]

    async def check(async_client: AsyncFaceFeatureClient) -> list[int]:
        return [len(answers["MASK"]) async for answers in async_client.stream(chunks(), ["MASK"])]

    assert run_with_client(server, check) == sizes


def long_call(async_client: AsyncFaceFeatureClient, **options: object) -> Awaitable[Answers]:
    """Return a call of 20,000 faces, which runs for several seconds."""
    frames, landmarks = photo_faces(50, 344)
    # A list refers to each frame 400 times. An array of all frames would need 3 GB.
    return async_client.features([*frames] * 400, np.tile(landmarks, (400, 1, 1)), **options)


def test_cancelled_call_ends_at_once_and_the_client_stays_usable(server: LocalServer):
    frames, landmarks = photo_faces(10, 345)

    async def check(async_client: AsyncFaceFeatureClient) -> None:
        expected = await async_client.features(frames, landmarks)
        call = asyncio.create_task(long_call(async_client))
        await asyncio.sleep(0.5)
        start = time.monotonic()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert time.monotonic() - start < 1
        # This function is a task, and each request in flight is a task of the client and a task of gRPC.
        assert len(asyncio.all_tasks()) <= 1 + 2 * async_client.in_flight, "a request starts after the end"
        np.testing.assert_array_equal(
            (await async_client.features(frames, landmarks))["HOG"], expected["HOG"]
        )

    run_with_client(server, check)


def test_deadline_or_asyncio_timeout_ends_a_call(server: LocalServer):
    async def check(async_client: AsyncFaceFeatureClient) -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(long_call(async_client), 0.5)
        with pytest.raises(DeadlineError):
            await long_call(async_client, deadline=0.5)

    run_with_client(server, check)


def test_invalid_faces_get_nan_or_an_error(server: LocalServer):
    frames, landmarks = photo_faces(40, 346)
    landmarks[[3, 38]] = np.nan

    async def check(async_client: AsyncFaceFeatureClient) -> None:
        with pytest.raises(InvalidFacesError, match="face (3|38): non-finite"):
            await async_client.features(frames, landmarks)
        answers = await async_client.features(frames, landmarks, on_invalid="nan")
        assert sorted(answers.refused) == [3, 38]
        with pytest.raises(InvalidFacesError, match="face 3: .*; face 38: "):
            await async_client.pose(landmarks)
        assert np.isnan(await async_client.pose(landmarks, on_invalid="nan")).any(axis=1).sum() == 2

    run_with_client(server, check)


def test_unreachable_server_gives_an_error(unused_address: str):
    async def check() -> None:
        async with AsyncFaceFeatureClient(unused_address) as client:
            with pytest.raises(ServiceUnavailableError, match="no server answers at"):
                await client.pose(np.zeros((1, 68, 2)))
            with pytest.raises(ServiceUnavailableError, match="was not ready"):
                await client.wait_until_ready(0.2)

    asyncio.run(check())


def test_wait_until_ready_returns_for_a_ready_server(server: LocalServer):
    async def check(async_client: AsyncFaceFeatureClient) -> None:
        await async_client.wait_until_ready(5)

    run_with_client(server, check)
