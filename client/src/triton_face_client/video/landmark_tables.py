"""Read landmark tables of OpenFace and py-feat, and NPZ files with landmarks of any origin.

Each row is one face. Readers keep all rows, in their order. Formats:

- ``.csv`` of OpenFace (`FeatureExtraction`, `FaceLandmarkVidMulti`, `FaceLandmarkImg`) or py-feat (a saved
  Fex): columns ``x_0 … x_67`` and ``y_0 … y_67`` among any others.
- ``.parquet``: the same columns.
- A feature file, written by this package as CSV or Parquet. It has the column ``refused``, and its frames
  count from 0 even if those of the original table count from 1.
- ``.npz``: ``landmarks`` ``[N, 68, 2]``, optionally ``frame`` ``[N]`` and ``source`` ``[N]``.
"""

import csv
import importlib
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from triton_face_client.requests.faces import MAX_NORMALIZED_LANDMARK

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["OpenFace", "py-feat", "NPZ", "features"]
Numbers = NDArray[np.int64] | NDArray[np.float64]

X_COLUMNS = tuple(f"x_{i}" for i in range(68))
Y_COLUMNS = tuple(f"y_{i}" for i in range(68))

OPENFACE_COLUMNS = ("success", "confidence")
"""A table with either column is OpenFace's; `FaceLandmarkImg` writes only the second."""

INTEGER_COLUMNS = ("face_id", "face", "success")

EXTRA_NUMBERS = (
    *INTEGER_COLUMNS, "timestamp", "confidence",
    "FaceRectX", "FaceRectY", "FaceRectWidth", "FaceRectHeight", "FaceScore",
)  # fmt: skip

EXTRA_TEXTS = ("approx_time", "Identity")

REFUSED = "refused"
"""A column that only this package's feature files have."""

TEXT_COLUMNS = ("input", REFUSED, *EXTRA_TEXTS)

EXIF_APPLIED_KEY = b"triton_face_client.turned"
"""Metadata key of a Parquet feature file: b"true" or b"false", the value of `LandmarkTable.exif_applied`.

The key keeps its old name, so that existing files stay readable.

CSV has no metadata; there, the presence of OpenFace's columns decides.
"""

MISSING_NUMBERS = ("NA", "NULL", "null", "None", "")
"""Missing numbers as pandas and R write them. pyarrow itself parses C++'s NaN ("-nan(ind)" on Windows)."""

BLOCK_BYTES = 8 * 2**20
"""Bytes that pyarrow parses at once: a block is large enough to hide the call overhead and fits the cache."""

EXPECTED_COLUMNS = (
    "a CSV of OpenFace (run with -2Dfp) or py-feat has x_0 … x_67, y_0 … y_67 and, for videos, frame"
)


class TableError(ValueError):
    """A landmark table cannot be used; the message is one line with the remedy."""


@dataclass(frozen=True)
class LandmarkTable:
    """The faces of a landmark table, in its order.

    Attributes
    ----------
    landmarks : ndarray of float64, shape (N, 68, 2)
        Landmarks (x, y) in pixels of the image; NaN in rows without a face.
    frame : ndarray of int64, shape (N,)
        Frame of the video, or index in the list of images, from 0.
    source : list of N str or None
        The image or video of each row, in the table's spelling; None if the table names no files.
    has_face : ndarray of bool, shape (N,)
        Whether the row has a face.
    exif_applied : bool
        Whether the coordinates refer to the image after rotation by its EXIF orientation. OpenFace reads
        images with OpenCV, which rotates them; py-feat does not rotate.
    extra_columns : dict of str to ndarray or list
        Other columns to copy into the feature file, ``[N]`` each: numbers as arrays, text as lists.
    kind : {"OpenFace", "py-feat", "NPZ", "features"}
        Origin of the table.
    """

    landmarks: NDArray[np.float64]
    frame: NDArray[np.int64]
    source: list[str] | None
    has_face: NDArray[np.bool_]
    exif_applied: bool
    extra_columns: dict[str, Numbers | list[str | None]]
    kind: Kind

    @property
    def names_one_file_at_most(self) -> bool:
        """Whether the table names at most one file."""
        return len(set(self.source or ())) <= 1

    def location(self, row: int) -> tuple[str | None, int]:
        """Return the file, if the table names it, and the frame of a row."""
        return self.source[row] if self.source else None, int(self.frame[row])


