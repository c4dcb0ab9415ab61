"""Atomic file replacement: a reader sees the old file or the complete new one."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path; rename it to `path` when the block ends without an exception.

    The temporary file is in the same folder, because a rename is atomic only within one file system.
    After an exception it is deleted, and `path` is unchanged.

    Parameters
    ----------
    path : Path
        The file to create or replace. A missing folder is created.

    Yields
    ------
    Path
        The temporary file. It has the suffix of `path`, from which some writers choose a format.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _flush_to_disk(temporary)
        temporary.chmod(_default_mode())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _flush_to_disk(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _default_mode() -> int:
    """Return the mode of files that `open` creates; Triton could not read a file with mkstemp's 0600."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
