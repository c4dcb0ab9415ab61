"""Servers, clients and pose checkpoints for all tests. Each pytest process has one shared server."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.http as httpclient
from safetensors.torch import save_file

from deploy.local import LocalServer
from deploy.local.server import DEFAULT_REPOSITORY
from export.au.classifiers import AuCheckpoint
from export.au.command import export_au
from export.hog.command import export_hog
from export.pose.command import export_pose
from export.pose.origin import DEFAULT_CHECKPOINT
from tests.support.oracles import PoseNet
from tests.support.random_classifiers import random_xgb
from triton_face_client import FaceFeatureClient


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of tests/acceptance. Pytest requires them in the root conftest.py or its plugins."""
    group = parser.getgroup("acceptance", "acceptance tests of a running server (tests/acceptance)")
    group.addoption("--server", metavar="HOST:PORT", help="gRPC endpoint of the server to test")
    group.addoption(
        "--metrics",
        metavar="HOST:PORT",
        help="metrics endpoint of the server; without it, tests of metrics are skipped",
    )
    group.addoption(
        "--tls-folder", type=Path, metavar="DIR", help="ca.crt, tls.crt and tls.key for the server"
    )
    group.addoption("--tls-name", metavar="NAME", help="name in the server's certificate, if not HOST")
    group.addoption(
        "--pose-weights",
        type=Path,
        default=DEFAULT_CHECKPOINT,
        metavar="FILE",
        help="checkpoint of the server's pose model (FILE.safetensors and FILE.json); `none` skips the test",
    )
    group.addoption(
        "--au-weights",
        type=Path,
        metavar="FILE.skops",
        help="checkpoint of the server's action units; without it, they are not compared with the checkpoint",
    )


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the model repository with newly exported ONNX files."""
    target = tmp_path_factory.mktemp("served") / "model_repository"
    shutil.copytree(DEFAULT_REPOSITORY, target, ignore=shutil.ignore_patterns("*.onnx", "__pycache__"))
    export_hog(target)
    export_pose(target, DEFAULT_CHECKPOINT)
    return target


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[LocalServer]:
    """Yield the shared server. A test must leave it running, with all models loaded."""
    with LocalServer(repository) as running:
        yield running


@pytest.fixture(scope="session")
def au_checkpoint() -> AuCheckpoint:
    """Return the random AU classifiers of `au_repository`."""
    return random_xgb(seed=29)


@pytest.fixture(scope="session")
def au_repository(
    repository: Path, au_checkpoint: AuCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a second model repository, with action units."""
    folder = tmp_path_factory.mktemp("served") / "au_repository"
    export_au(au_checkpoint, repository, folder)
    return folder


@pytest.fixture(scope="session")
def au_server(repository: Path, au_repository: Path) -> Iterator[LocalServer]:
    """Yield a shared server with action units. A test must leave it running, with all models loaded."""
    with LocalServer(repository, au_repository=au_repository) as running:
        yield running


@pytest.fixture
def own_server(repository: Path) -> Iterator[LocalServer]:
    """Yield a server that only one test uses; the test may overload or stop it."""
    with LocalServer(repository) as running:
        yield running


@pytest.fixture
def client(server: LocalServer) -> Iterator[FaceFeatureClient]:
    with FaceFeatureClient(server.grpc_url, headers=server.admin_headers) as connected:
        yield connected


@pytest.fixture
def http_client(server: LocalServer) -> Iterator[httpclient.InferenceServerClient]:
    with httpclient.InferenceServerClient(server.http_url) as connected:
        yield connected


POSE_STATISTICS = {
    "mean": [0.05, -0.02, 0.01, 1.0, -2.0, 40.0],
    "std": [0.3, 0.4, 0.2, 5.0, 5.0, 12.0],
}
"""Mean and standard deviation of Pitch, Roll, Yaw in radians and X, Y, Z, which denormalize the output."""


@pytest.fixture(params=["v1", "v2"])
def pose_checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, PoseNet]:
    """Return the path of a random pose checkpoint and the torch module with its weights, for each layout."""
    return write_pose_checkpoint(tmp_path, request.param)


def write_pose_checkpoint(folder: Path, layout: str) -> tuple[Path, PoseNet]:
    """Save a random network with a fixed seed; return the path of its weights and the network.

    Parameters
    ----------
    folder : Path
        Folder for `pose.safetensors` and `pose.json`.
    layout : str
        "v1", or "v2", which has wider layers and LayerNorm.
    """
    hidden = {"v1": (256, 128, 64), "v2": (512, 256, 128)}[layout]
    torch.manual_seed(7)
    net = PoseNet(hidden, layer_norm=layout == "v2")
    for parameter in net.parameters():  # a new LayerNorm is the identity and would hide swapped weights
        parameter.data += 0.05 * torch.randn_like(parameter)
    weights = folder / "pose.safetensors"
    save_file(net.state_dict(), weights)
    architecture = {"hidden": list(hidden), "dropout": 0.15, "output_normalization": POSE_STATISTICS}
    weights.with_suffix(".json").write_text(json.dumps({"architecture": architecture}))
    return weights, net


@pytest.fixture(scope="session")
def statistics() -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the standard deviation that `write_pose_checkpoint` saves."""
    return np.float32(POSE_STATISTICS["mean"]), np.float32(POSE_STATISTICS["std"])
