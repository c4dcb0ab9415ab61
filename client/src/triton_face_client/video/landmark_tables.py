"""Landmark tables of OpenFace and py-feat, and of anybody's own landmarks.

These files are read, each row one face, and rows are neither left out nor moved:

- ``.csv`` of OpenFace (`FeatureExtraction`, `FaceLandmarkVidMulti`, `FaceLandmarkImg`) or py-feat (a saved
  Fex): columns ``x_0 … x_67`` and ``y_0 … y_67`` among any others.
- ``.parquet``: the same columns.
- Either as this package wrote it with features. Those are told by their column `REFUSED`; their frames count
  from 0 whichever table they were made of.
- ``.npz``: ``landmarks`` ``[N, 68, 2]``, optionally ``frame`` ``[N]`` and ``source`` ``[N]``.
"""

import csv
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import numpy as np

from triton_face_client.requests.faces import MAX_NORMALIZED_LANDMARK

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["OpenFace", "py-feat", "NPZ", "features"]
Values = np.ndarray | list[str | None]

X_COLUMNS = tuple(f"x_{i}" for i in range(68))
Y_COLUMNS = tuple(f"y_{i}" for i in range(68))

OPENFACE_COLUMNS = ("success", "confidence")
"""Either tells a table of OpenFace; `FaceLandmarkImg` writes the second alone."""

WHOLE_NUMBERS = ("face_id", "face", "success")

CARRIED_NUMBERS = (
    *WHOLE_NUMBERS, "timestamp", "confidence",
    "FaceRectX", "FaceRectY", "FaceRectWidth", "FaceRectHeight", "FaceScore",
)  # fmt: skip

CARRIED_TEXTS = ("approx_time", "Identity")

REFUSED = "refused"
"""A column of the features that this package writes, and of no other table."""

TEXTS = ("input", REFUSED, *CARRIED_TEXTS)

TURNED_KEY = b"triton_face_client.turned"
"""Metadata of a Parquet file of features: b"true" or b"false", what `FaceTable.turned` says.

CSV has none; there OpenFace's columns tell.
"""

NOT_NUMBERS = ("NA", "NULL", "null", "None", "")
"""How pandas and R write a missing number. C++'s NaN, on Windows "-nan(ind)", pyarrow reads as such."""

BLOCK_BYTES = 8 * 2**20
"""Of a CSV at a time. Some thousand rows: enough to not notice the calls, few enough to stay in the cache."""

UNDERSTOOD = "a CSV of OpenFace (run with -2Dfp) or py-feat has x_0 … x_67, y_0 … y_67 and, for videos, frame"


class TableError(ValueError):
    """A landmark table that cannot be used; the message is one line that says what to do."""


@dataclass(frozen=True)
class FaceTable:
    """The faces of a table, in its order.

    Attributes
    ----------
    landmarks : ndarray of float64, shape (N, 68, 2)
        Landmarks (x, y) in pixels of the image; NaN where `found` is not.
    frame : ndarray of int64, shape (N,)
        Frame of the video, or place in the list of images, from 0.
    source : list of str or None
        The file that each row is of, as the table spells it; None where the table does not say.
    found : ndarray of bool, shape (N,)
        Whether the row has a face.
    turned : bool
        Whether the coordinates are those of the image turned as its EXIF orientation says. OpenFace reads
        images with OpenCV, which turns them, py-feat as they are stored.
    carried : dict of str to ndarray or list
        Columns of the table that are worth keeping beside the features, ``[N]`` each: numbers as arrays,
        text as lists.
    kind : {"OpenFace", "py-feat", "NPZ", "features"}
        Where the table comes from.
    """

    landmarks: np.ndarray
    frame: np.ndarray
    source: list[str] | None
    found: np.ndarray
    turned: bool
    carried: dict[str, Values]
    kind: Kind

    @property
    def of_one_file(self) -> bool:
        """Tell whether no more than one file is named."""
        return len(set(self.source or ())) <= 1


def read_table(path: Path | str) -> FaceTable:
    """Read a landmark table.

    Parameters
    ----------
    path : Path or str
        A ``.csv``, ``.parquet`` or ``.npz`` file, told by its suffix.

    Returns
    -------
    FaceTable
        As many rows as the file has, in its order.

    Raises
    ------
    TableError
        When the file cannot be read, is of no kind understood, lacks a column, has no row, has text where
        numbers belong, or frames that are not whole numbers from 0 (OpenFace: from 1); or when pyarrow is
        needed and not installed.
    """
    path = Path(path)
    readers = {".csv": _read_csv, ".parquet": _read_parquet, ".npz": _read_npz}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise TableError(
            f"{path}: landmark tables are .csv, .parquet or .npz files; images and videos go first"
        )
    try:
        return reader(path)
    except OSError as error:
        raise TableError(f"cannot read {path}: {error.strerror or _one_line(error)}") from error


