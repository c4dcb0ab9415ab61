"""`make parity`: compare the service's outputs with py-feat's and count the faces that differ.

The default faces are crops of the demo's photograph. FACES=FILE.npz selects others: `frames` float32
``[N, 3, 112, 112]`` in [0, 1] and `landmarks` float32 ``[N, 68, 2]`` in pixels of the crops.
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
from export.hog.command import export_hog
from export.hog.settings import HogSettings
from export.pose.command import export_pose
from export.pose.origin import DEFAULT_CHECKPOINT
from tests.support.face_data import CROP, photo_faces
from triton_face_client import FaceFeatureClient
from triton_face_client.requests.model_config import ALIGN_MASK_OUTPUTS

PYFEAT_SCRIPT = Path(__file__).parent / "pyfeat_functions.py"
FACES = 500
SERVED_BATCH = 100

TOLERANCE = {"HOG": 1e-5, "POSE": 1e-5}
"""Largest accepted difference; all other outputs must be bit-identical."""

MIN_EQUAL_FRACTION = 0.97
"""Least fraction of faces whose HOG must be equal. All other outputs must be equal for every face."""

Outputs = dict[str, np.ndarray]


def main() -> int:
    """Print the table; return 1 when too many faces differ."""
    frames, landmarks = parity_faces()
    with tempfile.TemporaryDirectory() as folder:
        pyfeat = _pyfeat_outputs(frames, landmarks, Path(folder))
        served = _served_outputs(frames, landmarks, Path(folder))
    print(f"{len(frames)} faces          differing   largest difference   counted beyond")
    passed = True
    for name, expected in pyfeat.items():
        output = served[name].astype(np.float64)
        if name == "POSE":  # compare the angles, in radians; Z is about 100 times as large
            output, expected = output[:, :3], expected[:, :3]
        difference = np.abs(output - expected).reshape(len(frames), -1).max(axis=1)
        limit = TOLERANCE.get(name, 0.0)
        differing = int((difference > limit).sum())
        allowed = int((1 - MIN_EQUAL_FRACTION) * len(frames)) if name == "HOG" else 0
        passed &= differing <= allowed
        print(f"{name:<19} {differing:>9}   {difference.max():>18.2e}   {limit:>14g}")
    return 0 if passed else 1


def parity_faces() -> tuple[np.ndarray, np.ndarray]:
    """Return the frames and landmarks of FACES, by default of the photograph."""
    if "FACES" not in os.environ:
        frames, landmarks = photo_faces(FACES, 2026)
    else:
        file = np.load(os.environ["FACES"])
        frames, landmarks = file["frames"].astype(np.float32), file["landmarks"].astype(np.float32)
    # py-feat gets landmarks as fractions of the crop. The round trip gives both the same float32 pixels.
    return frames, (landmarks / np.float32(CROP)) * np.float32(CROP)


def _pyfeat_outputs(frames: np.ndarray, landmarks: np.ndarray, folder: Path) -> Outputs:
    faces, outputs = folder / "faces.npz", folder / "outputs.npz"
    np.savez(faces, frames=frames, landmarks=landmarks)
    python = os.environ["PYFEAT_PYTHON"]
    subprocess.run(
        [python, str(PYFEAT_SCRIPT), str(faces), str(DEFAULT_CHECKPOINT), str(outputs)], check=True
    )
    return dict(np.load(outputs))


def _served_outputs(frames: np.ndarray, landmarks: np.ndarray, folder: Path) -> Outputs:
    """Serve a copy of the repository with the HOG settings and the pose checkpoint that py-feat uses."""
    repository = shutil.copytree(DEFAULT_REPOSITORY, folder / "model_repository")
    export_hog(repository, CROP, **vars(HogSettings()))
    export_pose(repository, DEFAULT_CHECKPOINT)
    batches = []
    with LocalServer(repository) as server, FaceFeatureClient(server.grpc_url) as client:
        for first in range(0, len(frames), SERVED_BATCH):
            batch = frames[first : first + SERVED_BATCH], landmarks[first : first + SERVED_BATCH]
            batches.append(client.features(*batch) | client.align(*batch, ALIGN_MASK_OUTPUTS))
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


if __name__ == "__main__":
    sys.exit(main())
