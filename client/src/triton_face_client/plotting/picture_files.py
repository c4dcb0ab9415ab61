"""Check and write picture files."""

import contextlib
import os
from pathlib import Path

from matplotlib.figure import Figure

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".pdf", ".svg")

DPI = 110


def check_picture_path(path: Path) -> None:
    """Check that a picture can be written, before the work starts.

    Raises
    ------
    ValueError
        If the suffix is not in `SUFFIXES`, the folder does not exist, or `path` is a folder.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: the name of a picture must end in {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture atomically: after an error, `path` is unchanged."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        figure.savefig(unfinished, dpi=DPI, format=path.suffix[1:].lower())
        unfinished.replace(path)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()
