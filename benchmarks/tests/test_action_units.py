"""The AU benchmarks measure the served computation; parity counts wrong values; the page matches its JSON."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import benchmarks
from benchmarks.speed import au_parity
from benchmarks.speed.au_page import write_page
from benchmarks.speed.load import ProjectClient
from benchmarks.speed.local_pipeline import LocalPipeline
from deploy.local import LocalServer
from export.au.classifiers import AuCheckpoint, Trees
from tests.support.face_data import photo_faces
from triton_face_client import FaceFeatureClient

FOLDER = Path(benchmarks.__file__).parent


def test_local_pipeline_is_bit_identical_to_the_service(au_server: LocalServer, au_repository: Path):
    frames, landmarks = photo_faces(21, 91)
    with FaceFeatureClient(au_server.grpc_url) as client:
        served = client.action_units(frames, landmarks)
    local = LocalPipeline(threads=1, au_repository=au_repository).action_units(frames, landmarks)
    np.testing.assert_array_equal(local, served)


def test_load_requests_the_named_outputs(au_server: LocalServer):
    load = ProjectClient(outputs=("AU",)).run(au_server.grpc_url, "FRAMES_UINT8", 4, 2, 0.5)
    assert load.faces_per_second > 0
    with FaceFeatureClient(au_server.grpc_url) as client:
        statistics = client.connection.get_inference_statistics("action_units").model_stats[0]
    assert statistics.inference_count >= load.faces_per_second * 0.5


def test_rate_counts_the_values_beyond_the_tolerance():
    expected = np.full((3, 4), 0.5)
    output = expected.astype(np.float32)
    output[1, 2] += 2e-5
    output[2, 0] += 5e-6
    rate = au_parity.Rate.of(output, expected)
    assert (rate.values, rate.beyond) == (12, 1)
    assert rate.largest == pytest.approx(2e-5, rel=1e-2)


def test_faces_beyond_have_their_cause(au_checkpoint: AuCheckpoint):
    """Face 0 has another HOG, face 1 differs with equal HOG, face 2 only with the service's HOG."""
    count = len(au_checkpoint.units)
    pyfeat = {"AU": np.full((4, count), 0.5), "HOG": np.zeros((4, 8))}
    service, equal_hog, hog = np.full((4, count), 0.5), np.full((4, count), 0.5), np.zeros((4, 8))
    service[[0, 1, 2], [0, 1, 2]] = 0.75
    equal_hog[1, 1] = 0.75
    hog[0, 3] = 1e-3
    lines = list(au_parity._faces_beyond(au_checkpoint, service, equal_hog, hog, pyfeat))
    assert [line[:2] for line in lines] == [[face, au_checkpoint.units[face].name] for face in range(3)]
    causes = ["a gradient in another bin of HOG", "rounding of the projection", "rounding of HOG"]
    assert [line[-1] for line in lines] == causes


def test_trees_alone_read_their_inputs_unchanged(au_checkpoint: AuCheckpoint):
    """A threshold decides between neighbouring float32 values: the identity projection must not round."""
    unit = next(unit for unit in au_checkpoint.units if unit.region == "upper")
    components = len(au_checkpoint.projections["upper"].offset)
    threshold = np.float32(0.1)
    stump = Trees(
        "binary:logistic",
        0.0,
        roots=np.array([0]),
        feature=np.array([components - 1, -1, -1]),
        value=np.array([threshold, -1, 1], np.float32),
        left=np.array([1, -1, -1]),
        right=np.array([2, -1, -1]),
    )
    alone = au_parity._trees_alone(au_checkpoint, dataclasses.replace(unit, classifier=stump), components)
    model: onnx.ModelProto = au_parity.build_au_graph(alone, hog_features=components)
    hog = np.random.default_rng(0).normal(0, 100, (2, components)).astype(np.float32)
    hog[:, -1] = np.nextafter(threshold, np.float32(0)), threshold
    inputs = {"HOG": hog, "ALIGNED_LANDMARKS": np.zeros((2, 68, 2), np.int64)}
    below, above = au_parity.run_graph(model.SerializeToString(), inputs)[:, 0]
    assert below == pytest.approx(1 / (1 + np.e))
    assert above == pytest.approx(1 / (1 + 1 / np.e))


def test_page_matches_its_json(tmp_path: Path):
    write_page(json.loads((FOLDER / "results" / "action_units.json").read_text()), tmp_path)
    written = (FOLDER / "results" / "action_units.md").read_text()
    assert (tmp_path / "action_units.md").read_text() == written