def _read_csv(path: Path) -> FaceTable:
    arrow = _pyarrow(path)
    header = _header(path)
    wanted = _wanted_columns(header, path)
    try:
        table = arrow.csv.read_csv(
            path,
            # The header was read above: pyarrow would keep the blanks of OpenFace's names.
            read_options=arrow.csv.ReadOptions(column_names=header, skip_rows=1, block_size=BLOCK_BYTES),
            convert_options=arrow.csv.ConvertOptions(
                include_columns=wanted,
                # Where pyarrow has to find the types, it keeps the whole file in memory until the end.
                column_types={name: arrow.string() if name in TEXTS else arrow.float64() for name in wanted},
                null_values=[blank + text for text in NOT_NUMBERS for blank in ("", " ")],
            ),
        )
    except arrow.ArrowInvalid as error:
        raise _csv_error(error, header, path) from error
    return _of_columns(table, path)


def _csv_error(error: Exception, header: Sequence[str], path: Path) -> TableError:
    text = re.search(r"column #(\d+): .*(invalid value .*)", str(error), re.DOTALL)
    if text is None:
        return TableError(f"{path} is not a whole CSV file: {_one_line(error)}")
    return TableError(f"{path}: column {header[int(text[1])]} must hold numbers: {_one_line(text[2])}")


