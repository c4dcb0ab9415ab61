"""Shared-memory regions of a server: one name prefix each, and the removal of what killed servers left.

Triton's Python backend keeps 64 MB and more for each stub in /dev/shm. A server that is killed together with
its stubs leaves these regions there, and on Kubernetes /dev/shm outlives the container: after a few crashes
no room would be left to start. So each server holds a lock on a file in /dev/shm that names the prefix of its
regions. The kernel releases the lock when the server and its stubs are dead, however they died and in
whichever container, and the next server that starts removes the regions of each released lock.

    python3 -I shm_regions.py tritonserver OPTION...

does this and then executes the command, with an option that names the prefix. Nothing but Python's standard
library is needed.
"""

import contextlib
import fcntl
import os
import re
import secrets
import sys
import time
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")

SCARCE_BYTES = 8 * 64 * 2**20
"""Regions of eight stubs, as many as a server has where all models run in Python."""

DYING_SECONDS = 3.0
"""How long killed processes with gigabytes of memory may take to end."""

LOCK_NAME = re.compile(r"triton_face_server_[0-9a-f]{12}\.lock")


class RegionPrefix:
    """The prefix of one server's regions, reserved for as long as a process has its lock open.

    Attributes
    ----------
    name : str
        The prefix; the names of all regions of the server start with it.
    lock : int
        File descriptor of the lock, which the server has to inherit; -1 once it is released.
    """

    def __init__(self, folder: Path = SHARED_MEMORY) -> None:
        """Reserve a new prefix.

        Raises
        ------
        OSError
            `folder` cannot be written to, or has no room for an empty file.
        """
        self._folder = folder
        while True:
            self.name = f"triton_face_server_{secrets.token_hex(6)}_"
            path = _lock_path(folder, self.name)
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            # Another server that starts now may take the new file for a dead server's before it is locked.
            if _try_lock(lock) and path.exists():
                self.lock = lock
                return
            os.close(lock)

    @property
    def regions(self) -> list[Path]:
        """Return the server's regions."""
        return list(self._folder.glob(f"{self.name}*"))

    def remove_regions(self) -> None:
        """Remove the regions, as of stubs that were killed; the prefix stays reserved."""
        _remove_regions(self._folder, self.name)

    def release(self) -> None:
        """Remove the regions and the lock. The server and its stubs must have ended."""
        _remove(self._folder, self.name)
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1


def remove_leftovers(folder: Path = SHARED_MEMORY) -> list[str]:
    """Remove the regions of servers of this user that are dead; return their prefixes.

    Regions without a lock of ours, those of other users and those of living servers stay. Where room is
    scarce, wait a moment for servers that are locked: the kernel may be ending their last processes.
    """
    removed = []
    deadline = time.monotonic() + DYING_SECONDS
    while True:
        locks = [path for path in folder.iterdir() if LOCK_NAME.fullmatch(path.name)]
        dead = [prefix for prefix in map(_remove_if_dead, locks) if prefix]
        removed += dead
        if len(dead) == len(locks) or _free_bytes(folder) >= SCARCE_BYTES or time.monotonic() > deadline:
            return removed
        time.sleep(0.05)


def _remove_if_dead(path: Path) -> str | None:
    """Remove the regions that belong to a lock if no process holds it; return their prefix."""
    try:
        if path.lstat().st_uid != os.geteuid():
            return None
        lock = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:  # removed meanwhile, a symbolic link, or of a mode that we did not give it
        return None
    try:
        if not _try_lock(lock):
            return None
        prefix = path.name.removesuffix(".lock") + "_"
        _remove(path.parent, prefix)
        return prefix
    finally:
        os.close(lock)


def _free_bytes(folder: Path) -> int:
    usage = os.statvfs(folder)
    return usage.f_bavail * usage.f_frsize


def _lock_path(folder: Path, prefix: str) -> Path:
    return folder / f"{prefix.removesuffix('_')}.lock"


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(folder: Path, prefix: str) -> None:
    """Remove the regions first: an interrupted removal is completed by the next server that starts."""
    _remove_regions(folder, prefix)
    _lock_path(folder, prefix).unlink(missing_ok=True)


def _remove_regions(folder: Path, prefix: str) -> None:
    for region in folder.glob(f"{prefix}*"):
        # Other users may put files or folders of such names there; a server starts all the same.
        with contextlib.suppress(IsADirectoryError, PermissionError):
            region.unlink(missing_ok=True)


def _clean_temporary_folder() -> None:
    """Remove what the container's last server left in /tmp, which outlives a container on Kubernetes.

    The empty folders that Triton's Python backend makes at each start, and what the liveness probe remembers
    of that server. Only for the first process of a container, which has the container's /tmp for itself.
    """
    for memory in Path("/tmp").glob("triton-face-probe-*.json"):
        memory.unlink()
    for folder in Path("/tmp").glob("python_env_*"):
        with contextlib.suppress(OSError):  # not empty: an environment that a model brought
            folder.rmdir()


def main(command: list[str]) -> None:
    """Remove leftovers, reserve a prefix and execute the command with it."""
    if os.getpid() == 1:
        _clean_temporary_folder()
    try:
        for prefix in remove_leftovers():
            print(f"removed the shared memory of a server that was killed: {prefix}*", file=sys.stderr)
        prefix = RegionPrefix()
    except OSError as error:
        sys.exit(f"serve.sh: {SHARED_MEMORY}, which Triton's Python backend needs: {error}")
    os.set_inheritable(prefix.lock, True)
    option = f"--backend-config=python,shm-region-prefix-name={prefix.name}"
    os.execvp(command[0], [*command, option])


if __name__ == "__main__":
    main(sys.argv[1:])
