"""CPU time and memory of a server and its stub processes, from /proc."""

import os
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
SHARED_MEMORY = Path("/dev/shm")


def cpu_seconds(root: int) -> float:
    """Return the CPU seconds that a process and its descendants have used."""
    return sum(int(stat[11]) + int(stat[12]) for stat in _tree(root).values()) / TICKS_PER_SECOND


def resident_megabytes(root: int) -> float:
    """Return the private resident memory of a process and its descendants, in MB."""
    return sum(resident_by_process(root).values())


def resident_by_process(root: int) -> dict[int, float]:
    """Return the private resident memory, MB, of a process and each of its descendants, by process id."""
    resident_of = {}
    for pid in _tree(root):
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
        resident_of[pid] = (int(resident) - int(shared)) * PAGE_BYTES / 2**20
    return resident_of


def shared_megabytes() -> float:
    """Return the used size of /dev/shm in MB."""
    usage = os.statvfs(SHARED_MEMORY)
    return (usage.f_blocks - usage.f_bfree) * usage.f_frsize / 2**20


def _tree(root: int) -> dict[int, list[str]]:
    """Return, for a process and its descendants, process id -> fields of /proc/PID/stat after the command."""
    stats = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stats[int(folder.name)] = (folder / "stat").read_text().rpartition(") ")[2].split()
        except OSError:  # the process ended after the listing
            continue
    members = [root]
    for pid in members:
        members += [child for child, stat in stats.items() if int(stat[1]) == pid]
    return {pid: stats[pid] for pid in members}
