"""`triton-face plot`: draw the service's results for the faces of a landmark table."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triton_face_client.cli.action_units import served_action_units
from triton_face_client.client import FaceFeatureClient
from triton_face_client.hog_settings import HogSettings
from triton_face_client.plotting.contact_sheet import MAX_FACES, SheetFace, draw_sheet
from triton_face_client.plotting.face_figure import draw_face
from triton_face_client.plotting.picture_files import check_picture_path
from triton_face_client.requests.model_config import ALIGN_MASK_OUTPUTS
from triton_face_client.video.crops import Float
from triton_face_client.video.face_chunks import (
    DEFAULT_CROPPING,
    Cropping,
    FaceChunk,
    check_media,
    read_chunks,
)
from triton_face_client.video.landmark_tables import LandmarkTable, read_table
from triton_face_client.video.media import FrameReader, MediaError, is_image

Outputs = Mapping[str, NDArray[Any]]
"""The outputs of one face by name."""


@dataclasses.dataclass(frozen=True)
class PlotReport:
    """The outcome of a plot.

    Attributes
    ----------
    faces : int
        Faces in the picture, including `refused`.
    refused : int
        Rows without landmarks, with an unreadable image, or with an invalid face.
    out : str
        The picture.
    """

    faces: int
    refused: int
    out: str


def plot(
    client: FaceFeatureClient,
    media: Sequence[Path],
    landmarks: Path,
    out: Path,
    count: int,
    rows: Sequence[int] | None,
    cropping: Cropping = DEFAULT_CROPPING,
) -> PlotReport:
    """Draw one face of a landmark table in detail, or several as a contact sheet.

    Parameters
    ----------
    client : FaceFeatureClient
        Client of the service.
    media : sequence of Path
        The table's images or video (`find_media`). If empty, the files that the table names, relative to the
        current folder or the table's folder.
    landmarks : Path
        The landmark table (`read_table`).
    out : Path
        The picture, with one of `picture_files.SUFFIXES`.
    count : int
        Number of faces, spread evenly over the rows with a face, or over all rows if no row has a face.
    rows : sequence of int or None
        Rows of the table to draw, from 0; overrides `count`.
    cropping : Cropping
        Box of the crops and its enlargement.

    Raises
    ------
    TableError
        If the table cannot be used.
    MediaError
        If `media` is empty and the table names no file, or a file that does not exist.
    ValueError
        If the table lacks a given row, the number of faces is not 1 to `MAX_FACES`, or the picture cannot be
        written.
    FaceServiceError
        If the service fails.
    """
    check_picture_path(out)
    table = read_table(landmarks)
    chosen = _spread_rows(table, count) if rows is None else _checked_rows(table, rows, landmarks)
    if not 1 <= len(chosen) <= MAX_FACES:
        raise ValueError(f"a picture has 1 to {MAX_FACES} faces, not {len(chosen)}")
    if not media:
        table, media = _find_named_media(table, chosen, landmarks)
    check_media(table, media)
    with FrameReader(media, table.exif_applied, table.names_one_file_at_most) as reader:
        chunk = next(read_chunks(table, reader, chosen, len(chosen), cropping))
    action_units = served_action_units(client)
    outputs, reasons = _compute(client, chunk, table.landmarks[chosen], bool(action_units))
    settings = HogSettings.from_parameters(client.model("hog").parameters)
    if len(chosen) == 1 and not reasons:
        _draw_one(out, chunk, table, outputs[0], settings, action_units)
    else:
        faces = [_sheet_face(index, chunk, table, outputs, reasons) for index in range(len(chosen))]
        draw_sheet(out, faces, settings, action_units)
    return PlotReport(faces=len(chosen), refused=len(reasons), out=str(out))


def as_text(report: PlotReport) -> str:
    """Format a report as one line."""
    faces = "1 face" if report.faces == 1 else f"{report.faces} faces"
    without_features = f", {report.refused} of them without features" if report.refused else ""
    return f"{report.out}: {faces}{without_features}"


def _spread_rows(table: LandmarkTable, count: int) -> NDArray[np.int64]:
    has_face = table.has_face
    candidates = np.flatnonzero(has_face) if has_face.any() else np.arange(len(has_face))
    count = min(count, len(candidates))
    # Take the middle row of each of `count` equal parts: the first frames of a video often show no face.
    return candidates[((np.arange(count) + 0.5) * len(candidates) / max(count, 1)).astype(np.int64)]


def _checked_rows(table: LandmarkTable, rows: Sequence[int], landmarks: Path) -> NDArray[np.int64]:
    last = len(table.has_face) - 1
    missing = [row for row in rows if not 0 <= row <= last]
    if missing:
        raise ValueError(f"{landmarks} has no row {missing[0]}: its rows are 0 to {last}")
    return np.array(rows, dtype=np.int64)


def _find_named_media(
    table: LandmarkTable, rows: NDArray[np.int64], landmarks: Path
) -> tuple[LandmarkTable, list[Path]]:
    """Find the files that the table names in `rows`; return the table with their paths, and the paths."""
    sources = [] if table.source is None else [table.source[row] for row in rows]
    names = dict.fromkeys(source for source in sources if source)
    if not names:
        raise MediaError(f"{landmarks} does not name its images or its video: give them as MEDIA")
    files = {source: _find_file(source, landmarks) for source in names}
    renamed = [str(files.get(source, source)) for source in table.source or ()]
    return dataclasses.replace(table, source=renamed), list(dict.fromkeys(files.values()))


def _find_file(source: str, landmarks: Path) -> Path:
    folder = landmarks.parent
    # A table from another machine, maybe with Windows' paths, matches by the file's name alone.
    paths = (Path(source), folder / source, folder / PureWindowsPath(source).name)
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise MediaError(
            f"{landmarks} names {source}, which is neither in the current folder nor beside the table: give "
            "the images or the video as MEDIA"
        )
    return found


def _compute(
    client: FaceFeatureClient, chunk: FaceChunk, landmarks: Float, with_action_units: bool
) -> tuple[dict[int, Outputs], dict[int, str]]:
    """Return outputs of the valid faces and reasons of all others, both by index into the chunk's rows."""
    reasons = dict(chunk.reasons)
    if not len(chunk.cropped):
        return {}, reasons
    aligned = client.align(chunk.crops, chunk.landmarks, ALIGN_MASK_OUTPUTS, on_invalid="nan")
    names = ["HOG", "AU"] if with_action_units else ["HOG"]
    features = client.features(chunk.crops, chunk.landmarks, names, on_invalid="nan")
    # The crop is stretched; like py-feat, compute pose from the landmarks in the image.
    pose = client.pose(landmarks[chunk.cropped].astype(np.float32), on_invalid="nan")
    arrays = {**aligned, **features, "POSE": pose}
    invalid = aligned.refused | features.refused
    outputs: dict[int, Outputs] = {}
    for face, index in enumerate(chunk.cropped.tolist()):
        if face in invalid:
            reasons[index] = invalid[face]
        else:
            outputs[index] = {name: values[face] for name, values in arrays.items()}
    return outputs, reasons


