"""Shared-memory regions of a server: a separate name prefix, and cleanup after killed servers.

Triton's Python backend allocates at least 64 MB in /dev/shm for each stub process. When a server and its
stubs are killed together, these regions remain, and on Kubernetes /dev/shm outlives the container: after a
few crashes a new server would have no room to start. Therefore each server locks a file in /dev/shm that
names the prefix of its regions. The kernel releases the lock when the last process of the server is dead, and
the next server that starts, in this container or another, removes the regions of every released lock.

    python3 -I shm_regions.py tritonserver OPTION...

cleans up and then executes the command with an option that sets the prefix. Only Python's standard library is
needed.
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
"""Free space below which `remove_leftovers` waits: the regions of eight stub processes."""

EXIT_SECONDS = 3.0
"""Time that the kernel may need to end killed processes with gigabytes of memory."""

LOCK_NAME = re.compile(r"triton_face_server_[0-9a-f]{12}\.lock")


class RegionPrefix:
    """Prefix of a server's regions, reserved while a process has its lock open.

    Attributes
    ----------
    name : str
        The prefix.
    lock : int
        File descriptor of the lock, which the server must inherit; -1 after `release`.
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
            # Another server that starts now may have removed the new file before it was locked.
            if _try_lock(lock) and path.exists():
                self.lock = lock
                return
            os.close(lock)

    @property
    def regions(self) -> list[Path]:
        """Return the server's regions."""
        return list(self._folder.glob(f"{self.name}*"))

    def remove_regions(self) -> None:
        """Remove the regions after the stub processes were killed; the prefix stays reserved."""
        _remove_regions(self._folder, self.name)

    def release(self) -> None:
        """Remove the regions and the lock. The server and its stubs must have ended."""
        _remove_regions_and_lock(self._folder, self.name)
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1


def remove_leftovers(folder: Path = SHARED_MEMORY) -> list[str]:
    """Remove the regions of this user's dead servers; return their prefixes.

    Regions of other users, of other programs and of running servers stay. If /dev/shm has little room, wait
    up to `EXIT_SECONDS` for locks to be released: the kernel may still be ending killed processes.
    """
    removed = []
    deadline = time.monotonic() + EXIT_SECONDS
    while True:
        locks = [path for path in folder.iterdir() if LOCK_NAME.fullmatch(path.name)]
        newly_removed = [prefix for prefix in map(_remove_if_dead, locks) if prefix]
        removed += newly_removed
        if (
            len(newly_removed) == len(locks)
            or _free_bytes(folder) >= SCARCE_BYTES
            or time.monotonic() > deadline
        ):
            return removed
        time.sleep(0.05)


def _remove_if_dead(path: Path) -> str | None:
    """Remove the regions of a lock that no process holds; return their prefix."""
    try:
        if path.lstat().st_uid != os.geteuid():
            return None
        lock = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:  # already removed, a symbolic link, or a file with another mode
        return None
    try:
        if not _try_lock(lock):
            return None
        prefix = path.name.removesuffix(".lock") + "_"
        _remove_regions_and_lock(path.parent, prefix)
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


def _remove_regions_and_lock(folder: Path, prefix: str) -> None:
    """Remove the regions before the lock, so that the next server can complete an interrupted removal."""
    _remove_regions(folder, prefix)
    _lock_path(folder, prefix).unlink(missing_ok=True)


def _remove_regions(folder: Path, prefix: str) -> None:
    for region in folder.glob(f"{prefix}*"):
        # A folder or another user's file with such a name must not prevent the start.
        with contextlib.suppress(IsADirectoryError, PermissionError):
            region.unlink(missing_ok=True)


def _clean_temporary_folder() -> None:
    """Remove the last server's files from /tmp, which outlives a container on Kubernetes.

    The files are the liveness probe's counters and the empty folders that Triton's Python backend creates.
    Call this only in the first process of a container: no other server uses the container's /tmp.
    """
    for counters in Path("/tmp").glob("triton-face-probe-*.json"):
        counters.unlink()
    for folder in Path("/tmp").glob("python_env_*"):
        with contextlib.suppress(OSError):  # not empty: the packed Python environment of a model
            folder.rmdir()


def main(command: list[str]) -> None:
    """Clean up, reserve a prefix and execute the command with it."""
    if os.getpid() == 1:
        _clean_temporary_folder()
    try:
        for prefix in remove_leftovers():
            print(f"removed the shared memory of a server that was killed: {prefix}*", file=sys.stderr)
        prefix = RegionPrefix()
    except OSError as error:
        sys.exit(f"serve.sh: cannot use {SHARED_MEMORY}, which Triton's Python backend needs: {error}")
    os.set_inheritable(prefix.lock, True)
    option = f"--backend-config=python,shm-region-prefix-name={prefix.name}"
    os.execvp(command[0], [*command, option])


if __name__ == "__main__":
    main(sys.argv[1:])
