"""`shm=True`: the same results through shared memory, and no file left in /dev/shm after any failure."""

import concurrent.futures
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from deploy.local import LocalServer
from deploy.local.server import PROJECT
from tests.support.face_data import photo_faces
from triton_face_client import FaceFeatureClient, FaceServiceError, InvalidFacesError
from triton_face_client.transports import system_shared_memory
from triton_face_client.transports.system_shared_memory import DEV_SHM, SystemRegion

OUTPUTS = ("HOG", "POSE", "MASK", "ALIGNED_LANDMARKS", "AFFINE")


@pytest.fixture
def created_regions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the names of the regions that this process creates during the test."""
    names = []
    create = system_shared_memory._create_shared_memory

    def record(name: str, size: int) -> object:
        names.append(name)
        return create(name, size)

    monkeypatch.setattr(system_shared_memory, "_create_shared_memory", record)
    return names


def names_in_dev_shm(names: Iterable[str]) -> list[str]:
    """Return the names that have a file in /dev/shm."""
    return [name for name in names if (DEV_SHM / name).exists()]


def registered_regions(client: FaceFeatureClient) -> set[str]:
    """Return the names of the regions that are registered with the server."""
    return set(client.connection.get_system_shared_memory_status(headers=client.headers).regions)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_returns_the_same_as_through_messages(
    server: LocalServer, client: FaceFeatureClient, created_regions: list[str], dtype: type
):
    frames, landmarks = photo_faces(50, 351)
    if dtype is np.uint8:
        frames = (255 * frames).astype(np.uint8)
    expected = client.features(frames, landmarks, OUTPUTS)
    before = registered_regions(client)
    with FaceFeatureClient(
        server.grpc_url, headers=server.admin_headers, shm=True, batch_size=8, in_flight=3
    ) as shm_client:
        for _ in range(3):
            answers = shm_client.features(frames, landmarks, OUTPUTS)
            for name in OUTPUTS:
                np.testing.assert_array_equal(answers[name], expected[name])
        np.testing.assert_array_equal(shm_client.pose(landmarks), expected["POSE"])
        mixed = shm_client.features([frames[0], frames[1][:, :90], frames[2][:, :, :80]], landmarks[:3])
        assert np.isfinite(mixed["HOG"]).all()
        assert created_regions
        assert not names_in_dev_shm(created_regions), "a region has a file although the server has mapped it"
        assert 1 <= len(registered_regions(shm_client) - before) <= 5, "calls do not reuse regions"
    assert not registered_regions(client) - before


def test_answers_are_copies_of_the_regions(server: LocalServer):
    frames, landmarks = photo_faces(4, 352)
    with FaceFeatureClient(server.grpc_url, headers=server.admin_headers, shm=True) as shm_client:
        answers = shm_client.features(frames, landmarks)
        hog_before = answers["HOG"].copy()
        shm_client.features(frames[::-1], landmarks[::-1])
    np.testing.assert_array_equal(answers["HOG"], hog_before)


def test_invalid_faces_get_the_same_answers_as_through_messages(
    server: LocalServer, client: FaceFeatureClient, created_regions: list[str]
):
    frames, landmarks = photo_faces(20, 353)
    landmarks[[2, 9]] = np.nan
    expected = client.features(frames, landmarks, OUTPUTS, on_invalid="nan")
    with FaceFeatureClient(
        server.grpc_url, headers=server.admin_headers, shm=True, batch_size=6
    ) as shm_client:
        answers = shm_client.features(frames, landmarks, OUTPUTS, on_invalid="nan")
        with pytest.raises(InvalidFacesError, match="face (2|9)"):
            shm_client.features(frames, landmarks)
    for name in OUTPUTS:
        np.testing.assert_array_equal(answers[name], expected[name])
    # Regions may stay registered: Triton 2.51 sometimes never ends a rejected ensemble request.
    assert not names_in_dev_shm(created_regions)


def test_threads_share_a_client(server: LocalServer, client: FaceFeatureClient):
    frames, landmarks = photo_faces(40, 354)
    expected = client.features(frames, landmarks)["HOG"]
    with FaceFeatureClient(
        server.grpc_url, headers=server.admin_headers, shm=True, in_flight=2
    ) as shm_client:

        def call(face: int) -> np.ndarray:
            return shm_client.features(frames[face : face + 5], landmarks[face : face + 5])["HOG"]

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for _ in range(3):
                for face, hog in zip(range(36), pool.map(call, range(36)), strict=True):
                    np.testing.assert_array_equal(hog, expected[face : face + 5])


def test_regions_of_abandoned_requests_are_unregistered(server: LocalServer, client: FaceFeatureClient):
    frames, landmarks = photo_faces(64, 358)
    before = registered_regions(client)
    with FaceFeatureClient(
        server.grpc_url, headers=server.admin_headers, shm=True, batch_size=4
    ) as shm_client:
        for _ in range(15):
            stream = shm_client.stream(((frames, landmarks) for _ in range(9)), ["MASK"])
            next(stream)
            stream.close()
        assert len(registered_regions(shm_client) - before) <= 20
        shm_client.features(frames, landmarks)
    assert not registered_regions(client) - before


def test_larger_regions_replace_smaller_regions(server: LocalServer):
    with FaceFeatureClient(
        server.grpc_url, headers=server.admin_headers, shm=True, in_flight=1
    ) as shm_client:
        before = registered_regions(shm_client)
        for side in range(200, 1400, 200):
            shm_client.align(*photo_faces(1, 359, (side, side)), ["MASK"])
        assert len(registered_regions(shm_client) - before) == 1


def test_rejects_a_response_without_outputs(server: LocalServer, monkeypatch: pytest.MonkeyPatch):
    """When its memory was full, Triton has sent such responses. The region then contains old outputs."""
    frames, landmarks = photo_faces(2, 360)
    with FaceFeatureClient(server.grpc_url, headers=server.admin_headers, shm=True) as shm_client:
        shm_client.features(frames, landmarks)
        monkeypatch.setattr("tritonclient.grpc.InferResult.get_output", lambda _result, _name: None)
        with pytest.raises(FaceServiceError, match="response has no HOG"):
            shm_client.features(frames, landmarks)


def test_killed_client_leaves_no_file(server: LocalServer):
    script = textwrap.dedent(
        """
        import sys
        import numpy as np
        from triton_face_client import FaceFeatureClient
        from triton_face_client.sample_faces import sample_faces

        headers = {"triton-grpc-protocol-admin-key": sys.argv[2]}
        client = FaceFeatureClient(sys.argv[1], headers=headers, shm=True)
        faces = sample_faces(64)
        while True:
            client.features(*faces)
            print("answered", flush=True)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, server.grpc_url, server.admin_key], stdout=subprocess.PIPE, cwd=PROJECT
    )
    assert process.stdout.readline() == b"answered\n"
    mapped = re.findall(r"triton_face_[0-9a-f]{32}", Path(f"/proc/{process.pid}/maps").read_text())
    process.kill()
    process.wait()
    process.stdout.close()
    assert mapped
    assert not names_in_dev_shm(mapped)


