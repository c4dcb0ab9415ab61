"""Changing face size and HOG settings: one command updates all configurations and builds the HOG model."""

import itertools
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from deploy.local import LocalServer
from export.errors import ExportError
from export.hog.command import export_hog
from export.hog.configs import configured_settings, outdated_configs
from export.hog.settings import HogSettings
from tests.client.test_cli import start_long_run
from tests.support import oracles
from tests.support.face_data import photo_faces
from tests.support.film_files import write_film, write_long_film, write_table
from triton_face_client import FaceFeatureClient, pyfeat
from triton_face_client.cli import main
from triton_face_client.cli.plot import plot

FACE_SIZE = 96

OTHER = {
    "orientations": 9,
    "pixels_per_cell": 16,
    "cells_per_block": 3,
    "block_norm": "L1-sqrt",
    "transform_sqrt": True,
}
"""Settings that all differ from the defaults."""

DEFAULT = HogSettings()

HOG_FILES = {
    "ensemble/config.pbtxt",
    "hog/1/model.onnx",
    "hog/config.pbtxt",
    "hog/configs/cpu.pbtxt",
    "hog/configs/gpu.pbtxt",
}


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


def test_serves_other_settings(repository_copy: Path, tmp_path: Path):
    export_hog(repository_copy, **OTHER)
    frames, landmarks = photo_faces(20, 681)
    write_table(tmp_path / "film.csv", write_film(tmp_path))
    with LocalServer(repository_copy) as server, FaceFeatureClient(server.grpc_url) as client:
        features = client.features(frames, landmarks, ["HOG", "MASK"])
        faces = client.align(frames, landmarks, ["MASKED_FACES"])["MASKED_FACES"]
        parameters = client.model("hog").parameters
        assert_compares_the_layer(client, frames, landmarks)
        report = plot(client, [tmp_path / "film.avi"], tmp_path / "film.csv", tmp_path / "a.png", 24, [5, 6])
    assert (report.faces, report.refused) == (2, 0)
    assert features["HOG"].shape == (20, 5 * 5 * 3 * 3 * 9)
    assert HogSettings.from_parameters(parameters) == HogSettings(**OTHER)
    session = onnxruntime.InferenceSession(str(repository_copy / "hog" / "1" / "model.onnx"))
    np.testing.assert_array_equal(features["HOG"], session.run(None, {"MASKED_FACES": faces})[0])
    expected = np.array([oracles.hog_features(face, **OTHER) for face in faces])
    np.testing.assert_allclose(features["HOG"], expected, atol=1e-5)


def assert_compares_the_layer(client: FaceFeatureClient, frames: np.ndarray, landmarks: np.ndarray) -> None:
    """py-feat's functions accept a layer with the server's settings and reject py-feat's default layer."""
    normalized = (landmarks / np.float32(112)).reshape(len(frames), 136)
    layer = {**OTHER, "block_normalization": "l1-sqrt"}
    hog, _ = pyfeat.extract_hog_features(frames, normalized, SimpleNamespace(**layer), client=client)
    assert hog.shape == (len(frames), 2025)
    layer = {**vars(DEFAULT), "block_normalization": "l2-hys"}
    expected = (
        "orientations=8, pixels_per_cell=8, cells_per_block=2, transform_sqrt=False, "
        "block_normalization='l2-hys', but the server .* computes orientations=9, pixels_per_cell=16, "
        "cells_per_block=3, transform_sqrt=True, block_normalization='l1-sqrt': "
    )
    with pytest.raises(ValueError, match=expected):
        pyfeat.extract_hog_features(frames, normalized, SimpleNamespace(**layer), client=client)


@pytest.mark.slow
def test_run_resumes_only_parts_with_the_same_hog_settings(
    server: LocalServer, repository_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """The other settings give as many features."""
    export_hog(repository_copy, block_norm="L1")
    film, out = tmp_path / "film", tmp_path / "out.parquet"
    film.mkdir()
    write_long_film(film, 1100)
    process = start_long_run(server, film, out)
    process.kill()
    process.communicate()
    arguments = ["run", str(film / "film.avi"), "--landmarks", str(film / "long.npz"), "--out", str(out)]
    with LocalServer(repository_copy) as other:
        assert main([*arguments, "--url", other.grpc_url]) == 3
    assert "unfinished run of other files, columns, settings" in capsys.readouterr().err
    assert main([*arguments, "--url", server.grpc_url]) == 0


def changed_files(repository: Path, before: dict[Path, bytes]) -> set[str]:
    return {
        path.relative_to(repository).as_posix() for path, old in before.items() if path.read_bytes() != old
    }


def test_export_updates_all_configs_and_can_restore_them(repository_copy: Path):
    before = contents(repository_copy)
    export_hog(repository_copy, FACE_SIZE)
    align_files = {f"align_mask/{file}.pbtxt" for file in ("config", "configs/cpu", "configs/gpu")}
    assert changed_files(repository_copy, before) == HOG_FILES | align_files
    assert outdated_configs(repository_copy, FACE_SIZE, DEFAULT) == {}
    export_hog(repository_copy, 112)
    assert contents(repository_copy) == before


def test_command_line_changes_keeps_and_restores_settings(repository_copy: Path):
    before = contents(repository_copy)
    run_export(repository_copy, "--orientations 9 --cell 16 --block 3 --norm L1-sqrt --transform-sqrt")
    assert changed_files(repository_copy, before) == HOG_FILES
    assert outdated_configs(repository_copy, 112, HogSettings(**OTHER)) == {}
    metadata = onnx.load(repository_copy / "hog" / "1" / "model.onnx").metadata_props
    assert {entry.key: entry.value for entry in metadata}.items() >= {
        "face_size": "112",
        "orientations": "9",
        "pixels_per_cell": "16",
        "cells_per_block": "3",
        "block_norm": "L1-sqrt",
        "transform_sqrt": "true",
        "features": "2025",
    }.items()
    changed = contents(repository_copy)
    run_export(repository_copy, "")
    assert contents(repository_copy) == changed
    run_export(repository_copy, "--block 1 --no-transform-sqrt")
    assert configured_settings(repository_copy) == HogSettings(9, 16, 1, "L1-sqrt")
    run_export(repository_copy, DEFAULT.as_options(112))
    assert contents(repository_copy) == before


def run_export(repository: Path, options: str) -> None:
    command = [sys.executable, "-m", "export", "hog", "--repository", str(repository), *options.split()]
    subprocess.run(command, check=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"orientations": 0}, "orientations must be 1 to 45, it is 0"),
        ({"orientations": 46}, "orientations must be 1 to 45, it is 46"),
        ({"pixels_per_cell": 0}, "pixels_per_cell must be at least 1, it is 0"),
        ({"cells_per_block": -1}, "cells_per_block must be at least 1, it is -1"),
        ({"block_norm": "l2"}, "block_norm must be one of L1, L1-sqrt, L2, L2-Hys, it is 'l2'"),
        ({"pixels_per_cell": 57}, "at least 114 pixels, it is 112: a block has 2 cells a side, a cell 57"),
        ({"pixels_per_cell": 9000, "face_size": 18000}, "must be at most 1500 pixels, it is 18000"),
        ({"pixels_per_cell": 1, "cells_per_block": 20}, "27676800 features, more than 1000000"),
    ],
)
def test_invalid_settings_change_no_file(repository_copy: Path, changes: dict[str, Any], message: str):
    before = contents(repository_copy)
    with pytest.raises(ExportError, match=message):
        export_hog(repository_copy, **changes)
    assert contents(repository_copy) == before


