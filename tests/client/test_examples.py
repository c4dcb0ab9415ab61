"""The scripts of examples/ against the real server; docstrings of the public names."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.image

import triton_face_client
from deploy.local import LocalServer
from deploy.local.server import PROJECT


def run_example(name: str, *arguments: object, server: LocalServer) -> str:
    """Run a script of examples/ with arguments; return its standard output."""
    completed = subprocess.run(
        [sys.executable, "-m", f"examples.{name}", *map(str, arguments)],
        env=os.environ | {"TRITON_FACE_URL": server.grpc_url},
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


def test_example_change_one_import_prints_hog_features(server: LocalServer):
    output = run_example("change_one_import", server=server)
    assert "HOG features (1, 5408) float32" in output


def test_example_many_callers_prints_outcomes(server: LocalServer):
    output = run_example("many_callers", server=server)
    assert "1 callers: cancelled" in output
    assert "face 1" not in output, "a reason repeats the index of its face"
    assert "5 callers: non-finite landmark" in output
    assert "44 callers: answered" in output


def test_example_pose_over_time_plots_the_film(server: LocalServer, tmp_path: Path):
    run_example("make_film", tmp_path, server=server)
    output = run_example(
        "pose_over_time", tmp_path / "film.avi", tmp_path / "film.csv", tmp_path / "pose.png", server=server
    )
    assert "99 of 100 rows have features" in output
    assert matplotlib.image.imread(tmp_path / "pose.png").std() > 0.05


def test_every_public_name_is_documented():
    for name in triton_face_client.__all__:
        documented = getattr(triton_face_client, name)
        assert inspect.getdoc(documented), name
        for member, value in vars(documented).items() if inspect.isclass(documented) else ():
            if not member.startswith("_") and inspect.isfunction(value):
                assert inspect.getdoc(value), f"{name}.{member}"
