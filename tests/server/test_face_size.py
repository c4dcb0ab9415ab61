"""Changing the face size: one command updates all configurations and builds the HOG model."""

import itertools
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
def repository_copy(repository: Path, tmp_path: Path) -> Path:
    """Return a model repository that the test may change."""
    return shutil.copytree(repository, tmp_path / "models")


def contents(repository: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()}


def test_serves_another_face_size(repository_copy: Path):
    export_hog(repository_copy, FACE_SIZE)
    frames, landmarks = photo_faces(3, 680)
    with LocalServer(repository_copy) as server, FaceFeatureClient(server.grpc_url) as client:
        features = client.features(frames, landmarks, ["HOG", "MASK", "AFFINE"])
        faces = client.align(frames, landmarks, ["MASKED_FACES", "ALIGNED_LANDMARKS"])
    for face in range(3):
        affine = oracles.affine(landmarks[face], FACE_SIZE)
        np.testing.assert_allclose(features["AFFINE"][face], affine, rtol=1e-5)
        mask = oracles.mask(faces["ALIGNED_LANDMARKS"][face], FACE_SIZE)
        np.testing.assert_array_equal(features["MASK"][face], mask)
        hog = oracles.hog_features(faces["MASKED_FACES"][face])
        np.testing.assert_allclose(features["HOG"][face], hog, atol=1e-5)


def test_export_updates_all_configs_and_can_restore_them(repository_copy: Path):
    before = contents(repository_copy)
    export_hog(repository_copy, FACE_SIZE)
    changed = {
        path.relative_to(repository_copy).as_posix()
        for path, old in before.items()
        if path.read_bytes() != old
    }
    assert changed == {
        "ensemble/config.pbtxt",
        "hog/1/model.onnx",
        *(
            f"{model}/{file}.pbtxt"
            for model in ("align_mask", "hog")
            for file in ("config", "configs/cpu", "configs/gpu")
        ),
    }
    assert outdated_configs(repository_copy, FACE_SIZE) == {}
    export_hog(repository_copy, 112)
    assert contents(repository_copy) == before


def test_error_names_configs_of_another_size_and_the_command(repository_copy: Path):
    config = repository_copy / "align_mask" / "config.pbtxt"
    config.write_text(config.read_text().replace('string_value: "112"', f'string_value: "{FACE_SIZE}"'))
    before = contents(repository_copy)
    expected = "hog/config.pbtxt, hog/configs/cpu.pbtxt, .*python -m export hog --face-size 96"
    with pytest.raises(ExportError, match=expected):
        export_hog(repository_copy)
    assert contents(repository_copy) == before


def test_failed_export_changes_no_file(repository_copy: Path):
    config = repository_copy / "ensemble" / "config.pbtxt"
    reordered = config.read_text().replace(
        "data_type: TYPE_BOOL\n    dims: [ 112, 112 ]", "dims: [ 112, 112 ]\n    data_type: TYPE_BOOL"
    )
    config.write_text(reordered)
    before = contents(repository_copy)
    with pytest.raises(ExportError, match=r"cannot change the face size in .*ensemble/config.pbtxt"):
        export_hog(repository_copy, FACE_SIZE)
    assert contents(repository_copy) == before


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_error_after_some_files_were_replaced_restores_them(
    repository_copy: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
):
    before = contents(repository_copy)
    replace, count = Path.replace, itertools.count(1)

    def fail_once(path: Path, target: Path) -> Path:
        if next(count) == 4:
            raise error
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fail_once)
    with pytest.raises((ExportError, KeyboardInterrupt)):
        export_hog(repository_copy, FACE_SIZE)
    assert contents(repository_copy) == before


def test_temporary_file_of_a_killed_export_is_ignored(repository_copy: Path):
    (repository_copy / "hog" / "configs" / ".cpu.x1.pbtxt").write_text('name: "hog"\nmax_ba')
    assert outdated_configs(repository_copy, 112) == {}