def read_table(path: Path | str) -> LandmarkTable:
    """Read a landmark table.

    Parameters
    ----------
    path : Path or str
        A ``.csv``, ``.parquet`` or ``.npz`` file.

    Returns
    -------
    LandmarkTable
        All rows of the file, in their order.

    Raises
    ------
    TableError
        If the file cannot be read, has another format, lacks a column, has no row, has text in a column of
        numbers, or has frames that are not whole numbers from 0 (OpenFace: from 1); or if pyarrow is needed
        and not installed.
    """
    path = Path(path)
    readers = {".csv": _read_csv, ".parquet": _read_parquet, ".npz": _read_npz}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise TableError(
            f"{path}: a landmark table is a .csv, .parquet or .npz file; give images and videos as MEDIA"
        )
    try:
        return reader(path)
    except OSError as error:
        raise TableError(f"cannot read {path}: {error.strerror or _one_line(error)}") from error


def _read_csv(path: Path) -> LandmarkTable:
    arrow = _pyarrow(path)
    header = _header(path)
    wanted = _wanted_columns(header, path)
    try:
        table = arrow.csv.read_csv(
            path,
            # pyarrow would keep the blanks in OpenFace's column names, so the header is read above.
            read_options=arrow.csv.ReadOptions(column_names=header, skip_rows=1, block_size=BLOCK_BYTES),
            convert_options=arrow.csv.ConvertOptions(
                include_columns=wanted,
                # To infer types, pyarrow would keep the whole file in memory until the end.
                column_types={
                    name: arrow.string() if name in TEXT_COLUMNS else arrow.float64() for name in wanted
                },
                null_values=[blank + text for text in MISSING_NUMBERS for blank in ("", " ")],
            ),
        )
    except arrow.ArrowInvalid as error:
        raise _csv_error(error, header, path) from error
    return _from_columns(table, path)


def _csv_error(error: Exception, header: Sequence[str], path: Path) -> TableError:
    text = re.search(r"column #(\d+): .*(invalid value .*)", str(error), re.DOTALL)
    if text is None:
        return TableError(f"{path} is not a complete CSV file: {_one_line(error)}")
    return TableError(f"{path}: column {header[int(text[1])]} must hold numbers: {_one_line(text[2])}")


