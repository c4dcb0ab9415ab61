"""The client's wheel and sdist: build, check, install into a fresh environment, use against the server.

``PYTHON_UNDER_TEST=python3.13`` selects another interpreter for the fresh environment.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from packaging.requirements import Requirement

from deploy.local import LocalServer
from deploy.local.server import PROJECT
from tests.support.film_files import FRAMES, write_film, write_table
from triton_face_client.video.crops import cut_faces

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CLIENT = PROJECT / "client"
INSTALLED_CLIENT = Path(__file__).with_name("installed_client.py")

pytestmark = pytest.mark.slow


def run_command(*words: object, folder: Path | None = None) -> str:
    """Run a command without this repository on its import path; return its standard output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    completed = subprocess.run(
        list(map(str, words)), cwd=folder, env=environment, capture_output=True, text=True
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return completed.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and the wheel from it. Build a copy, because a build writes into its source folder."""
    folder = tmp_path_factory.mktemp("distributions")
    generated = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    source = shutil.copytree(CLIENT, folder / "client", ignore=generated)
    run_command(sys.executable, "-m", "build", "--outdir", folder / "dist", source)
    return folder / "dist"


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    """Return the path of the wheel."""
    return next(distributions.glob("*.whl"))


def oldest_versions() -> list[str]:
    """Return constraints for pip that pin each dependency to the release series of its lower bound."""
    project = tomllib.loads((CLIENT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    pins = []
    for requirement in (Requirement(text) for group in groups for text in group):
        for bound in requirement.specifier:
            if bound.operator == ">=":
                marker = f" ; {requirement.marker}" if requirement.marker else ""
                pins.append(f"{requirement.name}=={bound.version}.*{marker}")
    return pins


def test_package_index_accepts_wheel_and_sdist(distributions: Path):
    run_command(sys.executable, "-m", "twine", "check", "--strict", *distributions.iterdir())
    assert len(list(distributions.iterdir())) == 2


def test_wheel_has_license_types_and_no_relative_links(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        files = {Path(name).name: name for name in archive.namelist()}
        license_text = archive.read(files["LICENSE"]).decode()
        metadata = archive.read(files["METADATA"]).decode()
    assert license_text == (PROJECT / "LICENSE").read_text()
    assert "py.typed" in files
    links = re.findall(r"\]\(([^)]+)\)", metadata)
    assert [link for link in links if not link.startswith(("https://", "#"))] == []


@pytest.mark.parametrize("dependencies", ["oldest", "newest"])
def test_installed_client_works(wheel: Path, server: LocalServer, tmp_path: Path, dependencies: str):
    python = tmp_path / "venv/bin/python"
    run_command(os.environ.get("PYTHON_UNDER_TEST", sys.executable), "-m", "venv", tmp_path / "venv")
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("\n".join(oldest_versions() if dependencies == "oldest" else []))
    pip_install = [python, "-m", "pip", "install", "--only-binary", ":all:", "--constraint", constraints]
    run_command(*pip_install, f"{wheel}[all]")
    print(run_command(python, "-m", "pip", "list"))

    admin = json.dumps(server.admin_headers)
    run_command(python, INSTALLED_CLIENT, server.grpc_url, admin, "crops.npy", folder=tmp_path)
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (240, 320, 3), dtype=np.uint8)
    expected = cut_faces(image, generator.uniform(-20, 300, (16, 4)))
    np.testing.assert_array_equal(np.load(tmp_path / "crops.npy"), expected)

    write_table(tmp_path / "film.csv", write_film(tmp_path))
    inputs = ["film.avi", "--landmarks", "film.csv", "--url", server.grpc_url]
    triton_face = python.with_name("triton-face")
    assert run_command(triton_face, "--version").startswith("triton-face ")
    assert "ready" in run_command(triton_face, "info", "--url", server.grpc_url)
    report = json.loads(
        run_command(triton_face, "run", *inputs, "--out", "out.parquet", "--json", folder=tmp_path)
    )
    assert (report["rows"], report["faces"]) == (FRAMES, FRAMES - 3)
    run_command(triton_face, "plot", *inputs, "--out", "sheet.png", folder=tmp_path)
    assert matplotlib.image.imread(tmp_path / "sheet.png").std() > 0.05
