"""`make demo`: its tables and its picture."""

import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from deploy.local.photograph import photograph
from deploy.local.server import PROJECT
from tests.support import oracles


@pytest.fixture(scope="module")
def printed() -> str:
    """Return the standard output of the demo."""
    (PROJECT / "build" / "demo.png").unlink(missing_ok=True)
    outcome = subprocess.run(
        [sys.executable, "-m", "deploy.local.demo"], capture_output=True, text=True, cwd=PROJECT, check=False
    )
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout


def test_prints_versions_shapes_pose_and_times(printed: str):
    assert re.search(r"^triton 2\.51\.0$", printed, re.MULTILINE)
    for model in ("align_mask", "ensemble", "hog", "pose_mlp"):
        assert re.search(rf"^  {model} +version 1  READY$", printed, re.MULTILINE)
        assert re.search(rf"^{model} +\d+\.\d+ +\d+\.\d+$", printed, re.MULTILINE)
    assert re.search(r"^HOG +float32 +\[1, 5408\]", printed, re.MULTILINE)
    assert re.search(r"^of the subject( +-?\d+\.\d){3}$", printed, re.MULTILINE)


def test_draws_picture(printed: str):
    path = Path(re.search(r"^picture: (.*)$", printed, re.MULTILINE).group(1))
    picture = matplotlib.image.imread(path)
    assert min(picture.shape[:2]) > 600
    assert len(np.unique((picture[..., :3] * 255).astype(np.uint8).reshape(-1, 3), axis=0)) > 1000


def test_landmarks_of_photograph_lie_on_face():
    """The face is more red than blue, and an eye is darker than the cheek."""
    crop, landmarks = photograph()
    assert (landmarks > 0).all()
    assert (landmarks < crop.shape[2]).all()
    face = oracles.exact_hull_mask(landmarks.astype(int), crop.shape[1])
    red, _, blue = crop[:, face].mean(axis=1)
    assert red > blue + 0.1
    eye = oracles.exact_hull_mask(landmarks[36:42].round().astype(int), crop.shape[1])
    cheek = crop[:, int(landmarks[29, 1]), int(landmarks[39, 0])]
    assert crop[:, eye].mean() < cheek.mean()
