"""Files, packages, permissions and size of the image."""

import contextlib
import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.server import DEFAULT_REPOSITORY, PROJECT
from tests.container.base import BASE, IMAGE, PERF_IMAGE, triton_version
from tests.container.engine import Echo, Engine

SERVED = Path("opt/triton-face")
DOCKERFILES = PROJECT / "deploy" / "docker"


@contextlib.contextmanager
def mounted(engine: Engine, image: str) -> Iterator[Path]:
    """Mount an image; yield its folder."""
    folder = Path(engine.podman("image", "mount", image))
    try:
        yield folder
    finally:
        engine.podman("image", "unmount", image)


def layers(engine: Engine, image: str) -> list[dict]:
    """Return the build steps of an image, oldest first."""
    return json.loads(engine.podman("history", "--no-trunc", "--format=json", image))[::-1]


def test_reports_the_size_of_each_layer(engine: Engine, echo: Echo):
    steps = layers(engine, IMAGE)
    base_steps = len(layers(engine, f"{BASE}:{triton_version()}"))
    rows = [("base" if number < base_steps else "image", step) for number, step in enumerate(steps)]
    for owner, step in rows:
        if step["size"] > 0:
            command = re.sub(r"^/bin/\w+ .*?-c (#\(nop\))?\s*", "", step["CreatedBy"])
            echo(f"{owner:5} {step['size'] / 1e6:8.1f} MB  {' '.join(command.split())[:100]}")
    total = engine.inspect_image(IMAGE)["Size"]
    added = sum(step["size"] for owner, step in rows if owner == "image")
    echo(f"total {total / 1e6:8.1f} MB, of which the image adds {added / 1e6:.1f}")
    assert 0 < added < total


def test_build_context_has_only_the_sources_of_the_dockerfiles(engine: Engine, tmp_path: Path):
    """.dockerignore excludes the virtual environment, the tests and models built on this machine."""
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text("FROM scratch\nCOPY . /\n")
    name = "localhost/context:check"
    engine.run("buildah", "build", "--file", dockerfile, "--tag", name, PROJECT)
    with mounted(engine, name) as folder:
        in_context = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    engine.podman("rmi", "--force", name)
    sources = [
        source
        for dockerfile in (DOCKERFILES / "Dockerfile", DOCKERFILES / "perf_analyzer.Dockerfile")
        for line in re.findall(r"^COPY (.*)$", dockerfile.read_text(), re.MULTILINE)
        if "--from" not in line
        for source in [word for word in line.split() if not word.startswith("--")][:-1]
    ]
    unexpected = [path for path in in_context if not any(path.is_relative_to(source) for source in sources)]
    assert in_context
    assert unexpected == []
    assert [path for path in in_context if path.suffix == ".onnx" or "__pycache__" in path.parts] == []


def test_image_has_only_the_packages_for_serving(engine: Engine):
    with mounted(engine, IMAGE) as folder:
        found = (folder / SERVED / "python").glob("lib/python*/site-packages/*.dist-info")
        installed = {path.name.split("-")[0].lower().replace("_", "-") for path in found}
    lines = (PROJECT / "requirements-serve.txt").read_text().splitlines()
    assert {line.split("==")[0] for line in lines if "==" in line} <= installed
    # Packages of the export, the tests and the local server.
    others = {
        "pip",
        "onnx",
        "onnxruntime",
        "scikit-image",
        "scipy",
        "pytest",
        "nvidia-pytriton",
        "tritonclient",
    }
    assert installed.isdisjoint(others)


def test_image_has_models_and_scripts(engine: Engine):
    with mounted(engine, IMAGE) as folder:
        served = {str(path.relative_to(folder / SERVED)) for path in (folder / SERVED).glob("*")}
        assert served == {"model_repository", "python", "serve.sh", "shm_regions.py", "probe.py"}
        models = {path.parent.name for path in (folder / SERVED).glob("model_repository/*/config.pbtxt")}
        assert models == {path.parent.name for path in DEFAULT_REPOSITORY.glob("*/config.pbtxt")}
        for model in ("hog", "pose_mlp"):
            assert (folder / SERVED / "model_repository" / model / "1" / "model.onnx").stat().st_size > 1000


def test_only_root_can_change_files(engine: Engine):
    with mounted(engine, IMAGE) as folder:
        writable = [
            path.relative_to(folder)
            for path, mode in ((path, path.lstat()) for path in folder.rglob("*"))
            if not stat.S_ISLNK(mode.st_mode)
            # In folders like /tmp users can add files but cannot change other users' files.
            and not mode.st_mode & stat.S_ISVTX
            and (mode.st_mode & stat.S_IWOTH or (path.is_relative_to(folder / SERVED) and mode.st_uid != 0))
        ]
        assert writable == []
        unreadable = [
            path.relative_to(folder)
            for path in (folder / SERVED).rglob("*")
            if not path.is_symlink() and not path.stat().st_mode & stat.S_IROTH
        ]
        assert unreadable == []


def test_load_generator_image_has_the_faces(engine: Engine):
    with mounted(engine, PERF_IMAGE) as folder:
        faces = (folder / SERVED / "faces_uint8.json").read_bytes()
    assert faces == (PROJECT / "benchmarks" / "data" / "faces_uint8.json").read_bytes()
    assert engine.inspect_image(PERF_IMAGE)["Config"]["Entrypoint"] == ["perf_analyzer"]


@pytest.mark.parametrize("image", [IMAGE, PERF_IMAGE])
def test_image_runs_as_an_unprivileged_user(engine: Engine, image: str):
    assert engine.inspect_image(image)["Config"]["User"] == "1000:1000"
