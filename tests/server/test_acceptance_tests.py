"""The acceptance tests pass on a server with another profile and fail on wrong servers."""

import re
import shutil
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import trustme

from align_mask.warp import warp
from deploy.local import LocalServer
from deploy.local.server import HOST, PROJECT
from export.au.checkpoint import load_au_checkpoint
from export.au.command import export_au
from export.pose.command import export_pose
from tests.acceptance import target
from tests.acceptance.agreement import assert_agree
from tests.acceptance.target import (
    Target,
    WrongServerError,
    faces_computed,
    frame_inputs,
    infer,
    read_server_info,
)
from tests.support import oracles
from tests.support.face_data import photo_faces
from tests.support.fixtures import write_pose_checkpoint
from tests.support.interface import ENSEMBLE_OUTPUTS
from tests.support.waiting import wait_until
from triton_face_client import FaceFeatureClient, Tls

TLS_NAME = "faces.test"
"""Name in the server's certificate; it differs from the address, as with a forwarded port of a pod."""

# The first words of the rows of the acceptance table.
ALIGNMENT = "Alignment, landmarks and masks"
HOG = "HOG equals the oracle's"
POSE = "POSE equals torch's"
REJECTION = "Every invalid face is rejected"
CONCURRENCY = "32 concurrent callers"
ISOLATION = "An invalid face affects no other request"
INTERFACE = "The interface"
METRICS = "Metrics count computed and rejected faces"
HEARTBEATS = "Every instance of align_mask"
AU_INTERFACE = "Action units: the interface"
AU_BATCHES = "Action units: a face alone"
AU_VALUES = "AU equals a NumPy evaluation"
ROWS = (
    *(ALIGNMENT, HOG, POSE, REJECTION, CONCURRENCY, ISOLATION, INTERFACE, METRICS, HEARTBEATS),
    *(AU_INTERFACE, AU_BATCHES, AU_VALUES),
)


def accept(tests: str, *options: str) -> "subprocess.CompletedProcess[str]":
    """Run the acceptance tests whose names match, from the command line as an operator does."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests/acceptance",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        tests,
    ]
    return subprocess.run([*command, *options], cwd=PROJECT, capture_output=True, text=True, check=False)


def results(output: str) -> dict[str, str]:
    """Return the acceptance table: first words of a row -> result."""
    table = output[output.index("\nchecked ") :]
    return {
        name: match[1]
        for name in ROWS
        if (
            match := re.search(rf"^{re.escape(name)}.*?  +(passed|FAILED|not checked)  ", table, re.MULTILINE)
        )
    }


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with certificates of server and client, named as in a Kubernetes Secret."""
    folder, authority = tmp_path_factory.mktemp("tls"), trustme.CA()
    certificate = authority.issue_cert(TLS_NAME)
    authority.cert_pem.write_to_path(folder / "ca.crt")
    certificate.cert_chain_pems[0].write_to_path(folder / "tls.crt")
    certificate.private_key_pem.write_to_path(folder / "tls.key")
    return folder


@pytest.fixture(scope="module")
def cpu_profile_server(repository: Path, certificates: Path) -> Iterator[LocalServer]:
    """Yield a server with the profile cpu that requires client certificates."""
    options = (
        "--model-config-name=cpu",
        "--grpc-use-ssl=1",
        "--grpc-use-ssl-mutual=1",
        f"--grpc-server-cert={certificates / 'tls.crt'}",
        f"--grpc-server-key={certificates / 'tls.key'}",
        f"--grpc-root-cert={certificates / 'ca.crt'}",
    )
    with LocalServer(repository, options=options) as running:
        yield running


@pytest.mark.slow
def test_cpu_profile_warms_up_and_has_same_bits(
    cpu_profile_server: LocalServer, certificates: Path, client: FaceFeatureClient
):
    faces = frame_inputs(*photo_faces(20, 61))
    tls = Tls(*(certificates / name for name in ("ca.crt", "tls.crt", "tls.key")), server_name=TLS_NAME)
    with FaceFeatureClient(cpu_profile_server.grpc_url, tls=tls) as tls_client:
        config = tls_client.connection.get_model_config("align_mask").config
        batch_sizes = [warm_up.batch_size for warm_up in config.model_warmup]
        warm_up_faces = config.instance_group[0].count * sum(batch_sizes)
        assert warm_up_faces > 0
        assert wait_until(lambda: faces_computed(tls_client)["align_mask"] == warm_up_faces, 10)
        response = infer(tls_client, "ensemble", faces, ENSEMBLE_OUTPUTS)
    expected = infer(client, "ensemble", faces, ENSEMBLE_OUTPUTS)
    for name in ENSEMBLE_OUTPUTS:
        np.testing.assert_array_equal(response[name], expected[name], err_msg=name)


