"""A machine that lacks something: /dev/shm or a disk too small, a repository that cannot be written."""

import shutil
import textwrap
from pathlib import Path

import pytest

from deploy.local.server import STUB_MEMORY_BYTES
from export.repository import read_config
from tests.support.small_file_systems import run_with_small

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

ASK_LITTLE_AND_MUCH = textwrap.dedent(
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
                print("answered")
            except InferenceServerException as error:
                print(error.status(), error.message())
            answers = client.features(frames, landmarks)
            for name in expected:
                np.testing.assert_array_equal(answers[name], expected[name])
        print("still right")
    """
)


def test_too_little_shared_memory_to_start(repository: Path):
    done = run_with_small("/dev/shm", 64, SERVE, str(repository))
    assert done.stdout.startswith("not started: tritonserver did not start: "), done.stderr
    assert "No space left on device" in done.stdout
    assert "shm-size" in done.stdout
    assert done.stdout.count("\n") == 1


def test_too_little_shared_memory_for_a_request(repository: Path):
    """The request says so, and the next one is right."""
    models = ("align_mask", "hog", "pose_mlp")
    stubs = sum(group.count for name in models for group in read_config(repository, name).instance_group)
    megabytes = stubs * STUB_MEMORY_BYTES // 2**20 + 100
    done = run_with_small("/dev/shm", megabytes, ASK_LITTLE_AND_MUCH, str(repository))
    *refused, last = done.stdout.splitlines()
    assert last == "still right", done.stderr
    assert len(refused) == 2
    for line in refused:
        assert "Failed to increase the shared memory pool size" in line
        assert "shm-size" in line


def test_a_full_disk_where_the_server_is_laid_out(repository: Path, tmp_path: Path):
    done = run_with_small(str(tmp_path), 1, SERVE, str(repository), TMPDIR=str(tmp_path))
    assert done.stdout.startswith(f"not started: cannot create the server's folder in {tmp_path}: "), (
        done.stderr
    )
    assert "No space left on device" in done.stdout


def test_a_disk_that_fills_while_it_serves(repository: Path, tmp_path: Path):
    """Its log ends; faces are answered."""
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
                    with open(f"{folder}/fill", "wb") as fill:
                        while True:
                            fill.write(bytes(65536))
                except OSError as error:
                    print(error.strerror)
                for _ in range(50):
                    np.testing.assert_array_equal(client.features(*faces)["HOG"], expected)
            print("served")""",
    ).replace("LocalServer(Path(sys.argv[1])):", "LocalServer(Path(sys.argv[1])) as server:")
    done = run_with_small(str(tmp_path), 40, script, str(repository), TMPDIR=str(tmp_path))
    assert done.stdout == "No space left on device\nserved\n", done.stderr


@pytest.mark.parametrize("what", [["hog"], ["pose"]])
def test_an_export_to_a_full_disk_leaves_the_old_model(repository: Path, tmp_path: Path, what: list[str]):
    script = textwrap.dedent(
        """
        import shutil, subprocess, sys
        from pathlib import Path
        what, original, full = sys.argv[1], sys.argv[2], Path(sys.argv[3])
        shutil.copytree(original, full / "models")
        model = next((full / "models").glob(f"{what}*/1/model.onnx"))
        before = model.read_bytes()
        try:
            with open(full / "fill", "wb") as fill:
                while True:
                    fill.write(bytes(512))
        except OSError:
            pass
        command = [sys.executable, "-m", "export", what, "--repository", str(full / "models")]
        done = subprocess.run(command, capture_output=True, text=True)
        print(done.returncode, done.stderr.strip())
        print(model.read_bytes() == before, sorted(path.name for path in model.parent.iterdir()))
        """
    )
    done = run_with_small(str(tmp_path), 20, script, *what, str(repository), str(tmp_path))
    said, kept = done.stdout.splitlines()
    assert said.startswith("1 ")
    assert "No space left on device" in said
    assert kept == "True ['.gitkeep', 'model.onnx']"


def test_a_repository_that_cannot_be_written(repository: Path, tmp_path: Path):
    """As it is mounted in production."""
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
    done = run_with_small(str(unused), 1, script, str(models))
    assert done.stdout == "Read-only file system\nserved\n", done.stderr
    assert sorted(models.rglob("*")) == before