def _header(path: Path) -> list[str]:
    """Return the names in a CSV's first line, without the blanks that OpenFace puts before them."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            names = [name.strip() for name in next(csv.reader(file), [])]
    except (UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path} is not a CSV file ({_one_line(error)})") from error
    if not names:
        raise TableError(f"{path} is empty: {UNDERSTOOD}")
    if len(names) == 1 and any(separator in names[0] for separator in ";\t"):
        raise TableError(f"{path}: its columns are not separated by commas; save it as comma-separated CSV")
    return names


def _read_parquet(path: Path) -> FaceTable:
    arrow = _pyarrow(path)
    try:
        # Opened here: pyarrow would take the path of a folder for a data set of many files.
        with path.open("rb") as file, arrow.parquet.ParquetFile(file) as parquet:
            wanted = _wanted_columns(parquet.schema_arrow.names, path)
            table = parquet.read(columns=wanted)
    except arrow.ArrowException as error:
        raise TableError(f"{path} is not a whole Parquet file: {_one_line(error)}") from error
    return _of_columns(table, path)


def _pyarrow(path: Path) -> ModuleType:
    try:
        # Here and not above: the client's other parts do without it.
        import pyarrow
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError as error:
        raise TableError(f"{path} is read with pyarrow: pip install 'triton-face-client[run]'") from error
    return pyarrow


def _wanted_columns(names: Sequence[str], path: Path) -> list[str]:
    """Check that a table has the landmarks and say which of its columns to read, in its order.

    Tables of OpenFace have 700 columns.
    """
    if "x_68" in names or ("x_0" not in names and "mesh_x_0" in names):
        raise TableError(
            f"{path} has MediaPipe's 478 points instead of 68: take the 68 of them with "
            "triton_face_client.landmarks.from_mediapipe and save them as .npz"
        )
    needed = [*X_COLUMNS, *Y_COLUMNS]
    if not {"input", "frame", *OPENFACE_COLUMNS} & set(names):
        needed.append("frame")
    missing = [name for name in needed if name not in names]
    if missing:
        some = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        columns = "1 column" if len(missing) == 1 else f"{len(missing)} columns"
        raise TableError(f"{path} lacks {columns}: {some}; {UNDERSTOOD}")
    wanted = {*needed, "frame", *TEXTS, *CARRIED_NUMBERS}
    # A name that is there twice would be read twice.
    return [name for name in dict.fromkeys(names) if name in wanted]


def _of_columns(table: "pa.Table", path: Path) -> FaceTable:
    if not len(table):
        raise TableError(f"{path} has no row: there is no face in it")
    metadata = table.schema.metadata or {}
    by_openface = any(name in table.column_names for name in OPENFACE_COLUMNS)
    kind: Kind = "OpenFace" if by_openface else "py-feat"
    if TURNED_KEY in metadata or REFUSED in table.column_names:
        kind = "features"
    landmarks = _landmarks(table, path)
    found = np.isfinite(landmarks).all(axis=(1, 2))
    if "success" in table.column_names:
        found &= _numbers(table, "success", path) != 0
    landmarks[~found] = np.nan
    _check_pixels(landmarks, path)
    return FaceTable(
        landmarks=landmarks,
        frame=_frame_column(table, kind, path),
        source=_source(table),
        found=found,
        turned=metadata[TURNED_KEY] == b"true" if TURNED_KEY in metadata else by_openface,
        carried=_carried(table, path),
        kind=kind,
    )


def _check_pixels(landmarks: np.ndarray, path: Path) -> None:
    """Refuse shares of the image, as MediaPipe gives landmarks, where pixels belong."""
    largest = np.fmax.reduce(landmarks, axis=None, initial=0.0)
    if 0 < largest <= MAX_NORMALIZED_LANDMARK:
        raise TableError(
            f"{path}: no landmark is larger than {largest:.2f}, so they are shares of the image: multiply "
            "them by its width and height"
        )


def _landmarks(table: "pa.Table", path: Path) -> np.ndarray:
    """Gather the points, float64 ``[N, 68, 2]``, a block of rows at a time: columns lie far apart."""
    for name in (*X_COLUMNS, *Y_COLUMNS):
        _check_numbers(table, name, path)
    landmarks = np.empty((len(table), 68, 2))
    start = 0
    for block in table.select([*X_COLUMNS, *Y_COLUMNS]).to_batches():
        columns = [column.to_numpy(zero_copy_only=False) for column in block.columns]
        # A block that is all missing has Arrow's null type, which gives None for NaN.
        rows = np.array(columns, dtype=np.float64)
        stop = start + len(block)
        landmarks[start:stop, :, 0] = rows[:68].T
        landmarks[start:stop, :, 1] = rows[68:].T
        start = stop
    return landmarks


def _numbers(table: "pa.Table", name: str, path: Path) -> np.ndarray:
    """Return a column of numbers ``[N]``, as float64 with NaN where one is missing."""
    _check_numbers(table, name, path)
    column = table[name]
    if column.null_count:
        return column.to_numpy().astype(np.float64)
    return column.to_numpy()


def _check_numbers(table: "pa.Table", name: str, path: Path) -> None:
    kind = str(table.schema.field(name).type)
    if not kind.startswith(("int", "uint", "float", "double", "halffloat", "null")):
        raise TableError(f"{path}: column {name} must hold numbers and holds {kind}")


def _frame_column(table: "pa.Table", kind: Kind, path: Path) -> np.ndarray:
    if "frame" not in table.column_names:
        return np.zeros(len(table), dtype=np.int64)
    first = 1 if kind == "OpenFace" else 0
    return _whole_frames(_numbers(table, "frame", path), first, path)


def _whole_frames(values: np.ndarray, first: int, path: Path) -> np.ndarray:
    """Turn frames that count from `first` into int64 from 0."""
    # A NaN is not at least anything, and below 2**53 float64 holds whole numbers exactly.
    whole = (values >= first) & (values < 2**53) & (values == np.floor(values))
    if not whole.all():
        row = int(np.argmin(whole))
        raise TableError(f"{path}: frames are whole numbers from {first}; row {row} has {values[row]}")
    return values.astype(np.int64) - first


def _source(table: "pa.Table") -> list[str] | None:
    if "input" not in table.column_names or table["input"].null_count == len(table):
        return None
    return ["" if value is None else str(value) for value in table["input"].to_pylist()]


def _carried(table: "pa.Table", path: Path) -> dict[str, Values]:
    carried: dict[str, Values] = {}
    for name in table.column_names:
        if name in CARRIED_NUMBERS:
            values = _numbers(table, name, path)
            whole = name in WHOLE_NUMBERS and (values == np.floor(values)).all()
            carried[name] = values.astype(np.int64) if whole else values
        elif name in CARRIED_TEXTS:
            carried[name] = [None if value is None else str(value) for value in table[name].to_pylist()]
    return carried


def _read_npz(path: Path) -> FaceTable:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ("landmarks", "frame", "source") if name in archive}
    # What NumPy raises for a file that is not an archive, is a single array, is cut off or holds objects.
    except (ValueError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise TableError(f"{path} is not a whole NPZ file of numbers ({_one_line(error)})") from error
    if "landmarks" not in arrays:
        raise TableError(f"{path} lacks the array landmarks, float [N, 68, 2]")
    landmarks = arrays["landmarks"]
    if landmarks.dtype.kind not in "fiu" or landmarks.ndim != 3 or landmarks.shape[1:] != (68, 2):
        raise TableError(
            f"{path}: landmarks must be numbers [N, 68, 2]; they are {landmarks.dtype} "
            f"{list(landmarks.shape)}"
        )
    if not len(landmarks):
        raise TableError(f"{path} has no row: there is no face in it")
    landmarks = landmarks.astype(np.float64)
    found = np.isfinite(landmarks).all(axis=(1, 2))
    landmarks[~found] = np.nan
    _check_pixels(landmarks, path)
    return FaceTable(
        landmarks=landmarks,
        frame=_npz_frames(arrays.get("frame"), len(landmarks), path),
        source=_npz_source(arrays.get("source"), len(landmarks), path),
        found=found,
        turned=False,
        carried={},
        kind="NPZ",
    )


def _npz_frames(values: np.ndarray | None, count: int, path: Path) -> np.ndarray:
    if values is None:
        return np.arange(count, dtype=np.int64)
    if values.dtype.kind not in "fiu" or values.shape != (count,):
        raise TableError(
            f"{path}: frame must be one number a face, [{count}]; it is {values.dtype} {list(values.shape)}"
        )
    return _whole_frames(values, 0, path)


def _npz_source(values: np.ndarray | None, count: int, path: Path) -> list[str] | None:
    if values is None:
        return None
    if values.dtype.kind != "U" or values.shape != (count,):
        raise TableError(
            f"{path}: source must be one string a face, [{count}]; it is {values.dtype} {list(values.shape)}"
        )
    return values.tolist()


def _one_line(error: Exception | str) -> str:
    return " ".join(str(error).split())
