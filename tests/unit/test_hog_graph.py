"""The HOG graph, against scikit-image and against the definition in float32 that py-feat follows."""

import importlib.metadata
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from export.errors import ExportError
from export.hog.command import export_hog
from export.hog.graph import build_hog_graph
from export.hog.settings import HogSettings
from tests.support import oracles
from tests.support.face_data import photo_faces

BLANK_FACES = ["blank", "masked", "half blank", "uniform"]


@pytest.fixture(scope="module")
def session() -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(build_hog_graph(112).SerializeToString())


def features(session: onnxruntime.InferenceSession, faces: np.ndarray) -> np.ndarray:
    return session.run(None, {"MASKED_FACES": faces.astype(np.float32)})[0]


def masked_photo_faces(count: int, seed: int) -> np.ndarray:
    """Give faces that are 0 outside an ellipse; every third has a corner of the fill value 128."""
    faces, _ = photo_faces(count, seed)
    faces[::3, :, 70:, :40] = 128
    y, x = np.mgrid[:112, :112]
    return faces * ((x - 56) ** 2 / 40**2 + (y - 50) ** 2 / 60**2 < 1)


def test_features_of_photographs_equal_scikit_image(session: onnxruntime.InferenceSession):
    faces = masked_photo_faces(60, 31)
    expected = np.array([oracles.hog_features(face) for face in faces])
    differences = np.abs(features(session, faces) - expected).max(axis=1)
    assert (differences > 1e-5).sum() <= 1, differences  # a gradient may lie on a border of two bins


@pytest.mark.parametrize("kind", BLANK_FACES)
def test_blank_blocks_are_zero_not_nan(session: onnxruntime.InferenceSession, kind: str):
    face = {
        "blank": np.zeros((3, 112, 112)),
        "masked": masked_photo_faces(1, 32)[0],
        "half blank": np.pad(photo_faces(1, 33)[0][0][:, :, :56], ((0, 0), (0, 0), (0, 56))),
        "uniform": np.full((3, 112, 112), 0.7),
    }[kind].astype(np.float32)
    computed = features(session, face[None])[0]
    assert np.isfinite(computed).all()
    np.testing.assert_allclose(computed, oracles.hog_features(face), atol=1e-5)
    assert (computed.reshape(13, 13, 32) == 0).all(axis=2).any()


@pytest.mark.parametrize("background", ["white", "black", "grey"])
@pytest.mark.parametrize("noise", [0, 1, 64, 128])
def test_features_along_the_fill_value_equal_the_definition(
    session: onnxruntime.InferenceSession, background: str, noise: int
):
    """Gradients along the edge lie within an ulp of the bins' borders. `noise` is in units of 2**-24."""
    generator = np.random.default_rng([noise, len(background)])
    level = {"white": 1.0, "grey": 0.4, "black": 0.0}[background]
    face = level + generator.integers(0, 2, (3, 112, 112)) * noise * 2.0**-24
    is_filled = generator.integers(0, 2, (28, 28)).repeat(4, axis=0).repeat(4, axis=1).astype(bool)
    face[:, is_filled] = 128
    face = face.astype(np.float32)
    assert np.abs(features(session, face[None])[0] - oracles.hog_by_definition(face)).max() < 1e-5


def test_straight_edge_is_in_the_bin_of_its_direction(session: onnxruntime.InferenceSession):
    """An angle on a border of two bins is in the upper bin."""
    y, x = np.mgrid[:112, :112] - 56.5
    for degrees, expected in ((0, 0), (45, 2), (90, 4), (135, 6), (180, 0), (225, 2), (270, 4), (315, 6)):
        angle = np.radians(degrees)
        face = np.repeat((np.round(np.cos(angle) * x + np.sin(angle) * y, 6) > 0)[None], 3, axis=0)
        strengths = features(session, face[None].astype(np.float32)).reshape(-1, 8).sum(axis=0)
        assert strengths.argmax() == expected, degrees
        assert strengths[expected] > 0.99 * strengths.sum(), degrees


def test_first_of_two_equally_strong_channels_decides(session: onnxruntime.InferenceSession):
    """Red rises along x (bin 0), green equally along y (bin 4)."""
    ramp = np.arange(112) / 128  # differences are exact in float32
    face = np.stack([np.tile(ramp, (112, 1)), np.tile(ramp[:, None], (1, 112)), np.zeros((112, 112))])
    inner = features(session, face[None]).reshape(13, 13, 2, 2, 8)[4:9, 4:9].sum(axis=(0, 1, 2, 3))
    assert inner[0] > 0
    assert inner[1:].sum() == 0


def test_features_do_not_depend_on_the_batch(session: onnxruntime.InferenceSession):
    faces = masked_photo_faces(64, 34)
    together = features(session, faces)
    for face in range(0, 64, 7):
        np.testing.assert_array_equal(features(session, faces[face : face + 1])[0], together[face])


@pytest.mark.parametrize("face_size", [16, 64, 100, 224])
def test_features_of_other_face_sizes_equal_scikit_image(face_size: int):
    session = onnxruntime.InferenceSession(build_hog_graph(face_size).SerializeToString())
    face = photo_faces(1, 35, (face_size, face_size))[0]
    computed = features(session, face)
    assert computed.shape == (1, HogSettings().feature_length(face_size))
    np.testing.assert_allclose(computed[0], oracles.hog_features(face[0]), atol=1e-5)


def test_metadata_describe_the_features_and_the_check(repository: Path):
    path = repository / "hog" / "1" / "model.onnx"
    facts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert facts["face_size"] == "112"
    assert facts["features"] == "5408"
    assert facts["checked_against"] == f"scikit-image {importlib.metadata.version('scikit-image')}"
    assert float(facts["largest_difference"]) < 1e-5


def test_export_rejects_too_small_face_size(repository: Path):
    path = repository / "hog" / "1" / "model.onnx"
    before = path.read_bytes()
    with pytest.raises(ExportError, match="at least 16"):
        export_hog(repository, 8)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir() if entry.suffix] == ["model.onnx"]