def test_closing_an_unregistered_region_removes_its_file():
    region = SystemRegion(1000)
    assert names_in_dev_shm([region.name])
    region.close()
    assert not names_in_dev_shm([region.name])


@pytest.mark.parametrize("step", ["os.ftruncate", "mmap.mmap", "resource_tracker.register"])
def test_interrupted_creation_leaves_no_file(
    step: str, created_regions: list[str], monkeypatch: pytest.MonkeyPatch
):
    """Ctrl-C may interrupt any step until Python's resource tracker knows the region."""

    def interrupt(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"multiprocessing.shared_memory.{step}", interrupt)
    with pytest.raises(KeyboardInterrupt):
        SystemRegion(1000)
    assert created_regions
    assert not names_in_dev_shm(created_regions)


def test_error_of_a_server_without_access_to_the_region(
    server: LocalServer, created_regions: list[str], monkeypatch: pytest.MonkeyPatch
):
    """A server on another machine has no region of this name."""
    frames, landmarks = photo_faces(2, 355)
    unknown_key = property(lambda _region: "/elsewhere", lambda _region, _key: None)
    monkeypatch.setattr(SystemRegion, "key", unknown_key, raising=False)
    with (
        FaceFeatureClient(server.grpc_url, headers=server.admin_headers, shm=True) as shm_client,
        pytest.raises(FaceServiceError, match="does not accept shared memory.*or use shm=False"),
    ):
        shm_client.features(frames, landmarks)
    assert not names_in_dev_shm(created_regions)


def test_error_of_a_server_that_restricts_shared_memory(server: LocalServer, created_regions: list[str]):
    """The test server requires its admin key."""
    _, landmarks = photo_faces(2, 356)
    with (
        FaceFeatureClient(server.grpc_url, shm=True) as shm_client,
        pytest.raises(FaceServiceError, match="pass its key in headers.*or use shm=False"),
    ):
        shm_client.pose(landmarks)
    with FaceFeatureClient(server.grpc_url) as message_client:
        assert message_client.pose(landmarks).shape == (2, 6)
    assert not names_in_dev_shm(created_regions)


def test_error_of_cuda_shared_memory_without_a_gpu(server: LocalServer):
    """Without cuda-python or without a GPU, the error says so. `make gpu-check` tests success on a GPU."""
    with (
        pytest.raises(
            (ValueError, FaceServiceError), match=r"client\[cuda\]|cannot allocate memory on GPU 0"
        ),
        FaceFeatureClient(server.grpc_url, shm="cuda") as client,
    ):
        client.features(*photo_faces(2, 357))
    with pytest.raises(ValueError, match="pass True, False or 'cuda'"):
        FaceFeatureClient(server.grpc_url, shm="posix")
