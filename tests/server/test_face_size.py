"""Changing the face size: one command updates all configurations and builds the HOG model."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from deploy.local import LocalServer
from export.errors import ExportError
from export.hog.command import export_hog
from export.hog.face_size import outdated_configs
from tests.support import oracles
from tests.support.face_data import photo_faces
from triton_face_client import FaceFeatureClient

FACE_SIZE = 96


@pytest.fixture
def copy(repository: Path, tmp_path: Path) -> Path:
    return shutil.copytree(repository, tmp_path / "models")


def contents(repository: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()}


def test_serves_another_face_size(copy: Path):
    export_hog(copy, FACE_SIZE)
    frames, landmarks = photo_faces(3, 680)
    with LocalServer(copy) as server, FaceFeatureClient(server.grpc_url) as client:
        features = client.features(frames, landmarks, ["HOG", "MASK", "AFFINE"])
        faces = client.align(frames, landmarks, ["MASKED_FACES", "ALIGNED_LANDMARKS"])
    for face in range(3):
        affine = oracles.affine(landmarks[face], FACE_SIZE)
        np.testing.assert_allclose(features["AFFINE"][face], affine, rtol=1e-5)
        mask = oracles.mask(faces["ALIGNED_LANDMARKS"][face], FACE_SIZE)
        np.testing.assert_array_equal(features["MASK"][face], mask)
        hog = oracles.hog_features(faces["MASKED_FACES"][face])
        np.testing.assert_allclose(features["HOG"][face], hog, atol=1e-5)


def test_updates_profiles_and_restores_files(copy: Path):
    before = contents(copy)
    export_hog(copy, FACE_SIZE)
    changed = {path.relative_to(copy).as_posix() for path, old in before.items() if path.read_bytes() != old}
    assert changed == {
        "ensemble/config.pbtxt",
        "hog/1/model.onnx",
        *(
            f"{model}/{file}.pbtxt"
            for model in ("align_mask", "hog")
            for file in ("config", "configs/cpu", "configs/gpu")
        ),
    }
    assert outdated_configs(copy, FACE_SIZE) == {}
    export_hog(copy, 112)
    assert contents(copy) == before


def test_names_disagreeing_configs_and_the_command(copy: Path):
    config = copy / "align_mask" / "config.pbtxt"
    config.write_text(config.read_text().replace('string_value: "112"', f'string_value: "{FACE_SIZE}"'))
    before = contents(copy)
    expected = "hog/config.pbtxt, hog/configs/cpu.pbtxt, .*python -m export hog --face-size 96"
    with pytest.raises(ExportError, match=expected):
        export_hog(copy)
    assert contents(copy) == before


def test_changes_nothing_if_one_config_cannot_be_changed(copy: Path):
    config = copy / "ensemble" / "config.pbtxt"
    reordered = config.read_text().replace(
        "data_type: TYPE_BOOL\n    dims: [ 112, 112 ]", "dims: [ 112, 112 ]\n    data_type: TYPE_BOOL"
    )
    config.write_text(reordered)
    before = contents(copy)
    with pytest.raises(ExportError, match=r"cannot change the face size in .*ensemble/config.pbtxt"):
        export_hog(copy, FACE_SIZE)
    assert contents(copy) == before
