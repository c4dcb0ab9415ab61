"""Debian's podman and buildah, unpacked into a folder without installing them.

The engine runs in a separate mount namespace with its libraries and state, and the containers in a separate
network namespace, where Triton's default ports are free. Both namespaces end with this process.
"""

import ctypes
import fcntl
import functools
import json
import os
import resource
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

from deploy.local.server import PROJECT

FOLDER = PROJECT / "build" / "container"
"""Folder of the unpacked engine, the images and their layers, kept between runs."""

FETCH = PROJECT / "tests" / "tools" / "fetch_debian_packages.sh"

PACKAGES = (
    *("podman", "buildah", "runc", "conmon", "debootstrap"),
    # Default settings, the seccomp profile, and the policy that allows local images.
    *("golang-github-containers-common", "golang-github-containers-image"),
    # Libraries missing in a minimal Debian.
    *("libgpgme11", "libassuan0", "libsubid4", "libdevmapper1.02.1", "libseccomp2", "libglib2.0-0"),
)

MOUNT_POINT = Path("/media")
"""Mount point of the engine's storage and state. It is short: a Unix socket's path has at most 107 bytes."""

LAYER_CACHE = Path("/var/lib/containers/cache")
"""Folder of the engine that no setting can move. An empty folder remains on the machine, like /run/runc."""

PROGRAMS = ("apt-get", "dpkg-deb", "wget", "unshare", "mount", "ldconfig")

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000  # linux/sched.h
SIOCSIFFLAGS, IFF_UP = 0x8914, 1  # linux/sockios.h, linux/if.h
_LIBC = ctypes.CDLL(None, use_errno=True)

Echo = Callable[[str], None]
"""Print a line."""


class EngineError(RuntimeError):
    """A command of the engine failed; the message has the command and the end of the output."""


def missing_requirement() -> str | None:
    """Return why this machine cannot run Debian's container engine, or None if it can."""
    if os.geteuid() != 0:
        return "containers need root"
    missing = [program for program in PROGRAMS if shutil.which(program, path=_system_path()) is None]
    if missing:
        return f"no {', '.join(missing)}: the container engine and the base image come from Debian's packages"
    if debian_mirror() is None:
        return "apt-get has no archive of Debian: the base image is made from Debian's packages"
    namespaces = subprocess.run(["unshare", "--mount", "--net", "true"], capture_output=True, text=True)
    return namespaces.stderr.strip() or None


def _system_path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


