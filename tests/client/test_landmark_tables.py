"""Landmark tables in the formats of OpenFace and py-feat, and the errors for unusable tables."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from triton_face_client.video import landmark_tables
from triton_face_client.video.landmark_tables import EXIF_APPLIED_KEY, LandmarkTable, TableError, read_table

POINTS = [*(f"x_{i}" for i in range(68)), *(f"y_{i}" for i in range(68))]

Columns = dict[str, list]


def random_landmarks(count: int) -> np.ndarray:
    """Return random landmarks ``[count, 68, 2]`` with three decimals; x and y have different ranges."""
    generator = np.random.default_rng(11)
    return np.round(generator.uniform((100, 1000), (300, 1900), (count, 68, 2)), 3)


def point_columns(landmarks: np.ndarray) -> Columns:
    """Return the columns x_0 to x_67 and y_0 to y_67."""
    return dict(zip(POINTS, landmarks.transpose(2, 1, 0).reshape(136, -1).tolist(), strict=True))


def openface_columns(landmarks: np.ndarray, **others: list) -> Columns:
    """Return the columns of OpenFace's `FeatureExtraction`, including its 3D points."""
    count = len(landmarks)
    return {
        "frame": list(range(1, count + 1)),
        "face_id": [0] * count,
        "timestamp": [i / 30 for i in range(count)],
        "confidence": [0.98] * count,
        "success": [1] * count,
        "gaze_0_x": [0.1] * count,
        **point_columns(landmarks),
        **{f"{axis}_{i}": [-1.0] * count for axis in "XYZ" for i in range(68)},
        **others,
    }


def pyfeat_columns(landmarks: np.ndarray, **others: list) -> Columns:
    """Return the columns of py-feat's table (`Fex`) of a video."""
    count = len(landmarks)
    return {
        "FaceRectX": [12.5] * count,
        "FaceScore": [0.99] * count,
        **point_columns(landmarks),
        "AU01": [0.5] * count,
        "input": ["clip.mp4"] * count,
        "frame": list(range(count)),
        "approx_time": ["00:00"] * count,
        **others,
    }


def write_csv(path: Path, columns: Columns, separator: str = ",") -> Path:
    """Write columns as CSV; return the path."""
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    path.write_text("".join(separator.join(map(str, row)) + "\n" for row in rows))
    return path


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes columns as CSV. Keywords change, add or (None) omit columns."""

    def write_changed(columns: Columns, separator: str = ",", **changes: list | None) -> Path:
        changed = {name: values for name, values in {**columns, **changes}.items() if values is not None}
        return write_csv(tmp_path / "table.csv", changed, separator)

    return write_changed


def read_error(path: Path) -> str:
    """Read a table that raises TableError; return its message of one line."""
    with pytest.raises(TableError) as caught:
        read_table(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


# --- OpenFace -----------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [", ", ","])
def test_openface_frames_count_from_1_and_exif_is_applied(write: Callable[..., Path], separator: str):
    landmarks = random_landmarks(5)
    table = read_table(write(openface_columns(landmarks), separator))
    assert table.kind == "OpenFace"
    assert table.exif_applied
    assert table.source is None
    assert table.has_face.all()
    np.testing.assert_array_equal(table.landmarks, landmarks)
    assert table.landmarks.dtype == np.float64
    assert table.frame.dtype == np.int64
    assert table.frame.tolist() == [0, 1, 2, 3, 4]


def test_keeps_rows_and_their_order(write: Callable[..., Path]):
    """The table has several faces per frame in random order, and is read in several blocks."""
    landmarks = random_landmarks(40)
    frames = np.random.default_rng(12).integers(1, 9, 40).tolist()
    path = write(openface_columns(landmarks), ", ", frame=frames, face_id=list(range(40)))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(landmark_tables, "BLOCK_BYTES", 2 * path.stat().st_size // 40)
        table = read_table(path)
    np.testing.assert_array_equal(table.landmarks, landmarks)
    assert (table.frame + 1).tolist() == frames
    assert table.extra_columns["face_id"].tolist() == list(range(40))


def test_rows_without_success_or_with_a_missing_point_have_no_face(write: Callable[..., Path]):
    landmarks = random_landmarks(4)
    columns = openface_columns(landmarks, success=[1, 0, 1, 1])
    columns["x_30"][2] = "nan"
    columns["y_67"][3] = "inf"
    table = read_table(write(columns, ", "))
    assert table.has_face.tolist() == [True, False, False, False]
    np.testing.assert_array_equal(table.landmarks[0], landmarks[0])
    assert np.isnan(table.landmarks[1:]).all()
    assert table.frame.tolist() == [0, 1, 2, 3]
    assert table.extra_columns["success"].tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize("missing_number", ["", "nan", "NaN", "-nan", "-nan(ind)", "NA"])
@pytest.mark.parametrize("separator", [", ", ","])
def test_reads_every_spelling_of_missing_numbers(
    write: Callable[..., Path], missing_number: str, separator: str
):
    columns = openface_columns(random_landmarks(2))
    for name in POINTS:
        columns[name][1] = missing_number
    table = read_table(write(columns, separator))
    assert table.has_face.tolist() == [True, False]


def test_keeps_extra_openface_columns(write: Callable[..., Path]):
    table = read_table(write(openface_columns(random_landmarks(2)), ", "))
    assert set(table.extra_columns) == {"face_id", "timestamp", "confidence", "success"}
    assert table.extra_columns["success"].dtype == np.int64
    np.testing.assert_allclose(table.extra_columns["timestamp"], [0, 1 / 30])


def test_table_of_one_image_has_frame_0(write: Callable[..., Path]):
    """Tables of OpenFace's `FaceLandmarkImg` have neither frame nor success."""
    columns = openface_columns(random_landmarks(3), face=[0, 1, 2])
    path = write(columns, ", ", frame=None, face_id=None, timestamp=None, success=None)
    table = read_table(path)
    assert table.kind == "OpenFace"
    assert table.exif_applied
    assert table.frame.tolist() == [0, 0, 0]
    assert table.extra_columns["face"].tolist() == [0, 1, 2]


