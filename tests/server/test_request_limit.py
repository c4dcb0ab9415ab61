"""max_request_pixels: the limit is exact, and its largest requests fit into a pod's /dev/shm."""

import textwrap
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from align_mask.face_checks import request_size_error
from export.repository import DEFAULT_REPOSITORY, read_config
from tests.support.face_data import photo_faces
from tests.support.raw_requests import infer
from tests.support.small_file_systems import run_with_small_file_system
from triton_face_client import FaceFeatureClient

MAX_REQUEST_PIXELS = int(
    read_config(DEFAULT_REPOSITORY, "align_mask").parameters["max_request_pixels"].string_value
)

MAX_MESSAGE_BYTES = 2**31 - 1
"""Maximum length of a gRPC message."""

TWO_LARGEST_REQUESTS = textwrap.dedent(
    """
    import concurrent.futures, sys
    from pathlib import Path
    import numpy as np
    from deploy.local import LocalServer
    from tests.support.face_data import photo_faces
    from tests.support.raw_requests import infer
    from triton_face_client import FaceFeatureClient

    _, landmarks = photo_faces(1, 690)
    largest = {
        "FRAMES": np.zeros((16, 3, 1080, 1920), np.float32),
        "LANDMARKS": np.repeat(9 * landmarks, 16, axis=0),
    }
    with LocalServer(Path(sys.argv[1]), models=("align_mask",)) as server:
        with FaceFeatureClient(server.grpc_url) as client, concurrent.futures.ThreadPoolExecutor(2) as pool:
            for _ in range(2):
                answers = list(pool.map(lambda _: infer(client, "align_mask", largest, ["MASK"]), range(2)))
                print([len(answer["MASK"]) for answer in answers])
        print(len(server.shared_memory()), "regions")
    """
)


def request(count: int) -> dict[str, np.ndarray]:
    """Return a request with `count` frames of 1280x720."""
    _, landmarks = photo_faces(1, 691)
    return {
        "FRAMES_UINT8": np.zeros((count, 3, 720, 1280), np.uint8),
        "LANDMARKS": np.repeat(landmarks, count, axis=0),
    }


def test_request_at_limit_is_answered_and_one_more_frame_rejected(client: FaceFeatureClient):
    count = MAX_REQUEST_PIXELS // (1280 * 720)
    assert count * 1280 * 720 == MAX_REQUEST_PIXELS
    assert len(infer(client, "align_mask", request(count), ["AFFINE"])["AFFINE"]) == count
    with pytest.raises(InferenceServerException) as caught:
        infer(client, "align_mask", request(count + 1), ["AFFINE"])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    message = f"send fewer frames per request, at most {count} of this size, or crop the faces first"
    assert message in caught.value.message()


def test_single_frame_has_only_the_frame_limit():
    assert request_size_error(1, 100, 101, max_pixels=10000) is None
    assert "at most 1 of this size" in request_size_error(2, 100, 101, max_pixels=10000)


def test_largest_request_fits_grpc_message():
    assert MAX_REQUEST_PIXELS * 3 * np.dtype(np.float32).itemsize < MAX_MESSAGE_BYTES


@pytest.mark.slow
def test_both_instances_answer_largest_requests_in_shared_memory_of_a_pod(repository: Path):
    """/dev/shm has 1 GiB, as in deploy/k8s/base/deployment.yaml. A region that has grown never shrinks."""
    run = run_with_small_file_system("/dev/shm", 1024, TWO_LARGEST_REQUESTS, str(repository), timeout=300)
    assert run.stdout == "[16, 16]\n[16, 16]\n2 regions\n", run.stdout + run.stderr
