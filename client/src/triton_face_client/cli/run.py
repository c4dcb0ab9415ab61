"""`triton-face run`: compute the features of a landmark table and its images or video."""

import dataclasses
import hashlib
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from triton_face_client.cli.action_units import check_checkpoints, served_action_units, served_checkpoint
from triton_face_client.client import FaceFeatureClient
from triton_face_client.hog_settings import HogSettings
from triton_face_client.pose import subject_pose
from triton_face_client.requests.answers import Answers
from triton_face_client.requests.model_config import features_model
from triton_face_client.video.face_chunks import Cropping, FaceChunk, check_media, read_chunks
from triton_face_client.video.feature_files import (
    Columns,
    Features,
    FeatureWriter,
    OutputError,
    feature_table,
)
from triton_face_client.video.landmark_tables import LandmarkTable, read_table
from triton_face_client.video.media import FrameReader, MediaError

PART_ROWS = 512
"""Rows in each part, some 10 MB. ``FILE.parts/`` collects the parts until the run is complete.

After an interruption, at most a minute's work is repeated.
"""


@dataclasses.dataclass(frozen=True)
class RunReport:
    """The outcome of a run.

    Attributes
    ----------
    out : str
        The feature file.
    rows : int
        Rows of the feature file and of the landmark table.
    faces : int
        Rows with a valid face, whose HOG features and action units can be computed.
    without_landmarks : int
        Rows whose landmarks are missing in the table.
    refused : int
        Rows with landmarks, but with an unreadable image or an invalid face; the column `refused` has the
        reasons.
    resumed_at : int
        Rows that an interrupted run had already computed.
    example : str or None
        The first of the `refused` rows with its reason.
    warnings : list of str
        Signs that the media do not belong to the table.
    """

    out: str
    rows: int
    faces: int
    without_landmarks: int
    refused: int
    resumed_at: int
    example: str | None
    warnings: list[str]


def run(
    client: FaceFeatureClient,
    media: Sequence[Path],
    landmarks: Path,
    out: Path,
    restart: bool,
    cropping: Cropping,
    groups: Collection[str] | None = None,
    servers: Sequence[FaceFeatureClient] = (),
) -> RunReport:
    """Compute the features of every row of a landmark table.

    Parameters
    ----------
    client : FaceFeatureClient
        Client of the service.
    media : sequence of Path
        The table's images or video (`find_media`).
    landmarks : Path
        The landmark table (`read_table`).
    out : Path
        The feature file, ``.parquet``, ``.csv`` or ``.npz``, with the table's rows in their order.
    restart : bool
        Replace an existing file or parts. If False, an existing file is an error and parts are resumed.
    cropping : Cropping
        Box of the crops and its enlargement.
    groups : collection of str, optional
        Groups of columns to compute and write: any of "pose", "landmarks", "au", "hog"; by default all that
        the server computes.
    servers : sequence of FaceFeatureClient
        A client of each server, to compare their AU checkpoints; by default `client`.

    Raises
    ------
    TableError, OutputError
        If the table or the output cannot be used.
    MediaError
        If `media` is empty, or no row with landmarks in the first part has a readable image.
    FaceServiceError
        If the service fails, in which case finished rows are kept and the same call resumes after them; or
        if `groups` has "au" and the server computes no action units; or if servers have different AU
        checkpoints, also during the run.
    """
    table = read_table(landmarks)
    check_media(table, media)
    if out.resolve() in {path.resolve() for path in (landmarks, *media)}:
        raise OutputError(f"{out} is an input of this run: give another name")
    # Raise an error before the first request if the table lacks the columns of the box.
    cropping.boxes(table, np.zeros(0, dtype=np.int64))
    columns = _choose_columns(client, groups)
    job = _identify_inputs(media, landmarks) | dataclasses.asdict(cropping)
    job["columns"] = [*sorted(columns.groups), *columns.action_units]
    if "hog" in columns.groups:
        job["hog"] = dataclasses.asdict(HogSettings.from_parameters(client.model("hog").parameters))
    if columns.action_units:
        servers = servers or (client,)
        job["au_weights"] = served_checkpoint(servers[0])
        check_checkpoints(servers, job["au_weights"])
    reader = FrameReader(media, table.exif_applied, table.names_one_file_at_most)
    with reader, FeatureWriter(out, job, restart) as writer:
        start = writer.next_row()
        rows = np.arange(start, len(table.frame))
        with tqdm(total=len(table.frame), initial=start, unit="face", desc=out.name, smoothing=0.05) as bar:
            for part in _in_parts(_features(client, table, reader, rows, cropping, columns), bar):
                _check_first_part(part, table, landmarks)
                if columns.action_units:
                    # A server may have been restarted with another checkpoint.
                    check_checkpoints(servers, job["au_weights"])
                writer.write(int(part.rows[0]), feature_table(part, table, columns))
        reasons = writer.column("refused")
        writer.finish(len(table.frame))
    refused = [row for row, reason in enumerate(reasons) if reason and table.has_face[row]]
    return RunReport(
        out=str(out),
        rows=len(reasons),
        faces=reasons.count(None),
        without_landmarks=int((~table.has_face).sum()),
        refused=len(refused),
        resumed_at=start,
        example=f"row {refused[0]}: {reasons[refused[0]]}" if refused else None,
        warnings=_warnings(table, media, landmarks),
    )


