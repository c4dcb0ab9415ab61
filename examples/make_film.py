"""Write a sample film and its landmark table in OpenFace's format.

    python -m examples.make_film FOLDER

writes ``FOLDER/film.avi`` and ``FOLDER/film.csv``. The film rotates and enlarges the demo's photograph
(Eileen Collins, NASA, public domain) for four seconds. The table has no face for one frame.
"""

import csv
import sys
from pathlib import Path

import cv2
import numpy as np
from skimage.data import astronaut

from deploy.local.photograph import LANDMARKS_FILE

FRAMES = 100
FRAME_WITHOUT_FACE = 40
SIZE = 320
FACE_CENTRE = np.array([224.0, 110.0])
"""Pixels of the photograph."""


def main(folder: Path) -> None:
    """Write the film and its table."""
    folder.mkdir(parents=True, exist_ok=True)
    landmarks = write_film(folder / "film.avi", FRAMES)
    write_openface_table(folder / "film.csv", landmarks, frame_without_face=FRAME_WITHOUT_FACE)
    print(f"{folder / 'film.avi'} and {folder / 'film.csv'}: {FRAMES} frames")


def write_film(path: Path, frames: int) -> np.ndarray:
    """Write a film as Motion JPEG; return the landmarks in it, float64 ``[frames, 68, 2]``."""
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (SIZE, SIZE))
    points = np.loadtxt(LANDMARKS_FILE, delimiter=",", skiprows=1)
    landmarks = []
    for frame in range(frames):
        motion = film_motion(frame / (frames - 1))
        video.write(cv2.warpAffine(astronaut()[..., ::-1], motion, (SIZE, SIZE), flags=cv2.INTER_AREA))
        landmarks.append(points @ motion[:, :2].T + motion[:, 2])
    video.release()
    return np.array(landmarks)


def film_motion(progress: float) -> np.ndarray:
    """Return the affine ``[2, 3]`` from the photograph to the frame at `progress`, 0 to 1."""
    motion = cv2.getRotationMatrix2D(tuple(FACE_CENTRE), 60 * (progress - 0.5), 1.0 + 0.5 * progress)
    motion[:, 2] += SIZE / 2 - FACE_CENTRE + 15 * np.sin(np.array([4, 6]) * progress)
    return motion


def write_openface_table(path: Path, landmarks: np.ndarray, frame_without_face: int) -> None:
    """Write landmarks ``[frames, 68, 2]`` like OpenFace's FeatureExtraction, with blanks in the header."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        points = [f" {axis}_{i}" for axis in "xy" for i in range(68)]
        writer.writerow(["frame", " face_id", " timestamp", " confidence", " success", *points])
        for frame, face in enumerate(landmarks):
            found = frame != frame_without_face
            start = [frame + 1, 0, frame / 25, 0.98 if found else 0.0, int(found)]
            writer.writerow([*start, *np.round(face.T.ravel() * found, 1)])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