@pytest.mark.slow
def test_correct_server_with_another_profile_passes(
    cpu_profile_server: LocalServer, certificates: Path, tmp_path: Path
):
    run = accept(
        "oracle or hog or torch or metadata or their_own_faces or metrics",
        f"--server={cpu_profile_server.grpc_url}",
        f"--metrics={cpu_profile_server.metrics_url}",
        f"--tls-folder={certificates}",
        f"--tls-name={TLS_NAME}",
        f"--basetemp={tmp_path / 'basetemp'}",
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{cpu_profile_server.grpc_url}: Triton 2.51.0, no model on a GPU" in run.stdout
    rows = (ALIGNMENT, HOG, POSE, CONCURRENCY, INTERFACE, METRICS, HEARTBEATS)
    assert results(run.stdout) == dict.fromkeys(rows, "passed") | {AU_INTERFACE: "not checked"}
    assert "1 (not served)" in run.stdout
    assert not list((tmp_path / "basetemp").glob("served*")), "the run has built models"


def set_parameters(repository: Path, **parameters: str) -> None:
    """Change parameters in align_mask's configuration."""
    path = repository / "align_mask" / "config.pbtxt"
    text = path.read_text()
    for name, value in parameters.items():
        text, changes = re.subn(rf'(key: "{name}"\s+value: {{ string_value: )"[^"]*"', rf'\1"{value}"', text)
        assert changes == 1, name
    path.write_text(text)


def inject_into_execute(repository: Path, code: str) -> None:
    """Inject code into align_mask's `execute`; it may change `responses`, one for each of `requests`."""
    folder = repository / "align_mask" / "1"
    (folder / "model.py").rename(folder / "original_model.py")
    (folder / "model.py").write_text(WRAPPER + textwrap.indent(code, 8 * " ") + "        return responses\n")


WRAPPER = """
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import original_model
import triton_python_backend_utils as pb_utils

class TritonPythonModel(original_model.TritonPythonModel):
    def execute(self, requests):
        responses = super().execute(requests)
"""


def change_epsilon(model: Path) -> None:
    """Change the constant in HOG's block norm."""
    graph = onnx.load(model)
    (epsilon,) = (tensor for tensor in graph.graph.initializer if tensor.name == "epsilon")
    epsilon.CopyFrom(onnx.numpy_helper.from_array(np.float32([1e-5]).reshape(epsilon.dims), "epsilon"))
    onnx.save(graph, model)


def make_action_units_depend_on_the_batch(model: Path) -> None:
    """Add the mean over the faces of a batch to each face's AUs."""
    graph = onnx.load(model)
    for node in graph.graph.node:
        node.output[:] = ["AU_OF_FACE" if name == "AU" else name for name in node.output]
        node.input[:] = ["AU_OF_FACE" if name == "AU" else name for name in node.input]
    graph.graph.node.append(
        onnx.helper.make_node("ReduceMean", ["AU_OF_FACE"], ["MEAN"], axes=[0], keepdims=1)
    )
    graph.graph.node.append(onnx.helper.make_node("Add", ["AU_OF_FACE", "MEAN"], ["AU"]))
    onnx.save(graph, model)


ACCEPT_INVALID_FACES_AND_REVERSE = """
for position, response in enumerate(responses):
    if response.has_error() and "no eye distance" in response.error().message():
        request = requests[position]
        faces = pb_utils.get_input_tensor_by_name(request, "LANDMARKS").shape()[0]
        zeros = np.zeros((faces, 3, 112, 112), np.float32)
        tensors = [pb_utils.Tensor(name, zeros) for name in request.requested_output_names()]
        responses[position] = pb_utils.InferenceResponse(tensors)
responses.reverse()
"""
"""Code that answers faces without eye distance with zeros and reverses the responses of a batch."""


@pytest.mark.slow
def test_wrong_server_fails_in_the_rows_of_its_errors(repository: Path, au_repository: Path, tmp_path: Path):
    """A wrong fill value, HOG constant, pose checkpoint, `execute` and AU graph fail in different rows."""
    wrong = shutil.copytree(repository, tmp_path / "wrong")
    set_parameters(wrong, fill="127")
    change_epsilon(wrong / "hog" / "1" / "model.onnx")
    weights, _ = write_pose_checkpoint(tmp_path, "v1")
    export_pose(wrong, weights)
    inject_into_execute(wrong, ACCEPT_INVALID_FACES_AND_REVERSE)
    wrong_au = shutil.copytree(au_repository, tmp_path / "wrong_au")
    make_action_units_depend_on_the_batch(wrong_au / "au" / "1" / "model.onnx")
    tests = (
        "oracle or torch or metadata or the_reason or their_own_faces or never_affects or heartbeat or "
        "in_a_batch or numpy"
    )
    with LocalServer(wrong, au_repository=wrong_au) as server:
        run = accept(tests, f"--server={server.grpc_url}")
        pose_run = accept("torch", f"--server={server.grpc_url}", f"--pose-weights={weights}")
    assert run.returncode == 1, run.stdout + run.stderr
    failed = dict.fromkeys((ALIGNMENT, HOG, POSE, REJECTION, CONCURRENCY, ISOLATION), "FAILED")
    assert results(run.stdout) == failed | {
        AU_BATCHES: "FAILED",
        **dict.fromkeys((INTERFACE, AU_INTERFACE), "passed"),
        **dict.fromkeys((HEARTBEATS, AU_VALUES), "not checked"),
    }
    assert pose_run.returncode == 0, pose_run.stdout + pose_run.stderr
    assert results(pose_run.stdout) == {POSE: "passed"}


@pytest.mark.slow
def test_action_units_of_other_weights_fail(
    repository: Path, au_checkpoints: dict[str, Path], tmp_path: Path
):
    weights, other_weights = au_checkpoints["xgb"], au_checkpoints["svm"]
    export_au(load_au_checkpoint(weights), repository, tmp_path / "au")
    with LocalServer(repository, au_repository=tmp_path / "au") as server:
        run = accept("action_units", f"--server={server.grpc_url}", f"--au-weights={weights}")
        other_run = accept("numpy", f"--server={server.grpc_url}", f"--au-weights={other_weights}")
    assert run.returncode == 0, run.stdout + run.stderr
    assert results(run.stdout) == dict.fromkeys((AU_INTERFACE, AU_BATCHES, AU_VALUES), "passed")
    assert results(other_run.stdout) == {AU_VALUES: "FAILED"}
    assert "does the server use another checkpoint?" in other_run.stdout


def unused_address() -> str:
    with socket.socket() as free:
        free.bind((HOST, 0))
        return f"{HOST}:{free.getsockname()[1]}"


def test_unreachable_server_is_an_error_of_one_line():
    run = accept("test", f"--server={unused_address()}")
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert len(run.stderr.strip().splitlines()) == 1
    assert "no server answers at" in run.stderr
    assert "Error" not in run.stdout


@pytest.mark.parametrize(
    ("url", "metrics", "message"),
    [
        ("http://127.0.0.1:8000", None, "is not HOST:PORT"),
        ("gRPC", "HTTP", "no metrics of align_mask at"),
        ("HTTP", None, "not the HTTP port"),
    ],
)
def test_wrong_address_is_an_error(server: LocalServer, url: str, metrics: str | None, message: str):
    addresses = {"gRPC": server.grpc_url, "HTTP": server.http_url, None: None}
    with pytest.raises(WrongServerError, match=message):
        read_server_info(Target(addresses.get(url, url), addresses[metrics]))


def test_server_without_the_models_is_an_error(repository: Path):
    with (
        LocalServer(repository, models=("pose_mlp",)) as server,
        pytest.raises(WrongServerError, match="has no model align_mask ready: serve the project's"),
    ):
        read_server_info(Target(server.grpc_url))


@pytest.mark.parametrize("listens", [True, False])
def test_run_ends_when_server_stops_responding(monkeypatch: pytest.MonkeyPatch, listens: bool):
    """A stopped process still accepts connections; the port of an ended one is closed."""
    monkeypatch.setattr(target, "RESPONSE_SECONDS", 0.5)
    with socket.socket() as endpoint:
        endpoint.bind((HOST, 0))
        if listens:
            endpoint.listen()
        address = f"{HOST}:{endpoint.getsockname()[1]}"
        with (
            Target(address).connect() as client,
            pytest.raises(
                pytest.exit.Exception, match=f"{address} did not accept and answer a request to hog"
            ),
        ):
            infer(client, "hog", {"MASKED_FACES": np.zeros((1, 3, 112, 112), np.float32)}, ["HOG"])


def test_agreement_on_gpu_allows_rounding_but_not_another_face():
    """Outputs of affine matrices that differ by one ulp agree; outputs of different faces do not."""
    frames, landmarks = photo_faces(12, 670)
    exact = np.float32([oracles.affine(points) for points in landmarks])
    masks = [
        oracles.mask(np.trunc(points @ matrix[:, :2].T + matrix[:, 2]).astype(int))
        for points, matrix in zip(landmarks, exact, strict=True)
    ]

    def outputs_for(affine: np.ndarray) -> dict[str, np.ndarray]:
        faces = warp(torch.from_numpy(frames), torch.from_numpy(affine), 112, 128.0).numpy()
        masked = faces * np.array(masks)[:, None]
        hog = np.float32([oracles.hog_features(face) for face in masked])
        return {"ALIGNED_FACES": faces, "MASKED_FACES": masked, "HOG": hog}

    expected = outputs_for(exact)
    rounded = outputs_for(np.nextafter(exact, np.float32(np.inf)))
    assert any((rounded[name] != expected[name]).any() for name in expected)
    assert_agree(rounded, expected, inexact=set(expected))
    for name, rows in expected.items():
        with pytest.raises(AssertionError, match=name):
            assert_agree({name: np.roll(rows, 1, axis=0)}, {name: rows}, inexact={name})
