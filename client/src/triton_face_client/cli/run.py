"""`triton-face run`: a landmark table and its images or video in, a file of features out."""

import dataclasses
import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from tqdm import tqdm

from triton_face_client.client import FaceFeatureClient
from triton_face_client.pose import subject_pose
from triton_face_client.requests.answers import Answers
from triton_face_client.video.face_chunks import Cropping, FaceChunk, check_media, read_chunks
from triton_face_client.video.feature_files import Features, OutputError, Parts, as_table
from triton_face_client.video.landmark_tables import FaceTable, read_table
from triton_face_client.video.media import FrameReader, MediaError

PART_ROWS = 512
"""Rows of a part: a minute's work at most is done again after an interruption, and a part is some 10 MB."""


@dataclasses.dataclass(frozen=True)
class RunReport:
    """What a run has done.

    Attributes
    ----------
    out : str
        The file.
    rows : int
        Its rows, as many as the landmark table has.
    faces : int
        Rows with HOG features.
    without_landmarks : int
        Rows in which the table has no face.
    refused : int
        Rows whose image could not be read, or whose face the service refused; the column `refused` says why.
    resumed_at : int
        Rows that an interrupted run had done already.
    example : str or None
        One of the refused rows, and why.
    warnings : list of str
        What looks as if the media were not those of the table.
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
) -> RunReport:
    """Compute the features of every row of a landmark table.

    Parameters
    ----------
    client : FaceFeatureClient
        The service.
    media : sequence of Path
        The table's images or video (`find_media`).
    landmarks : Path
        The table (`read_table`).
    out : Path
        The file to make, ``.parquet``, ``.csv`` or ``.npz``, with the table's rows in their order.
    restart : bool
        Replace what is there, instead of refusing a finished file and going on with an unfinished one.
    cropping : Cropping
        Which part of the image is a face's crop.

    Raises
    ------
    TableError, MediaError, OutputError
        When the table, the media as a whole or the file cannot be used.
    FaceServiceError
        When the service fails. What is done is kept; the same call goes on there.
    """
    faces = read_table(landmarks)
    check_media(faces, media)
    if out.resolve() in {path.resolve() for path in (landmarks, *media)}:
        raise OutputError(f"{out} is what the features are to be made of: give another name")
    cropping.boxes(faces, np.zeros(0, dtype=np.int64))
    job = _job(media, landmarks) | dataclasses.asdict(cropping)
    with FrameReader(media, faces.turned, faces.of_one_file) as reader, Parts(out, job, restart) as parts:
        start = parts.next_row()
        rows = np.arange(start, len(faces.frame))
        with tqdm(total=len(faces.frame), initial=start, unit="face", desc=out.name, smoothing=0.05) as bar:
            for part in _in_parts(_features(client, faces, reader, rows, cropping), bar):
                _check_first(part, faces, landmarks)
                parts.write(int(part.rows[0]), as_table(part, faces))
        reasons = parts.column("refused")
        parts.finish(len(faces.frame))
    refused = [row for row, reason in enumerate(reasons) if reason and faces.found[row]]
    return RunReport(
        out=str(out),
        rows=len(reasons),
        faces=reasons.count(None),
        without_landmarks=int((~faces.found).sum()),
        refused=len(refused),
        resumed_at=start,
        example=f"row {refused[0]}: {reasons[refused[0]]}" if refused else None,
        warnings=_warnings(faces, media, landmarks),
    )


def _warnings(faces: FaceTable, media: Sequence[Path], landmarks: Path) -> list[str]:
    """Look for a table that belongs to another video: the one given is read whatever the table names."""
    if faces.source is None or len(media) > 1:
        return []
    names = {PureWindowsPath(source).name for source in faces.source if source}
    if not names or media[0].name in names:
        return []
    return [
        f"{landmarks} names {sorted(names)[0]}, but {media[0].name} was read: is the table of this video?"
    ]


def _job(media: Sequence[Path], landmarks: Path) -> dict[str, Any]:
    """Describe what the features are of, so that a run goes on with the same."""
    return {
        "landmarks": hashlib.sha256(landmarks.read_bytes()).hexdigest(),
        "media": [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in media],
    }


def _features(
    client: FaceFeatureClient, faces: FaceTable, reader: FrameReader, rows: np.ndarray, cropping: Cropping
) -> Iterator[Features]:
    """Answer the rows, chunk by chunk; the next chunks are cut while the server works."""
    size = client.model("ensemble").batch_size
    waiting: deque[FaceChunk] = deque()

    def to_send() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for chunk in read_chunks(faces, reader, rows, size, cropping):
            waiting.append(chunk)
            yield chunk.crops, chunk.landmarks

    for answers in client.stream(to_send(), ["HOG"], on_invalid="nan"):
        chunk = waiting.popleft()
        # The crop is stretched. Pose is a matter of the image's own points, as in py-feat.
        pose = client.pose(faces.landmarks[chunk.rows], on_invalid="nan")
        yield _chunk_features(chunk, answers, subject_pose(pose))


def _chunk_features(chunk: FaceChunk, answers: Answers, pose: np.ndarray) -> Features:
    hog = np.full((len(chunk.rows), answers["HOG"].shape[1]), np.nan, dtype=np.float32)
    hog[chunk.cut] = answers["HOG"]
    refused = {int(chunk.cut[place]): reason for place, reason in answers.refused.items()}
    reasons = chunk.reasons | refused
    return Features(
        rows=chunk.rows,
        files=chunk.files,
        hog=hog,
        pose=pose,
        reasons=[reasons.get(place) for place in range(len(chunk.rows))],
        crops=len(chunk.cut),
    )


def _in_parts(chunks: Iterator[Features], progress: tqdm) -> Iterator[Features]:
    gathered: list[Features] = []
    for chunk in chunks:
        gathered.append(chunk)
        progress.update(len(chunk.rows))
        if sum(len(one.rows) for one in gathered) >= PART_ROWS:
            yield _joined(gathered)
            gathered = []
    if gathered:
        yield _joined(gathered)


def _joined(chunks: Sequence[Features]) -> Features:
    return Features(
        rows=np.concatenate([chunk.rows for chunk in chunks]),
        files=[file for chunk in chunks for file in chunk.files],
        hog=np.concatenate([chunk.hog for chunk in chunks]),
        pose=np.concatenate([chunk.pose for chunk in chunks]),
        reasons=[reason for chunk in chunks for reason in chunk.reasons],
        crops=sum(chunk.crops for chunk in chunks),
    )


def _check_first(part: Features, faces: FaceTable, landmarks: Path) -> None:
    """Stop at once where the media are not those of the table, instead of writing rows of nothing."""
    if part.rows[0] or part.crops or not faces.found[part.rows].any():
        return
    example = int(np.argmax(faces.found[part.rows]))
    raise MediaError(
        f"none of the images of the first {len(part.rows)} rows of {landmarks} can be read; row {example}: "
        f"{part.reasons[example]}"
    )


def as_text(report: RunReport) -> str:
    """Say in a few lines what a run has done."""
    gone_on = f", {report.resumed_at} of them done before" if report.resumed_at else ""
    lines = [
        f"{report.out}: {report.rows} rows{gone_on}; {report.faces} with features, "
        f"{report.without_landmarks} without landmarks, {report.refused} refused"
    ]
    if report.example:
        lines.append(f"refused, for example {report.example} (the column refused has all reasons)")
    return "\n".join(lines + [f"warning: {warning}" for warning in report.warnings])