@functools.cache
def debian_mirror() -> str | None:
    """Return the address of Debian's main archive that apt-get uses on this machine, or None."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=True,
    )
    addresses = [line.split()[2] for line in listed.stdout.splitlines() if line.startswith("Debian Debian ")]
    return addresses[0] if addresses else None


def enter_private_network() -> None:
    """Move this process and its children into a network namespace with only a loopback interface."""
    _unshare(CLONE_NEWNET)
    with socket.socket() as any_socket:
        loopback_up = struct.pack("16sh22x", b"lo", IFF_UP)  # struct ifreq
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, loopback_up)


def _unshare(namespace: int) -> None:
    if _LIBC.unshare(namespace) != 0:
        raise OSError(ctypes.get_errno(), "unshare")


class Engine:
    """Fetch the engine if it is missing, and move this process into a mount namespace for it.

    Parameters
    ----------
    echo : callable of str
        Prints a line.

    Attributes
    ----------
    environment : dict of str to str
        Environment of the engine's commands.
    """

    def __init__(self, echo: Echo) -> None:
        self._unpacked = FOLDER / "engine"
        if not (self._unpacked / "usr/bin/podman").exists():
            echo("unpacking Debian's podman and buildah")
            subprocess.run([FETCH, self._unpacked, *PACKAGES], check=True)
        self._mount()
        self.environment = os.environ | {
            "PATH": ":".join(
                [*(f"{self._unpacked}/usr/{folder}" for folder in ("bin", "sbin")), _system_path()]
            ),
            "HOME": str(self._home()),
            "CONTAINERS_CONF": str(self._settings()),
            "CONTAINERS_STORAGE_CONF": str(self._storage()),
            "CONTAINERS_REGISTRIES_CONF": f"{self._unpacked}/etc/containers/registries.conf",
            "BUILDAH_ISOLATION": "chroot",
            # OCI's image format has no health check.
            "BUILDAH_FORMAT": "docker",
            "BUILDAH_LAYERS": "true",
            "DEBOOTSTRAP_DIR": f"{self._unpacked}/usr/share/debootstrap",
        }
        self.podman("rm", "--all", "--force")  # containers of a killed run

    def run(self, *command: str | Path, log: Path | None = None) -> str:
        """Run a command in the engine's environment.

        Parameters
        ----------
        *command : str or Path
            The program and its arguments.
        log : Path, optional
            File for the output.

        Returns
        -------
        str
            Standard output, empty with a `log`.

        Raises
        ------
        EngineError
            The exit status is not 0.
        """
        done = self.attempt(*command, log=log)
        if done.returncode != 0:
            output = log.read_text() if log else done.stdout + done.stderr
            raise EngineError(
                f"{' '.join(map(str, command))}: exit status {done.returncode}\n{output[-3000:]}"
            )
        return done.stdout or ""

    def attempt(self, *command: str | Path, log: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command that may fail."""
        if log is None:
            return subprocess.run(command, env=self.environment, cwd=PROJECT, capture_output=True, text=True)
        with log.open("ab") as file:
            return subprocess.run(
                command, env=self.environment, cwd=PROJECT, stdout=file, stderr=file, text=True
            )

    def podman(self, *arguments: str | Path) -> str:
        """Run podman; return its standard output without the last newline."""
        return self.run("podman", "--log-level=fatal", *arguments).rstrip("\n")

    def inspect_image(self, image: str) -> dict:
        """Return the engine's description of an image."""
        return json.loads(self.podman("image", "inspect", image))[0]

    def _mount(self) -> None:
        storage = FOLDER / "storage"
        storage.mkdir(parents=True, exist_ok=True)
        cache = FOLDER / "ld.so.cache"
        libraries = [self._unpacked / folder for folder in ("usr/lib", "lib")]
        folders = [path for folder in libraries for path in folder.glob("*-linux-gnu")]
        settings = FOLDER / "ld.so.conf"
        settings.write_text("\n".join(["include /etc/ld.so.conf", *map(str, folders), ""]))
        _unshare(CLONE_NEWNS)
        # Programs started by the engine do not inherit LD_LIBRARY_PATH.
        for command in (
            ["mount", "--make-rprivate", "/"],
            ["ldconfig", "-X", "-f", settings, "-C", cache],
            ["mount", "--bind", cache, "/etc/ld.so.cache"],
            ["mount", "-t", "tmpfs", "tmpfs", MOUNT_POINT],
            ["mkdir", MOUNT_POINT / "storage", MOUNT_POINT / "state"],
            ["mount", "--bind", storage, MOUNT_POINT / "storage"],
            ["mkdir", "-p", LAYER_CACHE],
            ["mount", "-t", "tmpfs", "tmpfs", LAYER_CACHE],
        ):
            subprocess.run(command, check=True)

    def _home(self) -> Path:
        home = FOLDER / "home"
        folder = home / ".config/containers"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(self._unpacked / "etc/containers/policy.json", folder)
        return home

    def _settings(self) -> Path:
        # A process without CAP_SYS_RESOURCE cannot set podman's higher defaults.
        _, open_files = resource.getrlimit(resource.RLIMIT_NOFILE)
        ulimits = [f"nofile=1024:{open_files}", "nproc=10000:10000"]
        path = FOLDER / "containers.conf"
        path.write_text(
            f"""[containers]
default_ulimits = {json.dumps(ulimits)}
seccomp_profile = "{self._unpacked}/usr/share/containers/seccomp.json"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
runtime = "runc"
conmon_path = ["{self._unpacked}/usr/bin/conmon"]
tmp_dir = "{MOUNT_POINT}/state/libpod"
[engine.runtimes]
runc = ["{self._unpacked}/usr/sbin/runc"]
"""
        )
        return path

    def _storage(self) -> Path:
        path = FOLDER / "storage.conf"
        path.write_text(
            f"""[storage]
driver = "overlay"
graphroot = "{MOUNT_POINT}/storage"
runroot = "{MOUNT_POINT}/state/storage"
"""
        )
        return path