# --- py-feat ------------------------------------------------------------------------------------


def test_pyfeat_frames_count_from_0_and_exif_is_not_applied(write: Callable[..., Path]):
    landmarks = random_landmarks(3)
    table = read_table(write(pyfeat_columns(landmarks, frame=[0, 0, 7])))
    assert table.kind == "py-feat"
    assert not table.exif_applied
    assert table.source == ["clip.mp4"] * 3
    assert table.frame.tolist() == [0, 0, 7]
    np.testing.assert_array_equal(table.landmarks, landmarks)
    assert table.extra_columns["FaceRectX"].tolist() == [12.5] * 3
    assert table.extra_columns["approx_time"] == ["00:00"] * 3
    assert set(table.extra_columns) == {"FaceRectX", "FaceScore", "approx_time"}


def test_ignores_an_unnamed_index(tmp_path: Path):
    """By default pandas writes an index, a column without a name."""
    assert read_table(
        write_csv(tmp_path / "t.csv", {"": [0, 1], **pyfeat_columns(random_landmarks(2))})
    ).frame.tolist() == [0, 1]


def test_ignores_a_byte_order_mark(tmp_path: Path):
    """Excel writes a byte order mark and ends lines with CR LF."""
    path = write_csv(
        tmp_path / "t.csv", {"frame": [4, 5], **pyfeat_columns(random_landmarks(2), frame=[4, 5])}
    )
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_table(path).frame.tolist() == [4, 5]


def test_reads_the_first_of_two_columns_with_one_name(write: Callable[..., Path]):
    path = write(pyfeat_columns(random_landmarks(2), frame=[4, 5], AU01=[7, 8]))
    path.write_text(path.read_text().replace("AU01", "frame", 1))
    assert read_table(path).frame.tolist() == [7, 8]


def test_keeps_file_names_as_text(write: Callable[..., Path]):
    table = read_table(write(pyfeat_columns(random_landmarks(3), input=["001", "", '"a, b.png"'])))
    assert table.source == ["001", "", "a, b.png"]


def test_table_of_images_needs_no_frame_column(write: Callable[..., Path]):
    table = read_table(write(pyfeat_columns(random_landmarks(2), input=["a.png", "b.png"]), frame=None))
    assert table.frame.tolist() == [0, 0]


def test_empty_input_column_gives_no_source(tmp_path: Path):
    pq.write_table(pa.table(pyfeat_columns(random_landmarks(2), input=[None, None])), tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet").source is None


def test_keeps_frames_without_a_face(write: Callable[..., Path]):
    columns = pyfeat_columns(random_landmarks(3))
    for name in [*POINTS, "FaceRectX"]:
        columns[name][1] = ""
    table = read_table(write(columns))
    assert table.has_face.tolist() == [True, False, True]
    assert np.isnan(table.extra_columns["FaceRectX"][1])


def test_ignores_a_mesh_beside_the_68_points(write: Callable[..., Path]):
    landmarks = random_landmarks(1)
    table = read_table(write(pyfeat_columns(landmarks, **{f"mesh_x_{i}": [0.5] for i in range(478)})))
    np.testing.assert_array_equal(table.landmarks, landmarks)


@pytest.mark.parametrize("prefix", ["", "mesh_"])
def test_error_names_the_converter_for_mediapipe_points(write: Callable[..., Path], prefix: str):
    mesh = {f"{prefix}{axis}_{i}": [1.0] for i in range(478) for axis in "xyz"}
    assert "triton_face_client.landmarks.from_mediapipe" in read_error(write({"frame": [0], **mesh}))


# --- Parquet and NPZ ----------------------------------------------------------------------------


def assert_equal_tables(table: LandmarkTable, expected: LandmarkTable) -> None:
    for field in dataclasses.fields(expected):
        np.testing.assert_equal(getattr(table, field.name), getattr(expected, field.name))


@pytest.mark.parametrize(
    "columns",
    [pyfeat_columns(random_landmarks(4)), openface_columns(random_landmarks(4))],
    ids=["py-feat", "OpenFace"],
)
def test_parquet_equals_csv(tmp_path: Path, columns: Columns):
    path = write_csv(tmp_path / "t.csv", columns)
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=3)
    assert_equal_tables(read_table(tmp_path / "t.parquet"), read_table(path))


