"""The server under test: its address, what it says about itself, and requests to it."""

import contextlib
import dataclasses
import time
import urllib.request
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

from tests.support import raw_requests as raw
from tests.support.interface import INTERFACE
from triton_face_client import FaceFeatureClient, Tls

Tensors = dict[str, np.ndarray]

PATIENCE_SECONDS = 180.0
"""How long a request may take, and for how long a request that the server has no room for is repeated."""

PAUSE_SECONDS = 0.5
"""Between two tries of a request, or two looks at a condition."""

ANSWER_SECONDS = 30.0
"""How long the server may take to describe itself before the tests give it up."""

METRICS_SECONDS = 30.0
"""How long the metrics endpoint may take."""

DEADLINE_EXCEEDED = "StatusCode.DEADLINE_EXCEEDED"

SERIES_OF_ALIGN_MASK = "align_mask_faces_total"


@dataclasses.dataclass(frozen=True)
class Target:
    """The address of the server under test.

    Attributes
    ----------
    url : str
        HOST:PORT of its gRPC endpoint.
    metrics_url : str, optional
        HOST:PORT of its metrics endpoint.
    tls : Tls, optional
        Certificates, where the gRPC endpoint has TLS.
    """

    url: str
    metrics_url: str | None = None
    tls: Tls | None = None

    def connect(self) -> FaceFeatureClient:
        """Return a connection; a ValueError says what is wrong with the address or the certificates."""
        return FaceFeatureClient(self.url, tls=self.tls)

    def scrape(self) -> str:
        """Return the page of the metrics endpoint."""
        with urllib.request.urlopen(f"http://{self.metrics_url}/metrics", timeout=METRICS_SECONDS) as page:
            return page.read().decode()


@dataclasses.dataclass(frozen=True)
class Facts:
    """The server's description of itself.

    Attributes
    ----------
    version : str
        Triton's version.
    instances : dict of str to int
        Model -> its instances, over all GPUs.
    models_on_gpu : frozenset of str
        The models that Triton runs on a GPU. It resolves KIND_AUTO when it loads a model.
    parameters : dict of str to str
        The parameters of align_mask's configuration.
    """

    version: str
    instances: dict[str, int]
    models_on_gpu: frozenset[str]
    parameters: dict[str, str]


class NotOurServerError(Exception):
    """The address leads to no server of this project; the message is one line and says what to do."""


def examine(target: Target) -> Facts:
    """Ask the server for its version and the configuration of every model.

    Raises
    ------
    NotOurServerError
        When nothing answers, a model is missing, or the metrics address is no metrics endpoint.
    """
    try:
        with target.connect() as client:
            for name in INTERFACE:  # its errors say what to do about a wrong port, TLS or a missing model
                client.model(name, ANSWER_SECONDS)
            version = client.connection.get_server_metadata(client_timeout=ANSWER_SECONDS).version
            configs = {
                name: client.connection.get_model_config(name, client_timeout=ANSWER_SECONDS).config
                for name in INTERFACE
            }
            parameters = client.model("align_mask").parameters
    except (ValueError, InferenceServerException) as error:
        raise NotOurServerError(str(error)) from error
    if target.metrics_url:
        _check_metrics(target)
    return Facts(
        version=version,
        instances={name: sum(map(_instances, config.instance_group)) for name, config in configs.items()},
        models_on_gpu=frozenset(name for name, config in configs.items() if _is_on_gpu(config)),
        parameters=parameters,
    )


def infer(client: FaceFeatureClient, model: str, tensors: Tensors, outputs: Sequence[str]) -> Tensors:
    """Send one request, and again while the server is too busy to accept it.

    When the server accepts none for `PATIENCE_SECONDS`, or does not answer for so long, the test run ends:
    every further test would wait as long.

    Raises
    ------
    InferenceServerException
        The server's refusal or failure.
    """
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return raw.infer(client, model, tensors, outputs, timeout=PATIENCE_SECONDS)
        except InferenceServerException as error:
            if error.status() != DEADLINE_EXCEEDED and not _is_busy(error):
                raise
            if time.monotonic() >= end:
                pytest.exit(
                    f"{client.target} did not accept and answer a request to {model} within "
                    f"{PATIENCE_SECONDS:g} s: {error}",
                    returncode=pytest.ExitCode.TESTS_FAILED,
                )
        time.sleep(PAUSE_SECONDS)


def wait_until(holds: Callable[[], bool], seconds: float) -> bool:
    """Wait until a condition holds, for so many seconds at most; return whether it does."""
    end = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < end:
        time.sleep(PAUSE_SECONDS)
    return held


def faces_computed(client: FaceFeatureClient) -> dict[str, int]:
    """Return how many faces each model has answered since the server started."""
    statistics = client.connection.get_inference_statistics(client_timeout=PATIENCE_SECONDS)
    return {model.name: model.inference_count for model in statistics.model_stats}


def by_frames(frames: np.ndarray, landmarks: np.ndarray) -> Tensors:
    """Return the inputs of `ensemble` and `align_mask`; uint8 frames go in as FRAMES_UINT8."""
    name = "FRAMES_UINT8" if frames.dtype == np.uint8 else "FRAMES"
    return {name: frames, "LANDMARKS": landmarks}


def _is_busy(error: InferenceServerException) -> bool:
    full = "Exceeds maximum queue size" in (error.message() or "")
    return full or error.status() == "StatusCode.UNAVAILABLE"


def _is_on_gpu(config: model_config_pb2.ModelConfig) -> bool:
    return any(group.kind == model_config_pb2.ModelInstanceGroup.KIND_GPU for group in config.instance_group)


def _instances(group: model_config_pb2.ModelInstanceGroup) -> int:
    return group.count * max(len(group.gpus), 1)


def _check_metrics(target: Target) -> None:
    page = ""
    with contextlib.suppress(OSError, ValueError):
        page = target.scrape()
    if SERIES_OF_ALIGN_MASK not in page:
        raise NotOurServerError(
            f"no metrics of align_mask at http://{target.metrics_url}/metrics: give HOST:PORT of the same "
            "server's metrics endpoint (port 8002 by default)"
        )
