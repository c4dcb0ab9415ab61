"""Wheels for a machine that reaches no package registry: packed into pieces here, installed there.

Only the standard library is imported, since the packages are still missing when `install` runs.
"""

import importlib.util
import os
import re
import shutil
import site
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent.parent

PYTHON = "3.12"
"""The GPU machine's."""

PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in (35, 28, 27, 24, 17)),
    *("manylinux2014_x86_64", "manylinux1_x86_64"),
)

WHEELS = {
    # Versions without a pin are those of constraints.txt. NumPy 2 must not reach the stubs: with it Triton
    # 2.51's Python stub returns arrays as tensors of 0 bytes. tritonclient needs this protobuf and grpcio.
    "serving": (
        *("nvidia-pytriton", "tritonclient", "python-rapidjson", "numpy", "protobuf", "grpcio"),
        "onnxruntime-gpu==1.31.1",  # built for CUDA 13, as the machine's torch
    ),
    "peer": ("py-feat==2.1.5",),
}
"""Folder -> what is installed into it, without dependencies. The peer runs with the machine's own NumPy."""

ARCHIVE = "wheels.tar"


class WheelsError(RuntimeError):
    """The wheels cannot be packed, joined or installed; the message is one line."""


def pack(into: Path, piece_megabytes: float) -> list[Path]:
    """Download the wheels and write them in pieces of at most `piece_megabytes`.

    Returns
    -------
    list of Path
        The pieces, ``into/0/wheels.tar.0-of-N`` and so on: each in a folder of its own, to be sent alone.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, requirements in WHEELS.items():
            _pip(
                *("download", "--no-deps", "--only-binary=:all:", "--python-version", PYTHON),
                *("--implementation", "cp", *(f"--platform={platform}" for platform in PLATFORMS)),
                *("--constraint", str(PROJECT / "constraints.txt")),
                *("--dest", f"{folder}/wheels/{name}", *requirements),
            )
        return split(Path(folder) / "wheels", into, round(piece_megabytes * 1e6))


def split(wheels: Path, into: Path, piece_bytes: int) -> list[Path]:
    """Write a folder of wheels as one archive in equal pieces of at most `piece_bytes`."""
    if into.exists() and any(into.iterdir()):
        raise WheelsError(f"{into} is not empty: name a new folder")
    pieces = []
    with tempfile.TemporaryFile() as archive:
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add(wheels, ".")
        count = -(-archive.tell() // piece_bytes)
        piece_bytes = -(-archive.tell() // count)
        archive.seek(0)
        for index in range(count):
            piece = into / str(index) / f"{ARCHIVE}.{index}-of-{count}"
            piece.parent.mkdir(parents=True)
            piece.write_bytes(archive.read(piece_bytes))
            pieces.append(piece)
    return pieces


def join(pieces: Path, target: Path) -> None:
    """Unpack the archive whose pieces lie somewhere below the folder `pieces`."""
    found = {path.name: path for path in pieces.rglob(f"{ARCHIVE}.*-of-*")}
    counts = {name.rpartition("-of-")[2] for name in found}
    if len(counts) != 1:
        raise WheelsError(f"{pieces} holds pieces of {len(counts)} archives, not of one: {sorted(found)}")
    count = int(counts.pop())
    names = [f"{ARCHIVE}.{index}-of-{count}" for index in range(count)]
    missing = [name for name in names if name not in found]
    if missing:
        raise WheelsError(f"{pieces} lacks {', '.join(missing)}")
    with tempfile.TemporaryFile() as archive:
        for name in names:
            archive.write(found[name].read_bytes())
        archive.seek(0)
        with tarfile.open(fileobj=archive) as tar:
            tar.extractall(target, filter="data")


def install(pieces: Path, work: Path) -> Path:
    """Install the wheels below `work` and return a Python that finds them before this Python's packages.

    Triton's stubs take their packages from the first `python3` on PATH and do not read PYTHONPATH. So that
    Python is a virtual environment whose .pth file names the installed folder, the client and this Python's
    own site-packages, in this order.
    """
    shutil.rmtree(work, ignore_errors=True)
    join(pieces, work / "wheels")
    for folder in sorted(path for path in (work / "wheels").iterdir()):
        _pip(
            *("install", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir"),
            *("--target", str(work / folder.name), *map(str, sorted(folder.glob("*.whl")))),
        )
    _run(sys.executable, "-m", "venv", "--without-pip", str(work / "venv"))
    packages = work / "venv" / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    lines = [str(work / "serving"), str(PROJECT / "client" / "src")]
    lines += [f"import site; site.addsitedir({folder!r})" for folder in site.getsitepackages()]
    (packages / "site-packages" / "gpu_check.pth").write_text("\n".join(lines) + "\n")
    return installed_python(work)


def installed_python(work: Path) -> Path:
    """Return the Python that `install` made below `work`, which may not exist."""
    return work / "venv" / "bin" / "python3"


def environment(work: Path) -> dict[str, str]:
    """Return the environment that the installed Python runs the checks in.

    onnxruntime-gpu finds torch's CUDA libraries through LD_LIBRARY_PATH, in the stubs too. py-feat is run by
    this Python, which has a NumPy for its pandas.
    """
    spec = importlib.util.find_spec("nvidia")
    roots = spec.submodule_search_locations if spec else ()
    libraries = [str(folder) for root in roots for folder in sorted(Path(root).glob("*/lib"))]
    variables = {
        "LD_LIBRARY_PATH": [*libraries, os.environ.get("LD_LIBRARY_PATH", "")],
        "PYTHONPATH": [str(work / "peer"), os.environ.get("PYTHONPATH", "")],
    }
    return (
        {"PYFEAT_PYTHON": sys.executable}
        | os.environ
        | {name: ":".join(filter(None, folders)) for name, folders in variables.items() if any(folders)}
    )


def _pip(*arguments: str) -> None:
    _run(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments)


def _run(*command: str) -> None:
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        lines = [line for line in finished.stderr.splitlines() if re.match("ERROR|Error", line)]
        said = (lines or finished.stderr.splitlines() or ["no reason given"])[-1]
        raise WheelsError(f"{' '.join(command[1:5])} ... failed: {said}")
