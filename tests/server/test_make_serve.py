"""`make serve` with AU_WEIGHTS, run by make: exports the action units, then serves both repositories."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local.server import PROJECT
from tests.acceptance.target import AU_ENSEMBLE, frame_inputs, infer
from tests.support.face_data import photo_faces
from tests.support.make_serve import FREE_PORTS, STOP_SECONDS, read_until_ready
from triton_face_client import FaceFeatureClient

MODELS = ("hog", "pose_mlp")


def make_serve(repository: Path, weights: Path, au_repository: Path) -> "subprocess.Popen[str]":
    """Run make with the running Python's environment, without updating it or the project's own models."""
    environment = Path(sys.prefix)
    current = [
        environment / "bin" / ".installed",
        *(f"model_repository/{name}/1/model.onnx" for name in MODELS),
    ]
    variables = {
        "VENV": environment,
        "MODEL_REPOSITORY": repository,
        "AU_WEIGHTS": weights,
        "AU_REPOSITORY": au_repository,
    }
    return subprocess.Popen(
        [
            *("make", "serve"),
            *(f"--old-file={path}" for path in current),
            *(f"{name}={value}" for name, value in variables.items()),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
        # `make test` sets MAKELEVEL, which changes make's messages.
        env=os.environ | FREE_PORTS | {"MAKELEVEL": "0", "MAKEFLAGS": ""},
        start_new_session=True,
    )


@pytest.mark.slow
def test_serves_the_action_units_of_a_checkpoint(
    repository: Path, au_checkpoints: dict[str, Path], tmp_path: Path
):
    weights = shutil.copy2(au_checkpoints["xgb"], tmp_path / "my weights.skops")
    process = make_serve(repository, weights, tmp_path / "au repository")
    try:
        lines = read_until_ready(process)
        with FaceFeatureClient(lines["gRPC"]) as client:
            action_units = infer(client, AU_ENSEMBLE, frame_inputs(*photo_faces(2, 690)), ["AU"])["AU"]
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=STOP_SECONDS)
    assert action_units.shape == (2, 20)


@pytest.mark.parametrize("content", [None, b"no checkpoint"], ids=["missing", "another file"])
def test_wrong_checkpoint_is_an_error_of_one_line(repository: Path, tmp_path: Path, content: bytes | None):
    weights = tmp_path / "weights.skops"
    if content is not None:
        weights.write_bytes(content)
    output, errors = make_serve(repository, weights, tmp_path / "au").communicate(timeout=60)
    error, make_error = errors.splitlines()
    assert error.startswith(f"export: {weights}")
    assert make_error.startswith("make: ***")
    assert output == ""
    assert not (tmp_path / "au").exists()
