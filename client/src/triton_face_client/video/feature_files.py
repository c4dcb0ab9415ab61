"""Write the features of a landmark table to a file; an interrupted run can be resumed.

During a run, the folder ``NAME.parts/`` beside the file holds the finished rows as parts: Parquet files of a
few hundred rows, ``FIRST-END.parquet`` with the number of the first row and of the row after the last. The
folder also holds ``job.json``, which identifies the inputs. After the last row, the parts are combined into
the file and the folder is deleted. Each file is written under a temporary name and then renamed, so no reader
sees a partial file.
"""

import contextlib
import dataclasses
import fcntl
import itertools
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from triton_face_client.video.landmark_tables import EXIF_APPLIED_KEY, X_COLUMNS, Y_COLUMNS, LandmarkTable

POSE_COLUMNS = ("Pitch", "Roll", "Yaw", "X", "Y", "Z")
"""py-feat's names and convention: radians, +pitch up, +yaw and +roll to the subject's right."""

SUFFIXES = (".parquet", ".csv", ".npz")

JOB_KEY = b"triton_face_client.job"
"""Entry of a Parquet file's metadata: the job of `FeatureWriter` as JSON."""

NPY_FORMAT: Any = np.lib.format  # NumPy 1.26 has no type hints for this module.


class OutputError(ValueError):
    """The features cannot be written; the message is one line with the remedy."""


@dataclasses.dataclass(frozen=True)
class Columns:
    """The optional columns of a feature file.

    Attributes
    ----------
    groups : frozenset of str
        Any of "pose", "landmarks" and "hog".
    action_units : tuple of str
        Names of the columns of action units, in the server's order; empty without action units.
    """

    groups: frozenset[str]
    action_units: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Features:
    """The results for consecutive rows of a landmark table.

    Attributes
    ----------
    rows : ndarray of int64, shape (R,)
        Row numbers in the landmark table.
    files : list of R str
        The image or video of each row.
    arrays : dict of str to ndarray of float32, shape (R, F)
        HOG, AU and POSE (as `subject_pose` returns it), if their columns are chosen; NaN for a row without
        them.
    reasons : list of R (str or None)
        Reason why a row has no HOG features and no action units.
    crop_count : int
        Number of rows with a crop.
    """

    rows: NDArray[np.int64]
    files: list[str]
    arrays: dict[str, NDArray[np.float32]]
    reasons: list[str | None]
    crop_count: int


def feature_table(features: Features, landmark_table: LandmarkTable, chosen: Columns) -> pa.Table:
    """Join the chosen features with the landmark table's columns of the same rows."""
    rows = features.rows
    columns: dict[str, Any] = {"input": pa.array(features.files, pa.string())}
    columns["frame"] = landmark_table.frame[rows]
    for name, values in landmark_table.extra_columns.items():
        if isinstance(values, np.ndarray):
            columns[name] = values[rows]
        else:
            # Without the explicit type, a part whose values are all missing would get Arrow's null type.
            columns[name] = pa.array([values[row] for row in rows], pa.string())
    if "pose" in chosen.groups:
        columns |= {name: features.arrays["POSE"][:, i] for i, name in enumerate(POSE_COLUMNS)}
    if "landmarks" in chosen.groups:
        columns |= {name: landmark_table.landmarks[rows, i, 0] for i, name in enumerate(X_COLUMNS)}
        columns |= {name: landmark_table.landmarks[rows, i, 1] for i, name in enumerate(Y_COLUMNS)}
    columns |= {name: features.arrays["AU"][:, i] for i, name in enumerate(chosen.action_units)}
    if "hog" in chosen.groups:
        hog = features.arrays["HOG"]
        columns["HOG"] = pa.FixedSizeListArray.from_arrays(hog.ravel(), hog.shape[1])
    columns["refused"] = pa.array(features.reasons, pa.string())
    table = pa.table(columns)
    exif_applied = b"true" if landmark_table.exif_applied else b"false"
    return table.replace_schema_metadata({EXIF_APPLIED_KEY: exif_applied})


def parts_folder(out: Path) -> Path:
    """Return the folder of the finished parts of a file."""
    return out.with_name(f"{out.name}.parts")