def _header(path: Path) -> list[str]:
    """Return the column names of a CSV without OpenFace's leading blanks."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            names = [name.strip() for name in next(csv.reader(file), [])]
    except (UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path} is not a CSV file ({_one_line(error)})") from error
    if not names:
        raise TableError(f"{path} is empty: {EXPECTED_COLUMNS}")
    if len(names) == 1 and any(separator in names[0] for separator in ";\t"):
        raise TableError(f"{path}: the columns are not separated by commas; save it as comma-separated CSV")
    return names


def _read_parquet(path: Path) -> LandmarkTable:
    arrow = _pyarrow(path)
    try:
        # Given the path of a folder, pyarrow would read it as a data set of many files.
        with path.open("rb") as file, arrow.parquet.ParquetFile(file) as parquet:
            wanted = _wanted_columns(parquet.schema_arrow.names, path)
            table = parquet.read(columns=wanted)
    except arrow.ArrowException as error:
        raise TableError(f"{path} is not a complete Parquet file: {_one_line(error)}") from error
    return _from_columns(table, path)


def _pyarrow(path: Path) -> Any:
    """Import pyarrow, which NPZ tables do not need."""
    try:
        for submodule in ("csv", "parquet"):
            importlib.import_module(f"pyarrow.{submodule}")
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise TableError(f"reading {path} needs pyarrow: pip install 'triton-face-client[run]'") from error


def _wanted_columns(names: Sequence[str], path: Path) -> list[str]:
    """Check that a table has the landmarks; return the columns to read, in the table's order.

    The other columns are skipped; OpenFace's tables have about 700.
    """
    if "x_68" in names or ("x_0" not in names and "mesh_x_0" in names):
        raise TableError(
            f"{path} has MediaPipe's 478 points instead of 68: convert them with "
            "triton_face_client.landmarks.from_mediapipe and save them as .npz"
        )
    needed = [*X_COLUMNS, *Y_COLUMNS]
    if not {"input", "frame", *OPENFACE_COLUMNS} & set(names):
        needed.append("frame")
    missing = [name for name in needed if name not in names]
    if missing:
        examples = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        columns = "1 column" if len(missing) == 1 else f"{len(missing)} columns"
        raise TableError(f"{path} lacks {columns}: {examples}; {EXPECTED_COLUMNS}")
    wanted = {*needed, "frame", *TEXT_COLUMNS, *EXTRA_NUMBERS}
    # dict.fromkeys: pyarrow would read a repeated name twice.
    return [name for name in dict.fromkeys(names) if name in wanted]


def _from_columns(table: "pa.Table", path: Path) -> LandmarkTable:
    if not len(table):
        raise TableError(f"{path} has no rows: give a table with at least one face")
    metadata = table.schema.metadata or {}
    from_openface = any(name in table.column_names for name in OPENFACE_COLUMNS)
    kind: Kind = "OpenFace" if from_openface else "py-feat"
    if EXIF_APPLIED_KEY in metadata or REFUSED in table.column_names:
        kind = "features"
    landmarks = _landmarks(table, path)
    has_face = np.isfinite(landmarks).all(axis=(1, 2))
    if "success" in table.column_names:
        has_face &= _numbers(table, "success", path) != 0
    landmarks[~has_face] = np.nan
    _check_pixels(landmarks, path)
    return LandmarkTable(
        landmarks=landmarks,
        frame=_frame_column(table, kind, path),
        source=_source(table),
        has_face=has_face,
        exif_applied=metadata.get(EXIF_APPLIED_KEY, b"true" if from_openface else b"false") == b"true",
        extra_columns=_extra_columns(table, path),
        kind=kind,
    )


def _check_pixels(landmarks: NDArray[np.float64], path: Path) -> None:
    """Raise a TableError for landmarks as fractions of the image, MediaPipe's unit, instead of pixels."""
    largest = np.fmax.reduce(landmarks, axis=None, initial=0.0)
    if 0 < largest <= MAX_NORMALIZED_LANDMARK:
        raise TableError(
            f"{path}: the largest coordinate is {largest:.2f}, so the landmarks are fractions of the image: "
            "multiply them by its width and height"
        )


def _landmarks(table: "pa.Table", path: Path) -> NDArray[np.float64]:
    """Return the landmarks, float64 ``[N, 68, 2]``, copied in blocks of rows to stay in the CPU's cache."""
    for name in (*X_COLUMNS, *Y_COLUMNS):
        _check_numbers(table, name, path)
    landmarks = np.empty((len(table), 68, 2))
    start = 0
    for block in table.select([*X_COLUMNS, *Y_COLUMNS]).to_batches():
        columns = [column.to_numpy(zero_copy_only=False) for column in block.columns]
        # A block without any number has Arrow's null type, whose values are None; float64 makes them NaN.
        rows = np.array(columns, dtype=np.float64)
        stop = start + len(block)
        landmarks[start:stop, :, 0] = rows[:68].T
        landmarks[start:stop, :, 1] = rows[68:].T
        start = stop
    return landmarks


def _numbers(table: "pa.Table", name: str, path: Path) -> Numbers:
    """Return a column of numbers ``[N]``. If values are missing, it is float64 with NaN for them."""
    _check_numbers(table, name, path)
    column = table[name]
    values: Numbers = column.to_numpy()
    return values.astype(np.float64) if column.null_count else values