def _draw_one(
    out: Path,
    chunk: FaceChunk,
    table: LandmarkTable,
    face: Outputs,
    settings: HogSettings,
    action_units: Sequence[str],
) -> None:
    scale, _ = _image_to_crop(table.landmarks[chunk.rows[0]], chunk.landmarks[0])
    draw_face(out, chunk.crops[0], chunk.landmarks[0], face, settings, scale[0] / scale[1], action_units)


def _sheet_face(
    index: int,
    chunk: FaceChunk,
    table: LandmarkTable,
    outputs: Mapping[int, Outputs],
    reasons: Mapping[int, str],
) -> SheetFace:
    row = int(chunk.rows[index])
    name = _location_name(chunk.files[index], int(table.frame[row]))
    crop_index = np.flatnonzero(chunk.cropped == index)
    if index in reasons:
        crop = chunk.crops[crop_index[0]] if len(crop_index) else None
        return SheetFace(row, name, crop=crop, reason=reasons[index])
    face = outputs[index]
    scale, shift = _image_to_crop(table.landmarks[row], chunk.landmarks[crop_index[0]])
    linear, offset = face["AFFINE"][:, :2], face["AFFINE"][:, 2]
    affine = np.column_stack([linear * scale, linear @ shift + offset])
    return SheetFace(row, name, outputs={**face, "AFFINE": affine})


def _image_to_crop(image: Float, crop: Float) -> tuple[Float, Float]:
    """Return the scale and shift, each ``[2]``, that map landmarks ``[68, 2]`` of the image to the crop."""
    scale: Float = np.ptp(crop, axis=0) / np.ptp(image, axis=0)
    return scale, crop[0] - scale * image[0]


def _location_name(file: str, frame: int) -> str:
    # PureWindowsPath splits at both slashes: tables may be made on Windows.
    name = PureWindowsPath(file).name
    if is_image(Path(name)):
        return name
    return f"{name}, frame {frame}" if name else f"frame {frame}"
