"""`shm=True`: the same answers through shared memory, and nothing of it left behind whatever happens."""

import concurrent.futures
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from deploy.docker.shm_regions import SHARED_MEMORY
from deploy.local import LocalServer
from deploy.local.server import PROJECT
from tests.support.face_data import photo_faces
from triton_face_client import FaceFeatureClient, FaceServiceError, InvalidFacesError
from triton_face_client.transports.system_shared_memory import Region

OUTPUTS = ("HOG", "POSE", "MASK", "ALIGNED_LANDMARKS", "AFFINE")


def regions() -> set[str]:
    """Return the client's regions in /dev/shm; the server's own are named after its process."""
    return {path.name for path in SHARED_MEMORY.glob("triton_face_*") if path.name.count("_") == 2}


def known(client: FaceFeatureClient) -> set[str]:
    return set(client.connection.get_system_shared_memory_status(headers=client.headers).regions)


@pytest.mark.parametrize("kind", [np.float32, np.uint8])
def test_answers_are_those_through_messages(server: LocalServer, client: FaceFeatureClient, kind: type):
    frames, landmarks = photo_faces(50, 351)
    if kind is np.uint8:
        frames = (255 * frames).astype(np.uint8)
    expected = client.features(frames, landmarks, OUTPUTS)
    before = known(client)
    with FaceFeatureClient(
        server.grpc_url, headers=server.admin_headers, shm=True, batch_size=8, in_flight=3
    ) as shared:
        for _ in range(3):
            answers = shared.features(frames, landmarks, OUTPUTS)
            for name in OUTPUTS:
                np.testing.assert_array_equal(answers[name], expected[name])
        np.testing.assert_array_equal(shared.pose(landmarks), expected["POSE"])
        mixed = shared.features([frames[0], frames[1][:, :90], frames[2][:, :, :80]], landmarks[:3])
        assert np.isfinite(mixed["HOG"]).all()
        assert not regions(), "names are gone as soon as the server has mapped them"
        assert 1 <= len(known(shared) - before) <= 5, "regions are used again"
    assert not known(client) - before


def test_answers_outlive_the_regions(server: LocalServer):
    frames, landmarks = photo_faces(4, 352)
    with FaceFeatureClient(server.grpc_url, headers=server.admin_headers, shm=True) as shared:
        first = shared.features(frames, landmarks)
        kept = first["HOG"].copy()
        shared.features(frames[::-1], landmarks[::-1])
    np.testing.assert_array_equal(first["HOG"], kept)


def test_bad_faces(server: LocalServer, client: FaceFeatureClient):
    frames, landmarks = photo_faces(20, 353)
    landmarks[[2, 9]] = np.nan
    expected = client.features(frames, landmarks, OUTPUTS, on_invalid="nan")
    with FaceFeatureClient(server.grpc_url, headers=server.admin_headers, shm=True, batch_size=6) as shared:
        answers = shared.features(frames, landmarks, OUTPUTS, on_invalid="nan")
        with pytest.raises(InvalidFacesError, match="face (2|9)"):
            shared.features(frames, landmarks)
    for name in OUTPUTS:
        np.testing.assert_array_equal(answers[name], expected[name])
    # Triton 2.51 may count a refused ensemble request as running for ever, and keep its region.
    assert not regions()


def test_threads_share_a_client(server: LocalServer, client: FaceFeatureClient):
    frames, landmarks = photo_faces(40, 354)
    expected = client.features(frames, landmarks)["HOG"]
    with FaceFeatureClient(server.grpc_url, headers=server.admin_headers, shm=True, in_flight=2) as shared:

        def call(face: int) -> np.ndarray:
            return shared.features(frames[face : face + 5], landmarks[face : face + 5])["HOG"]

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for _ in range(3):
                for face, hog in zip(range(36), pool.map(call, range(36)), strict=True):
                    np.testing.assert_array_equal(hog, expected[face : face + 5])


