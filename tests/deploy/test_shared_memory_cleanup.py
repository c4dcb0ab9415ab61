"""At its start a server removes the shared memory of killed servers and no other files."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from deploy.docker.shm_regions import RegionPrefix, remove_leftovers
from deploy.local.server import STUB_MEMORY_BYTES
from tests.support.small_file_systems import run_with_small_file_system

KILL_REPEATEDLY = """
import json, os, signal, subprocess, sys, tempfile
from pathlib import Path
from deploy.docker.shm_regions import SHARED_MEMORY
from deploy.local import LocalServer
from deploy.local.supervisor import server_processes
from tests.deploy.production_server import ProductionServer
from tests.support.face_data import photo_faces
from tests.support.make_serve import read_until_ready, start, tritonserver_pid
from triton_face_client import FaceFeatureClient

repository, kind, kills = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
for name in ("triton_python_backend_shm_region_1", "triton_face_server_x.lock"):
    (SHARED_MEMORY / name).touch()
frames, landmarks = photo_faces(4, 760)

def kill(*pids):
    # SIGSTOP to all processes first, so that no process reacts to the death of another one.
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            os.kill(pid, number)

def serve_and_kill():
    if kind == "serve.sh":
        with ProductionServer(repository) as server:
            check(server.grpc_url)
            kill(*(process.pid for process in server_processes(server.pid)))
    else:
        process = start(repository)
        check(read_until_ready(process)["gRPC"])
        kill(process.pid, *(child.pid for child in server_processes(tritonserver_pid(process))))
        process.communicate()

def check(url):
    with FaceFeatureClient(url) as client:
        assert client.features(frames, landmarks)["HOG"].shape == (4, 5408)

used_bytes = []
with LocalServer(repository, models=("pose_mlp",)) as second:
    kept = {path.name for path in second.shared_memory()}
    for _ in range(kills):
        serve_and_kill()
        used = sum(512 * path.stat().st_blocks for path in SHARED_MEMORY.iterdir() if path.name not in kept)
        used_bytes.append(used)
    assert {path.name for path in second.shared_memory()} == kept, "the living server's regions"
    with FaceFeatureClient(second.grpc_url) as second_client:
        assert second_client.pose(landmarks).shape == (4, 6)
with LocalServer(repository, models=("pose_mlp",)):
    pass
files = sorted(path.name for path in SHARED_MEMORY.iterdir())
folders = [path.name for path in Path(tempfile.gettempdir()).glob("triton-face-server-*")]
print(json.dumps({"used_bytes": used_bytes, "files": files, "folders": folders}))
"""


@pytest.mark.parametrize("kind", ["serve.sh", "make serve"])
def test_killed_server_starts_every_time(repository: Path, tmp_path: Path, kind: str):
    """/dev/shm has room for one and a half servers and a second, smaller one that keeps running."""
    kills = 3
    server_bytes, second_server_bytes = 8 * STUB_MEMORY_BYTES, 2 * STUB_MEMORY_BYTES
    megabytes = int(1.5 * server_bytes + second_server_bytes) // 2**20
    done = run_with_small_file_system(
        "/dev/shm",
        megabytes,
        KILL_REPEATEDLY,
        str(repository),
        kind,
        str(kills),
        timeout=600,
        TMPDIR=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["used_bytes"]) == kills
    assert all(server_bytes <= used < 1.2 * server_bytes for used in found["used_bytes"]), (
        "regions of one server after each kill"
    )
    # The files of other programs stay.
    assert found["files"] == ["triton_face_server_x.lock", "triton_python_backend_shm_region_1"]
    assert found["folders"] == []


@pytest.fixture
def dead_prefix(tmp_path: Path) -> RegionPrefix:
    """Return the prefix of a dead server with two regions."""
    prefix = RegionPrefix(tmp_path)
    for number in range(2):
        (tmp_path / f"{prefix.name}{number}").write_bytes(b"region")
    os.close(prefix.lock)
    return prefix


def test_regions_of_a_dead_server_are_removed(dead_prefix: RegionPrefix, tmp_path: Path):
    assert remove_leftovers(tmp_path) == [dead_prefix.name]
    assert list(tmp_path.iterdir()) == []
    assert remove_leftovers(tmp_path) == []


def test_regions_of_a_running_server_stay(dead_prefix: RegionPrefix, tmp_path: Path):
    """Only a child process, in the role of tritonserver, has the lock open."""
    living = RegionPrefix(tmp_path)
    region = tmp_path / f"{living.name}0"
    region.touch()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.read(reader, 1)
        os._exit(0)
    os.close(living.lock)
    assert remove_leftovers(tmp_path) == [dead_prefix.name]
    assert region in living.regions
    os.write(writer, b"x")
    os.waitpid(child, 0)
    assert remove_leftovers(tmp_path) == [living.name]


def test_interrupted_removal_is_completed(dead_prefix: RegionPrefix, tmp_path: Path):
    dead_prefix.regions[0].unlink()
    assert remove_leftovers(tmp_path) == [dead_prefix.name]
    assert list(tmp_path.iterdir()) == []


def test_files_of_other_programs_stay(tmp_path: Path):
    target = tmp_path / "target"
    target.touch()
    (tmp_path / "triton_face_server_0123456789ab.lock").symlink_to(target)
    (tmp_path / "triton_face_server_0123456789ab_0").touch()
    (tmp_path / "triton_face_server_short.lock").touch()
    (tmp_path / "triton_face_server_aaaaaaaaaaaa_0").touch()
    before = set(tmp_path.iterdir())
    assert remove_leftovers(tmp_path) == []
    assert set(tmp_path.iterdir()) == before


def test_folder_among_the_regions_does_not_prevent_the_start(dead_prefix: RegionPrefix, tmp_path: Path):
    (tmp_path / f"{dead_prefix.name}folder").mkdir()
    assert remove_leftovers(tmp_path) == [dead_prefix.name]
    assert [path.name for path in tmp_path.iterdir()] == [f"{dead_prefix.name}folder"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the owner of a file")
def test_regions_of_another_user_stay(dead_prefix: RegionPrefix, tmp_path: Path):
    for path in tmp_path.iterdir():
        os.chown(path, 12345, 12345)
    assert remove_leftovers(tmp_path) == []
    assert len(dead_prefix.regions) == 2


def _create_region_and_unlock(folder: Path, count: int) -> None:
    for _ in range(count):
        remove_leftovers(folder)
        prefix = RegionPrefix(folder)
        (folder / f"{prefix.name}0").touch()
        # The other processes remove leftovers at the same time; this lock and region must remain.
        assert len(prefix.regions) == 1
        assert (folder / f"{prefix.name.removesuffix('_')}.lock").exists()
        os.close(prefix.lock)


def test_concurrent_starts_remove_no_regions_of_each_other(tmp_path: Path):
    arguments = (tmp_path, 300)
    workers = [multiprocessing.Process(target=_create_region_and_unlock, args=arguments) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []
