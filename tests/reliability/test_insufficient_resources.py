"""A full /dev/shm or disk is reported in one line; a read-only repository is served."""

import shutil
import textwrap
from pathlib import Path

import pytest

from deploy.local.server import STUB_MEMORY_BYTES
from export.repository import read_config
from tests.support.small_file_systems import run_with_small_file_system

SERVE = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from deploy.local import LocalServer, ServerError
    try:
        with LocalServer(Path(sys.argv[1])):
            print("served")
    except ServerError as error:
        print("not started:", error)
    """
)

SEND_SMALL_AND_LARGE_REQUESTS = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    import numpy as np
    from tritonclient.utils import InferenceServerException
    from deploy.local import LocalServer
    from tests.support.face_data import photo_faces
    from tests.support.raw_requests import infer
    from triton_face_client import FaceFeatureClient

    frames, landmarks = photo_faces(3, 660)
    with LocalServer(Path(sys.argv[1])) as server, FaceFeatureClient(server.grpc_url) as client:
        expected = client.features(frames, landmarks)
        for count in (30, 60):
            large = {
                "FRAMES": np.zeros((count, 3, 1000, 1000), np.float32),
                "LANDMARKS": np.repeat(9 * landmarks[:1], count, axis=0),
            }
            try:
                infer(client, "ensemble", large, ["HOG", "POSE"])
                print("computed")
            except InferenceServerException as error:
                print(error.status(), error.message())
            outputs = client.features(frames, landmarks)
            for name in expected:
                np.testing.assert_array_equal(outputs[name], expected[name])
        print("outputs unchanged")
    """
)


def test_start_reports_too_small_shared_memory(repository: Path):
    done = run_with_small_file_system("/dev/shm", 64, SERVE, str(repository))
    assert done.stdout.startswith("not started: tritonserver did not start: "), done.stderr
    assert "No space left on device" in done.stdout
    assert "shm-size" in done.stdout
    assert done.stdout.count("\n") == 1


@pytest.mark.slow
def test_request_beyond_the_shared_memory_fails_without_harm_to_others(repository: Path):
    models = ("align_mask", "hog", "pose_mlp")
    stubs = sum(group.count for name in models for group in read_config(repository, name).instance_group)
    megabytes = stubs * STUB_MEMORY_BYTES // 2**20 + 100
    done = run_with_small_file_system("/dev/shm", megabytes, SEND_SMALL_AND_LARGE_REQUESTS, str(repository))
    *rejections, last = done.stdout.splitlines()
    assert last == "outputs unchanged", done.stderr
    assert len(rejections) == 2
    for line in rejections:
        assert "Failed to increase the shared memory pool size" in line
        assert "shm-size" in line


def test_start_reports_a_full_disk(repository: Path, tmp_path: Path):
    done = run_with_small_file_system(str(tmp_path), 1, SERVE, str(repository), TMPDIR=str(tmp_path))
    assert done.stdout.startswith(f"not started: cannot create the server's folder in {tmp_path}: "), (
        done.stderr
    )
    assert "No space left on device" in done.stdout


@pytest.mark.slow
def test_server_keeps_computing_when_the_disk_fills(repository: Path, tmp_path: Path):
    """Only lines of the server's log are lost."""
    script = SERVE.replace(
        'print("served")',
        """
            import os
            import numpy as np
            from tests.support.face_data import photo_faces
            from triton_face_client import FaceFeatureClient
            folder = os.environ["TMPDIR"]
            faces = photo_faces(3, 661)
            with FaceFeatureClient(server.grpc_url) as client:
                expected = client.features(*faces)["HOG"]
                try:
                    with open(f"{folder}/large", "wb") as large:
                        while True:
                            large.write(bytes(65536))
                except OSError as error:
                    print(error.strerror)
                for _ in range(50):
                    np.testing.assert_array_equal(client.features(*faces)["HOG"], expected)
            print("served")""",
    ).replace("LocalServer(Path(sys.argv[1])):", "LocalServer(Path(sys.argv[1])) as server:")
    done = run_with_small_file_system(str(tmp_path), 40, script, str(repository), TMPDIR=str(tmp_path))
    assert done.stdout == "No space left on device\nserved\n", done.stderr


@pytest.mark.parametrize("model", ["hog", "pose"])
def test_export_to_a_full_disk_keeps_the_old_model(repository: Path, tmp_path: Path, model: str):
    script = textwrap.dedent(
        """
        import shutil, subprocess, sys
        from pathlib import Path
        name, original, full = sys.argv[1], sys.argv[2], Path(sys.argv[3])
        shutil.copytree(original, full / "models")
        model = next((full / "models").glob(f"{name}*/1/model.onnx"))
        before = model.read_bytes()
        try:
            with open(full / "large", "wb") as large:
                while True:
                    large.write(bytes(512))
        except OSError:
            pass
        command = [sys.executable, "-m", "export", name, "--repository", str(full / "models")]
        done = subprocess.run(command, capture_output=True, text=True)
        print(done.returncode, done.stderr.strip())
        print(model.read_bytes() == before, sorted(path.name for path in model.parent.iterdir()))
        """
    )
    done = run_with_small_file_system(str(tmp_path), 20, script, model, str(repository), str(tmp_path))
    error, unchanged = done.stdout.splitlines()
    assert error.startswith("1 ")
    assert "No space left on device" in error
    assert unchanged == "True ['.gitkeep', 'model.onnx']"


@pytest.mark.slow
def test_read_only_repository_is_served(repository: Path, tmp_path: Path):
    """In production the repository is mounted read-only."""
    models = shutil.copytree(repository, tmp_path / "models")
    script = SERVE.replace("import sys\n", "import subprocess, sys\n", 1).replace(
        "try:\n",
        "subprocess.run(['mount', '--bind', sys.argv[1], sys.argv[1]], check=True)\n"
        "subprocess.run(['mount', '-o', 'remount,ro,bind', sys.argv[1]], check=True)\n"
        "try:\n"
        "    (Path(sys.argv[1]) / 'new').touch()\n"
        "except OSError as error:\n"
        "    print(error.strerror)\n"
        "try:\n",
        1,
    )
    before = sorted(models.rglob("*"))
    unused = tmp_path / "unused"
    unused.mkdir()
    done = run_with_small_file_system(str(unused), 1, script, str(models))
    assert done.stdout == "Read-only file system\nserved\n", done.stderr
    assert sorted(models.rglob("*")) == before
