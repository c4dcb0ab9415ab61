"""Writing files so that a reader sees the old one or the whole new one, never a part."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; move it onto `path` when the block ends well.

    The file is written in the same folder, because a rename is atomic only within one file system.
    When the block raises, the temporary file is removed and `path` stays as it was.

    Parameters
    ----------
    path : Path
        The file to create or replace. Its folder is made when it is missing.

    Yields
    ------
    Path
        Where to write. The name keeps the suffix of `path`, which some writers look at.
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
    """Return the mode an ordinary `open` would give; mkstemp's 0600 would hide the file from Triton."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