def _choose_columns(client: FaceFeatureClient, groups: Collection[str] | None) -> Columns:
    if groups is None:
        return Columns(frozenset(("pose", "landmarks", "hog")), served_action_units(client))
    action_units = client.action_unit_names() if "au" in groups else ()
    return Columns(frozenset(groups) - {"au"}, action_units)


def _warnings(table: LandmarkTable, media: Sequence[Path], landmarks: Path) -> list[str]:
    """Warn if the only given file is not among the files that the table names."""
    if table.source is None or len(media) > 1:
        return []
    names = {PureWindowsPath(source).name for source in table.source if source}
    if not names or media[0].name in names:
        return []
    return [
        f"{landmarks} names {sorted(names)[0]}, but {media[0].name} was read: check that they belong together"
    ]


def _identify_inputs(media: Sequence[Path], landmarks: Path) -> dict[str, Any]:
    """Identify the inputs, so that a run resumes only parts of the same inputs."""
    return {
        "landmarks": hashlib.sha256(landmarks.read_bytes()).hexdigest(),
        "media": [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in media],
    }


def _features(
    client: FaceFeatureClient,
    table: LandmarkTable,
    reader: FrameReader,
    rows: NDArray[np.int64],
    cropping: Cropping,
    columns: Columns,
) -> Iterator[Features]:
    """Compute the rows chunk by chunk; the client reads the next chunks while the server works."""
    outputs = _outputs_to_request(columns)
    size = client.model(features_model(outputs)).batch_size
    pending: deque[FaceChunk] = deque()

    def chunks() -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        for chunk in read_chunks(table, reader, rows, size, cropping):
            pending.append(chunk)
            yield chunk.crops, chunk.landmarks

    for answers in client.stream(chunks(), outputs, on_invalid="nan"):
        chunk = pending.popleft()
        features = _chunk_features(chunk, answers)
        if "pose" in columns.groups:
            # The crop is stretched; like py-feat, compute pose from the landmarks in the image.
            pose = client.pose(table.landmarks[chunk.rows], on_invalid="nan")
            features.arrays["POSE"] = subject_pose(pose)
        yield features


def _outputs_to_request(columns: Columns) -> list[str]:
    """Return the outputs of the columns; AFFINE, the smallest, if only reasons of invalid faces matter."""
    is_needed = {"HOG": "hog" in columns.groups, "AU": bool(columns.action_units)}
    return [name for name, needed in is_needed.items() if needed] or ["AFFINE"]


def _chunk_features(chunk: FaceChunk, answers: Answers) -> Features:
    arrays = {}
    for name in {"HOG", "AU"} & set(answers):
        arrays[name] = np.full((len(chunk.rows), answers[name].shape[1]), np.nan, dtype=np.float32)
        arrays[name][chunk.cropped] = answers[name]
    invalid = {int(chunk.cropped[face]): reason for face, reason in answers.refused.items()}
    reasons = chunk.reasons | invalid
    return Features(
        rows=chunk.rows,
        files=chunk.files,
        arrays=arrays,
        reasons=[reasons.get(index) for index in range(len(chunk.rows))],
        crop_count=len(chunk.cropped),
    )


def _in_parts(chunks: Iterator[Features], progress: "tqdm[Any]") -> Iterator[Features]:
    gathered: list[Features] = []
    for chunk in chunks:
        gathered.append(chunk)
        progress.update(len(chunk.rows))
        if sum(len(features.rows) for features in gathered) >= PART_ROWS:
            yield _joined(gathered)
            gathered = []
    if gathered:
        yield _joined(gathered)


def _joined(chunks: Sequence[Features]) -> Features:
    return Features(
        rows=np.concatenate([chunk.rows for chunk in chunks]),
        files=[file for chunk in chunks for file in chunk.files],
        arrays={name: np.concatenate([chunk.arrays[name] for chunk in chunks]) for name in chunks[0].arrays},
        reasons=[reason for chunk in chunks for reason in chunk.reasons],
        crop_count=sum(chunk.crop_count for chunk in chunks),
    )


def _check_first_part(part: Features, table: LandmarkTable, landmarks: Path) -> None:
    """Stop early if no image of the first part can be read: the media do not belong to the table."""
    is_first = part.rows[0] == 0
    if not is_first or part.crop_count or not table.has_face[part.rows].any():
        return
    example = int(np.argmax(table.has_face[part.rows]))
    raise MediaError(
        f"no image of the first {len(part.rows)} rows of {landmarks} can be read; row {example}: "
        f"{part.reasons[example]}"
    )


def as_text(report: RunReport) -> str:
    """Format a report as a few lines."""
    resumed = f", {report.resumed_at} of them from an earlier run" if report.resumed_at else ""
    lines = [
        f"{report.out}: {report.rows} rows{resumed}; {report.faces} with features, "
        f"{report.without_landmarks} without landmarks, {report.refused} refused"
    ]
    if report.example:
        lines.append(f"refused, for example {report.example} (the column refused has all reasons)")
    return "\n".join(lines + [f"warning: {warning}" for warning in report.warnings])