def _check_numbers(table: "pa.Table", name: str, path: Path) -> None:
    datatype = str(table.schema.field(name).type)
    if not datatype.startswith(("int", "uint", "float", "double", "halffloat", "null")):
        raise TableError(f"{path}: column {name} must hold numbers and holds {datatype}")


def _frame_column(table: "pa.Table", kind: Kind, path: Path) -> NDArray[np.int64]:
    if "frame" not in table.column_names:
        return np.zeros(len(table), dtype=np.int64)
    first = 1 if kind == "OpenFace" else 0
    return _frames_from_zero(_numbers(table, "frame", path), first, path)


def _frames_from_zero(values: Numbers, first: int, path: Path) -> NDArray[np.int64]:
    """Convert frames that count from `first` to int64 from 0."""
    # NaN fails each comparison. Below 2**53, float64 represents every whole number.
    valid = (values >= first) & (values < 2**53) & (values == np.floor(values))
    if not valid.all():
        row = int(np.argmin(valid))
        raise TableError(f"{path}: frames must be whole numbers from {first}; row {row} has {values[row]}")
    return values.astype(np.int64) - first


def _source(table: "pa.Table") -> list[str] | None:
    if "input" not in table.column_names or table["input"].null_count == len(table):
        return None
    return ["" if value is None else str(value) for value in table["input"].to_pylist()]


def _extra_columns(table: "pa.Table", path: Path) -> dict[str, Numbers | list[str | None]]:
    extra: dict[str, Numbers | list[str | None]] = {}
    for name in table.column_names:
        if name in EXTRA_NUMBERS:
            values = _numbers(table, name, path)
            integers = name in INTEGER_COLUMNS and (values == np.floor(values)).all()
            extra[name] = values.astype(np.int64) if integers else values
        elif name in EXTRA_TEXTS:
            extra[name] = [None if value is None else str(value) for value in table[name].to_pylist()]
    return extra


def _read_npz(path: Path) -> LandmarkTable:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ("landmarks", "frame", "source") if name in archive}
    # NumPy's errors for a file that is no archive, is a single array, is truncated or holds objects.
    except (ValueError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise TableError(f"{path} is not a complete NPZ file of numbers ({_one_line(error)})") from error
    if "landmarks" not in arrays:
        raise TableError(f"{path} lacks the array landmarks, float [N, 68, 2]")
    landmarks = arrays["landmarks"]
    if landmarks.dtype.kind not in "fiu" or landmarks.ndim != 3 or landmarks.shape[1:] != (68, 2):
        raise TableError(
            f"{path}: landmarks must be numbers [N, 68, 2]; they are {landmarks.dtype} "
            f"{list(landmarks.shape)}"
        )
    if not len(landmarks):
        raise TableError(f"{path} has no rows: give a table with at least one face")
    landmarks = landmarks.astype(np.float64)
    has_face = np.isfinite(landmarks).all(axis=(1, 2))
    landmarks[~has_face] = np.nan
    _check_pixels(landmarks, path)
    return LandmarkTable(
        landmarks=landmarks,
        frame=_npz_frames(arrays.get("frame"), len(landmarks), path),
        source=_npz_source(arrays.get("source"), len(landmarks), path),
        has_face=has_face,
        exif_applied=False,
        extra_columns={},
        kind="NPZ",
    )


def _npz_frames(values: NDArray[Any] | None, count: int, path: Path) -> NDArray[np.int64]:
    if values is None:
        return np.arange(count, dtype=np.int64)
    if values.dtype.kind not in "fiu" or values.shape != (count,):
        raise TableError(
            f"{path}: frame must be one number per face, [{count}]; it is {values.dtype} {list(values.shape)}"
        )
    return _frames_from_zero(values, 0, path)


def _npz_source(values: NDArray[Any] | None, count: int, path: Path) -> list[str] | None:
    if values is None:
        return None
    if values.dtype.kind != "U" or values.shape != (count,):
        raise TableError(
            f"{path}: source must be one string per face, [{count}]; "
            f"it is {values.dtype} {list(values.shape)}"
        )
    return [str(value) for value in values]


def _one_line(error: Exception | str) -> str:
    return " ".join(str(error).split())