@pytest.mark.parametrize("exif_applied", [True, False])
def test_feature_file_records_whether_exif_was_applied(tmp_path: Path, exif_applied: bool):
    """Frames of a feature file count from 0, even if the file has OpenFace's columns."""
    table = pa.table(openface_columns(random_landmarks(2), frame=[0, 1], success=[1, 0]))
    marked = table.replace_schema_metadata({EXIF_APPLIED_KEY: b"true" if exif_applied else b"false"})
    pq.write_table(marked, tmp_path / "t.parquet")
    read = read_table(tmp_path / "t.parquet")
    assert read.kind == "features"
    assert read.exif_applied == exif_applied
    assert read.frame.tolist() == [0, 1]
    assert read.has_face.tolist() == [True, False]


def test_reads_float32_int16_and_null_columns_of_parquet(tmp_path: Path):
    landmarks = random_landmarks(3).round()
    table = pa.table({name: np.float32(values) for name, values in point_columns(landmarks).items()})
    table = table.append_column("x_extra", pa.nulls(3))
    table = table.append_column("frame", pa.array([0, 1, 2], pa.int16()))
    table = table.set_column(table.column_names.index("y_5"), "y_5", pa.nulls(3))
    pq.write_table(table, tmp_path / "t.parquet")
    read = read_table(tmp_path / "t.parquet")
    assert read.frame.tolist() == [0, 1, 2]
    assert not read.has_face.any()


def test_npz_frames_default_to_the_row_number(tmp_path: Path):
    landmarks = random_landmarks(3)
    landmarks[1, 4, 1] = np.nan
    np.savez(tmp_path / "bare.npz", landmarks=landmarks.astype(np.float32))
    np.savez(tmp_path / "full.npz", landmarks=landmarks, frame=[5.0, 0, 5], source=["a", "b", "a"], more=[1])
    bare, full = read_table(tmp_path / "bare.npz"), read_table(str(tmp_path / "full.npz"))
    assert (bare.kind, bare.exif_applied, bare.source, bare.extra_columns) == ("NPZ", False, None, {})
    assert bare.landmarks.dtype == np.float64
    assert bare.has_face.tolist() == [True, False, True]
    assert np.isnan(bare.landmarks[1]).all()
    assert bare.frame.tolist() == [0, 1, 2]
    assert full.frame.tolist() == [5, 0, 5]
    assert full.frame.dtype == np.int64
    assert full.source == ["a", "b", "a"]


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["none.csv", "none.parquet", "none.npz"])
def test_error_names_a_missing_file(tmp_path: Path, name: str):
    assert "No such file" in read_error(tmp_path / name)


@pytest.mark.parametrize("name", ["folder.csv", "folder.parquet", "folder.npz"])
def test_rejects_a_folder(tmp_path: Path, name: str):
    (tmp_path / name).mkdir()
    assert "directory" in read_error(tmp_path / name)


def test_rejects_other_suffixes(tmp_path: Path):
    assert ".csv, .parquet or .npz" in read_error(tmp_path / "table.xlsx")


