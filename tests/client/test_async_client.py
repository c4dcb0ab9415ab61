"""`AsyncFaceFeatureClient` gives what `FaceFeatureClient` gives, and can be cancelled."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import numpy as np
import pytest

from deploy.local import LocalServer
from tests.support.face_data import photo_faces
from triton_face_client import (
    AsyncFaceFeatureClient,
    DeadlineError,
    FaceFeatureClient,
    InvalidFacesError,
    ServiceUnavailableError,
)

OUTPUTS = ("HOG", "POSE", "MASK", "ALIGNED_LANDMARKS")


def with_client(
    server: LocalServer, work: Callable[[AsyncFaceFeatureClient], Awaitable[object]], **settings: object
) -> object:
    """Run something with a client in a loop of its own."""

    async def run() -> object:
        async with AsyncFaceFeatureClient(
            server.grpc_url, headers=server.admin_headers, **settings
        ) as client:
            return await work(client)

    return asyncio.run(run())


@pytest.mark.parametrize("shm", [False, True])
def test_its_answers_are_those_of_the_blocking_client(
    server: LocalServer, client: FaceFeatureClient, shm: bool
):
    frames, landmarks = photo_faces(60, 341)
    expected = client.features(frames, landmarks, OUTPUTS)
    aligned = client.align(frames, landmarks)

    async def work(own: AsyncFaceFeatureClient) -> None:
        answers = await own.features(frames, landmarks, OUTPUTS)
        for name in OUTPUTS:
            np.testing.assert_array_equal(answers[name], expected[name])
        np.testing.assert_array_equal(
            (await own.align(frames, landmarks))["MASKED_FACES"], aligned["MASKED_FACES"]
        )
        np.testing.assert_array_equal(await own.pose(landmarks), expected["POSE"])

    with_client(server, work, batch_size=9, in_flight=3, shm=shm)


def test_calls_beside_each_other(server: LocalServer, client: FaceFeatureClient):
    frames, landmarks = photo_faces(60, 342)
    expected = client.features(frames, landmarks)

    async def work(own: AsyncFaceFeatureClient) -> None:
        calls = [own.features(frames[i : i + 6], landmarks[i : i + 6]) for i in range(0, 60, 6)]
        for i, answers in enumerate(await asyncio.gather(*calls)):
            np.testing.assert_array_equal(answers["HOG"], expected["HOG"][6 * i : 6 * i + 6])

    with_client(server, work)


def test_a_stream_of_chunks(server: LocalServer, client: FaceFeatureClient):
    frames, landmarks = photo_faces(30, 343)
    expected = client.features(frames, landmarks)

    async def chunks() -> AsyncIterator[tuple[np.ndarray, np.ndarray]]:
        for first in range(0, 30, 4):
            await asyncio.sleep(0)
            yield frames[first : first + 4], landmarks[first : first + 4]

    async def work(own: AsyncFaceFeatureClient) -> np.ndarray:
        return np.concatenate([answers["HOG"] async for answers in own.stream(chunks())])

    np.testing.assert_array_equal(with_client(server, work), expected["HOG"])


@pytest.mark.parametrize("sizes", [[0] * 50, [1] * 50, []])
def test_a_stream_ends_with_its_chunks_and_not_before(server: LocalServer, sizes: list[int]):
    frames, landmarks = photo_faces(1, 347)

    async def chunks() -> AsyncIterator[tuple[np.ndarray, np.ndarray]]:
        for size in sizes:
            yield frames[:size], landmarks[:size]

    async def work(own: AsyncFaceFeatureClient) -> list[int]:
        return [len(answers["MASK"]) async for answers in own.stream(chunks(), ["MASK"])]

    assert with_client(server, work) == sizes


def test_a_cancelled_call_ends_at_once_and_the_client_goes_on(server: LocalServer):
    frames, landmarks = photo_faces(50, 344)
    many = np.arange(20_000) % 50
    in_bytes = (255 * frames).astype(np.uint8)

    async def work(own: AsyncFaceFeatureClient) -> None:
        expected = await own.features(in_bytes, landmarks)
        call = asyncio.create_task(own.features(in_bytes[many], landmarks[many]))
        await asyncio.sleep(0.5)
        start = time.monotonic()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert time.monotonic() - start < 1
        # Each request is a task of ours and one of gRPC's.
        assert len(asyncio.all_tasks()) <= 1 + 2 * own.in_flight, "only what had been sent is left"
        np.testing.assert_array_equal((await own.features(in_bytes, landmarks))["HOG"], expected["HOG"])

    with_client(server, work)


def test_a_call_that_times_out(server: LocalServer):
    frames, landmarks = photo_faces(50, 345)
    many = np.arange(20_000) % 50

    async def work(own: AsyncFaceFeatureClient) -> None:
        await own.pose(landmarks)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(own.features(frames[many], landmarks[many]), 0.5)
        with pytest.raises(DeadlineError):
            await own.features(frames[many], landmarks[many], deadline=0.5)

    with_client(server, work)


def test_bad_faces(server: LocalServer):
    frames, landmarks = photo_faces(40, 346)
    landmarks[[3, 38]] = np.nan

    async def work(own: AsyncFaceFeatureClient) -> None:
        with pytest.raises(InvalidFacesError, match="face (3|38): non-finite"):
            await own.features(frames, landmarks)
        answers = await own.features(frames, landmarks, on_invalid="nan")
        assert sorted(answers.refused) == [3, 38]
        with pytest.raises(InvalidFacesError, match="face 3: .*; face 38: "):
            await own.pose(landmarks)
        assert np.isnan(await own.pose(landmarks, on_invalid="nan")).any(axis=1).sum() == 2

    with_client(server, work)


def test_an_address_without_a_server():
    async def work() -> None:
        async with AsyncFaceFeatureClient("127.0.0.1:9") as client:
            with pytest.raises(ServiceUnavailableError, match="no server answers at"):
                await client.pose(np.zeros((1, 68, 2)))
            with pytest.raises(ServiceUnavailableError, match="was not ready"):
                await client.wait_until_ready(0.2)

    asyncio.run(work())


def test_waiting_for_a_server(server: LocalServer):
    async def work(own: AsyncFaceFeatureClient) -> None:
        await own.wait_until_ready(5)

    with_client(server, work)
