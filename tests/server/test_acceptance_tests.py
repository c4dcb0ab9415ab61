"""Tests of the acceptance tests: they pass on a server with another profile and fail on wrong servers."""

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
    wait_until,
)
from tests.support import oracles
from tests.support.face_data import photo_faces
from tests.support.fixtures import write_pose_checkpoint
from tests.support.interface import ENSEMBLE_OUTPUTS
from triton_face_client import FaceFeatureClient, Tls

NAME = "faces.test"
"""Name in the server's certificate; it differs from the address, as with a forwarded port of a pod."""

ALIGNMENT = "Alignment, landmarks and masks"
HOG = "HOG equals the oracle's"
POSE = "POSE equals torch's"
REFUSALS = "Every invalid face is rejected"
MIXED = "32 concurrent callers"
NEIGHBOURS = "An invalid face affects no other request"
INTERFACE = "The interface"
METRICS = "Metrics count computed and rejected faces"
HEARTBEATS = "Every instance of align_mask"


def accept(tests: str, *options: str) -> "subprocess.CompletedProcess[str]":
    """Run the acceptance tests whose names match, in the way of an operator."""
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
    """Return the table's rows, by their first words, with their results."""
    table = output[output.index("\nchecked ") :]
    return {
        name: match[1]
        for name in (ALIGNMENT, HOG, POSE, REFUSALS, MIXED, NEIGHBOURS, INTERFACE, METRICS, HEARTBEATS)
        if (
            match := re.search(rf"^{re.escape(name)}.*?  +(passed|FAILED|not checked)  ", table, re.MULTILINE)
        )
    }


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with certificates of server and client, named as in a Kubernetes Secret."""
    folder, authority = tmp_path_factory.mktemp("tls"), trustme.CA()
    certificate = authority.issue_cert(NAME)
    authority.cert_pem.write_to_path(folder / "ca.crt")
    certificate.cert_chain_pems[0].write_to_path(folder / "tls.crt")
    certificate.private_key_pem.write_to_path(folder / "tls.key")
    return folder


@pytest.fixture(scope="module")
def tuned(repository: Path, certificates: Path) -> Iterator[LocalServer]:
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
    tuned: LocalServer, certificates: Path, client: FaceFeatureClient
):
    faces = frame_inputs(*photo_faces(20, 61))
    tls = Tls(*(certificates / name for name in ("ca.crt", "tls.crt", "tls.key")), server_name=NAME)
    with FaceFeatureClient(tuned.grpc_url, tls=tls) as own:
        config = own.connection.get_model_config("align_mask").config
        warm = config.instance_group[0].count * sum(warmup.batch_size for warmup in config.model_warmup)
        assert warm > 0
        assert wait_until(lambda: faces_computed(own)["align_mask"] == warm, 10)
        answers = infer(own, "ensemble", faces, ENSEMBLE_OUTPUTS)
    expected = infer(client, "ensemble", faces, ENSEMBLE_OUTPUTS)
    for name in ENSEMBLE_OUTPUTS:
        np.testing.assert_array_equal(answers[name], expected[name], err_msg=name)


@pytest.mark.slow
def test_correct_server_with_another_profile_passes(tuned: LocalServer, certificates: Path, tmp_path: Path):
    done = accept(
        "oracle or hog or torch or metadata or their_own_faces or metrics",
        f"--server={tuned.grpc_url}",
        f"--metrics={tuned.metrics_url}",
        f"--tls-folder={certificates}",
        f"--tls-name={NAME}",
        f"--basetemp={tmp_path / 'own'}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{tuned.grpc_url}: Triton 2.51.0, no model on a GPU" in done.stdout
    rows = (ALIGNMENT, HOG, POSE, MIXED, INTERFACE, METRICS, HEARTBEATS)
    assert results(done.stdout) == dict.fromkeys(rows, "passed")
    assert not list((tmp_path / "own").glob("served*")), "a test of a running server builds no model"


def configured(repository: Path, **parameters: str) -> None:
    """Change parameters in align_mask's configuration."""
    path = repository / "align_mask" / "config.pbtxt"
    text = path.read_text()
    for name, value in parameters.items():
        text, changes = re.subn(rf'(key: "{name}"\s+value: {{ string_value: )"[^"]*"', rf'\1"{value}"', text)
        assert changes == 1, name
    path.write_text(text)


