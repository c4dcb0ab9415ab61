"""The model repository of the AU classifiers: its files, what it refuses, and that it is written as one."""

import hashlib
import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from export.__main__ import main
from export.au.classifiers import AuCheckpoint
from export.au.command import export_au
from export.errors import ExportError
from export.repository import read_config
from tests.support.random_classifiers import (
    HOG_FEATURES,
    Sizes,
    random_hog,
    random_landmarks,
    random_svm,
    random_xgb,
)
from tests.support.small_file_systems import run_with_small_file_system

PROJECT = Path(__file__).parents[2]

NAMES = ["AU01", "AU02", "AU04", "AU07", "AU11", "AU12", "AU14", "AU43"]

FILES = [
    "action_units/1/.gitkeep",
    "action_units/config.pbtxt",
    "au/1/model.onnx",
    "au/config.pbtxt",
    "au/labels.txt",
]


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_of(folder)}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "au_repository"


def test_repository_has_two_models_and_nothing_else(repository: Path, out: Path):
    path, _ = export_au(random_xgb(1), repository, out)
    assert path == out / "au" / "1" / "model.onnx"
    assert files_of(out) == FILES
    assert list(out.parent.iterdir()) == [out]
    assert (out / "au" / "labels.txt").read_text().split() == NAMES
    for name in ("au", "action_units"):
        assert read_config(out, name).parameters["action_units"].string_value == ",".join(NAMES)
    # Triton may run as another user.
    assert all(path.stat().st_mode & 0o004 for path in out.rglob("*"))


@pytest.mark.parametrize("checkpoint", [random_xgb(1), random_svm(2)], ids=["xgb", "svm"])
def test_tensors_of_the_onnx_file_equal_the_config(repository: Path, out: Path, checkpoint: AuCheckpoint):
    path, _ = export_au(checkpoint, repository, out)
    types = {"TYPE_FP32": onnx.TensorProto.FLOAT, "TYPE_INT64": onnx.TensorProto.INT64}
    graph, config = onnx.load(path).graph, read_config(out, "au")
    for configured, built in ((config.input, graph.input), (config.output, graph.output)):
        assert [
            (
                value.name,
                value.type.tensor_type.elem_type,
                [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:],
            )
            for value in built
        ] == [
            (value.name, types[model_config_pb2.DataType.Name(value.data_type)], list(value.dims))
            for value in configured
        ]


def test_ensemble_extends_the_ensemble_of_the_model_repository(repository: Path, out: Path):
    export_au(random_xgb(1), repository, out)
    ours, ensemble = read_config(out, "action_units"), read_config(repository, "ensemble")
    assert ours.input == ensemble.input
    by_name = {tensor.name: tensor for tensor in ours.output}
    assert set(by_name) == {"AU"} | {tensor.name for tensor in ensemble.output}
    assert all(by_name[tensor.name] == tensor for tensor in ensemble.output)
    assert by_name["AU"].dims == read_config(out, "au").output[0].dims
    assert ours.max_batch_size == ensemble.max_batch_size


def test_ensemble_runs_its_steps_one_after_the_other_and_returns_no_input_of_a_step(
    repository: Path, out: Path
):
    """Triton 2.51 loses rejections of parallel steps, and runs unneeded steps if it returns their inputs."""
    export_au(random_xgb(1), repository, out)
    config = read_config(out, "action_units")
    steps = config.ensemble_scheduling.step
    producer = {name: step.model_name for step in steps for name in step.output_map.values()}
    needs = {
        step.model_name: {producer[name] for name in step.input_map.values() if name in producer}
        for step in steps
    }
    assert needs == {
        "pose_mlp": set(),
        "align_mask": {"pose_mlp"},
        "hog": {"align_mask"},
        "au": {"hog", "align_mask"},
    }
    step_inputs = {name for step in steps for name in step.input_map.values()}
    assert step_inputs.isdisjoint(output.name for output in config.output)


