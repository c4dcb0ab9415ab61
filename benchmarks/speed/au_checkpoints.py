"""Synthetic AU checkpoints in py-feat's format, fitted by py-feat's environment and kept in `build/`.

The project ships no AU weights, so parity and speed are measured with checkpoints of the same structure.
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from export.au.checkpoint import load_au_checkpoint
from export.au.command import export_au
from export.au.graph import Precision
from export.repository import DEFAULT_REPOSITORY
from tests.support.face_data import photo_faces

FOLDER = Path(__file__).parents[2] / "build" / "au_checkpoints"
SCRIPT = Path(__file__).parent / "pyfeat_action_units.py"

FACES = 3000
SEED = 7

PUBLISHED = "xgb, published size"
"""Name of the checkpoint with as many trees, nodes and inputs as py-feat's published AU01 model."""

SETTINGS = {
    PUBLISHED: {"kind": "xgb", "components": [776, 700, 850], "trees": 120, "depth": 8, "seed": 3},
    "xgb, middle, calibrated": {
        "kind": "xgb",
        "components": [200, 150, 300],
        "trees": 80,
        "depth": 6,
        "seed": 2,
        "calibrators": True,
    },
    "xgb, small": {"kind": "xgb", "components": [60, 50, 80], "trees": 40, "depth": 4, "seed": 1},
    "svm, published size": {"kind": "svm", "components": [776, 700, 850], "seed": 4},
    "svm, small": {"kind": "svm", "components": [60, 50, 80], "seed": 6},
}
"""Settings of `pyfeat_action_units.py fit`."""


def synthetic_checkpoint(name: str) -> Path:
    """Return the checkpoint of a name in `SETTINGS`; fit it first if it does not exist."""
    path = FOLDER / f"{name.replace(', ', '_').replace(' ', '_')}.skops"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        run_pyfeat("fit", _training_faces(), partial, json.dumps(SETTINGS[name]))
        partial.rename(path)
    return path


def selected_checkpoints() -> dict[str, Path]:
    """Return the checkpoint of AU_WEIGHTS=FILE.skops, by default all synthetic ones, by name."""
    if weights := os.environ.get("AU_WEIGHTS"):
        return {Path(weights).name: Path(weights)}
    return {name: synthetic_checkpoint(name) for name in SETTINGS}


def export_checkpoint(path: Path, repository: Path, precision: Precision = "float32") -> None:
    """Write the model repository of a checkpoint, as ``python -m export au`` does."""
    export_au(load_au_checkpoint(path), DEFAULT_REPOSITORY, repository, precision)


def run_pyfeat(*arguments: str | Path) -> None:
    """Run `pyfeat_action_units.py` in py-feat's environment, which PYFEAT_PYTHON names."""
    subprocess.run([os.environ["PYFEAT_PYTHON"], str(SCRIPT), *map(str, arguments)], check=True)


def pyfeat_evaluation(checkpoint: Path, frames: np.ndarray, landmarks: np.ndarray) -> dict[str, np.ndarray]:
    """Return the outputs of `pyfeat_action_units.py evaluate` for faces."""
    with tempfile.TemporaryDirectory() as folder:
        faces, outputs = Path(folder) / "faces.npz", Path(folder) / "outputs.npz"
        np.savez(faces, frames=frames, landmarks=landmarks)
        run_pyfeat("evaluate", faces, checkpoint, outputs)
        return dict(np.load(outputs))


def _training_faces() -> Path:
    path = FOLDER / "training_faces.npz"
    if not path.exists():
        frames, landmarks = photo_faces(FACES, SEED)
        np.savez(path, frames=frames, landmarks=landmarks)
    return path
