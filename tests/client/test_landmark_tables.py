"""Landmark tables as OpenFace and py-feat write them, and what is said of those that cannot be used."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from triton_face_client.video import landmark_tables as face_tables
from triton_face_client.video.landmark_tables import TURNED_KEY, FaceTable, TableError, read_table

POINTS = [*(f"x_{i}" for i in range(68)), *(f"y_{i}" for i in range(68))]

Columns = dict[str, list]


def faces(count: int) -> np.ndarray:
    """Draw landmarks ``[count, 68, 2]`` with the three decimals of a table, x and y far apart."""
    generator = np.random.default_rng(11)
    return np.round(generator.uniform((100, 1000), (300, 1900), (count, 68, 2)), 3)


def point_columns(landmarks: np.ndarray) -> Columns:
    return dict(zip(POINTS, landmarks.transpose(2, 1, 0).reshape(136, -1).tolist(), strict=True))


def openface(landmarks: np.ndarray, **others: list) -> Columns:
    """Give the columns of `FeatureExtraction`, the 3D points among them."""
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


def fex(landmarks: np.ndarray, **others: list) -> Columns:
    """Give the columns of py-feat's table of a video."""
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
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    path.write_text("".join(separator.join(map(str, row)) + "\n" for row in rows))
    return path


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write columns as a CSV file; some may be replaced, added, or left out with None."""

    def write_changed(columns: Columns, separator: str = ",", **changes: list | None) -> Path:
        changed = {name: values for name, values in {**columns, **changes}.items() if values is not None}
        return write_csv(tmp_path / "table.csv", changed, separator)

    return write_changed


def refusal(path: Path) -> str:
    """Read a table that is refused and return the message, a single line."""
    with pytest.raises(TableError) as caught:
        read_table(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


# --- OpenFace -----------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [", ", ","])
def test_openface_counts_frames_from_1_and_turns_images(write: Callable[..., Path], separator: str):
    landmarks = faces(5)
    table = read_table(write(openface(landmarks), separator))
    assert table.kind == "OpenFace"
    assert table.turned
    assert table.source is None
    assert table.found.all()
    np.testing.assert_array_equal(table.landmarks, landmarks)
    assert table.landmarks.dtype == np.float64
    assert table.frame.dtype == np.int64
    assert table.frame.tolist() == [0, 1, 2, 3, 4]


def test_rows_stay_as_they_are(write: Callable[..., Path]):
    """Several faces a frame, in no order, over several blocks of the file."""
    landmarks = faces(40)
    frames = np.random.default_rng(12).integers(1, 9, 40).tolist()
    path = write(openface(landmarks), ", ", frame=frames, face_id=list(range(40)))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(face_tables, "BLOCK_BYTES", 2 * path.stat().st_size // 40)
        table = read_table(path)
    np.testing.assert_array_equal(table.landmarks, landmarks)
    assert (table.frame + 1).tolist() == frames
    assert table.carried["face_id"].tolist() == list(range(40))


def test_rows_without_success_or_a_point_have_no_face(write: Callable[..., Path]):
    landmarks = faces(4)
    columns = openface(landmarks, success=[1, 0, 1, 1])
    columns["x_30"][2] = "nan"
    columns["y_67"][3] = "inf"
    table = read_table(write(columns, ", "))
    assert table.found.tolist() == [True, False, False, False]
    np.testing.assert_array_equal(table.landmarks[0], landmarks[0])
    assert np.isnan(table.landmarks[1:]).all()
    assert table.frame.tolist() == [0, 1, 2, 3]
    assert table.carried["success"].tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize("missing", ["", "nan", "NaN", "-nan", "-nan(ind)", "NA"])
@pytest.mark.parametrize("separator", [", ", ","])
def test_missing_numbers_may_be_written_in_many_ways(
    write: Callable[..., Path], missing: str, separator: str
):
    columns = openface(faces(2))
    for name in POINTS:
        columns[name][1] = missing
    table = read_table(write(columns, separator))
    assert table.found.tolist() == [True, False]


def test_openface_columns_are_carried(write: Callable[..., Path]):
    table = read_table(write(openface(faces(2)), ", "))
    assert set(table.carried) == {"face_id", "timestamp", "confidence", "success"}
    assert table.carried["success"].dtype == np.int64
    np.testing.assert_allclose(table.carried["timestamp"], [0, 1 / 30])


def test_faces_of_one_image_are_all_of_frame_0(write: Callable[..., Path]):
    """`FaceLandmarkImg` has neither frame nor success."""
    columns = openface(faces(3), face=[0, 1, 2])
    path = write(columns, ", ", frame=None, face_id=None, timestamp=None, success=None)
    table = read_table(path)
    assert table.kind == "OpenFace"
    assert table.turned
    assert table.frame.tolist() == [0, 0, 0]
    assert table.carried["face"].tolist() == [0, 1, 2]


# --- py-feat ------------------------------------------------------------------------------------


def test_pyfeat_counts_frames_from_0_and_does_not_turn_images(write: Callable[..., Path]):
    landmarks = faces(3)
    table = read_table(write(fex(landmarks, frame=[0, 0, 7])))
    assert table.kind == "py-feat"
    assert not table.turned
    assert table.source == ["clip.mp4"] * 3
    assert table.frame.tolist() == [0, 0, 7]
    np.testing.assert_array_equal(table.landmarks, landmarks)
    assert table.carried["FaceRectX"].tolist() == [12.5] * 3
    assert table.carried["approx_time"] == ["00:00"] * 3
    assert set(table.carried) == {"FaceRectX", "FaceScore", "approx_time"}


def test_an_unnamed_index_is_no_harm(tmp_path: Path):
    """Pandas writes one unless it is told not to."""
    assert read_table(write_csv(tmp_path / "t.csv", {"": [0, 1], **fex(faces(2))})).frame.tolist() == [0, 1]


def test_a_byte_order_mark_is_no_harm(tmp_path: Path):
    """Excel writes one, and the line ends of Windows."""
    path = write_csv(tmp_path / "t.csv", {"frame": [4, 5], **fex(faces(2), frame=[4, 5])})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_table(path).frame.tolist() == [4, 5]


def test_of_a_column_that_is_there_twice_the_first_counts(write: Callable[..., Path]):
    path = write(fex(faces(2), frame=[4, 5], AU01=[7, 8]))
    path.write_text(path.read_text().replace("AU01", "frame", 1))
    assert read_table(path).frame.tolist() == [7, 8]


def test_names_of_files_stay_text(write: Callable[..., Path]):
    table = read_table(write(fex(faces(3), input=["001", "", '"a, b.png"'])))
    assert table.source == ["001", "", "a, b.png"]


def test_images_need_no_frame(write: Callable[..., Path]):
    table = read_table(write(fex(faces(2), input=["a.png", "b.png"]), frame=None))
    assert table.frame.tolist() == [0, 0]


def test_an_input_column_without_a_name_is_none(tmp_path: Path):
    pq.write_table(pa.table(fex(faces(2), input=[None, None])), tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet").source is None


def test_frames_without_a_face_are_kept(write: Callable[..., Path]):
    columns = fex(faces(3))
    for name in [*POINTS, "FaceRectX"]:
        columns[name][1] = ""
    table = read_table(write(columns))
    assert table.found.tolist() == [True, False, True]
    assert np.isnan(table.carried["FaceRectX"][1])


def test_a_mesh_beside_the_68_points_is_left_alone(write: Callable[..., Path]):
    landmarks = faces(1)
    table = read_table(write(fex(landmarks, **{f"mesh_x_{i}": [0.5] for i in range(478)})))
    np.testing.assert_array_equal(table.landmarks, landmarks)


@pytest.mark.parametrize("prefix", ["", "mesh_"])
def test_mediapipes_points_alone_are_refused_with_the_way_out(write: Callable[..., Path], prefix: str):
    mesh = {f"{prefix}{axis}_{i}": [1.0] for i in range(478) for axis in "xyz"}
    assert "triton_face_client.landmarks.from_mediapipe" in refusal(write({"frame": [0], **mesh}))


# --- Parquet and NPZ ----------------------------------------------------------------------------


def same(one: FaceTable, other: FaceTable) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(one)]
    np.testing.assert_equal(*zip(*pairs, strict=True))
    return True


@pytest.mark.parametrize("columns", [fex(faces(4)), openface(faces(4))], ids=["py-feat", "OpenFace"])
def test_parquet_is_read_as_csv_is(tmp_path: Path, columns: Columns):
    path = write_csv(tmp_path / "t.csv", columns)
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=3)
    assert same(read_table(path), read_table(tmp_path / "t.parquet"))


@pytest.mark.parametrize("turned", [True, False])
def test_features_say_themselves_how_they_were_made(tmp_path: Path, turned: bool):
    """Frames made of OpenFace's count from 0 by then, and the columns of OpenFace are still there."""
    table = pa.table(openface(faces(2), frame=[0, 1], success=[1, 0]))
    marked = table.replace_schema_metadata({TURNED_KEY: b"true" if turned else b"false"})
    pq.write_table(marked, tmp_path / "t.parquet")
    read = read_table(tmp_path / "t.parquet")
    assert read.kind == "features"
    assert read.turned == turned
    assert read.frame.tolist() == [0, 1]
    assert read.found.tolist() == [True, False]


