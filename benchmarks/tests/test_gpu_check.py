"""`make gpu-check` without a GPU: the dry run, the wheels, and errors that its checks must detect."""

import dataclasses
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gpu import pipeline_checks, server_checks
from benchmarks.gpu.__main__ import FULL, STOP_SECONDS, _run
from benchmarks.gpu.page import TITLES, page
from benchmarks.gpu.rows import SIZES, Job
from benchmarks.gpu.wheels import WheelsError, install, split
from deploy.local import LocalServer
from deploy.local.server import PROJECT
from export.hog.orientation import BORDER_SHIFTS


def gpu_check(*options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *options], capture_output=True, text=True, cwd=PROJECT
    )


@pytest.fixture
def job(repository: Path) -> Job:
    return Job("cpu", SIZES["tiny"], repository)


@pytest.mark.slow
def test_dry_run_runs_every_step(tmp_path: Path):
    finished = gpu_check("--device", "cpu", "--results", str(tmp_path))
    assert finished.returncode == 0, finished.stdout + finished.stderr
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert set(result["steps"]) == set(FULL) == set(TITLES)
    assert {step["state"] for step in result["steps"].values()} == {"done"}
    assert all(step["rows"] for step in result["steps"].values())
    checks = [row for step in result["steps"].values() for row in step["rows"] if "reached" in row]
    assert sum(row["reached"] is True for row in checks) >= 30
    text = (tmp_path / "gpu.md").read_text()
    assert text.startswith("# On a GPU: not measured\n\n**No GPU has been available so far")
    assert text == page(result)
    assert [line.split()[:2] for line in finished.stdout.splitlines()[-len(FULL) :]] == [
        [name, "done"] for name in FULL
    ]


def test_committed_page_matches_its_json():
    results = PROJECT / "benchmarks" / "results"
    assert (results / "gpu.md").read_text() == page(json.loads((results / "gpu.json").read_text()))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_gpu_reports_one_line_and_writes_nothing(tmp_path: Path):
    finished = gpu_check("--results", str(tmp_path / "results"))
    assert finished.returncode == 1
    assert finished.stderr.startswith("gpu-check: torch ")
    assert len(finished.stderr.splitlines()) == 1
    assert not (tmp_path / "results").exists()


def test_failed_step_keeps_its_rows_and_reason(job: Job, tmp_path: Path):
    incomplete = tmp_path / "repository"
    incomplete.mkdir()
    (incomplete / "hog").symlink_to(job.repository / "hog")
    step = _run(["providers", "cpu", "tiny", str(incomplete)], 60, tmp_path)
    assert step["state"] == "failed"
    assert [row["what"] for row in step["rows"]] == ["warp: device", "hog: ONNX nodes"]
    assert "pose_mlp" in step["error"]


def test_step_beyond_its_time_limit_is_stopped(job: Job, tmp_path: Path):
    """The step may lose an interrupt while it imports packages; then it is killed after the grace period."""
    step = _run(["parity", "cpu", "tiny", str(job.repository)], 0.5, tmp_path)
    assert step["state"] == "timed out"
    assert step["seconds"] < STOP_SECONDS + 10


@pytest.mark.parametrize("border", BORDER_SHIFTS)
def test_sweep_finds_the_bin_borders_of_the_graph(job: Job, border: str):
    gx, gy, offset = pipeline_checks.gradients_near(border, 8, np.random.default_rng(3))
    bins = pipeline_checks.reference_bins(gx, gy, "cpu")
    shift, width = pipeline_checks.measured_shift(offset, bins == pipeline_checks.upper_bin(border))
    assert shift == pytest.approx(BORDER_SHIFTS[border], abs=2e-10)
    assert width == 0
    np.testing.assert_array_equal(pipeline_checks.graph_bins(pipeline_checks.bin_graph(job), gx, gy), bins)


@pytest.mark.parametrize("transport", ["message", "system"])
def test_counts_wrong_and_rejected_responses(job: Job, server: LocalServer, transport: str):
    """Every request includes HOG or MASKED_FACES, so no response can match when both are altered."""
    reference = server_checks._make_reference(job)
    altered = {
        name: values + np.float32(1) if name in ("HOG", "MASKED_FACES") else values
        for name, values in reference.outputs.items()
    }
    altered_reference = dataclasses.replace(reference, outputs=altered)
    assert server_checks.count_responses(job, server, transport, altered_reference) == {
        "wrong": job.size.requests
    }
    invalid_reference = dataclasses.replace(reference, landmarks=np.full_like(reference.landmarks, np.nan))
    assert server_checks.count_responses(job, server, transport, invalid_reference) == {
        "error": job.size.requests
    }


