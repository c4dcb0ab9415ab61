"""`python -m benchmarks.au_landmarks FACES.npz`: how far AU moves when the landmarks change.

FACES.npz has `frames` ``[N, 3, S, S]``, `landmarks` ``[N, 68, 2]`` in pixels of the frames and, optionally,
`mapped_landmarks`, those of another landmarker. `landmark_map.py --crops` writes such a file with MediaPipe's
points. The table compares AU of each face with AU of the same face with
changed landmarks, for the synthetic checkpoints of `make parity` or for AU_WEIGHTS=FILE.skops. It describes
only these checkpoints.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.speed.au_checkpoints import export_checkpoint, selected_checkpoints
from benchmarks.speed.local_pipeline import LocalPipeline
from benchmarks.speed.page import table

MOVED = 0.05
"""Change of an AU value that counts."""

PIXELS = (1, 2, 3)
DRAWS = 5
"""Random changes of each face."""


def main() -> int:
    """Print the table; return 1 with one line of error when the environment is incomplete."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.au_landmarks", description=__doc__)
    parser.add_argument("faces", type=Path, metavar="FACES.npz")
    arguments = parser.parse_args()
    if not {"AU_WEIGHTS", "PYFEAT_PYTHON"} & set(os.environ):
        print(
            "au_landmarks: set AU_WEIGHTS=FILE.skops, or PYFEAT_PYTHON=.venv-parity/bin/python for the "
            "synthetic checkpoints of `make parity`",
            file=sys.stderr,
        )
        return 1
    with np.load(arguments.faces) as file:
        faces = dict(file)
    changes = _changes(faces["landmarks"])
    if "mapped_landmarks" in faces:
        changes["the points of the other landmarker"] = [faces["mapped_landmarks"]]
    columns = {name: _moved_fractions(path, faces, changes) for name, path in selected_checkpoints().items()}
    print(f"{len(faces['frames'])} faces: AU values that move by more than {MOVED:g}\n")
    rows = [
        [change, *(f"{100 * fractions[change]:.0f} %" for fractions in columns.values())]
        for change in changes
    ]
    print(table(["change of the landmarks", *columns], rows))
    return 0


def _changes(landmarks: np.ndarray) -> dict[str, list[np.ndarray]]:
    """Return the changed landmarks, float32 ``[N, 68, 2]``, of each draw of each change."""
    generator = np.random.default_rng(1)

    def noise(pixels: float) -> np.ndarray:
        directions = generator.uniform(0, 2 * np.pi, landmarks.shape[:2])
        return pixels * np.stack([np.cos(directions), np.sin(directions)], axis=2)

    def shift(pixels: float) -> np.ndarray:
        return noise(pixels)[:, :1]

    kinds = {"each point by {} px in another direction": noise, "all points by {} px in one direction": shift}
    return {
        kind.format(pixels): [(landmarks + draw(pixels)).astype(np.float32) for _ in range(DRAWS)]
        for kind, draw in kinds.items()
        for pixels in PIXELS
    }


def _moved_fractions(
    checkpoint: Path, faces: dict[str, np.ndarray], changes: dict[str, list[np.ndarray]]
) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "au_repository"
        export_checkpoint(checkpoint, repository)
        pipeline = LocalPipeline(1, repository)
        original = pipeline.action_units(faces["frames"], faces["landmarks"])
        return {
            change: float(
                np.mean(
                    [
                        np.abs(pipeline.action_units(faces["frames"], draw) - original) > MOVED
                        for draw in draws
                    ]
                )
            )
            for change, draws in changes.items()
        }


if __name__ == "__main__":
    sys.exit(main())