def test_queue_of_au_is_as_long_as_of_hog_and_it_has_as_many_instances(repository: Path, out: Path):
    """Under overload, the queue of align_mask must be full first, before a rejected request has cost work."""
    export_au(random_xgb(1), repository, out)
    au, hog = read_config(out, "au"), read_config(repository, "hog")
    assert au.dynamic_batching == hog.dynamic_batching
    assert au.max_batch_size == hog.max_batch_size
    assert au.instance_group[0].count == hog.instance_group[0].count
    assert au.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_CPU
    assert au.parameters["intra_op_thread_count"].string_value == "1"


def test_metadata_name_checkpoint_settings_and_check(repository: Path, out: Path):
    path, agreement = export_au(random_xgb(1, calibrated=True), repository, out, "float64")
    facts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert facts["weights"] == "random_1.skops"
    assert len(facts["weights_sha256"]) == 64
    assert facts["made_from"] == "py-feat's AU classifiers of kind xgb"
    assert facts["action_units"] == ",".join(NAMES)
    assert facts["precision"] == "float64"
    assert facts["onnxruntime"] == onnxruntime.__version__
    assert facts["block_norm"] == "L2-Hys"
    assert float(facts["largest_difference"]) == pytest.approx(agreement.pipeline, rel=1e-3)


def test_export_is_reproducible_and_contains_no_path(repository: Path, out: Path):
    export_au(random_xgb(1), repository, out)
    first = contents(out)
    export_au(random_xgb(1), repository, out)
    assert contents(out) == first
    for data in first.values():
        assert str(out).encode() not in data
        assert str(PROJECT).encode() not in data


def test_mask_has_the_face_size_of_the_model_repository(repository: Path, tmp_path: Path, out: Path):
    target = _with_hog(repository, tmp_path, {})
    config = target / "align_mask" / "config.pbtxt"
    config.write_text(config.read_text().replace('string_value: "112"', 'string_value: "113"'))
    export_au(random_xgb(1), target, out)
    assert list(read_config(out, "action_units").output[5].dims) == [113, 113]


def test_refuses_other_number_of_features(repository: Path, out: Path):
    with pytest.raises(
        ExportError, match=r"random_1.skops read 300 HOG features, but .*hog/config.pbtxt says 5408\..*--face"
    ):
        export_au(random_xgb(1, Sizes(features=300)), repository, out)
    assert not out.exists()


def test_warns_of_other_hog_settings(
    repository: Path, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
):
    path, _ = export_au(random_xgb(1), _with_hog(repository, tmp_path, {"block_norm": "L1"}), out)
    error = capsys.readouterr().err
    assert "has `--face-size 112 --orientations 8 --cell 8 --block 2 --norm L1 --no-transform-sqrt" in error
    assert len(error.splitlines()) == 1
    assert {entry.key: entry.value for entry in onnx.load(path).metadata_props}["block_norm"] == "L1"


def test_is_silent_about_py_feats_hog_settings(
    repository: Path, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
):
    settings = {"orientations": "8", "block_norm": "L2-Hys", "transform_sqrt": "false"}
    export_au(random_xgb(1), _with_hog(repository, tmp_path, settings), out)
    assert capsys.readouterr().err == ""


def _with_hog(repository: Path, tmp_path: Path, settings: dict[str, str]) -> Path:
    """Return a copy of the configurations, with parameters of hog."""
    target = tmp_path / "repository"
    shutil.copytree(repository, target, ignore=shutil.ignore_patterns("*.onnx"))
    path = target / "hog" / "config.pbtxt"
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    for name, value in settings.items():
        config.parameters[name].string_value = value
    path.write_text(text_format.MessageToString(config))
    return target


def test_failed_check_keeps_the_old_repository(repository: Path, out: Path):
    export_au(random_xgb(1), repository, out)
    before = contents(out)
    with pytest.raises(ExportError, match="nothing was written"):
        export_au(_too_steep(), repository, out)
    assert contents(out) == before
    assert list(out.parent.iterdir()) == [out]


