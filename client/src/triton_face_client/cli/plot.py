"""`triton-face plot`: look at what the service makes of a table's faces."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath

import numpy as np

from triton_face_client.client import FaceFeatureClient
from triton_face_client.plotting.drawing import (
    MOST_FACES,
    SheetFace,
    check_picture_path,
    draw_face,
    draw_sheet,
)
from triton_face_client.requests.model_config import ALIGN_MASK_OUTPUTS
from triton_face_client.video.face_chunks import BY_LANDMARKS, Cropping, FaceChunk, check_media, read_chunks
from triton_face_client.video.landmark_tables import FaceTable, read_table
from triton_face_client.video.media import FrameReader, MediaError, is_image


@dataclasses.dataclass(frozen=True)
class PlotReport:
    """What has been drawn.

    Attributes
    ----------
    faces : int
        Faces in the picture, those refused among them.
    refused : int
        Rows without landmarks, whose image could not be read, or whose face the service refused.
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
    cropping: Cropping = BY_LANDMARKS,
) -> PlotReport:
    """Draw one face of a landmark table in detail, or many as a contact sheet.

    Parameters
    ----------
    client : FaceFeatureClient
        The service.
    media : sequence of Path
        The table's images or video (`find_media`). If empty, those that the table names, from the current
        folder or else beside the table.
    landmarks : Path
        The table (`read_table`).
    out : Path
        The picture, with one of `drawing.SUFFIXES`.
    count : int
        Faces to draw, spread evenly over the rows that have one, or over all if none has.
    rows : sequence of int or None
        These rows of the table, from 0, instead.
    cropping : Cropping
        Which part of the image is a face's crop.

    Raises
    ------
    TableError, MediaError
        When the table or the media as a whole cannot be used.
    ValueError
        When a row is not in the table, for no or too many faces, or when the picture cannot be written.
    FaceServiceError
        When the service fails.
    """
    check_picture_path(out)
    table = read_table(landmarks)
    chosen = _spread_rows(table, count) if rows is None else _given_rows(table, rows, landmarks)
    if not 1 <= len(chosen) <= MOST_FACES:
        raise ValueError(f"a picture has 1 to {MOST_FACES} faces, not {len(chosen)}")
    if not media:
        table, media = _named_media(table, chosen, landmarks)
    check_media(table, media)
    with FrameReader(media, table.turned, table.of_one_file) as reader:
        chunk = next(read_chunks(table, reader, chosen, len(chosen), cropping))
    answers, reasons = _ask(client, chunk, table.landmarks[chosen])
    if len(chosen) == 1 and not reasons:
        _draw_one(out, chunk, table, answers[0])
    else:
        draw_sheet(out, [_sheet_face(place, chunk, table, answers, reasons) for place in range(len(chosen))])
    return PlotReport(faces=len(chosen), refused=len(reasons), out=str(out))


def as_text(report: PlotReport) -> str:
    """Say in a line what has been drawn."""
    faces = "1 face" if report.faces == 1 else f"{report.faces} faces"
    return f"{report.out}: {faces}" + (f", {report.refused} of them without features" * bool(report.refused))


def _spread_rows(table: FaceTable, count: int) -> np.ndarray:
    candidates = np.flatnonzero(table.found) if table.found.any() else np.arange(len(table.found))
    count = min(count, len(candidates))
    # The middle of each of `count` equal parts: the first frames of a video are seldom the interesting ones.
    return candidates[((np.arange(count) + 0.5) * len(candidates) / max(count, 1)).astype(np.int64)]


def _given_rows(table: FaceTable, rows: Sequence[int], landmarks: Path) -> np.ndarray:
    last = len(table.found) - 1
    strange = [row for row in rows if not 0 <= row <= last]
    if strange:
        raise ValueError(f"{landmarks} has no row {strange[0]}: its rows are 0 to {last}")
    return np.array(rows, dtype=np.int64)


