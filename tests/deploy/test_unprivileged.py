"""The image as the manifests run it: uid 1000, a root that cannot be written, 1 GiB of /dev/shm."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local.server import find_triton
from tests.deploy.dockerfile import Image
from tests.deploy.production_server import ProductionServer
from tests.deploy.test_kubernetes import pod
from tests.deploy.test_probes import probe
from tests.faces import photo_faces
from triton_face_client import FaceFeatureClient

NAMESPACE = ("unshare", "--mount")


def confined(shown: list[Path], uid: int, shared_memory: str) -> tuple[str, ...]:
    """Return a command that runs what follows as a user, in a mount namespace with little to write to.

    Parameters
    ----------
    shown : list of Path
        Folders it needs; those that root alone can reach, as in its home, are mounted where they are.
    uid : int
        The user and the group.
    shared_memory : str
        Size of /dev/shm, which can be written beside /tmp and nothing else, as mount takes it.
    """
    lines = ["set -e", "mount --make-rprivate /", "mount -t tmpfs tmpfs /mnt"]
    hidden: dict[Path, list[Path]] = {}
    for folder in shown:
        closed = next(
            (one for one in reversed([folder, *folder.parents]) if not one.stat().st_mode & 1), None
        )
        if closed is not None:
            hidden.setdefault(closed, []).append(folder)
    wanted = [folder for folders in hidden.values() for folder in folders]
    kept = {folder: Path("/mnt") / str(number) for number, folder in enumerate(wanted)}
    for folder, place in kept.items():
        lines += [f"mkdir {place}", f"mount --bind {shlex.quote(str(folder))} {place}"]
    for closed, folders in hidden.items():
        lines.append(f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(closed))}")
        for folder in folders:
            lines.append(f"mkdir -p {shlex.quote(str(folder))}")
            lines.append(f"mount --bind {kept[folder]} {shlex.quote(str(folder))}")
    lines += [
        f"mount -t tmpfs -o size={shared_memory},mode=1777 tmpfs /dev/shm",
        # Triton's Python backend makes a folder there at its start, and does not start where it cannot.
        "mount --rbind /tmp /tmp",
        "mount --bind / /",
        "mount -o remount,bind,ro /",
        f'cd / && exec setpriv --reuid={uid} --regid={uid} --clear-groups --no-new-privs "$@"',
    ]
    return (*NAMESPACE, "sh", "-c", "\n".join(lines), "sh")


@pytest.fixture(scope="module")
def prefix(image: Image) -> tuple[str, ...]:
    if os.geteuid() != 0 or subprocess.run([*NAMESPACE, "true"], check=False).returncode:
        pytest.skip("another user in a mount namespace of its own wants root (unshare --mount, setpriv)")
    triton = find_triton()
    shown = [Path(sys.base_prefix), image.root, triton, triton.parent.parent / "nvidia_pytriton.libs"]
    size = next(one for one in pod("gpu")["volumes"] if one["name"] == "shared-memory")["emptyDir"][
        "sizeLimit"
    ]
    return confined(shown, pod("gpu")["securityContext"]["runAsUser"], size.removesuffix("i"))


def test_nothing_else_can_be_written_there(prefix: tuple[str, ...], image: Image):
    places = ["/", "/etc", "/var/tmp", str(image.root)]
    script = 'id -u; touch /dev/shm/x; for place; do touch "$place/x" 2>&1 || true; done'
    done = subprocess.run([*prefix, "sh", "-c", script, "sh", *places], capture_output=True, text=True)
    user, *refusals = done.stdout.splitlines()
    assert user == "1000"
    assert len(refusals) == len(places)
    assert all("Read-only" in line or "denied" in line for line in refusals), refusals


def test_it_serves_and_ends_there(prefix: tuple[str, ...], image: Image, client: FaceFeatureClient):
    frames, landmarks = photo_faces(128, 750)
    expected = client.features(frames, landmarks)["HOG"]
    with ProductionServer(image, prefix=prefix) as server:
        status = Path(f"/proc/{server.pid}/status").read_text()
        assert "\nUid:\t1000\t1000\t1000\t1000\n" in status
        assert "\nCapEff:\t0000000000000000\n" in status
        with FaceFeatureClient(server.grpc_url) as connected:
            assert (connected.features(frames, landmarks)["HOG"] == expected).all()
        assert probe(image, server).returncode == 0
        assert server.stop() == 0
