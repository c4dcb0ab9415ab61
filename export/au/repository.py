"""Write the model repository of the AU classifiers, the models `au` and `action_units`, atomically."""

import ctypes
import dataclasses
import errno
import os
import shutil
import string
import tempfile
from pathlib import Path

import onnx

from export.errors import ExportError

MODELS = ("action_units", "au")

_TEMPLATES = Path(__file__).with_name("configs")


@dataclasses.dataclass(frozen=True)
class Interface:
    """The values that the configurations of `au` and `action_units` depend on.

    Attributes
    ----------
    unit_names : tuple of str
        Names of the columns of AU.
    hog_features : int
    hog_options : str
        Options of `python -m export hog` that select the face size and the settings of `hog`.
    face_size : int
        Side of the aligned face in pixels, the size of MASK.
    weights_sha256 : str
        SHA-256 of the checkpoint.
    """

    unit_names: tuple[str, ...]
    hog_features: int
    hog_options: str
    face_size: int
    weights_sha256: str


def write_au_repository(folder: Path, model: onnx.ModelProto, interface: Interface) -> Path:
    """Write the models `au` and `action_units` to a folder, which is created or replaced atomically.

    Parameters
    ----------
    folder : Path
        The model repository. A folder with other content is not replaced.
    model : ModelProto
        The graph of `au`, with its metadata.
    interface : Interface
        Values for the configurations.

    Returns
    -------
    Path
        The ONNX file.

    Raises
    ------
    ExportError
        If the folder holds anything else, or a file cannot be written. The folder is then unchanged.
    """
    # Path.resolve raises no OSError for a circle of links.
    folder = Path(os.path.realpath(folder))
    values = dataclasses.asdict(interface) | {
        "unit_count": len(interface.unit_names),
        "unit_names": ",".join(interface.unit_names),
    }
    configs = {
        name: string.Template((_TEMPLATES / f"{name}.pbtxt").read_text()).substitute(values)
        for name in MODELS
    }
    temporary = None
    try:
        _check_replaceable(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        built = temporary / "repository"
        for name, config in configs.items():
            (built / name / "1").mkdir(parents=True)
            _write(built / name / "config.pbtxt", config.encode())
        _write(built / "au" / "labels.txt", "".join(f"{name}\n" for name in interface.unit_names).encode())
        _write(built / "au" / "1" / "model.onnx", model.SerializeToString())
        # Git and some copies omit empty folders; Triton needs the ensemble's version folder.
        _write(built / "action_units" / "1" / ".gitkeep", b"")
        _replace_folder(built, folder)
    except OSError as error:
        failed = error.filename2 or error.filename or folder
        raise ExportError(f"cannot write {failed}: {error.strerror}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder / "au" / "1" / "model.onnx"


def _check_replaceable(folder: Path) -> None:
    """Raise ExportError if `folder` has content that an export did not write."""
    if folder.is_dir():
        others = sorted({path.name for path in folder.iterdir()} - set(MODELS))
        if others:
            raise ExportError(
                f"{folder} contains {others[0]}; --out replaces a whole folder, so name a new one or one "
                f"with nothing but {' and '.join(MODELS)}"
            )
    elif folder.exists():
        raise ExportError(f"{folder} is a file; --out must name a folder")


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


_LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100
RENAME_EXCHANGE = 2  # linux/fs.h


def _replace_folder(new: Path, folder: Path) -> None:
    """Rename `new` to `folder` atomically; if `folder` exists, it gets the name of `new`."""
    if folder.exists():
        _exchange(new, folder)
        return
    try:
        new.rename(folder)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        _exchange(new, folder)  # another export has created the folder meanwhile


def _exchange(one: Path, other: Path) -> None:
    arguments = (AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE)
    if _LIBC.renameat2(*arguments) == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(code, os.strerror(code), str(other))
    # This file system cannot exchange two names. Between the two renames the folder is missing.
    other.rename(one.with_name("replaced"))
    one.rename(other)
