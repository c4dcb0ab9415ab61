"""The server under test: its address, its configuration, and requests to it."""

import contextlib
import dataclasses
import time
import urllib.request
from collections.abc import Sequence

import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

from tests.support import raw_requests as raw
from tests.support.interface import INTERFACE
from triton_face_client import FaceFeatureClient, Tls

Tensors = dict[str, np.ndarray]

RESPONSE_SECONDS = 180.0
"""Timeout of a request, and of the retries while the server rejects it because a queue is full."""

POLL_SECONDS = 0.5
"""Pause between two attempts of a request or two checks of a condition."""

INFO_SECONDS = 30.0
"""Timeout of each request for metadata or a configuration."""

METRICS_SECONDS = 30.0
"""Timeout of a scrape of the metrics endpoint."""

DEADLINE_EXCEEDED = "StatusCode.DEADLINE_EXCEEDED"

ALIGN_MASK_METRIC = "align_mask_faces_total"

AU_ENSEMBLE = "action_units"
"""The ensemble of the second model repository; a server need not have it."""


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
        Certificates, if the gRPC endpoint uses TLS.
    """

    url: str
    metrics_url: str | None = None
    tls: Tls | None = None

    def connect(self) -> FaceFeatureClient:
        """Return a client; raise ValueError if the address or a certificate is invalid."""
        return FaceFeatureClient(self.url, tls=self.tls)

    def scrape(self) -> str:
        """Return the text of the metrics endpoint."""
        with urllib.request.urlopen(f"http://{self.metrics_url}/metrics", timeout=METRICS_SECONDS) as reply:
            return reply.read().decode()


@dataclasses.dataclass(frozen=True)
class ServerInfo:
    """Version, configuration and devices of the server under test.

    Attributes
    ----------
    version : str
        Triton's version.
    instances : dict of str to int
        Model -> number of instances, summed over GPUs.
    models_on_gpu : frozenset of str
        Models that Triton runs on a GPU, with KIND_AUTO resolved.
    parameters : dict of str to str
        The parameters of align_mask's configuration.
    action_units : tuple of str
        Names of the columns of AU; empty if the server has no model action_units.
    """

    version: str
    instances: dict[str, int]
    models_on_gpu: frozenset[str]
    parameters: dict[str, str]
    action_units: tuple[str, ...] = ()


class WrongServerError(Exception):
    """No server of this project answers at the address; the message is one line and says what to do."""


def read_server_info(target: Target) -> ServerInfo:
    """Read the server's version and the configuration of every model.

    Raises
    ------
    WrongServerError
        If nothing answers, a model is missing, or the metrics address is not a metrics endpoint.
    """
    try:
        with target.connect() as client:
            # `FaceFeatureClient.model` explains a wrong port, TLS or a missing model in its errors.
            for name in INTERFACE:
                client.model(name, INFO_SECONDS)
            version = client.connection.get_server_metadata(client_timeout=INFO_SECONDS).version
            configs = {
                name: client.connection.get_model_config(name, client_timeout=INFO_SECONDS).config
                for name in INTERFACE
            }
            parameters = client.model("align_mask").parameters
            action_units = _action_units(client)
    except (ValueError, InferenceServerException) as error:
        raise WrongServerError(str(error)) from error
    if target.metrics_url:
        _check_metrics(target)
    return ServerInfo(
        version=version,
        instances={name: sum(map(_instances, config.instance_group)) for name, config in configs.items()},
        models_on_gpu=frozenset(name for name, config in configs.items() if _is_on_gpu(config)),
        parameters=parameters,
        action_units=action_units,
    )


def infer(client: FaceFeatureClient, model: str, tensors: Tensors, outputs: Sequence[str]) -> Tensors:
    """Send one request; retry while the server's queues are full.

    If the server neither accepts nor answers the request for `RESPONSE_SECONDS`, the whole test run ends:
    every further test would wait as long.

    Raises
    ------
    InferenceServerException
        If the server rejects the request for another reason, or fails.
    """
    end = time.monotonic() + RESPONSE_SECONDS
    while True:
        try:
            return raw.infer(client, model, tensors, outputs, timeout=RESPONSE_SECONDS)
        except InferenceServerException as error:
            if error.status() != DEADLINE_EXCEEDED and not _is_busy(error):
                raise
            if time.monotonic() >= end:
                pytest.exit(
                    f"{client.target} did not accept and answer a request to {model} within "
                    f"{RESPONSE_SECONDS:g} s: {error}",
                    returncode=pytest.ExitCode.TESTS_FAILED,
                )
        time.sleep(POLL_SECONDS)


def faces_computed(client: FaceFeatureClient) -> dict[str, int]:
    """Return the number of faces that each model has computed since the server started."""
    statistics = client.connection.get_inference_statistics(client_timeout=RESPONSE_SECONDS)
    return {model.name: model.inference_count for model in statistics.model_stats}


def frame_inputs(frames: np.ndarray, landmarks: np.ndarray) -> Tensors:
    """Return the inputs of `ensemble` and `align_mask`: FRAMES_UINT8 for uint8 frames, else FRAMES."""
    name = "FRAMES_UINT8" if frames.dtype == np.uint8 else "FRAMES"
    return {name: frames, "LANDMARKS": landmarks}


def _action_units(client: FaceFeatureClient) -> tuple[str, ...]:
    try:
        config = client.connection.get_model_config(AU_ENSEMBLE, client_timeout=INFO_SECONDS).config
    except InferenceServerException as error:
        if error.status() == "StatusCode.NOT_FOUND":
            return ()
        raise
    return tuple(config.parameters["action_units"].string_value.split(","))


def _is_busy(error: InferenceServerException) -> bool:
    full = "Exceeds maximum queue size" in (error.message() or "")
    return full or error.status() == "StatusCode.UNAVAILABLE"


def _is_on_gpu(config: model_config_pb2.ModelConfig) -> bool:
    return any(group.kind == model_config_pb2.ModelInstanceGroup.KIND_GPU for group in config.instance_group)


def _instances(group: model_config_pb2.ModelInstanceGroup) -> int:
    """Return the number of instances of a group; `count` is per GPU."""
    return group.count * max(len(group.gpus), 1)


def _check_metrics(target: Target) -> None:
    metrics = ""
    with contextlib.suppress(OSError, ValueError):
        metrics = target.scrape()
    if ALIGN_MASK_METRIC not in metrics:
        raise WrongServerError(
            f"no metrics of align_mask at http://{target.metrics_url}/metrics: give HOST:PORT of the same "
            "server's metrics endpoint (port 8002 by default)"
        )
