"""The benchmarks measure the service's computation and count its faces; the pages match the results."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest

import benchmarks
from benchmarks.speed import mask_equality
from benchmarks.speed.load import ProjectClient
from benchmarks.speed.local_pipeline import LocalPipeline
from benchmarks.speed.page import write_report
from deploy.local import LocalServer
from tests.support.face_data import photo_faces
from tests.support.processes import cpu_seconds, resident_megabytes
from triton_face_client import FaceFeatureClient

FOLDER = Path(benchmarks.__file__).parent


def test_local_pipeline_is_bit_identical_to_the_service(client: FaceFeatureClient):
    frames, landmarks = photo_faces(21, 91)
    hog, pose = LocalPipeline(threads=1).features(frames, landmarks)
    outputs = client.features(frames, landmarks)
    np.testing.assert_array_equal(hog, outputs["HOG"])
    np.testing.assert_array_equal(pose, outputs["POSE"])


def test_server_accepts_the_perf_analyzer_input_data(client: FaceFeatureClient):
    """A rejected request would falsify perf_analyzer's figures."""
    steps = json.loads((FOLDER / "data" / "faces_uint8.json").read_text())["data"]
    tensors = {
        name: np.stack(
            [
                np.frombuffer(base64.b64decode(step[name]["b64"]), dtype=dtype).reshape(step[name]["shape"])
                for step in steps
            ]
        )
        for name, dtype in (("FRAMES_UINT8", np.uint8), ("LANDMARKS", "<f4"))
    }
    outputs = client.features(tensors["FRAMES_UINT8"], tensors["LANDMARKS"])
    assert len({row.tobytes() for row in outputs["HOG"]}) == len(steps)


@pytest.mark.parametrize("frames_input", ["FRAMES", "FRAMES_UINT8"])
def test_project_client_counts_served_faces(
    server: LocalServer, client: FaceFeatureClient, frames_input: str
):
    def served() -> int:
        return client.connection.get_inference_statistics("ensemble").model_stats[0].inference_count

    before, cpu = served(), cpu_seconds(server.pid)
    load = ProjectClient().run(server.grpc_url, frames_input, 4, 2, 0.5)
    faces = served() - before
    assert faces > 0
    assert faces % 4 == 0
    # The last requests of both threads end after the half second.
    assert load.faces_per_second <= faces / 0.5
    assert 0 < load.p50_ms <= load.p99_ms
    assert cpu_seconds(server.pid) > cpu
    assert resident_megabytes(server.pid) > 100


def test_masks_of_all_kinds_of_landmark_sets_are_equal():
    assert mask_equality._compare_seed(0) == 0


def test_wrong_mask_is_counted(monkeypatch: pytest.MonkeyPatch):
    correct_masks = mask_equality.hull_masks
    monkeypatch.setattr(
        mask_equality, "hull_masks", lambda *arguments: np.roll(correct_masks(*arguments), 1, axis=2)
    )
    assert mask_equality._compare_seed(0) > 0


def test_page_matches_its_json(tmp_path: Path):
    write_report(json.loads((FOLDER / "results" / "bench.json").read_text()), tmp_path)
    assert (tmp_path / "bench.md").read_text() == (FOLDER / "results" / "bench.md").read_text()
    assert (tmp_path / "bench.png").stat().st_size > 10_000
