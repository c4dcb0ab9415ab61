"""Plot head pose and the change of the HOG features over time, from a video and its landmark table.

    python -m examples.pose_over_time VIDEO TABLE OUT.png      # with `make serve` running

The script repeats the steps of `triton-face run`: read the table, cut the faces as py-feat does, stream them
through the server while reading the next frames, and compute pose from the landmarks in the image.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from triton_face_client import FaceFeatureClient, subject_pose
from triton_face_client.video.face_chunks import FaceChunk, read_chunks
from triton_face_client.video.landmark_tables import read_table
from triton_face_client.video.media import FrameReader

ANGLES = ("pitch, + up", "roll, + to the subject's right", "yaw, + to the subject's right")


def main(video: Path, table: Path, picture: Path) -> None:
    """Compute HOG features and pose of every row; plot pose and the change of the HOG features."""
    faces = read_table(table)
    pending: list[FaceChunk] = []

    def chunks(reader: FrameReader) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for chunk in read_chunks(faces, reader, np.arange(len(faces.frame)), 32):
            pending.append(chunk)
            yield chunk.crops, chunk.landmarks

    url = os.environ.get("TRITON_FACE_URL", "127.0.0.1:8001")
    with FaceFeatureClient(url) as client, FrameReader([video], faces.exif_applied) as reader:
        _, dims = client.model("ensemble").outputs["HOG"]
        hog = np.full((len(faces.frame), *dims), np.nan, dtype=np.float32)
        for answers in client.stream(chunks(reader), ["HOG"], on_invalid="nan"):
            chunk = pending.pop(0)
            hog[chunk.rows[chunk.cropped]] = answers["HOG"]
        pose = subject_pose(client.pose(faces.landmarks, on_invalid="nan"))
    draw(picture, faces.frame, np.degrees(pose[:, :3]), np.linalg.norm(np.diff(hog, axis=0), axis=1))
    print(f"{picture}: {np.isfinite(hog).all(axis=1).sum()} of {len(hog)} rows have features")


def draw(picture: Path, frame: np.ndarray, degrees: np.ndarray, change: np.ndarray) -> None:
    """Plot angles ``[N, 3]`` and changes ``[N - 1]`` over the frames."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    pose_panel, change_panel = figure.subplots(2, 1, sharex=True)
    for angle, name in zip(degrees.T, ANGLES, strict=True):
        pose_panel.plot(frame, angle, label=name)
    pose_panel.set(ylabel="degrees", title="Head pose")
    pose_panel.legend(fontsize=8)
    change_panel.plot(frame[1:], change, color="tab:gray")
    change_panel.set(
        xlabel="frame", ylabel="distance", title="Change of the HOG features from frame to frame"
    )
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:4]))
