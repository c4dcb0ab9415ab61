"""The tritonserver of nvidia-pytriton's wheel: its folder, libraries and backends.

The wheel contains Triton 2.51.0, its Python backend, and for each Python version the executable of the stub
processes in which the backend runs Python models.
"""

import importlib.metadata
import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from deploy.local.errors import ServerError

PYTHON_BASED_BACKENDS = Path(__file__).resolve().parent / "backends"
"""Folder of the Python-based ONNX Runtime backend; the wheel lacks the C++ backend."""

MEMORY_ALLOCATION = {"MALLOC_ARENA_MAX": "2", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Environment variables for glibc's memory allocation, the same as in deploy/docker/Dockerfile.

Limit of arenas: after large requests the server kept 200 MB with this limit and 400 MB without it, at the
same speed. Huge pages (glibc 2.35 and newer): `au`, which reads 50 MB of weights for each batch, took 2.2
instead of 3.5 ms for one face; the server's memory grew by 3 %.
"""


def find_triton() -> Path:
    """Return the wheel's tritonserver folder.

    Raises
    ------
    ServerError
        If the wheel, a stub for this Python, Python's shared library or NumPy 1 is missing.
    """
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise ServerError(
            "nvidia-pytriton, which contains tritonserver, is not installed: run `make install`"
        )
    numpy = importlib.metadata.version("numpy")
    if int(numpy.partition(".")[0]) >= 2:
        raise ServerError(
            f"NumPy {numpy} is installed, with which Triton 2.51's Python stub returns arrays as tensors of "
            "0 bytes: install numpy<2"
        )
    triton = Path(spec.origin).parent / "tritonserver"
    stub = _stub(triton)
    if not stub.is_file():
        raise ServerError(
            f"tritonserver has no stub for Python {stub.parent.name}: use Python 3.10, 3.11 or 3.12"
        )
    if _libpython_folder() is None:
        raise ServerError(
            f"{sys.base_prefix} has no {sysconfig.get_config_var('INSTSONAME')}, which Triton's Python "
            "stub needs: use a Python built with --enable-shared (Debian's and Ubuntu's are, with "
            "libpython3; pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install)"
        )
    return triton


def create_backend_folder(triton: Path, target: Path) -> None:
    """Create a backend folder with the wheel's Python backend and the Python-based ONNX Runtime backend."""
    shutil.copytree(PYTHON_BASED_BACKENDS, target, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(triton / "backends" / "python", target / "python")
    stub = _stub(triton)
    shutil.copy2(stub, target / "python" / stub.name)


def library_path(triton: Path) -> str:
    """Return LD_LIBRARY_PATH for the server and its stubs."""
    libraries = [
        triton.parent.parent / "nvidia_pytriton.libs",
        _libpython_folder(),
        os.environ.get("LD_LIBRARY_PATH"),
    ]
    return ":".join(str(folder) for folder in libraries if folder)


def server_environment(triton: Path) -> dict[str, str]:
    """Return the environment variables of the server and its stubs."""
    return (
        MEMORY_ALLOCATION
        | os.environ
        | {
            "LD_LIBRARY_PATH": library_path(triton),
            # The stub uses the packages of the first python3 on PATH.
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        }
    )


def _stub(triton: Path) -> Path:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return triton / "python_backend_stubs" / version / "triton_python_backend_stub"


def _libpython_folder() -> Path | None:
    """Return the folder of the running Python's shared library, or None if Python was built without one."""
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    folders = [
        sysconfig.get_config_var("LIBDIR"),
        f"{sys.base_prefix}/lib",
        f"{sysconfig.get_config_var('LIBDIR')}/{sysconfig.get_config_var('MULTIARCH')}",
    ]
    return next((Path(folder) for folder in folders if (Path(folder) / name).is_file()), None)