class FeatureWriter:
    """Write a feature file part by part. Use the writer as a context manager; it locks the file's parts.

    Parameters
    ----------
    out : Path
        The file; its suffix, one of `SUFFIXES`, selects the format.
    job : dict
        Identity of the inputs and settings. The writer resumes only parts of the same job.
    restart : bool
        Delete existing parts and replace an existing file.

    Raises
    ------
    OutputError
        On entry, if the file exists, another run is writing it, the parts belong to another job, or the
        folder cannot be written.
    """

    def __init__(self, out: Path, job: dict[str, Any], restart: bool) -> None:
        if out.suffix.lower() not in SUFFIXES:
            raise OutputError(f"{out}: the file name must end in .parquet, .csv or .npz")
        self.out = out
        self.folder = parts_folder(out)
        self._job = job
        self._restart = restart

    def __enter__(self) -> "FeatureWriter":
        """Lock the folder and resume the parts of an interrupted run."""
        if self.out.exists() and not (self._restart or self._part_paths()):
            raise OutputError(f"{self.out} already exists: give another name, or --restart to replace it")
        try:
            self.folder.mkdir(exist_ok=True)
            self._lock = (self.folder / "lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"another run is writing {self.out}: wait for it, or give another name"
            ) from None
        except OSError as error:
            raise OutputError(f"cannot write to {self.folder}: {error.strerror}") from error
        self._resume()
        return self

    def __exit__(self, *_exception: object) -> None:
        """Unlock the folder; delete it if it has no parts."""
        if not self._part_paths():
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()

    def next_row(self) -> int:
        """Return the number of the first row that is not written yet."""
        next_row = 0
        for path in self._part_paths():
            first, end = _row_range(path)
            if first != next_row:
                break
            next_row = end
        return next_row

    def write(self, first: int, table: pa.Table) -> None:
        """Write a part whose first row is `first`."""
        path = self.folder / f"{first:09d}-{first + len(table):09d}.parquet"
        metadata = {**(table.schema.metadata or {}), JOB_KEY: json.dumps(self._job)}
        with _write_atomically(path) as unfinished:
            pq.write_table(table.replace_schema_metadata(metadata), unfinished, compression="zstd")

    def column(self, name: str) -> list[Any]:
        """Return a column of all parts as a list."""
        parts = (pq.read_table(path, columns=[name]) for path in self._part_paths())
        return [value for part in parts for value in part[name].to_pylist()]

    def finish(self, rows: int) -> None:
        """Combine the parts into the file and delete them; raise an OutputError if rows are missing."""
        if self.next_row() != rows:
            raise OutputError(
                f"{self.folder} lacks rows from {self.next_row()} on: run again to compute them"
            )
        writers = {".parquet": self._write_parquet, ".csv": self._write_csv, ".npz": self._write_npz}
        with _write_atomically(self.out) as unfinished:
            writers[self.out.suffix.lower()](unfinished)
        shutil.rmtree(self.folder)

    def _resume(self) -> None:
        job_path = self.folder / "job.json"
        if self._restart:
            for path in (job_path, *self._part_paths()):
                path.unlink(missing_ok=True)
        # A killed run leaves its temporary files.
        for path in self.folder.glob("*.unfinished"):
            path.unlink()
        if job_path.exists():
            if json.loads(job_path.read_text()) != self._job:
                raise OutputError(
                    f"{self.folder} holds an unfinished run of other files, columns, settings or another AU "
                    "checkpoint: finish that run, give another name, or --restart to delete it"
                )
        else:
            with _write_atomically(job_path) as unfinished:
                unfinished.write_text(json.dumps(self._job))

    def _part_paths(self) -> list[Path]:
        return sorted(self.folder.glob("*-*.parquet"))

    def _part_tables(self) -> Iterator[pa.Table]:
        for path in self._part_paths():
            yield pq.read_table(path)

    def _write_parquet(self, path: Path) -> None:
        tables = self._part_tables()
        first = next(tables)
        with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
            writer.write_table(first)
            for table in tables:
                writer.write_table(table)

    def _write_csv(self, path: Path) -> None:
        tables = (_hog_as_text(table) for table in self._part_tables())
        first = next(tables)
        with pyarrow.csv.CSVWriter(path, first.schema) as writer:
            writer.write_table(first)
            for table in tables:
                writer.write_table(table)

    def _write_npz(self, path: Path) -> None:
        """Write one array ``[N, ...]`` per column; HOG may exceed the memory, so map a file for it."""
        columns: dict[str, list[NDArray[Any]]] = {}
        for table in self._part_tables():
            for name, array in _npz_arrays(table).items():
                columns.setdefault(name, []).append(array)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            if "HOG" in pq.read_schema(self._part_paths()[0]).names:
                archive.write(self._write_hog(), "HOG.npy")
            for name, arrays in columns.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    NPY_FORMAT.write_array(member, np.concatenate(arrays), allow_pickle=False)

    def _write_hog(self) -> Path:
        path = self.folder / "HOG.npy.unfinished"
        blocks = (_hog(table) for table in self._part_tables())
        first = next(blocks)
        hog = NPY_FORMAT.open_memmap(path, "w+", first.dtype, (self.next_row(), first.shape[1]))
        start = 0
        for block in itertools.chain([first], blocks):
            hog[start : start + len(block)] = block
            start += len(block)
        hog.flush()
        return path


@contextlib.contextmanager
def _write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary name to write to, and rename that file to `path` at the end."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        yield unfinished
        unfinished.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _row_range(part: Path) -> tuple[int, int]:
    first, end = part.stem.split("-")
    return int(first), int(end)


def _hog(table: pa.Table) -> NDArray[np.float32]:
    values: NDArray[np.float32] = table["HOG"].combine_chunks().flatten().to_numpy()
    return values.reshape(len(table), -1)


def _hog_as_text(table: pa.Table) -> pa.Table:
    """Convert HOG to text, ``[0.1, 0.2, ...]``, with enough digits to restore each float32."""
    if "HOG" not in table.column_names:
        return table
    texts = [f"[{', '.join(row.astype(str))}]" for row in _hog(table)]
    return table.set_column(table.column_names.index("HOG"), "HOG", pa.array(texts, pa.string()))


def _npz_arrays(table: pa.Table) -> dict[str, NDArray[Any]]:
    def column(name: str) -> NDArray[Any]:
        values: NDArray[Any] = table[name].to_numpy()
        return values if values.dtype != object else np.array(["" if v is None else v for v in values], str)

    renamed = {"source": column("input")}
    if X_COLUMNS[0] in table.column_names:
        axes = [np.stack([column(name) for name in names], axis=1) for names in (X_COLUMNS, Y_COLUMNS)]
        renamed["landmarks"] = np.stack(axes, axis=2)
    omitted = {"HOG", "input", *X_COLUMNS, *Y_COLUMNS}
    return renamed | {name: column(name) for name in table.column_names if name not in omitted}
