"""`triton-face run`, `plot` and `info` with a server that computes action units."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from deploy.local import LocalServer
from export.au.command import export_au
from tests.client.test_cli import start_long_run
from tests.support.film_files import FAILED_ROW, FRAMES, LINE_ROW, NAN_ROW, write_long_film
from tests.support.random_classifiers import random_xgb
from triton_face_client import FaceFeatureClient, FaceServiceError
from triton_face_client.cli import main
from triton_face_client.cli.action_units import check_checkpoints, served_checkpoint
from triton_face_client.plotting.action_units import top_action_units
from triton_face_client.video.crops import crop_landmarks, cut_faces, landmark_boxes
from triton_face_client.video.landmark_tables import read_table
from triton_face_client.video.media import FrameReader

LONG_ROWS = 1100
"""Rows of long.npz: enough to interrupt a run after its first part."""

INVALID_ROWS = [FAILED_ROW, NAN_ROW, LINE_ROW]
ALWAYS = ["input", "frame", "face_id", "timestamp", "confidence", "success", "refused"]
POSE = ["Pitch", "Roll", "Yaw", "X", "Y", "Z"]
POINTS = [f"{axis}_{i}" for axis in "xy" for i in range(68)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a film, its landmark table, and a table with many faces per frame."""
    folder = tmp_path_factory.mktemp("film")
    write_long_film(folder, LONG_ROWS)
    return folder


@pytest.fixture
def client(au_server: LocalServer) -> Iterator[FaceFeatureClient]:
    with FaceFeatureClient(au_server.grpc_url) as connected:
        yield connected


def command(name: str, server: LocalServer, folder: Path, out: Path, *options: str) -> list[str]:
    """Return the arguments of `run` or `plot` for the film."""
    inputs = [str(folder / "film.avi"), "--landmarks", str(folder / "film.csv")]
    return [name, *inputs, "--out", str(out), "--url", server.grpc_url, *options]


@pytest.fixture(scope="module")
def complete(au_server: LocalServer, folder: Path) -> Path:
    """Return the feature file of the film with all columns, as Parquet."""
    out = folder / "complete.parquet"
    assert main(command("run", au_server, folder, out)) == 0
    return out


def test_run_writes_columns_of_action_units(client: FaceFeatureClient, folder: Path, complete: Path):
    table, names = pq.read_table(complete), client.action_unit_names()
    assert table.column_names == [*ALWAYS[:-1], *POSE, *POINTS, *names, "HOG", "refused"]
    assert {str(table.schema.field(name).type) for name in names} == {"float"}
    values = np.stack([table[name].to_numpy() for name in names], axis=1)
    assert np.isnan(values[INVALID_ROWS]).all()
    landmarks = read_table(folder / "film.csv").landmarks
    with FrameReader([folder / "film.avi"], apply_exif=True) as reader:
        for row in np.setdiff1d(np.arange(FRAMES), INVALID_ROWS):
            boxes = landmark_boxes(landmarks[[row]])
            crop, points = (
                cut_faces(reader.read(None, int(row)), boxes),
                crop_landmarks(landmarks[[row]], boxes),
            )
            np.testing.assert_array_equal(values[row], client.action_units(crop, points)[0])


def test_all_formats_hold_the_same_action_units(
    au_server: LocalServer, client: FaceFeatureClient, folder: Path, complete: Path, tmp_path: Path
):
    for name in ("out.csv", "out.npz"):
        assert main(command("run", au_server, folder, tmp_path / name, "--columns", "au,landmarks")) == 0
    table, names = pq.read_table(complete), client.action_unit_names()
    text, arrays = pyarrow.csv.read_csv(tmp_path / "out.csv"), np.load(tmp_path / "out.npz")
    assert text.column_names == [*ALWAYS[:-1], *POINTS, *names, "refused"]
    assert set(arrays) == {"landmarks", "source", *ALWAYS, *names} - {"input"}
    for name in names:
        np.testing.assert_array_equal(arrays[name], table[name].to_numpy())
        np.testing.assert_array_equal(text[name].to_numpy().astype(np.float32), arrays[name])


@pytest.mark.parametrize("groups", ["au,pose", "pose", "hog"])
def test_run_writes_the_chosen_columns(
    au_server: LocalServer, folder: Path, complete: Path, tmp_path: Path, groups: str
):
    out, expected = tmp_path / "out.parquet", pq.read_table(complete)
    assert main(command("run", au_server, folder, out, "--columns", groups)) == 0
    units = [name for name in expected.column_names if name.startswith("AU")]
    wanted = {"au": units, "pose": POSE, "hog": ["HOG"]}
    columns = [*ALWAYS, *(name for group in groups.split(",") for name in wanted[group])]
    chosen = [name for name in expected.column_names if name in columns]
    table = pq.read_table(out)
    assert table.column_names == chosen
    for name in chosen:
        assert str(table[name].to_pylist()) == str(expected[name].to_pylist()), "NaN differs from itself"


def test_run_accepts_its_output_as_landmark_table(
    au_server: LocalServer, folder: Path, complete: Path, tmp_path: Path
):
    arguments = command("run", au_server, folder, tmp_path / "out.parquet")
    arguments[arguments.index("--landmarks") + 1] = str(complete)
    assert main(arguments) == 0
    assert pq.read_table(tmp_path / "out.parquet").column_names == pq.read_table(complete).column_names