@pytest.mark.parametrize("content", [b"", b"\n"])
def test_error_of_an_empty_file_names_the_expected_columns(tmp_path: Path, content: bytes):
    (tmp_path / "t.csv").write_bytes(content)
    message = read_error(tmp_path / "t.csv")
    assert "empty" in message
    assert "OpenFace" in message
    assert "py-feat" in message


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.npz"])
@pytest.mark.parametrize("content", [b"\xff\xd8\xff\xe0 a picture", b"PK\x03\x04 half an archive"])
def test_rejects_files_of_another_format(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    read_error(tmp_path / name)


def test_rejects_truncated_parquet_and_npz(tmp_path: Path):
    pq.write_table(pa.table(pyfeat_columns(random_landmarks(50))), tmp_path / "t.parquet")
    np.savez(tmp_path / "t.npz", landmarks=random_landmarks(50))
    for name in ("t.parquet", "t.npz"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert "not a complete" in read_error(path)


def test_rejects_a_truncated_row(write: Callable[..., Path]):
    path = write(openface_columns(random_landmarks(3)), ", ")
    path.write_bytes(path.read_bytes()[:-900])
    message = read_error(path)
    assert "not a complete CSV" in message
    assert len(message) < 300


def test_rejects_a_table_without_rows(write: Callable[..., Path], tmp_path: Path):
    assert "no rows" in read_error(write({name: [] for name in pyfeat_columns(random_landmarks(1))}))
    np.savez(tmp_path / "t.npz", landmarks=np.zeros((0, 68, 2)))
    assert "no rows" in read_error(tmp_path / "t.npz")


@pytest.mark.parametrize("separator", [";", "\t"])
def test_error_for_another_separator_asks_for_commas(write: Callable[..., Path], separator: str):
    assert "commas" in read_error(write(pyfeat_columns(random_landmarks(1)), separator))


def test_error_names_and_counts_missing_columns(write: Callable[..., Path]):
    assert "lacks 1 column: y_9;" in read_error(write(pyfeat_columns(random_landmarks(1)), y_9=None))
    assert "lacks 1 column: frame;" in read_error(
        write(pyfeat_columns(random_landmarks(1)), frame=None, input=None)
    )
    message = read_error(
        write(
            {
                name: values
                for name, values in openface_columns(random_landmarks(1)).items()
                if name not in POINTS
            }
        )
    )
    assert "lacks 136 columns: x_0, x_1, x_2, …" in message
    assert "-2Dfp" in message


@pytest.mark.parametrize("name", ["x_12", "frame", "FaceScore"])
def test_error_names_a_column_with_text_instead_of_numbers(
    write: Callable[..., Path], tmp_path: Path, name: str
):
    """Old versions of py-feat append a second header among the rows."""
    columns = pyfeat_columns(random_landmarks(3))
    message = read_error(write(columns, **{name: [1, 2, name]}))
    assert f"column {name} " in message
    assert f"'{name}'" in message

    columns[name] = ["1", "2", name]
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert f"column {name} must hold numbers and holds string" in read_error(tmp_path / "t.parquet")


@pytest.mark.parametrize("frame", [0.5, -1, "", 1e300])
def test_rejects_frames_that_are_not_whole_numbers(write: Callable[..., Path], tmp_path: Path, frame: object):
    assert "row 1" in read_error(write(pyfeat_columns(random_landmarks(3)), frame=[0, frame, 2]))
    if frame != "":
        np.savez(tmp_path / "t.npz", landmarks=random_landmarks(3), frame=[0, frame, 2])
        assert "row 1" in read_error(tmp_path / "t.npz")


def test_rejects_frame_0_of_openface(write: Callable[..., Path]):
    assert "whole numbers from 1" in read_error(write(openface_columns(random_landmarks(2)), frame=[0, 1]))


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"points": random_landmarks(2)}, "lacks the array landmarks"),
        ({"landmarks": random_landmarks(2)[:, :67]}, "[2, 67, 2]"),
        ({"landmarks": random_landmarks(2).reshape(2, 136)}, "[2, 136]"),
        ({"landmarks": random_landmarks(2).astype(str)}, "must be numbers"),
        ({"landmarks": random_landmarks(2).astype(object)}, "not a complete NPZ file of numbers"),
        ({"landmarks": random_landmarks(2), "frame": [1]}, "frame must be one number per face, [2]"),
        ({"landmarks": random_landmarks(2), "frame": ["1", "2"]}, "frame must be one number per face, [2]"),
        ({"landmarks": random_landmarks(2), "source": ["a"]}, "source must be one string per face, [2]"),
        ({"landmarks": random_landmarks(2), "source": [1, 2]}, "source must be one string per face, [2]"),
    ],
)
def test_rejects_npz_arrays_of_another_shape_or_type(tmp_path: Path, arrays: dict, reason: str):
    np.savez(tmp_path / "t.npz", **arrays)
    assert reason in read_error(tmp_path / "t.npz")


def test_rejects_a_single_array_as_npz(tmp_path: Path):
    with (tmp_path / "t.npz").open("wb") as file:
        np.save(file, random_landmarks(2))
    assert "not a complete NPZ" in read_error(tmp_path / "t.npz")


def test_error_names_the_extra_to_install_for_pyarrow(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    path = write(pyfeat_columns(random_landmarks(1)))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'triton-face-client[run]'" in read_error(path)
