"""Files with landmarks and reference angles: both formats, and files that are rejected."""

import csv
from pathlib import Path

import numpy as np
import pytest

from export.errors import ExportError
from export.pose.training import evaluate
from export.pose.training.labelled_faces import ANGLE_COLUMNS, LANDMARK_COLUMNS, read_faces
from tests.unit.pose_training.conftest import LabelledFaces, RunCommand


def write_csv(path: Path, landmarks: np.ndarray, angles: np.ndarray) -> None:
    """Write faces in the documented columns, and a column `name` that the reader ignores."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", *LANDMARK_COLUMNS, *ANGLE_COLUMNS])
        for face, angle in zip(landmarks, angles, strict=True):
            writer.writerow(["someone", *face[:, 0], *face[:, 1], *angle])


def test_csv_and_npz_give_the_written_faces(tmp_path: Path, labelled_faces: LabelledFaces):
    write_csv(tmp_path / "faces.csv", *labelled_faces)
    np.savez(tmp_path / "faces.npz", landmarks=labelled_faces[0], angles_deg=labelled_faces[1])
    for name in ("faces.csv", "faces.npz"):
        landmarks, angles = read_faces(tmp_path / name)
        np.testing.assert_allclose(landmarks, labelled_faces[0], rtol=1e-12)
        np.testing.assert_allclose(angles, labelled_faces[1], rtol=1e-12)


@pytest.mark.parametrize(
    ("face", "point", "value", "message"),
    [
        (1, 7, np.nan, r"face 1 has a non-finite landmark \(point 7\)"),
        (2, 0, np.inf, r"face 2 has a non-finite landmark \(point 0\)"),
        (0, 36, None, "face 0 has no eye distance"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".npz"])
def test_evaluation_names_the_invalid_face_and_keeps_the_old_plot(
    suffix: str,
    face: int,
    point: int,
    value: float | None,
    message: str,
    run_command: RunCommand,
    tmp_path: Path,
    labelled_faces: LabelledFaces,
):
    landmarks, angles = labelled_faces
    landmarks[face, point] = landmarks[face, 45] if value is None else value
    path = tmp_path / f"faces{suffix}"
    if suffix == ".csv":
        write_csv(path, landmarks, angles)
    else:
        np.savez(path, landmarks=landmarks, angles_deg=angles)
    plot = tmp_path / "plot.png"
    plot.write_bytes(b"old")
    with pytest.raises(ExportError, match=f"faces{suffix}.*{message}"):
        run_command(evaluate, "--faces", path, "--synthetic", 0, "--plot", plot)
    assert plot.read_bytes() == b"old"
    assert sorted(item.name for item in tmp_path.iterdir()) == [path.name, "plot.png"]


def test_rejects_non_finite_reference_angle(tmp_path: Path, labelled_faces: LabelledFaces):
    landmarks, angles = labelled_faces
    angles[2, 1] = np.inf
    np.savez(tmp_path / "faces.npz", landmarks=landmarks, angles_deg=angles)
    with pytest.raises(ExportError, match="face 2 has a non-finite reference angle"):
        read_faces(tmp_path / "faces.npz")


HEADER = ",".join((*LANDMARK_COLUMNS, *ANGLE_COLUMNS))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks 139 columns"),
        (HEADER + "\n", "has no face"),
        (HEADER.replace("y_12,", "") + "\n" + ",".join(["1"] * 138), "lacks 1 columns: y_12"),
        (HEADER + "\n" + ",".join(["1"] * 50), "face 0 has no number in column x_50"),
        (HEADER + "\n" + ",".join(["one"] * 139), "face 0 has no number in column x_0: 'one'"),
    ],
)
def test_rejects_incomplete_csv(text: str, message: str, tmp_path: Path):
    path = tmp_path / "faces.csv"
    path.write_text(text)
    with pytest.raises(ExportError, match=f"faces.csv.*{message}"):
        read_faces(path)


def test_rejects_incomplete_npz(tmp_path: Path, labelled_faces: LabelledFaces):
    landmarks, angles = labelled_faces
    path = tmp_path / "faces.npz"
    for arrays, message in (
        ({"landmarks": landmarks}, "faces.npz needs the arrays"),
        ({"landmarks": landmarks[:, :67], "angles_deg": angles}, r"landmarks must be \[N, 68, 2\]"),
        ({"landmarks": landmarks[:0], "angles_deg": angles[:0]}, "faces.npz has no face"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(ExportError, match=message):
            read_faces(path)


@pytest.mark.parametrize("length", [0, 200])
def test_rejects_truncated_npz(length: int, tmp_path: Path, labelled_faces: LabelledFaces):
    path = tmp_path / "faces.npz"
    np.savez(path, landmarks=labelled_faces[0], angles_deg=labelled_faces[1])
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ExportError, match="faces.npz is not a complete NPZ"):
        read_faces(path)


@pytest.mark.parametrize("name", ["missing.csv", "missing.npz", "faces.txt"])
def test_error_names_a_missing_file_or_unknown_format(name: str, tmp_path: Path):
    with pytest.raises(ExportError, match=name):
        read_faces(tmp_path / name)
