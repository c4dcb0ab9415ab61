"""What the benchmarks compare is what the service answers, and their pages are what was measured."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest

import benchmarks
from benchmarks.speed import mask_equality
from benchmarks.speed.load import OwnClient
from benchmarks.speed.local_pipeline import InProcess
from benchmarks.speed.page import write_report
from deploy.local import LocalServer
from tests.support.face_data import photo_faces
from tests.support.processes import cpu_seconds, resident_megabytes
from triton_face_client import FaceFeatureClient

FOLDER = Path(benchmarks.__file__).parent


def test_in_process_has_the_bits_of_the_service(client: FaceFeatureClient):
    frames, landmarks = photo_faces(21, 91)
    ours = InProcess(threads=1)
    hog, pose = ours.features(frames, landmarks)
    answers = client.features(frames, landmarks)
    np.testing.assert_array_equal(hog, answers["HOG"])
    np.testing.assert_array_equal(pose, answers["POSE"])


def test_the_input_data_is_served(client: FaceFeatureClient):
    """perf_analyzer counts a refused request as a failure and its figures are worth nothing."""
    steps = json.loads((FOLDER / "data" / "faces_uint8.json").read_text())["data"]
    tensors = {
        name: np.stack(
            [
                np.frombuffer(base64.b64decode(step[name]["b64"]), dtype=kind).reshape(step[name]["shape"])
                for step in steps
            ]
        )
        for name, kind in (("FRAMES_UINT8", np.uint8), ("LANDMARKS", "<f4"))
    }
    answers = client.features(tensors["FRAMES_UINT8"], tensors["LANDMARKS"])
    assert len({row.tobytes() for row in answers["HOG"]}) == len(steps)


@pytest.mark.parametrize("frames_input", ["FRAMES", "FRAMES_UINT8"])
def test_the_own_client_counts_what_was_served(
    server: LocalServer, client: FaceFeatureClient, frames_input: str
):
    def served() -> int:
        return client.connection.get_inference_statistics("ensemble").model_stats[0].inference_count

    before, cpu = served(), cpu_seconds(server.pid)
    load = OwnClient().run(server.grpc_url, frames_input, 4, 2, 0.5)
    faces = served() - before
    assert faces > 0
    assert faces % 4 == 0
    # The last requests of the two threads end after the half second.
    assert load.faces_per_second <= faces / 0.5
    assert 0 < load.p50_ms <= load.p99_ms
    assert cpu_seconds(server.pid) > cpu
    assert resident_megabytes(server.pid) > 100


def test_masks_are_compared_on_sets_of_every_kind():
    assert mask_equality._compare_seed(0) == 0


def test_a_wrong_mask_is_counted(monkeypatch: pytest.MonkeyPatch):
    right = mask_equality.hull_masks
    monkeypatch.setattr(mask_equality, "hull_masks", lambda *given: np.roll(right(*given), 1, axis=2))
    assert mask_equality._compare_seed(0) > 0


def test_the_page_is_that_of_the_result(tmp_path: Path):
    write_report(json.loads((FOLDER / "results" / "bench.json").read_text()), tmp_path)
    assert (tmp_path / "bench.md").read_text() == (FOLDER / "results" / "bench.md").read_text()
    assert (tmp_path / "bench.png").stat().st_size > 10_000
