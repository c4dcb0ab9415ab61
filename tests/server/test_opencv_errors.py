"""An exception of OpenCV fails only its own request of a dynamic batch."""

import concurrent.futures
import shutil
from pathlib import Path

import numpy as np
from tritonclient.utils import InferenceServerException

from deploy.local import LocalServer
from tests.support.face_data import photo_faces
from tests.support.raw_requests import infer
from triton_face_client import FaceFeatureClient

RAISE_FOR_DISTANT_LANDMARKS = """

original_hull_vertices = _hull_vertices


def _hull_vertices(points):
    if np.ptp(points) > 2000:
        raise cv2.error("injected")
    return original_hull_vertices(points)
"""


def test_opencv_error_fails_only_its_own_request(repository: Path, tmp_path: Path):
    models = shutil.copytree(repository, tmp_path / "models")
    with (models / "align_mask" / "1" / "align_mask" / "hull_mask.py").open("a") as code:
        code.write(RAISE_FOR_DISTANT_LANDMARKS)
    config = models / "align_mask" / "config.pbtxt"
    with_queue_delay = "dynamic_batching {\n  max_queue_delay_microseconds: 300000"
    config.write_text(
        config.read_text().replace("dynamic_batching {", with_queue_delay).replace("count: 2", "count: 1")
    )
    frames, landmarks = photo_faces(6, 695)
    landmarks[[1, 4], 8] = [-8000, 50]

    with LocalServer(models, models=("align_mask",)) as server, FaceFeatureClient(server.grpc_url) as client:

        def send(face: int) -> str:
            rows = slice(face, face + 1)
            try:
                infer(client, "align_mask", {"FRAMES": frames[rows], "LANDMARKS": landmarks[rows]}, ["MASK"])
            except InferenceServerException as error:
                return f"{error.status()} {error.message()}"
            return "answered"

        with concurrent.futures.ThreadPoolExecutor(len(frames)) as pool:
            results = np.array(list(pool.map(send, range(len(frames)))))
        (statistics,) = client.connection.get_inference_statistics("align_mask").model_stats
    assert statistics.execution_count < len(frames), "no requests shared a batch"
    assert set(results[[1, 4]]) == {"StatusCode.INTERNAL injected"}
    assert set(results[[0, 2, 3, 5]]) == {"answered"}
