"""Build of the base image (base.Dockerfile) and of the project's images on it."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from deploy.local.server import PROJECT
from deploy.local.wheel import PYTHON_BASED_BACKENDS, find_triton
from tests.container.engine import FOLDER, Echo, Engine, debian_mirror

BASE = "localhost/tritonserver"
IMAGE = "localhost/triton-face-features:check"
AU_IMAGE = "localhost/triton-face-features:check-action-units"
PERF_IMAGE = "localhost/triton-face-perf:check"

RELEASE, PYTHON = "bookworm", "3.11"
DEBIAN_PACKAGES = ("python3", "python3-pip", "python3-venv", f"libpython{PYTHON}", "ca-certificates")

HERE = Path(__file__).resolve().parent


def triton_version() -> str:
    """Return the tag of the base image in the Makefile."""
    return re.search(r"^TRITON_VERSION \?= (\S+)", (PROJECT / "Makefile").read_text(), re.MULTILINE)[1]


def build_base(engine: Engine, echo: Echo) -> str:
    """Build the base image unless it is cached; return its digest."""
    context = FOLDER / "base"
    context.mkdir(parents=True, exist_ok=True)
    if not (context / "debian.tar").exists():
        echo(f"unpacking Debian {RELEASE} for the base image, about a minute")
        _make_debian(engine, context / "debian.tar")
    _copy_triton(context / "tritonserver")
    shutil.copy2(HERE / "nvidia_entrypoint.sh", context)
    name = f"{BASE}:{triton_version()}"
    echo("building the base image")
    command = [
        "buildah",
        "build",
        *pip_settings(),
        "--file",
        HERE / "base.Dockerfile",
        "--tag",
        name,
        context,
    ]
    engine.run(*command, log=_new_log("base"))
    return engine.inspect_image(name)["Digest"]


def build_images(engine: Engine, digest: str, checkpoint: Path, echo: Echo) -> None:
    """Run `make image`, without and with action units, and `make perf-image`, with buildah instead of Docker.

    Parameters
    ----------
    engine : Engine
        Container engine.
    digest : str
        Digest of the base image.
    checkpoint : Path
        AU classifiers; the file is in the build context only during the build.
    echo : callable of str
        Prints a line.
    """
    engine.podman("tag", f"{BASE}:{triton_version()}", f"{BASE}:{triton_version()}-sdk")
    commands = FOLDER / "bin"
    commands.mkdir(exist_ok=True)
    docker = commands / "docker"
    docker.write_text(f'#!/bin/sh\nshift\nexec buildah build {" ".join(pip_settings())} "$@"\n')
    docker.chmod(0o755)
    make = ["env", f"PATH={commands}:{engine.environment['PATH']}", "make"]
    log = _new_log("image")
    echo(f"make image: five minutes if no layer is cached; log: {log.relative_to(PROJECT)}")
    base = [f"TRITON_IMAGE={BASE}", f"TRITON_DIGEST={digest}"]
    engine.run(*make, "image", *base, f"IMAGE={IMAGE}", log=log)
    echo("make image AU_WEIGHTS=...")
    weights = shutil.copy2(checkpoint, PROJECT / "export" / "checkpoints" / "container_check.skops")
    try:
        variables = [f"IMAGE={AU_IMAGE}", f"AU_WEIGHTS={weights.relative_to(PROJECT)}"]
        engine.run(*make, "image", *base, *variables, log=_new_log("au-image"))
    finally:
        weights.unlink()
    echo("make perf-image")
    variables = [f"TRITON_IMAGE={BASE}", f"TRITON_SDK_DIGEST={digest}", f"PERF_IMAGE={PERF_IMAGE}"]
    engine.run(*make, "perf-image", *variables, log=_new_log("perf-image"))


def pip_settings() -> list[str]:
    """Return options of buildah that apply this machine's pip settings during the build only.

    Files and folders in these settings are mounted at the same path. For an index with a `file://` address
    the parent folder is mounted, because links of the index may point there.
    """
    listed = subprocess.check_output([sys.executable, "-m", "pip", "config", "list"], text=True)
    settings = dict(re.findall(r"^\S+\.([\w-]+)='(.*)'$", listed, re.MULTILINE))
    path = FOLDER / "pip.conf"
    path.write_text("\n".join(["[global]", *(f"{name} = {value}" for name, value in settings.items()), ""]))
    words = {word for value in settings.values() for word in value.split()}
    indices = {
        str(Path(word.removeprefix("file://")).parent) for word in words if word.startswith("file:///")
    }
    mounted = sorted(indices | {word for word in words if word.startswith("/") and Path(word).exists()})
    return [f"--volume={path}:/etc/pip.conf:ro", *(f"--volume={name}:{name}:ro" for name in mounted)]


def _make_debian(engine: Engine, archive: Path) -> None:
    folder = FOLDER / "debian"
    shutil.rmtree(folder, ignore_errors=True)
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(DEBIAN_PACKAGES)}", RELEASE, folder]
    engine.run(*command, debian_mirror(), log=_new_log("debootstrap"))
    unfinished = archive.with_suffix(".part")
    excluded = ["./dev/*", "./proc/*", "./sys/*", "./var/cache/apt/*", "./var/lib/apt/lists/*", "./var/log/*"]
    command = ["tar", "--numeric-owner", *(f"--exclude={pattern}" for pattern in excluded), "-C", folder]
    engine.run(*command, "-cf", unfinished, ".")
    unfinished.rename(archive)
    shutil.rmtree(folder)


def _copy_triton(target: Path) -> None:
    """Copy the server to the paths of NVIDIA's image, with the Python-based ONNX Runtime backend."""
    shutil.rmtree(target, ignore_errors=True)
    triton = find_triton()
    shutil.copytree(triton / "bin", target / "bin")
    shutil.copytree(triton.parent.parent / "nvidia_pytriton.libs", target / "lib")
    without_bytecode = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PYTHON_BASED_BACKENDS, target / "backends", ignore=without_bytecode)
    shutil.copytree(triton / "backends/python", target / "backends/python", ignore=without_bytecode)
    stub = triton / "python_backend_stubs" / PYTHON / "triton_python_backend_stub"
    shutil.copy2(stub, target / "backends/python")
    runtime = f"onnxruntime=={importlib.metadata.version('onnxruntime')}\n"
    (target / "backends/onnxruntime/requirements.txt").write_text(runtime)
    for path in [target, *target.rglob("*")]:
        path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)


def _new_log(name: str) -> Path:
    path = FOLDER / f"{name}.log"
    path.write_bytes(b"")
    return path