def _too_steep() -> AuCheckpoint:
    """Return classifiers whose components are so large that float32 cannot separate the thresholds."""
    checkpoint = random_xgb(1)
    for projection in checkpoint.projections.values():
        projection.matrix[:] += 1000
        projection.offset[:] -= 0.3 * 1000 * HOG_FEATURES
    return checkpoint


@pytest.mark.parametrize("name", ["align_mask", "notes.txt"])
def test_refuses_a_folder_with_other_content(repository: Path, out: Path, name: str):
    (out / name).mkdir(parents=True)
    with pytest.raises(ExportError, match=rf"contains {name}; --out replaces a whole folder"):
        export_au(random_xgb(1), repository, out)
    assert [path.name for path in out.iterdir()] == [name]


def test_refuses_a_file_as_folder(repository: Path, out: Path):
    out.write_text("")
    with pytest.raises(ExportError, match="is a file; --out must name a folder"):
        export_au(random_xgb(1), repository, out)


def test_refuses_a_folder_inside_the_model_repository(repository: Path):
    with pytest.raises(ExportError, match="is inside .*, where Triton would take it for a model"):
        export_au(random_xgb(seed=1), repository, repository / "au_repository")
    assert not (repository / "au_repository").exists()


def test_unusable_names_of_the_folder_are_errors_of_one_line(repository: Path, tmp_path: Path):
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    for folder in (circle, tmp_path / ("x" * 300)):
        with pytest.raises(ExportError, match="cannot write "):
            export_au(random_xgb(seed=1), repository, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["circle"]


def test_replaces_the_target_of_a_link(repository: Path, out: Path, tmp_path: Path):
    target = tmp_path / "elsewhere"
    export_au(random_svm(2), repository, target)
    out.symlink_to(target)
    export_au(random_xgb(1), repository, out)
    assert out.is_symlink()
    assert (target / "au" / "labels.txt").read_text().split() == NAMES


EXPORT = """
import sys
from pathlib import Path
from export.au.classifiers import AuCheckpoint
from export.au.command import export_au
from tests.support.random_classifiers import random_svm, random_xgb
make = {"xgb": random_xgb, "svm": random_svm}[sys.argv[1]]
for seed in range(int(sys.argv[4])):
    export_au(make(seed), Path(sys.argv[2]), Path(sys.argv[3]))
"""


def test_full_disk_keeps_the_old_repository(repository: Path, tmp_path: Path):
    folder = tmp_path / "small"
    folder.mkdir()
    # The model of the linear classifiers fits beside the first, the larger model of trees does not.
    script = """
import subprocess, sys
from pathlib import Path
for kind in ("svm", "xgb"):
    done = subprocess.run([sys.executable, "-c", *sys.argv[1:2], kind, *sys.argv[2:]], stderr=subprocess.PIPE)
    print(done.returncode, done.stderr.decode().strip().splitlines()[-1:])
out = Path(sys.argv[3])
print(sorted(path.name for path in out.parent.iterdir()), (out / "au" / "labels.txt").read_text().split())
"""
    done = run_with_small_file_system(str(folder), 1, script, EXPORT, str(repository), f"{folder}/out", "1")
    first, second, third = done.stdout.splitlines()
    assert first == "0 []"
    assert second.startswith("1 ['export.errors.ExportError: cannot write")
    assert "No space left on device" in second
    assert third == "['out'] ['AU01', 'AU02', 'AU12', 'AU43']"


def test_concurrent_and_killed_exports_leave_a_complete_repository(repository: Path, out: Path):
    export_au(random_svm(0), repository, out)
    environment = os.environ | {"PYTHONPATH": f"{PROJECT}:{PROJECT / 'client' / 'src'}"}
    command = [sys.executable, "-c", EXPORT]
    exports = [
        subprocess.Popen([*command, kind, str(repository), str(out), "1000"], cwd=PROJECT, env=environment)
        for kind in ("xgb", "svm")
    ]
    try:
        replaced = set()
        end = time.monotonic() + 60
        while len(replaced) < 10 and time.monotonic() < end:
            assert all((out / name).is_file() for name in FILES)
            replaced.add(out.stat().st_ino)
    finally:
        for process in exports:
            process.kill()
            process.wait()
    assert len(replaced) == 10
    assert files_of(out) == FILES
    session = onnxruntime.InferenceSession(str(out / "au" / "1" / "model.onnx"))
    generator = np.random.default_rng(0)
    inputs = {"HOG": random_hog(generator, 1), "ALIGNED_LANDMARKS": random_landmarks(generator, 1)}
    (au,) = session.run(["AU"], inputs)
    assert au.shape[1] == len((out / "au" / "labels.txt").read_text().split())


def test_command_exports_a_checkpoint_and_prints_the_agreement(
    repository: Path,
    out: Path,
    au_checkpoints: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    options = ["--weights", str(au_checkpoints["xgb"]), "--repository", str(repository), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["export", "au", *options])
    assert main() == 0
    printed = capsys.readouterr().out
    assert "20 action units from" in printed
    assert "of 3840 check values differ from the reference by more than 1e-05" in printed
    assert len((out / "au" / "labels.txt").read_text().split()) == 20
    facts = {entry.key: entry.value for entry in onnx.load(out / "au" / "1" / "model.onnx").metadata_props}
    assert facts["weights_sha256"] == hashlib.sha256(au_checkpoints["xgb"].read_bytes()).hexdigest()
    assert "AU07 binary:hinge" in facts["objectives"]


def run_export(*options: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "export", "au", *options],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        cwd=PROJECT,
        check=False,
    )


def test_lack_of_memory_is_an_error_of_one_line(tmp_path: Path):
    """The file is sparse; the process may use less memory than it has."""
    weights = tmp_path / "large.skops"
    with weights.open("wb") as file:
        file.truncate(2 << 30)
    code = "import resource, sys; from export.__main__ import main; import export.au.command; " + (
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize(); "
        "resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), -1)); sys.exit(main())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "au", "--weights", weights, "--out", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "export: not enough memory\n"
    assert not (tmp_path / "out").exists()


def test_missing_file_is_an_error_of_one_line(
    repository: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    options = ["--weights", str(out / "missing.skops"), "--repository", str(repository), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["export", "au", *options])
    assert main() == 1
    error = capsys.readouterr().err
    assert "missing.skops" in error
    assert len(error.splitlines()) == 1
    assert not out.exists()


def test_unreachable_hub_is_an_error_of_one_line(tmp_path: Path):
    done = run_export("--hub", "svm", HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("export: the Hugging Face hub is unreachable or has no py-feat/svm_au")
    assert "download svm_au_classifier_v2.skops elsewhere and name it with --weights" in done.stderr
    assert len(done.stderr.splitlines()) == 1


class _Hub(http.server.BaseHTTPRequestHandler):
    """A hub that has one file: py-feat's first classifiers of kind xgb, not their version 2."""

    content = b"not a zip archive"

    def do_HEAD(self) -> None:
        self._respond()

    def do_GET(self) -> None:
        self._respond()

    def _respond(self) -> None:
        found = self.path == "/py-feat/xgb_au/resolve/main/xgb_au_classifier.skops"
        self.send_response(200 if found else 404)
        headers = (
            {"ETag": '"1"', "X-Repo-Commit": 40 * "a", "Content-Length": str(len(self.content))}
            if found
            else {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": 40 * "a", "Content-Length": "0"}
        )
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if found and self.command == "GET":
            self.wfile.write(self.content)

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


@pytest.fixture
def hub() -> Iterator[str]:
    """Return the address of a local hub."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_hub_without_version_2_gives_the_first_classifiers(hub: str, tmp_path: Path):
    done = run_export("--hub", "xgb", HF_ENDPOINT=hub, HF_HOME=str(tmp_path), HF_HUB_DISABLE_XET="1")
    assert done.returncode == 1
    assert "xgb_au_classifier.skops" in done.stderr
    (downloaded,) = tmp_path.rglob("xgb_au_classifier.skops")
    assert downloaded.read_bytes() == _Hub.content
