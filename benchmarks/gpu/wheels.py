"""Wheels for a machine without a package registry: packed into pieces on one machine, installed on another.

Imports only the standard library: the packages are missing until `install` has run.
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
"""Version on the GPU machine."""

PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in (35, 28, 27, 24, 17)),
    *("manylinux2014_x86_64", "manylinux1_x86_64"),
)

WHEELS = {
    # constraints.txt has the other versions. With NumPy 2 the Python stub of Triton 2.51 returns tensors of 0
    # bytes, and SciPy 1.18 requires NumPy 2. tritonclient requires protobuf and grpcio of these versions.
    "serving": (
        *("nvidia-pytriton", "tritonclient", "python-rapidjson", "protobuf", "grpcio"),
        *("numpy", "scipy", "scikit-image"),
        "onnxruntime-gpu==1.31.1",  # built for CUDA 13, like torch on the GPU machine
    ),
    "peer": ("py-feat==2.1.5",),
}
"""Folder -> packages installed into it, without dependencies. `peer` (py-feat) uses the machine's NumPy."""

ARCHIVE = "wheels.tar"


class WheelsError(RuntimeError):
    """The wheels cannot be packed, joined or installed; the message is one line."""


def pack(into: Path, piece_megabytes: float) -> list[Path]:
    """Download the wheels and write them in pieces of at most `piece_megabytes`.

    Returns
    -------
    list of Path
        The pieces, ``into/0/wheels.tar.0-of-N`` and so on: each in a separate folder, for separate transfer.
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


def find_pieces(pieces: Path) -> list[Path]:
    """Return all pieces of the archive below the folder `pieces`, in order.

    Raises
    ------
    WheelsError
        When a piece is missing, or the folder has pieces of no or several archives.
    """
    found = {path.name: path for path in pieces.rglob(f"{ARCHIVE}.*-of-*")}
    counts = {name.rpartition("-of-")[2] for name in found}
    if len(counts) != 1:
        raise WheelsError(f"{pieces} has pieces of {len(counts)} archives instead of 1: {sorted(found)}")
    count = int(counts.pop())
    names = [f"{ARCHIVE}.{index}-of-{count}" for index in range(count)]
    missing = [name for name in names if name not in found]
    if missing:
        raise WheelsError(f"{pieces} lacks {', '.join(missing)}")
    return [found[name] for name in names]


def join(pieces: list[Path], target: Path) -> None:
    """Join the pieces of the archive and unpack it into `target`."""
    with tempfile.TemporaryFile() as archive:
        for piece in pieces:
            archive.write(piece.read_bytes())
        archive.seek(0)
        with tarfile.open(fileobj=archive) as tar:
            tar.extractall(target, filter="data")


def install(pieces: Path, work: Path) -> Path:
    """Install the wheels below `work` and return a Python that finds them before this Python's packages.

    Triton's stub processes use the packages of the first `python3` on PATH and ignore PYTHONPATH. Therefore
    the returned Python is that of a virtual environment, whose .pth file names the installed folder, the
    client and this Python's own site-packages, in this order. Installed pieces are not installed again.
    """
    python, installed_list = work / "venv" / "bin" / "python3", work / "pieces.txt"
    found = find_pieces(pieces)
    sizes = "".join(f"{path.name} {path.stat().st_size}\n" for path in found)
    if installed_list.exists() and installed_list.read_text() == sizes:
        return python
    shutil.rmtree(work, ignore_errors=True)
    join(found, work / "wheels")
    for folder in sorted((work / "wheels").iterdir()):
        _pip(
            *("install", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir"),
            *("--target", str(work / folder.name), *map(str, sorted(folder.glob("*.whl")))),
        )
    _run(sys.executable, "-m", "venv", "--without-pip", str(work / "venv"))
    packages = work / "venv" / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    lines = [str(work / "serving"), str(PROJECT / "client" / "src")]
    lines += [f"import site; site.addsitedir({folder!r})" for folder in site.getsitepackages()]
    (packages / "site-packages" / "gpu_check.pth").write_text("\n".join(lines) + "\n")
    installed_list.write_text(sizes)
    return python


def environment(work: Path) -> dict[str, str]:
    """Return variables for the installed Python; py-feat runs with this Python's NumPy and pandas."""
    return os.environ | {"PYFEAT_PYTHON": sys.executable, "PYTHONPATH": str(work / "peer")}


def library_path() -> str:
    """Return LD_LIBRARY_PATH with torch's CUDA libraries, which onnxruntime-gpu needs in stub processes."""
    spec = importlib.util.find_spec("nvidia")
    roots = spec.submodule_search_locations if spec else ()
    libraries = [str(folder) for root in roots for folder in sorted(Path(root).glob("*/lib"))]
    return ":".join(filter(None, [*libraries, os.environ.get("LD_LIBRARY_PATH")]))


def _pip(*arguments: str) -> None:
    _run(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments)


def _run(*command: str) -> None:
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        lines = [line for line in finished.stderr.splitlines() if re.match("ERROR|Error", line)]
        reason = (lines or finished.stderr.splitlines() or ["no reason given"])[-1]
        raise WheelsError(f"{' '.join(command[1:5])} ... failed: {reason}")