def test_regions_of_failed_requests_are_not_kept(server: LocalServer, client: FaceFeatureClient):
    """Neither by the client nor by the server, while the client stays open."""
    frames, landmarks = photo_faces(64, 358)
    before = known(client)
    with FaceFeatureClient(server.grpc_url, headers=server.admin_headers, shm=True, batch_size=4) as shared:
        for _ in range(15):
            stream = shared.stream(((frames, landmarks) for _ in range(9)), ["MASK"])
            next(stream)
            stream.close()
        assert len(known(shared) - before) <= 20
        shared.features(frames, landmarks)
    assert not known(client) - before


def test_regions_of_requests_that_grow_take_each_others_place(server: LocalServer):
    with FaceFeatureClient(server.grpc_url, headers=server.admin_headers, shm=True, in_flight=1) as shared:
        before = known(shared)
        for side in range(200, 1400, 200):
            shared.align(*photo_faces(1, 359, (side, side)), ["MASK"])
        assert len(known(shared) - before) == 1


def test_an_answer_without_its_tensors_is_not_an_answer(server: LocalServer, monkeypatch: pytest.MonkeyPatch):
    """As Triton has given when its memory was full: the region still holds another request's."""
    frames, landmarks = photo_faces(2, 360)
    with FaceFeatureClient(server.grpc_url, headers=server.admin_headers, shm=True) as shared:
        shared.features(frames, landmarks)
        monkeypatch.setattr("tritonclient.grpc.InferResult.get_output", lambda _result, _name: None)
        with pytest.raises(FaceServiceError, match="answer has no HOG"):
            shared.features(frames, landmarks)


def test_a_client_that_is_killed_leaves_no_name(server: LocalServer, tmp_path: Path):
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
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not regions()


def test_a_region_that_was_never_registered_is_taken_back():
    region = Region(1000)
    assert region.name in regions()
    region.close()
    assert not regions()


@pytest.mark.parametrize("step", ["os.ftruncate", "mmap.mmap", "resource_tracker.register"])
def test_a_region_whose_making_is_interrupted_is_taken_back(step: str, monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C before the resource tracker knows of it."""

    def interrupt(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"multiprocessing.shared_memory.{step}", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Region(1000)
    assert not regions()


def test_a_server_that_does_not_see_it(server: LocalServer, monkeypatch: pytest.MonkeyPatch):
    """As one on another machine, which has no region of this name."""
    frames, landmarks = photo_faces(2, 355)
    elsewhere = property(lambda _region: "/elsewhere", lambda _region, _key: None)
    monkeypatch.setattr(Region, "key", elsewhere, raising=False)
    with (
        FaceFeatureClient(server.grpc_url, headers=server.admin_headers, shm=True) as shared,
        pytest.raises(FaceServiceError, match="does not take shared memory.*shm=False does without"),
    ):
        shared.features(frames, landmarks)
    assert not regions()


def test_a_server_that_does_not_allow_it(server: LocalServer):
    """None does without its admin key."""
    _, landmarks = photo_faces(2, 356)
    with (
        FaceFeatureClient(server.grpc_url, shm=True) as shared,
        pytest.raises(FaceServiceError, match="give its key in headers.*shm=False does without"),
    ):
        shared.pose(landmarks)
    with FaceFeatureClient(server.grpc_url) as messages:
        assert messages.pose(landmarks).shape == (2, 6)
    assert not regions()


def test_cuda_memory_on_a_machine_that_has_none(server: LocalServer):
    """Without cuda-python, or without a GPU; frames through a GPU's memory need one to be tested."""
    with (
        pytest.raises((ValueError, FaceServiceError), match=r"client\[cuda\]|no memory of GPU 0 to be had"),
        FaceFeatureClient(server.grpc_url, shm="cuda") as client,
    ):
        client.features(*photo_faces(2, 357))
    with pytest.raises(ValueError, match="give True, False or 'cuda'"):
        FaceFeatureClient(server.grpc_url, shm="posix")
