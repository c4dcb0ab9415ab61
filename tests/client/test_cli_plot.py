"""`triton-face plot`: contact sheets and face figures of a short film, against a real server."""

import shutil
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from tests.support.film_files import FAILED_ROW, FRAMES, LINE_ROW, NAN_ROW, write_film, write_table
from triton_face_client import FaceFeatureClient
from triton_face_client.cli import plot as plot_module
from triton_face_client.cli.plot import PlotReport, plot
from triton_face_client.plotting.contact_sheet import MAX_FACES, SheetFace
from triton_face_client.plotting.panels import pose_axes
from triton_face_client.video.landmark_tables import TableError
from triton_face_client.video.media import MediaError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a film and its landmark table as CSV and as NPZ."""
    folder = tmp_path_factory.mktemp("film")
    landmarks = write_film(folder)
    write_table(folder / "film.csv", landmarks)
    np.savez(folder / "film.npz", landmarks=landmarks, source=["film.avi"] * FRAMES, frame=np.arange(FRAMES))
    return folder


@pytest.fixture
def sheet_faces(monkeypatch: pytest.MonkeyPatch) -> list[SheetFace]:
    """Return a list that collects the faces of a sheet, which is not drawn."""
    faces: list[SheetFace] = []
    monkeypatch.setattr(
        plot_module, "draw_sheet", lambda _path, sheet, _settings, _action_units: faces.extend(sheet)
    )
    return faces


def test_sheet_shows_the_requested_number_of_faces(client: FaceFeatureClient, folder: Path, tmp_path: Path):
    out = tmp_path / "sheet.png"
    report = plot(client, [folder / "film.avi"], folder / "film.csv", out, 4, None)
    assert report == PlotReport(faces=4, refused=0, out=str(out))
    assert min(matplotlib.image.imread(out).shape[:2]) > 400


def test_sheet_shows_reason_of_each_row_without_features(
    client: FaceFeatureClient, folder: Path, tmp_path: Path, sheet_faces: list[SheetFace]
):
    media = [folder / "film.avi"]
    report = plot(client, media, folder / "film.csv", tmp_path / "sheet.png", 24, range(FRAMES))
    assert (report.faces, report.refused) == (FRAMES, 3)
    assert [face.row for face in sheet_faces] == list(range(FRAMES))
    assert [face.location for face in sheet_faces[:2]] == ["film.avi, frame 0", "film.avi, frame 1"]
    without_features = {face.row: face for face in sheet_faces if face.outputs is None}
    assert set(without_features) == {FAILED_ROW, NAN_ROW, LINE_ROW}
    assert "no landmarks" in without_features[FAILED_ROW].reason
    assert without_features[FAILED_ROW].crop is None
    assert "points on one line" in without_features[LINE_ROW].reason
    assert without_features[LINE_ROW].crop.shape == (3, 112, 112)


def test_head_axes_fit_the_aligned_face(
    client: FaceFeatureClient, folder: Path, tmp_path: Path, sheet_faces: list[SheetFace]
):
    """AFFINE of a sheet's face maps image pixels to aligned pixels, although the crop is stretched.

    The film rotates by 60 degrees. Alignment undoes the rotation, so the axes have the same directions in all
    frames.
    """
    landmarks = np.load(folder / "film.npz")["landmarks"]
    plot(client, [folder / "film.avi"], folder / "film.npz", tmp_path / "sheet.png", FRAMES, None)
    for face in sheet_faces:
        affine = face.outputs["AFFINE"]
        aligned = landmarks[face.row] @ affine[:, :2].T + affine[:, 2]
        np.testing.assert_allclose(aligned, face.outputs["ALIGNED_LANDMARKS"] + 0.5, atol=0.6)
        x_axis, y_axis, _ = pose_axes(face.outputs["POSE"], affine[:, :2])
        assert abs(np.degrees(np.arctan2(x_axis[1], x_axis[0]))) < 10
        assert abs(np.degrees(np.arctan2(y_axis[0], y_axis[1]))) < 10


def test_single_row_gives_six_panels(client: FaceFeatureClient, folder: Path, tmp_path: Path):
    out = tmp_path / "face.png"
    report = plot(client, [folder / "film.avi"], folder / "film.csv", out, 24, [5])
    assert report == PlotReport(faces=1, refused=0, out=str(out))
    assert matplotlib.image.imread(out).shape[:2] == (836, 1210)


def test_single_invalid_row_gives_a_sheet(
    client: FaceFeatureClient, folder: Path, tmp_path: Path, sheet_faces: list[SheetFace]
):
    report = plot(client, [folder / "film.avi"], folder / "film.csv", tmp_path / "a.png", 24, [NAN_ROW])
    assert (report.faces, report.refused) == (1, 1)
    assert sheet_faces[0].outputs is None


def test_table_without_faces_gives_a_sheet(
    client: FaceFeatureClient, folder: Path, tmp_path: Path, sheet_faces: list[SheetFace]
):
    np.savez(tmp_path / "none.npz", landmarks=np.full((9, 68, 2), np.nan))
    plot(client, [folder / "film.avi"], tmp_path / "none.npz", tmp_path / "a.png", 3, None)
    assert [face.row for face in sheet_faces] == [1, 4, 7]


def test_reads_the_files_named_in_the_table_without_media(
    client: FaceFeatureClient, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "sheet.png"
    assert plot(client, [], folder / "film.npz", out, 2, None).refused == 0
    shutil.copy(folder / "film.npz", tmp_path)
    with pytest.raises(MediaError, match=r"names film\.avi, which is neither in the current folder nor"):
        plot(client, [], tmp_path / "film.npz", out, 2, None)
    monkeypatch.chdir(folder)
    assert plot(client, [], tmp_path / "film.npz", out, 2, None).refused == 0


def test_distinguishes_equal_names_in_two_folders(
    client: FaceFeatureClient, folder: Path, tmp_path: Path, sheet_faces: list[SheetFace]
):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(folder / "film.avi", tmp_path / name)
    landmarks = np.load(folder / "film.npz")["landmarks"][:2]
    np.savez(tmp_path / "two.npz", landmarks=landmarks, source=["a/film.avi", "b/film.avi"])
    plot(client, [], tmp_path / "two.npz", tmp_path / "a.png", 2, None)
    assert [face.reason for face in sheet_faces] == ["", ""]


def test_rejects_invalid_rows_names_and_tables(client: FaceFeatureClient, folder: Path, tmp_path: Path):
    media, table, out = [folder / "film.avi"], folder / "film.csv", tmp_path / "sheet.png"
    with pytest.raises(ValueError, match=r"has no row 12: its rows are 0 to 11"):
        plot(client, media, table, out, 24, [0, FRAMES])
    with pytest.raises(ValueError, match="no row -1"):
        plot(client, media, table, out, 24, [-1])
    for rows in ([], [0] * (MAX_FACES + 1)):
        with pytest.raises(ValueError, match=f"1 to 500 faces, not {len(rows)}"):
            plot(client, media, table, out, 24, rows)
    with pytest.raises(ValueError, match="name of a picture must end in"):
        plot(client, media, table, tmp_path / "sheet.txt", 24, None)
    with pytest.raises(MediaError, match="does not name its images or its video"):
        plot(client, [], table, out, 24, None)
    with pytest.raises(TableError):
        plot(client, media, folder / "other.csv", out, 24, None)
    assert not list(tmp_path.iterdir())
