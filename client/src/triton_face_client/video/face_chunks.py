"""From a landmark table and its media to face crops, a bounded number of faces at a time."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from triton_face_client.video.crops import Float, crop_landmarks, cut_faces, landmark_boxes
from triton_face_client.video.landmark_tables import LandmarkTable, TableError
from triton_face_client.video.media import FrameReader, MediaError

NO_LANDMARKS = "no face: the table has no landmarks in this row"

FACE_RECT = ("FaceRectX", "FaceRectY", "FaceRectWidth", "FaceRectHeight")
"""py-feat's columns for the box of its face detector."""


@dataclasses.dataclass(frozen=True)
class Cropping:
    """Selection and enlargement of the box by which a face is cropped.

    Attributes
    ----------
    box : {"landmarks", "face-rect"}
        The bounding box of the landmarks, or the box in the `FACE_RECT` columns of py-feat's tables, which
        py-feat has already enlarged.
    enlarge : float
        Factor for the box's sides.
    """

    box: str = "landmarks"
    enlarge: float = 1.2

    def boxes(self, table: LandmarkTable, rows: NDArray[np.int64]) -> Float:
        """Return the boxes ``[R, 4]`` of rows: x1, y1, x2, y2 in pixels, before the enlargement.

        Raises
        ------
        TableError
            If the table lacks the `FACE_RECT` columns.
        """
        if self.box == "landmarks":
            return landmark_boxes(table.landmarks[rows])
        missing = [name for name in FACE_RECT if name not in table.extra_columns]
        if missing:
            raise TableError(
                f"the table has no column {missing[0]}: only py-feat's tables have the face detector's box; "
                "use the box of the landmarks"
            )
        left, top, width, height = (np.asarray(table.extra_columns[name])[rows] for name in FACE_RECT)
        return np.stack([left, top, left + width, top + height], axis=1)


DEFAULT_CROPPING = Cropping()


@dataclasses.dataclass(frozen=True)
class FaceChunk:
    """Consecutive rows of a landmark table with their crops.

    Attributes
    ----------
    rows : ndarray of int64, shape (R,)
        Row numbers in the table.
    files : list of R str
        The image or video of each row; the name in the table if no given file matches it.
    cropped : ndarray of int64, shape (K,)
        Indices into `rows` of the faces that have a crop.
    crops : ndarray of float32, shape (K, 3, 112, 112)
        Values in [0, 1].
    landmarks : ndarray of float32, shape (K, 68, 2)
        Pixels of the crops.
    reasons : dict of int to str
        Index into `rows` of each face without a crop, and the reason.
    """

    rows: NDArray[np.int64]
    files: list[str]
    cropped: NDArray[np.int64]
    crops: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    reasons: dict[int, str]


def check_media(table: LandmarkTable, media: Sequence[Path]) -> None:
    """Raise a TableError for several files if the table is that of one image (OpenFace's FaceLandmarkImg)."""
    if table.source is None and len(media) > 1 and not table.frame.any() and len(table.frame) > 1:
        raise TableError(f"the table belongs to one image, but {len(media)} files are given: give that image")


def read_chunks(
    table: LandmarkTable,
    reader: FrameReader,
    rows: NDArray[np.int64],
    size: int,
    cropping: Cropping = DEFAULT_CROPPING,
) -> Iterator[FaceChunk]:
    """Cut the faces of `rows`, in their order, `size` rows at a time.

    A row without landmarks, with all landmarks outside its image, or whose image cannot be read gets a reason
    instead of a crop.
    """
    for first in range(0, len(rows), size):
        yield _read_chunk(table, reader, rows[first : first + size], cropping)


def _read_chunk(
    table: LandmarkTable, reader: FrameReader, rows: NDArray[np.int64], cropping: Cropping
) -> FaceChunk:
    boxes = cropping.boxes(table, rows)
    reasons: dict[int, str] = {}
    crops: dict[int, NDArray[np.float32]] = {}
    for index, row in enumerate(rows.tolist()):
        try:
            image = _read_image(table, reader, row)
            crops[index] = cut_faces(image, boxes[index : index + 1], enlarge=cropping.enlarge)[0]
        except MediaError as error:
            reasons[index] = str(error)
    cropped = np.array(list(crops), dtype=np.int64)
    return FaceChunk(
        rows=rows,
        files=[_file_name(table, reader, row) for row in rows.tolist()],
        cropped=cropped,
        crops=np.stack(list(crops.values())) if crops else np.empty((0, 3, 112, 112), dtype=np.float32),
        landmarks=crop_landmarks(table.landmarks[rows[cropped]], boxes[cropped], enlarge=cropping.enlarge),
        reasons=reasons,
    )


def _read_image(table: LandmarkTable, reader: FrameReader, row: int) -> NDArray[np.uint8]:
    if not table.has_face[row]:
        raise MediaError(NO_LANDMARKS)
    image = reader.read(*table.location(row))
    x, y = table.landmarks[row].T
    height, width = image.shape[:2]
    if np.isfinite(x + y).all() and not np.any((x >= 0) & (x < width) & (y >= 0) & (y < height)):
        raise MediaError(
            f"all landmarks are outside the image of {width} x {height} pixels: give the media that the "
            "landmarks were computed from, in the same resolution"
        )
    return image


def _file_name(table: LandmarkTable, reader: FrameReader, row: int) -> str:
    source, frame = table.location(row)
    try:
        return str(reader.file(source, frame))
    except MediaError:
        return source or ""