def test_parquet_may_hold_narrow_numbers_and_empty_columns(tmp_path: Path):
    landmarks = faces(3).round()
    table = pa.table({name: np.float32(values) for name, values in point_columns(landmarks).items()})
    table = table.append_column("x_extra", pa.nulls(3)).append_column(
        "frame", pa.array([0, 1, 2], pa.int16())
    )
    table = table.set_column(table.column_names.index("y_5"), "y_5", pa.nulls(3))
    pq.write_table(table, tmp_path / "t.parquet")
    read = read_table(tmp_path / "t.parquet")
    assert read.frame.tolist() == [0, 1, 2]
    assert not read.found.any()


def test_npz_numbers_its_faces_unless_it_says(tmp_path: Path):
    landmarks = faces(3)
    landmarks[1, 4, 1] = np.nan
    np.savez(tmp_path / "bare.npz", landmarks=landmarks.astype(np.float32))
    np.savez(tmp_path / "full.npz", landmarks=landmarks, frame=[5.0, 0, 5], source=["a", "b", "a"], more=[1])
    bare, full = read_table(tmp_path / "bare.npz"), read_table(str(tmp_path / "full.npz"))
    assert (bare.kind, bare.turned, bare.source, bare.carried) == ("NPZ", False, None, {})
    assert bare.landmarks.dtype == np.float64
    assert bare.found.tolist() == [True, False, True]
    assert np.isnan(bare.landmarks[1]).all()
    assert bare.frame.tolist() == [0, 1, 2]
    assert full.frame.tolist() == [5, 0, 5]
    assert full.frame.dtype == np.int64
    assert full.source == ["a", "b", "a"]


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["none.csv", "none.parquet", "none.npz"])
def test_a_missing_file_is_named(tmp_path: Path, name: str):
    assert "No such file" in refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["folder.csv", "folder.parquet", "folder.npz"])