def test_run_resumes_only_parts_with_the_same_columns(
    server: LocalServer, au_server: LocalServer, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """A server without action units writes the first rows, one with action units the others."""
    process = start_long_run(server, folder, tmp_path / "out.parquet")
    process.kill()
    process.communicate()
    arguments = command("run", au_server, folder, tmp_path / "out.parquet", "--json")
    arguments[arguments.index("--landmarks") + 1] = str(folder / "long.npz")
    assert main(arguments) == 3
    assert "columns, settings or another AU checkpoint" in capsys.readouterr().err
    assert main([*arguments, "--columns", "hog,pose,landmarks"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["resumed_at"] > 0
    assert (report["rows"], report["faces"]) == (LONG_ROWS, LONG_ROWS)


@pytest.mark.slow
def test_run_never_mixes_checkpoints(
    repository: Path, au_server: LocalServer, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """The second server of a run has another checkpoint; then the only server is replaced by it."""
    export_au(random_xgb(seed=30), repository, tmp_path / "au")
    out = tmp_path / "out.parquet"
    with LocalServer(repository, au_repository=tmp_path / "au") as other:
        both = command("run", au_server, folder, out, "--url", other.grpc_url)
        assert main(both) == 4
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"the server at {other.grpc_url} has the AU checkpoint" in error
        assert not out.exists()
        process = start_long_run(au_server, folder, out)
        process.kill()
        process.communicate()
        arguments = command("run", other, folder, out)
        arguments[arguments.index("--landmarks") + 1] = str(folder / "long.npz")
        assert main(arguments) == 3
        assert "another AU checkpoint" in capsys.readouterr().err


def test_another_checkpoint_during_a_run_is_an_error(client: FaceFeatureClient):
    with pytest.raises(FaceServiceError, match=r"has the AU checkpoint \w{12}, but this run began with ffff"):
        check_checkpoints([client], "f" * 64)


def test_unreachable_server_is_not_compared(client: FaceFeatureClient):
    with FaceFeatureClient("127.0.0.1:9") as unreachable:
        check_checkpoints([unreachable, client], served_checkpoint(client))


def test_run_without_action_units_on_the_server(
    server: LocalServer, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = tmp_path / "out.parquet"
    assert main(command("run", server, folder, out, "--columns", "au")) == 4
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("triton-face run: the server at 127.0.0.1:")
    assert "computes no action units" in error
    assert "make serve AU_WEIGHTS=FILE.skops" in error
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit) as caught:
        main(command("run", server, folder, out, "--columns", "au,face"))
    assert caught.value.code == 2
    assert "'face' is not a group of columns: choose from pose,landmarks,au,hog" in capsys.readouterr().err


def test_plot_writes_names_and_values(
    au_server: LocalServer, client: FaceFeatureClient, folder: Path, complete: Path, tmp_path: Path
):
    """Each text of an SVG file of matplotlib is also a comment."""
    rows, names = pq.read_table(complete), client.action_unit_names()
    values = np.stack([rows[name].to_numpy() for name in names], axis=1)
    for options, texts in (
        (["--rows", "5"], ["AU: action units", *names, *(f"{value:.2f}" for value in values[5])]),
        (["--rows", f"4,5,{NAN_ROW}"], [top_action_units(names, values[row]) for row in (4, 5)]),
    ):
        out = tmp_path / f"{len(options[1])}.svg"
        assert main(command("plot", au_server, folder, out, *options)) == 0
        picture = out.read_text()
        for text in texts:
            assert f"<!-- {text} -->" in picture


def test_line_of_the_largest_action_units():
    names = ["AU01", "AU02", "AU04", "AU05", "AU06", "AU07"]
    assert top_action_units(names[:2], np.float32([0.25, 0.5])) == "AU02 0.50   AU01 0.25"
    values = np.float32([0, 1, 0.9, 0.5, 1, 0.7])
    assert top_action_units(names, values) == "AU02 1.00   AU06 1.00   AU04 0.90   AU07 0.70   +1"


def test_bench_requests_the_chosen_outputs(
    server: LocalServer, au_server: LocalServer, client: FaceFeatureClient, capsys: pytest.CaptureFixture
):
    arguments = ["bench", "--seconds", "0.2", "--json", "--outputs", "AU"]
    assert main([*arguments, "--url", au_server.grpc_url]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["outputs"], report["failed"]) == (["AU"], {})
    assert main([*arguments, "--url", server.grpc_url]) == 4
    assert "computes no action units" in json.loads(capsys.readouterr().out)["error"]


def test_info_lists_models_and_names(
    au_server: LocalServer, client: FaceFeatureClient, capsys: pytest.CaptureFixture
):
    names = client.action_unit_names()
    assert main(["info", "--url", au_server.grpc_url]) == 0
    text = capsys.readouterr().out
    assert f"action units: {', '.join(names)}" in text
    assert f"AU FP32 [N, {len(names)}]" in text
    assert main(["info", "--url", au_server.grpc_url, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["action_units"] == list(names)
    assert report["au_checkpoint"] == client.model("action_units").parameters["weights_sha256"]
    assert {"au", "action_units"} < {model["name"] for model in report["models"]}
