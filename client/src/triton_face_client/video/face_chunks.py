"""From a landmark table and its media to crops that can be sent, a bounded number of faces at a time."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from triton_face_client.video.crops import crop_landmarks, cut_faces, landmark_boxes
from triton_face_client.video.landmark_tables import FaceTable, TableError
from triton_face_client.video.media import FrameReader, MediaError

NOT_FOUND = "no face: the table has no landmarks in this row"


FACE_RECT = ("FaceRectX", "FaceRectY", "FaceRectWidth", "FaceRectHeight")


@dataclasses.dataclass(frozen=True)
class Cropping:
    """Which part of the image is the crop.

    Attributes
    ----------
    box : {"landmarks", "face-rect"}
        The box of the landmarks, or that of py-feat's face detector, which its tables have and which it has
        enlarged already.
    enlarge : float
        What the box's sides are multiplied by.
    """

    box: str = "landmarks"
    enlarge: float = 1.2

    def boxes(self, table: FaceTable, rows: np.ndarray) -> np.ndarray:
        """Return the boxes ``[R, 4]`` x1, y1, x2, y2 of rows, before they are enlarged.

        Raises
        ------
        TableError
            When the table has no face rectangles.
        """
        if self.box == "landmarks":
            return landmark_boxes(table.landmarks[rows])
        missing = [name for name in FACE_RECT if name not in table.carried]
        if missing:
            raise TableError(
                f"the table has no column {missing[0]}: only py-feat's have the face detector's box"
            )
        left, top, width, height = (table.carried[name][rows] for name in FACE_RECT)
        return np.stack([left, top, left + width, top + height], axis=1)


BY_LANDMARKS = Cropping()


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


def check_media(table: FaceTable, media: Sequence[Path]) -> None:
    """Raise a TableError when a table of one image, as FaceLandmarkImg writes them, is given with many."""
    if table.source is None and len(media) > 1 and not table.frame.any() and len(table.frame) > 1:
        raise TableError(f"the table is of one image, {len(media)} are given: give the one it is of")


def read_chunks(
    table: FaceTable,
    reader: FrameReader,
    rows: Sequence[int] | np.ndarray,
    size: int,
    cropping: Cropping = BY_LANDMARKS,
) -> Iterator[FaceChunk]:
    """Cut the faces of `rows`, in their order, `size` rows at a time.

    A row whose image cannot be read, or that has no landmarks, has a reason instead of a crop.
    """
    rows = np.asarray(rows)
    for first in range(0, len(rows), size):
        yield _read_chunk(table, reader, rows[first : first + size], cropping)


def _read_chunk(table: FaceTable, reader: FrameReader, rows: np.ndarray, cropping: Cropping) -> FaceChunk:
    boxes = cropping.boxes(table, rows)
    reasons: dict[int, str] = {}
    crops: dict[int, np.ndarray] = {}
    for place, row in enumerate(rows):
        try:
            image = _image(table, reader, row)
            crops[place] = cut_faces(image, boxes[place : place + 1], enlarge=cropping.enlarge)[0]
        except MediaError as error:
            reasons[place] = str(error)
    cut = np.array(list(crops), dtype=np.int64)
    return FaceChunk(
        rows=rows,
        files=[_file(table, reader, row) for row in rows],
        cut=cut,
        crops=np.stack(list(crops.values())) if crops else np.empty((0, 3, 112, 112), dtype=np.float32),
        landmarks=crop_landmarks(table.landmarks[rows[cut]], boxes[cut], enlarge=cropping.enlarge),
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
