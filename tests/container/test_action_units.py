"""Action units in a container: built into the image, or mounted from a folder."""

from pathlib import Path

import numpy as np
import pytest

from tests.acceptance.target import AU_ENSEMBLE, frame_inputs, infer
from tests.container.base import AU_IMAGE, IMAGE
from tests.container.container import Container, SharedMemory, assert_probes, pod_options
from tests.container.engine import Engine
from tests.support.face_data import photo_faces
from triton_face_client import FaceFeatureClient

SERVED_FOLDER = "/opt/triton-face/au_repository"


@pytest.mark.parametrize("image", [AU_IMAGE, IMAGE], ids=["in the image", "mounted"])
def test_container_serves_action_units(
    engine: Engine, shared_memory: SharedMemory, au_repository: Path, image: str
):
    mounted = [] if image == AU_IMAGE else [f"--volume={au_repository}:{SERVED_FOLDER}:ro"]
    options = [*pod_options(shared_memory.folder), *mounted]
    with Container(engine, options, image=image) as server, FaceFeatureClient(server.grpc_url) as client:
        server.wait_until_ready()
        parameters = client.model(AU_ENSEMBLE).parameters
        response = infer(client, AU_ENSEMBLE, frame_inputs(*photo_faces(8, 760)), ["AU", "POSE"])
        assert response["AU"].shape == (8, len(parameters["action_units"].split(",")))
        assert np.isfinite(response["AU"]).all()
        assert_probes(server, healthy=True)


def test_empty_mount_prevents_the_start(engine: Engine, shared_memory: SharedMemory, tmp_path: Path):
    options = [*pod_options(shared_memory.folder), f"--volume={tmp_path}:{SERVED_FOLDER}:ro"]
    with Container(engine, options) as server:
        assert server.wait(20) == 2
        assert server.log().startswith(f"serve.sh: cannot read {SERVED_FOLDER}/au/config.pbtxt; ")