def wrapped(repository: Path, change: str) -> None:
    """Inject lines of Python that change the `responses` to the `requests` of every batch of align_mask."""
    folder = repository / "align_mask" / "1"
    (folder / "model.py").rename(folder / "shipped_model.py")
    (folder / "model.py").write_text(
        WRAPPER + textwrap.indent(change, 8 * " ") + "        return responses\n"
    )


WRAPPER = """
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import shipped_model
import triton_python_backend_utils as pb_utils

class TritonPythonModel(shipped_model.TritonPythonModel):
    def execute(self, requests):
        responses = super().execute(requests)
"""


def with_another_epsilon(model: Path) -> None:
    """Change the constant of HOG's block norm."""
    graph = onnx.load(model)
    (epsilon,) = (tensor for tensor in graph.graph.initializer if tensor.name == "epsilon")
    epsilon.CopyFrom(onnx.numpy_helper.from_array(np.float32([1e-5]).reshape(epsilon.dims), "epsilon"))
    onnx.save(graph, model)


LET_THROUGH_AND_REVERSED = """
for position, response in enumerate(responses):
    if response.has_error() and "no eye distance" in response.error().message():
        request = requests[position]
        faces = pb_utils.get_input_tensor_by_name(request, "LANDMARKS").shape()[0]
        zeros = np.zeros((faces, 3, 112, 112), np.float32)
        tensors = [pb_utils.Tensor(name, zeros) for name in request.requested_output_names()]
        responses[position] = pb_utils.InferenceResponse(tensors)
responses.reverse()
"""
"""Answers faces without eye distance, and exchanges the responses of a batch."""


@pytest.mark.slow
def test_wrong_server_fails_in_the_rows_of_its_errors(repository: Path, tmp_path: Path):
    """Another fill value, HOG norm, pose weights and `execute` fail in different rows."""
    wrong = shutil.copytree(repository, tmp_path / "wrong")
    configured(wrong, fill="127")
    with_another_epsilon(wrong / "hog" / "1" / "model.onnx")
    weights, _ = write_pose_checkpoint(tmp_path, "v1")
    export_pose(wrong, weights)
    wrapped(wrong, LET_THROUGH_AND_REVERSED)
    tests = "oracle or torch or metadata or the_reason or their_own_faces or never_affects or heartbeat"
    with LocalServer(wrong) as server:
        done = accept(tests, f"--server={server.grpc_url}")
        named = accept("torch", f"--server={server.grpc_url}", f"--pose-weights={weights}")
    assert done.returncode == 1, done.stdout + done.stderr
    failed = dict.fromkeys((ALIGNMENT, HOG, POSE, REFUSALS, MIXED, NEIGHBOURS), "FAILED")
    assert results(done.stdout) == failed | {INTERFACE: "passed", HEARTBEATS: "not checked"}
    assert named.returncode == 0, named.stdout + named.stderr
    assert results(named.stdout) == {POSE: "passed"}


def unused_address() -> str:
    with socket.socket() as free:
        free.bind((HOST, 0))
        return f"{HOST}:{free.getsockname()[1]}"


def test_unreachable_server_is_one_line():
    done = accept("test", f"--server={unused_address()}")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert len(done.stderr.strip().splitlines()) == 1
    assert "no server answers at" in done.stderr
    assert "Error" not in done.stdout


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


def test_agreement_on_gpu_allows_rounding_but_no_other_face():
    """Affine maps that differ by one ulp agree; rows of other faces do not."""
    frames, landmarks = photo_faces(12, 670)
    exact = np.float32([oracles.affine(points) for points in landmarks])
    masks = [
        oracles.mask(np.trunc(points @ m[:, :2].T + m[:, 2]).astype(int))
        for points, m in zip(landmarks, exact, strict=True)
    ]

    def answers(affine: np.ndarray) -> dict[str, np.ndarray]:
        faces = warp(torch.from_numpy(frames), torch.from_numpy(affine), 112, 128.0).numpy()
        masked = faces * np.array(masks)[:, None]
        hog = np.float32([oracles.hog_features(face) for face in masked])
        return {"ALIGNED_FACES": faces, "MASKED_FACES": masked, "HOG": hog}

    expected = answers(exact)
    rounded = answers(np.nextafter(exact, np.float32(np.inf)))
    assert any((rounded[name] != expected[name]).any() for name in expected)
    assert_agree(rounded, expected, inexact=set(expected))
    for name, rows in expected.items():
        with pytest.raises(AssertionError, match=name):
            assert_agree({name: np.roll(rows, 1, axis=0)}, {name: rows}, inexact={name})
