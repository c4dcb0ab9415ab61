"""Read landmarks with reference angles from an NPZ or CSV file.

- NPZ: ``landmarks`` ``[N, 68, 2]`` and ``angles_deg`` ``[N, 3]``.
- CSV with a header and one face per row: columns ``x_0 … x_67``, ``y_0 … y_67``, ``pitch_deg``,
  ``roll_deg``, ``yaw_deg``; other columns are ignored.

Landmarks are in any unit, y down. Angles are raw angles in degrees: Pitch = a, Roll = b and Yaw = c of
``R = Rz(c) · Ry(b) · Rx(a)``.
"""

import csv
import zipfile
from pathlib import Path

import numpy as np

from export.errors import ExportError
from export.pose.training.dataset import check_landmarks

LANDMARK_COLUMNS = (*(f"x_{i}" for i in range(68)), *(f"y_{i}" for i in range(68)))
ANGLE_COLUMNS = ("pitch_deg", "roll_deg", "yaw_deg")


def read_faces(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read landmarks and reference angles.

    Parameters
    ----------
    path : Path
        A ``.npz`` or ``.csv`` file in the layout above.

    Returns
    -------
    landmarks : ndarray of float64, shape (N, 68, 2)
    angles : ndarray of float64, shape (N, 3)
        Raw Pitch, Roll, Yaw in degrees.

    Raises
    ------
    ExportError
        When the file cannot be read, lacks a column or array, has no face or a value that is not finite, or
        when the outer eye corners of a face coincide.
    """
    readers = {".npz": _read_npz, ".csv": _read_csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ExportError(f"{path}: faces must be in a .npz or .csv file")
    try:
        landmarks, angles = reader(path)
    except OSError as error:
        raise ExportError(f"cannot read {path}: {error.strerror or error}") from error
    if not len(landmarks):
        raise ExportError(f"{path} has no face")
    check_landmarks(landmarks, str(path))
    finite = np.isfinite(angles).all(axis=1)
    if not finite.all():
        raise ExportError(f"{path}: face {int(np.argmin(finite))} has a non-finite reference angle")
    return landmarks, angles


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            landmarks = np.asarray(archive["landmarks"], dtype=np.float64)
            angles = np.asarray(archive["angles_deg"], dtype=np.float64)
    except KeyError as error:
        raise ExportError(f"{path} needs the arrays landmarks and angles_deg ({error.args[0]})") from error
    except (ValueError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ExportError(f"{path} is not a complete NPZ file of numbers ({error})") from error
    if landmarks.ndim != 3 or landmarks.shape[1:] != (68, 2) or angles.shape != (len(landmarks), 3):
        raise ExportError(
            f"{path}: landmarks must be [N, 68, 2] and angles_deg [N, 3]; they are "
            f"{list(landmarks.shape)} and {list(angles.shape)}"
        )
    return landmarks, angles


def _read_csv(path: Path) -> tuple[np.ndarray, np.ndarray]:
    columns = LANDMARK_COLUMNS + ANGLE_COLUMNS
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise ExportError(f"{path} lacks {len(missing)} columns: {', '.join(missing[:8])}")
            rows = [[_number(row[name], path, face, name) for name in columns]
                    for face, row in enumerate(reader)]  # fmt: skip
    except (UnicodeDecodeError, csv.Error) as error:
        raise ExportError(f"{path} is not a CSV file ({error})") from error
    table = np.array(rows, dtype=np.float64).reshape(-1, len(columns))
    return table[:, :136].reshape(-1, 2, 68).transpose(0, 2, 1), table[:, 136:]


def _number(text: str | None, path: Path, face: int, column: str) -> float:
    try:
        return float(text or "")
    except ValueError as error:
        raise ExportError(f"{path}: face {face} has no number in column {column}: {text!r}") from error
