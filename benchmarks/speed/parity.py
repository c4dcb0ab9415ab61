"""`make parity`: the served answers beside py-feat's own, counted in faces that differ.

By default on faces cut out of the demo's photograph. FACES=FILE.npz names others: `frames` float32
``[N, 3, 112, 112]`` in [0, 1] and `landmarks` float32 ``[N, 68, 2]`` in their pixels.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from deploy.local import LocalServer
from deploy.local.server import DEFAULT_REPOSITORY
from export.pose.command import export_pose
from export.pose.origin import DEFAULT_CHECKPOINT
from tests.support.face_data import CROP, photo_faces
from triton_face_client import FaceFeatureClient
from triton_face_client.requests.model_config import ALIGN_MASK_OUTPUTS

PEER = Path(__file__).parent / "pyfeat_functions.py"
FACES = 500
SERVED_BATCH = 100

TOLERANCE = {"HOG": 1e-5, "POSE": 1e-5}
"""Of the others every bit counts."""

LEAST_EQUAL = 0.97
"""Share of faces that must agree in HOG; in the others all must."""

Answers = dict[str, np.ndarray]


def main() -> int:
    """Print the table; return 1 when too many faces differ."""
    frames, landmarks = _faces()
    with tempfile.TemporaryDirectory() as folder:
        peer = _peer_answers(frames, landmarks, Path(folder))
        served = _served_answers(frames, landmarks, Path(folder))
    print(f"{len(frames)} faces          differing   largest difference   counted beyond")
    passed = True
    for name, expected in peer.items():
        answer = served[name].astype(np.float64)
        if name == "POSE":  # the angles, in radians; Z is some 100 times as large
            answer, expected = answer[:, :3], expected[:, :3]
        difference = np.abs(answer - expected).reshape(len(frames), -1).max(axis=1)
        limit = TOLERANCE.get(name, 0.0)
        differing = int((difference > limit).sum())
        allowed = int((1 - LEAST_EQUAL) * len(frames)) if name == "HOG" else 0
        passed &= differing <= allowed
        print(f"{name:<19} {differing:>9}   {difference.max():>18.2e}   {limit:>14g}")
    return 0 if passed else 1


def _faces() -> tuple[np.ndarray, np.ndarray]:
    if "FACES" not in os.environ:
        frames, landmarks = photo_faces(FACES, 2026)
    else:
        file = np.load(os.environ["FACES"])
        frames, landmarks = file["frames"].astype(np.float32), file["landmarks"].astype(np.float32)
    # py-feat takes landmarks as shares of the crop; what both sides get is what comes back from that.
    return frames, (landmarks / np.float32(CROP)) * np.float32(CROP)


def _peer_answers(frames: np.ndarray, landmarks: np.ndarray, folder: Path) -> Answers:
    faces, answers = folder / "faces.npz", folder / "answers.npz"
    np.savez(faces, frames=frames, landmarks=landmarks)
    python = os.environ["PYFEAT_PYTHON"]
    subprocess.run([python, str(PEER), str(faces), str(DEFAULT_CHECKPOINT), str(answers)], check=True)
    return dict(np.load(answers))


def _served_answers(frames: np.ndarray, landmarks: np.ndarray, folder: Path) -> Answers:
    """Serve a copy of the repository whose pose model is that of the checkpoint given to py-feat."""
    repository = shutil.copytree(DEFAULT_REPOSITORY, folder / "model_repository")
    export_pose(repository, DEFAULT_CHECKPOINT)
    batches = []
    with LocalServer(repository) as server, FaceFeatureClient(server.grpc_url) as client:
        for first in range(0, len(frames), SERVED_BATCH):
            batch = frames[first : first + SERVED_BATCH], landmarks[first : first + SERVED_BATCH]
            batches.append(client.features(*batch) | client.align(*batch, ALIGN_MASK_OUTPUTS))
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


if __name__ == "__main__":
    sys.exit(main())