def _named_media(table: FaceTable, rows: np.ndarray, landmarks: Path) -> tuple[FaceTable, list[Path]]:
    """Find the files that the table names for `rows`; its sources become their paths."""
    sources = [] if table.source is None else [table.source[row] for row in rows]
    names = dict.fromkeys(source for source in sources if source)
    if not names:
        raise MediaError(f"{landmarks} does not name the images or the video it is of: give them as well")
    files = {source: _named_file(source, landmarks) for source in names}
    renamed = [str(files.get(source, source)) for source in table.source or ()]
    return dataclasses.replace(table, source=renamed), list(dict.fromkeys(files.values()))


def _named_file(source: str, landmarks: Path) -> Path:
    beside = landmarks.parent
    # Tables come from other machines, Windows among them: there the name alone tells.
    places = (Path(source), beside / source, beside / PureWindowsPath(source).name)
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise MediaError(
            f"{landmarks} names {source}, which is neither in the current folder nor beside the table: give "
            "the images or the video as well"
        )
    return found


def _ask(
    client: FaceFeatureClient, chunk: FaceChunk, landmarks: np.ndarray
) -> tuple[dict[int, dict[str, np.ndarray]], dict[int, str]]:
    """Return each answered face's outputs, and why the others have none, by their place in the chunk."""
    reasons = dict(chunk.reasons)
    if not len(chunk.cut):
        return {}, reasons
    faces = client.align(chunk.crops, chunk.landmarks, ALIGN_MASK_OUTPUTS, on_invalid="nan")
    features = client.features(chunk.crops, chunk.landmarks, ["HOG"], on_invalid="nan")
    # The crop is stretched. Pose is a matter of the image's own points, as in py-feat.
    pose = client.pose(landmarks[chunk.cut].astype(np.float32), on_invalid="nan")
    outputs = {**faces, **features, "POSE": pose}
    refused = faces.refused | features.refused
    answers = {}
    for i, place in enumerate(chunk.cut.tolist()):
        if i in refused:
            reasons[place] = refused[i]
        else:
            answers[place] = {name: values[i] for name, values in outputs.items()}
    return answers, reasons


def _draw_one(out: Path, chunk: FaceChunk, table: FaceTable, face: Mapping[str, np.ndarray]) -> None:
    scale, _ = _image_to_crop(table.landmarks[chunk.rows[0]], chunk.landmarks[0])
    draw_face(out, chunk.crops[0], chunk.landmarks[0], face, pixel_aspect=scale[0] / scale[1])


def _sheet_face(
    place: int,
    chunk: FaceChunk,
    table: FaceTable,
    answers: Mapping[int, Mapping[str, np.ndarray]],
    reasons: Mapping[int, str],
) -> SheetFace:
    row = int(chunk.rows[place])
    name = _place_name(chunk.files[place], int(table.frame[row]))
    cut = np.flatnonzero(chunk.cut == place)
    if place in reasons:
        crop = chunk.crops[cut[0]] if len(cut) else None
        return SheetFace(row, name, crop=crop, reason=reasons[place])
    face = answers[place]
    scale, shift = _image_to_crop(table.landmarks[row], chunk.landmarks[cut[0]])
    linear, offset = face["AFFINE"][:, :2], face["AFFINE"][:, 2]
    affine = np.column_stack([linear * scale, linear @ shift + offset])
    return SheetFace(row, name, face={**face, "AFFINE": affine})


def _image_to_crop(image: np.ndarray, crop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and shift ``[2]``, x and y, that took landmarks ``[68, 2]`` from the image to the crop."""
    scale = np.ptp(crop, axis=0) / np.ptp(image, axis=0)
    return scale, crop[0] - scale * image[0]


def _place_name(file: str, frame: int) -> str:
    # A table of another machine may name a file that is not here as Windows does.
    name = PureWindowsPath(file).name
    if is_image(Path(name)):
        return name
    return f"{name}, frame {frame}" if name else f"frame {frame}"