def test_a_folder_is_no_table(tmp_path: Path, name: str):
    (tmp_path / name).mkdir()
    assert "directory" in refusal(tmp_path / name)


def test_other_suffixes_are_refused(tmp_path: Path):
    assert ".csv, .parquet or .npz" in refusal(tmp_path / "table.xlsx")


@pytest.mark.parametrize("content", [b"", b"\n"])
def test_an_empty_file_says_what_is_understood(tmp_path: Path, content: bytes):
    (tmp_path / "t.csv").write_bytes(content)
    message = refusal(tmp_path / "t.csv")
    assert "empty" in message
    assert "OpenFace" in message
    assert "py-feat" in message


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.npz"])
@pytest.mark.parametrize("content", [b"\xff\xd8\xff\xe0 a picture", b"PK\x03\x04 half an archive"])
def test_another_kind_of_file_is_no_table(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    refusal(tmp_path / name)


def test_half_a_parquet_or_npz_file_is_refused(tmp_path: Path):
    pq.write_table(pa.table(fex(faces(50))), tmp_path / "t.parquet")
    np.savez(tmp_path / "t.npz", landmarks=faces(50))
    for name in ("t.parquet", "t.npz"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert "not a whole" in refusal(path)


def test_a_row_that_is_cut_off_is_refused(write: Callable[..., Path]):
    path = write(openface(faces(3)), ", ")
    path.write_bytes(path.read_bytes()[:-900])
    message = refusal(path)
    assert "not a whole CSV" in message
    assert len(message) < 300


def test_a_header_alone_has_no_row(write: Callable[..., Path], tmp_path: Path):
    assert "no row" in refusal(write({name: [] for name in fex(faces(1))}))
    np.savez(tmp_path / "t.npz", landmarks=np.zeros((0, 68, 2)))
    assert "no row" in refusal(tmp_path / "t.npz")


@pytest.mark.parametrize("separator", [";", "\t"])
def test_other_separators_are_found_out(write: Callable[..., Path], separator: str):
    assert "commas" in refusal(write(fex(faces(1)), separator))


def test_missing_columns_are_named_and_counted(write: Callable[..., Path]):
    assert "lacks 1 column: y_9;" in refusal(write(fex(faces(1)), y_9=None))
    assert "lacks 1 column: frame;" in refusal(write(fex(faces(1)), frame=None, input=None))
    message = refusal(
        write({name: values for name, values in openface(faces(1)).items() if name not in POINTS})
    )
    assert "lacks 136 columns: x_0, x_1, x_2, …" in message
    assert "-2Dfp" in message


@pytest.mark.parametrize("name", ["x_12", "frame", "FaceScore"])
def test_text_where_numbers_belong_is_named(write: Callable[..., Path], tmp_path: Path, name: str):
    """A header that was appended among the rows, as old versions of py-feat did."""
    columns = fex(faces(3))
    message = refusal(write(columns, **{name: [1, 2, name]}))
    assert f"column {name} " in message
    assert f"'{name}'" in message

    columns[name] = ["1", "2", name]
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert f"column {name} must hold numbers and holds string" in refusal(tmp_path / "t.parquet")


@pytest.mark.parametrize("frame", [0.5, -1, "", 1e300])
def test_frames_are_whole_numbers(write: Callable[..., Path], tmp_path: Path, frame: object):
    assert "row 1" in refusal(write(fex(faces(3)), frame=[0, frame, 2]))
    if frame != "":
        np.savez(tmp_path / "t.npz", landmarks=faces(3), frame=[0, frame, 2])
        assert "row 1" in refusal(tmp_path / "t.npz")


def test_openface_has_no_frame_0(write: Callable[..., Path]):
    assert "whole numbers from 1" in refusal(write(openface(faces(2)), frame=[0, 1]))


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"points": faces(2)}, "lacks the array landmarks"),
        ({"landmarks": faces(2)[:, :67]}, "[2, 67, 2]"),
        ({"landmarks": faces(2).reshape(2, 136)}, "[2, 136]"),
        ({"landmarks": faces(2).astype(str)}, "must be numbers"),
        ({"landmarks": faces(2).astype(object)}, "not a whole NPZ file of numbers"),
        ({"landmarks": faces(2), "frame": [1]}, "frame must be one number a face, [2]"),
        ({"landmarks": faces(2), "frame": ["1", "2"]}, "frame must be one number a face, [2]"),
        ({"landmarks": faces(2), "source": ["a"]}, "source must be one string a face, [2]"),
        ({"landmarks": faces(2), "source": [1, 2]}, "source must be one string a face, [2]"),
    ],
)
def test_npz_arrays_of_another_shape_are_refused(tmp_path: Path, arrays: dict, reason: str):
    np.savez(tmp_path / "t.npz", **arrays)
    assert reason in refusal(tmp_path / "t.npz")


def test_a_single_array_is_no_npz(tmp_path: Path):
    with (tmp_path / "t.npz").open("wb") as file:
        np.save(file, faces(2))
    assert "not a whole NPZ" in refusal(tmp_path / "t.npz")


def test_without_pyarrow_the_message_says_what_to_install(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    path = write(fex(faces(1)))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'triton-face-client[run]'" in refusal(path)
