"""`triton-face plot` on a small film of the demo's photograph, against the real server."""

import dataclasses
import shutil
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from tests.support.film_files import FAILED_ROW, FLAT_ROW, FRAMES, NAN_ROW, write_film, write_table
from triton_face_client import FaceFeatureClient
from triton_face_client.cli import plot as command
from triton_face_client.cli.plot import PlotReport, plot
from triton_face_client.plotting.drawing import MOST_FACES, SheetFace, pose_axes
from triton_face_client.video.landmark_tables import TableError
from triton_face_client.video.media import MediaError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("film")
    landmarks = write_film(folder)
    write_table(folder / "film.csv", landmarks)
    np.savez(folder / "film.npz", landmarks=landmarks, source=["film.avi"] * FRAMES, frame=np.arange(FRAMES))
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[SheetFace]:
    """Give the faces of the sheet that a test draws."""
    faces: list[SheetFace] = []
    monkeypatch.setattr(command, "draw_sheet", lambda _path, sheet: faces.extend(sheet))
    return faces


def test_a_sheet_has_faces_spread_over_the_rows_that_have_one(
    client: FaceFeatureClient, folder: Path, tmp_path: Path
):
    out = tmp_path / "sheet.png"
    report = plot(client, [folder / "film.avi"], folder / "film.csv", out, 4, None)
    assert report == PlotReport(faces=4, refused=0, out=str(out))
    assert min(matplotlib.image.imread(out).shape[:2]) > 400


def test_every_row_is_on_the_sheet_with_its_reason(
    client: FaceFeatureClient, folder: Path, tmp_path: Path, drawn: list[SheetFace]
):
    media = [folder / "film.avi"]
    report = plot(client, media, folder / "film.csv", tmp_path / "sheet.png", 24, range(FRAMES))
    assert (report.faces, report.refused) == (FRAMES, 3)
    assert [face.row for face in drawn] == list(range(FRAMES))
    assert [face.place for face in drawn[:2]] == ["film.avi, frame 0", "film.avi, frame 1"]
    refused = {face.row: face for face in drawn if face.face is None}
    assert set(refused) == {FAILED_ROW, NAN_ROW, FLAT_ROW}
    assert "no landmarks" in refused[FAILED_ROW].reason
    assert refused[FAILED_ROW].crop is None
    assert "points on one line" in refused[FLAT_ROW].reason
    assert refused[FLAT_ROW].crop.shape == (3, 112, 112)


def test_the_axes_lie_on_the_aligned_face_as_on_the_image(
    client: FaceFeatureClient, folder: Path, tmp_path: Path, drawn: list[SheetFace]
):
    """The affine takes the image's points to the aligned ones, through a crop that is stretched.

    The film turns by 60 degrees; on faces that are turned back, the axes all lie alike.
    """
    landmarks = np.load(folder / "film.npz")["landmarks"]
    plot(client, [folder / "film.avi"], folder / "film.npz", tmp_path / "sheet.png", FRAMES, None)
    for face in drawn:
        affine = face.face["AFFINE"]
        aligned = landmarks[face.row] @ affine[:, :2].T + affine[:, 2]
        np.testing.assert_allclose(aligned, face.face["ALIGNED_LANDMARKS"] + 0.5, atol=0.6)
        x_axis, y_axis, _ = pose_axes(face.face["POSE"], affine[:, :2])
        assert abs(np.degrees(np.arctan2(x_axis[1], x_axis[0]))) < 10
        assert abs(np.degrees(np.arctan2(y_axis[0], y_axis[1]))) < 10


def test_one_row_has_all_panels(client: FaceFeatureClient, folder: Path, tmp_path: Path):
    out = tmp_path / "face.png"
    report = plot(client, [folder / "film.avi"], folder / "film.csv", out, 24, [5])
    assert report == PlotReport(faces=1, refused=0, out=str(out))
    assert matplotlib.image.imread(out).shape[:2] == (836, 1210)


def test_one_row_that_is_refused_is_a_sheet(
    client: FaceFeatureClient, folder: Path, tmp_path: Path, drawn: list[SheetFace]
):
    report = plot(client, [folder / "film.avi"], folder / "film.csv", tmp_path / "a.png", 24, [NAN_ROW])
    assert (report.faces, report.refused) == (1, 1)
    assert drawn[0].face is None


def test_a_table_without_any_face_is_drawn_too(
    client: FaceFeatureClient, folder: Path, tmp_path: Path, drawn: list[SheetFace]
):
    np.savez(tmp_path / "none.npz", landmarks=np.full((9, 68, 2), np.nan))
    plot(client, [folder / "film.avi"], tmp_path / "none.npz", tmp_path / "a.png", 3, None)
    assert [face.row for face in drawn] == [1, 4, 7]


def test_files_are_those_that_the_table_names(
    client: FaceFeatureClient, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "sheet.png"
    assert plot(client, [], folder / "film.npz", out, 2, None).refused == 0
    shutil.copy(folder / "film.npz", tmp_path)
    with pytest.raises(MediaError, match=r"names film\.avi, which is neither in the current folder nor"):
        plot(client, [], tmp_path / "film.npz", out, 2, None)
    monkeypatch.chdir(folder)
    assert plot(client, [], tmp_path / "film.npz", out, 2, None).refused == 0


def test_files_of_one_name_in_two_folders_are_told_apart(
    client: FaceFeatureClient, folder: Path, tmp_path: Path, drawn: list[SheetFace]
):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(folder / "film.avi", tmp_path / name)
    landmarks = np.load(folder / "film.npz")["landmarks"][:2]
    np.savez(tmp_path / "two.npz", landmarks=landmarks, source=["a/film.avi", r"b/film.avi"])
    plot(client, [], tmp_path / "two.npz", tmp_path / "a.png", 2, None)
    assert [face.reason for face in drawn] == ["", ""]


def test_what_cannot_be_drawn_is_said_in_a_line(client: FaceFeatureClient, folder: Path, tmp_path: Path):
    media, table, out = [folder / "film.avi"], folder / "film.csv", tmp_path / "sheet.png"
    with pytest.raises(ValueError, match=r"has no row 12: its rows are 0 to 11"):
        plot(client, media, table, out, 24, [0, FRAMES])
    with pytest.raises(ValueError, match="no row -1"):
        plot(client, media, table, out, 24, [-1])
    for rows in ([], [0] * (MOST_FACES + 1)):
        with pytest.raises(ValueError, match=f"1 to 500 faces, not {len(rows)}"):
            plot(client, media, table, out, 24, rows)
    with pytest.raises(ValueError, match="pictures end in"):
        plot(client, media, table, tmp_path / "sheet.txt", 24, None)
    with pytest.raises(MediaError, match="does not name the images or the video"):
        plot(client, [], table, out, 24, None)
    with pytest.raises(TableError):
        plot(client, media, folder / "other.csv", out, 24, None)
    assert not list(tmp_path.iterdir())


def test_the_report_is_plain_data():
    assert dataclasses.asdict(PlotReport(2, 1, "a.png")) == {"faces": 2, "refused": 1, "out": "a.png"}
