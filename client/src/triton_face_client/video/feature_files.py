"""The features of a landmark table's rows as a file: written part by part, so that nothing done is lost.

While a run is under way, ``NAME.parts/`` beside the file holds what is done: one Parquet file for each few
hundred rows, named after them, and ``job.json``, which says of what. When all rows are there they become the
file, and the folder goes. Every file is written under another name first, so none is ever half there.
"""

import contextlib
import dataclasses
import fcntl
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

from triton_face_client.video.landmark_tables import TURNED_KEY, X_COLUMNS, Y_COLUMNS, FaceTable

POSE_COLUMNS = ("Pitch", "Roll", "Yaw", "X", "Y", "Z")
"""py-feat's names and convention: radians, +pitch up, +yaw and +roll to the subject's right."""

SUFFIXES = (".parquet", ".csv", ".npz")


class OutputError(ValueError):
    """The features cannot be written; the message is one line that says what to do."""


@dataclasses.dataclass(frozen=True)
class Features:
    """What is known of some rows.

    Attributes
    ----------
    rows : ndarray of int, shape (R,)
        The rows of the landmark table.
    files : list of R str
        The image or video of each.
    hog : ndarray of float32, shape (R, F)
        HOG features; NaN where there are none.
    pose : ndarray of float32, shape (R, 6)
        In the subject's convention; NaN where there is none.
    reasons : list of R (str or None)
        Why a row has no HOG features.
    crops : int
        How many rows had a crop.
    """

    rows: np.ndarray
    files: list[str]
    hog: np.ndarray
    pose: np.ndarray
    reasons: list[str | None]
    crops: int


def as_table(features: Features, faces: FaceTable) -> pa.Table:
    """Put features and what the landmark table says of the same rows side by side."""
    rows = features.rows
    columns: dict[str, Any] = {"input": pa.array(features.files, pa.string()), "frame": faces.frame[rows]}
    for name, values in faces.carried.items():
        # Types are given: a part in which all are missing would have none.
        in_part = values[rows] if isinstance(values, np.ndarray) else [values[row] for row in rows]
        columns[name] = pa.array(in_part, None if isinstance(values, np.ndarray) else pa.string())
    columns |= {name: features.pose[:, i] for i, name in enumerate(POSE_COLUMNS)}
    columns |= {name: faces.landmarks[rows, i, 0] for i, name in enumerate(X_COLUMNS)}
    columns |= {name: faces.landmarks[rows, i, 1] for i, name in enumerate(Y_COLUMNS)}
    columns["HOG"] = pa.FixedSizeListArray.from_arrays(features.hog.ravel(), features.hog.shape[1])
    columns["refused"] = pa.array(features.reasons, pa.string())
    table = pa.table(columns)
    return table.replace_schema_metadata({TURNED_KEY: b"true" if faces.turned else b"false"})


def parts_folder(out: Path) -> Path:
    """Return where the parts of a file are while it is being made."""
    return out.with_name(f"{out.name}.parts")