def test_empty_output_counts_as_wrong():
    features = np.ones((2, 5408), np.float32)
    assert server_checks._is_correct("HOG", features, features)
    assert not server_checks._is_correct("HOG", None, features)
    assert not server_checks._is_correct("HOG", np.empty(0, np.float32), features)
    assert not server_checks._is_correct("HOG", np.full_like(features, np.nan), features)


def test_device_handover_is_set_in_a_copy_of_the_repository(job: Job):
    copy = dataclasses.replace(job, repository=server_checks._repository_with_device_handover(job.repository))
    for name in ("configs/gpu.pbtxt", "config.pbtxt"):
        assert (copy.repository / "align_mask" / name).read_text() != (
            job.repository / "align_mask" / name
        ).read_text()
    assert copy.config("align_mask").parameters["masked_faces_on_device"].string_value == "true"
    assert job.config("align_mask").parameters["masked_faces_on_device"].string_value == "false"


# A wheel of an installed package in another version.
OTHER_TQDM = {
    "tqdm/__init__.py": '__version__ = "99"\n' + "# padding\n" * 5000,
    "tqdm-99.dist-info/METADATA": "Metadata-Version: 2.1\nName: tqdm\nVersion: 99\n",
    "tqdm-99.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "tqdm-99.dist-info/RECORD": "",
}

VERSION_MODEL = """
import numpy as np, torch, tqdm
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        version = np.array([int(tqdm.__version__)], np.int32)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("VERSION", version)]) for _ in requests]
"""

VERSION_CONFIG = """
backend: "python"
output [ { name: "VERSION" data_type: TYPE_INT32 dims: [ 1 ] } ]
input [ { name: "X" data_type: TYPE_INT32 dims: [ 1 ] } ]
instance_group [ { kind: KIND_CPU } ]
"""

PRINT_STUB_VERSION = """
import sys
from pathlib import Path
import numpy as np, tqdm, tritonclient.grpc as grpcclient
from deploy.local import LocalServer

with LocalServer(Path(sys.argv[1])) as server, grpcclient.InferenceServerClient(server.grpc_url) as client:
    sent = grpcclient.InferInput("X", [1], "INT32")
    sent.set_data_from_numpy(np.zeros(1, np.int32))
    print(tqdm.__version__, client.infer("version", [sent]).as_numpy("VERSION")[0])
"""


@pytest.fixture
def pieces(tmp_path: Path) -> Path:
    """Return a folder with the pieces of one small wheel."""
    wheel = tmp_path / "wheels" / "serving" / "tqdm-99-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in OTHER_TQDM.items():
            archive.writestr(name, text)
    written = split(tmp_path / "wheels", tmp_path / "pieces", 20_000)
    assert len(written) >= 3
    assert all(piece.stat().st_size <= 20_000 for piece in written)
    return tmp_path / "pieces"


def test_triton_stub_imports_the_installed_wheels(pieces: Path, tmp_path: Path):
    """The stub process ignores PYTHONPATH; it must find the wheels through the .pth file of its Python."""
    python = install(pieces, tmp_path / "work")
    model = tmp_path / "models" / "version" / "1" / "model.py"
    model.parent.mkdir(parents=True)
    model.write_text(VERSION_MODEL)
    (model.parent.parent / "config.pbtxt").write_text(VERSION_CONFIG)
    command = [str(python), "-c", PRINT_STUB_VERSION, str(tmp_path / "models")]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT)
    assert finished.stdout.split() == ["99", "99"], finished.stderr


def test_installed_pieces_are_not_reinstalled(pieces: Path, tmp_path: Path):
    install(pieces, tmp_path / "work")
    marker = tmp_path / "work" / "marker"
    marker.touch()
    install(pieces, tmp_path / "work")
    assert marker.exists()


def test_missing_piece_is_named_in_the_error(pieces: Path, tmp_path: Path):
    count = len(list(pieces.iterdir()))
    missing = pieces / "1" / f"wheels.tar.1-of-{count}"
    missing.unlink()
    with pytest.raises(WheelsError, match=rf"lacks {missing.name}$"):
        install(pieces, tmp_path / "work")


def test_folder_without_pieces_is_an_error(tmp_path: Path):
    finished = gpu_check("--wheels", str(tmp_path))
    assert finished.returncode == 1
    assert finished.stderr == f"gpu-check: {tmp_path} has pieces of 0 archives instead of 1: []\n"