@pytest.mark.parametrize(
    ("parameter", "old", "new", "message"),
    [
        ("orientations", "8", "eight", "orientations must be a whole number, it is 'eight'"),
        ("transform_sqrt", "false", "no", "transform_sqrt must be true or false, it is 'no'"),
        ("block_norm", "L2-Hys", "L3", "block_norm must be one of L1, .*, it is 'L3'"),
    ],
)
def test_error_names_the_config_with_an_invalid_parameter(
    repository_copy: Path, parameter: str, old: str, new: str, message: str
):
    set_parameter(repository_copy / "hog" / "config.pbtxt", parameter, old, new)
    with pytest.raises(ExportError, match=rf"hog/config\.pbtxt: {message}"):
        export_hog(repository_copy)


def set_parameter(config: Path, parameter: str, old: str, new: str) -> None:
    text = config.read_text()
    before = f'key: "{parameter}"\n    value: {{ string_value: "{old}" }}'
    assert text.count(before) == 1
    config.write_text(text.replace(before, before.replace(f'"{old}"', f'"{new}"')))


def test_error_names_configs_of_other_settings_and_the_command(repository_copy: Path):
    set_parameter(repository_copy / "hog" / "configs" / "cpu.pbtxt", "block_norm", "L2-Hys", "L1")
    before = contents(repository_copy)
    expected = (
        r"^hog/configs/cpu\.pbtxt: .*--face-size 112 --orientations 8 .* --norm L2-Hys --no-transform-sqrt`"
    )
    with pytest.raises(ExportError, match=expected):
        export_hog(repository_copy)
    assert contents(repository_copy) == before
    export_hog(repository_copy, orientations=8)
    assert outdated_configs(repository_copy, 112, DEFAULT) == {}


def test_missing_parameters_are_the_defaults_and_are_not_inserted(repository_copy: Path):
    config = repository_copy / "hog" / "config.pbtxt"
    entry = '  {\n    key: "transform_sqrt"\n    value: { string_value: "false" }\n  },\n'
    config.write_text(config.read_text().replace(entry, ""))
    before = contents(repository_copy)
    assert configured_settings(repository_copy) == DEFAULT
    with pytest.raises(ExportError, match=r"cannot change .* in .*hog/config\.pbtxt: .*transform_sqrt"):
        export_hog(repository_copy, transform_sqrt=True)
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
    with pytest.raises(ExportError, match=r"cannot change the face size .* in .*ensemble/config.pbtxt"):
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


def test_concurrent_exports_change_all_files_one_after_the_other(repository_copy: Path):
    """Each command changes one setting and keeps the others, in any order."""
    options = ("--orientations 6", "--face-size 96", "--norm L1", "--cell 4")
    commands = [
        subprocess.Popen(
            [sys.executable, "-m", "export", "hog", "--repository", repository_copy, *text.split()],
            stdout=subprocess.DEVNULL,
        )
        for text in options
    ]
    assert [command.wait(60) for command in commands] == [0] * len(options)
    settings = HogSettings(orientations=6, pixels_per_cell=4, block_norm="L1")
    assert configured_settings(repository_copy) == settings
    assert outdated_configs(repository_copy, 96, settings) == {}
    model = onnx.load(repository_copy / "hog" / "1" / "model.onnx")
    stored = {item.key: item.value for item in model.metadata_props}
    assert (settings.as_parameters() | {"face_size": "96"}).items() <= stored.items()


def test_temporary_file_of_a_killed_export_is_ignored(repository_copy: Path):
    (repository_copy / "hog" / "configs" / ".cpu.x1.pbtxt").write_text('name: "hog"\nmax_ba')
    assert outdated_configs(repository_copy, 112, DEFAULT) == {}