class Parts:
    """The parts of a file that is being made. Use it as a context manager: one run at a time may.

    Parameters
    ----------
    out : Path
        The file; its suffix, one of `SUFFIXES`, says in which format.
    job : dict
        What the features are of. Parts of another job are not mixed with these.
    restart : bool
        Throw away what is there instead of going on.

    Raises
    ------
    OutputError
        On entry, when the file is there already, another run is at work, the parts are those of another job,
        or the folder cannot be written.
    """

    def __init__(self, out: Path, job: dict[str, Any], restart: bool) -> None:
        if out.suffix.lower() not in SUFFIXES:
            raise OutputError(f"{out}: name it .parquet, .csv or .npz")
        self.out = out
        self.folder = parts_folder(out)
        self._job = job
        self._restart = restart

    def __enter__(self) -> "Parts":
        """Take the folder, and what an interrupted run has left in it."""
        if self.out.exists() and not (self._restart or self._paths()):
            raise OutputError(f"{self.out} is there already: give another name, or --restart to replace it")
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
        self._take_up()
        return self

    def __exit__(self, *_exception: object) -> None:
        """Let another run have the folder; without parts in it there is nothing to go on with."""
        if not self._paths():
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()

    def next_row(self) -> int:
        """Return the first row that is not there yet."""
        done = 0
        for path in self._paths():
            first, end = _rows_of(path)
            if first != done:
                break
            done = end
        return done

    def write(self, first: int, table: pa.Table) -> None:
        """Keep the rows from `first` on."""
        path = self.folder / f"{first:09d}-{first + len(table):09d}.parquet"
        with _whole(path) as unfinished:
            pq.write_table(table, unfinished, compression="zstd")

    def column(self, name: str) -> list[Any]:
        """Return a column of all parts."""
        return [
            value for path in self._paths() for value in pq.read_table(path, columns=[name])[name].to_pylist()
        ]

    def finish(self, rows: int) -> None:
        """Make the file out of the parts, which must be of so many rows."""
        if self.next_row() != rows:
            raise OutputError(
                f"{self.folder} has lost rows from {self.next_row()} on: run again to fill them"
            )
        writers = {".parquet": self._write_parquet, ".csv": self._write_csv, ".npz": self._write_npz}
        with _whole(self.out) as unfinished:
            writers[self.out.suffix.lower()](unfinished)
        shutil.rmtree(self.folder)

    def _take_up(self) -> None:
        described = self.folder / "job.json"
        if self._restart:
            for path in (described, *self._paths()):
                path.unlink(missing_ok=True)
        # What a run that was killed had not finished.
        for path in self.folder.glob("*.unfinished"):
            path.unlink()
        if described.exists():
            if json.loads(described.read_text()) != self._job:
                raise OutputError(
                    f"{self.folder} holds a run of other files or settings: go on with those, give another "
                    "name, or --restart to throw it away"
                )
        else:
            with _whole(described) as unfinished:
                unfinished.write_text(json.dumps(self._job))

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("*-*.parquet"))

    def _tables(self) -> Iterator[pa.Table]:
        for path in self._paths():
            yield pq.read_table(path)

    def _write_parquet(self, path: Path) -> None:
        tables = self._tables()
        first = next(tables)
        with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
            writer.write_table(first)
            for table in tables:
                writer.write_table(table)

    def _write_csv(self, path: Path) -> None:
        tables = (_without_arrays(table) for table in self._tables())
        first = next(tables)
        with pyarrow.csv.CSVWriter(path, first.schema) as writer:
            writer.write_table(first)
            for table in tables:
                writer.write_table(table)

    def _write_npz(self, path: Path) -> None:
        """Write arrays ``[N, ...]``; HOG goes through a file, since it need not fit into memory."""
        rows = self.next_row()
        columns: dict[str, list[np.ndarray]] = {}
        hog_path = self.folder / "HOG.npy.unfinished"
        hog, first = None, 0
        for table in self._tables():
            values = _hog_of(table)
            if hog is None:
                hog = np.lib.format.open_memmap(hog_path, "w+", values.dtype, (rows, values.shape[1]))
            hog[first : first + len(table)] = values
            first += len(table)
            for name, array in _npz_arrays(table).items():
                columns.setdefault(name, []).append(array)
        hog.flush()
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            archive.write(hog_path, "HOG.npy")
            for name, arrays in columns.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.concatenate(arrays), allow_pickle=False)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Give another name to write to; the file has its own when it is complete."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        yield unfinished
        unfinished.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _rows_of(part: Path) -> tuple[int, int]:
    first, end = part.stem.split("-")
    return int(first), int(end)


def _hog_of(table: pa.Table) -> np.ndarray:
    hog = table["HOG"].combine_chunks()
    return hog.flatten().to_numpy().reshape(len(table), -1)


def _without_arrays(table: pa.Table) -> pa.Table:
    """Turn each row's array into text, ``[0.1, 0.2, ...]``, with the digits that give float32 back."""
    texts = [f"[{', '.join(row.astype(str))}]" for row in _hog_of(table)]
    return table.set_column(table.column_names.index("HOG"), "HOG", pa.array(texts, pa.string()))


def _npz_arrays(table: pa.Table) -> dict[str, np.ndarray]:
    def column(name: str) -> np.ndarray:
        values = table[name].to_numpy()
        return values if values.dtype != object else np.array(["" if v is None else v for v in values], str)

    points = [np.stack([column(x), column(y)], axis=1) for x, y in zip(X_COLUMNS, Y_COLUMNS, strict=True)]
    others = [n for n in table.column_names if n not in {"HOG", "input", *X_COLUMNS, *Y_COLUMNS}]
    return {"landmarks": np.stack(points, axis=1), "source": column("input")} | {n: column(n) for n in others}
