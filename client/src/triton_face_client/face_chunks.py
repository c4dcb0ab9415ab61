"""From a landmark table and its media to crops that can be sent, a bounded number of faces at a time."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from triton_face_client.crops import crop_landmarks, cut_faces, landmark_boxes
from triton_face_client.face_tables import FaceTable
from triton_face_client.media import FrameReader, MediaError

NOT_FOUND = "no face: the table has no landmarks in this row"


@dataclasses.dataclass(frozen=True)
class FaceChunk:
    """Some rows of a table.

    Attributes
    ----------
    rows : ndarray of int, shape (R,)
        The rows of the table, all of them.
    files : list of R str
        The image or video of each; what the table calls it where that is none of those given.
    cut : ndarray of int, shape (K,)
        Which of `rows`, by their place in it, have a crop.
    crops : ndarray of float32, shape (K, 3, 112, 112)
        Values in [0, 1].
    landmarks : ndarray of float32, shape (K, 68, 2)
        Pixels of the crops.
    reasons : dict of int to str
        Why the others have none, by their place in `rows`.
    """

    rows: np.ndarray
    files: list[str]
    cut: np.ndarray
    crops: np.ndarray
    landmarks: np.ndarray
    reasons: dict[int, str]


def read_chunks(
    table: FaceTable, reader: FrameReader, rows: Sequence[int] | np.ndarray, size: int
) -> Iterator[FaceChunk]:
    """Cut the faces of `rows`, in their order, `size` rows at a time.

    A row whose image cannot be read, or that has no landmarks, has a reason instead of a crop.
    """
    rows = np.asarray(rows)
    for first in range(0, len(rows), size):
        yield _read_chunk(table, reader, rows[first : first + size])


def _read_chunk(table: FaceTable, reader: FrameReader, rows: np.ndarray) -> FaceChunk:
    boxes = landmark_boxes(table.landmarks[rows])
    reasons: dict[int, str] = {}
    crops: dict[int, np.ndarray] = {}
    for place, row in enumerate(rows):
        try:
            crops[place] = cut_faces(_image(table, reader, row), boxes[place : place + 1])[0]
        except MediaError as error:
            reasons[place] = str(error)
    cut = np.array(list(crops), dtype=np.int64)
    return FaceChunk(
        rows=rows,
        files=[_file(table, reader, row) for row in rows],
        cut=cut,
        crops=np.stack(list(crops.values())) if crops else np.empty((0, 3, 112, 112), dtype=np.float32),
        landmarks=crop_landmarks(table.landmarks[rows[cut]], boxes[cut]),
        reasons=reasons,
    )


def _image(table: FaceTable, reader: FrameReader, row: int) -> np.ndarray:
    if not table.found[row]:
        raise MediaError(NOT_FOUND)
    return reader.read(*_place(table, row))


def _file(table: FaceTable, reader: FrameReader, row: int) -> str:
    source, frame = _place(table, row)
    try:
        return str(reader.file(source, frame))
    except MediaError:
        return source or ""


def _place(table: FaceTable, row: int) -> tuple[str | None, int]:
    return table.source[row] if table.source else None, int(table.frame[row])
