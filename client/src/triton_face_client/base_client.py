"""Settings, validation and error messages that the blocking and the asynchronous client share."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tritonclient.grpc import KeepAliveOptions
from tritonclient.utils import InferenceServerException

from triton_face_client.errors import (
    DEADLINE_EXCEEDED,
    NOT_FOUND,
    DeadlineError,
    FaceServiceError,
    InvalidFacesError,
    ServiceUnavailableError,
)
from triton_face_client.requests.aligned_faces import validate_aligned_faces
from triton_face_client.requests.calls import Call
from triton_face_client.requests.faces import Faces, faces_without_pose, validate_faces, validate_landmarks
from triton_face_client.requests.model_config import ACTION_UNIT_MODELS, Model
from triton_face_client.requests.request import MIN_TIMEOUT, CallOptions
from triton_face_client.requests.retry import RETRYABLE_STATUS, Retry, is_retryable
from triton_face_client.transports.base import Transport
from triton_face_client.transports.channel import Tls, channel_options, target
from triton_face_client.transports.cuda_shared_memory import CudaSharedMemoryTransport
from triton_face_client.transports.grpc_message import MessageTransport
from triton_face_client.transports.system_shared_memory import SystemSharedMemoryTransport

ON_INVALID = ("raise", "nan")

MAX_TIMEOUT = 1e8
"""Seconds, about three years. A much larger value would overflow Triton's timeout, a 64-bit integer."""

DEFAULT_URL = "127.0.0.1:8001"


class BaseClient:
    """Base class of both clients.

    Parameters
    ----------
    url : str or sequence of str
        ``HOST:PORT`` of the gRPC endpoint. With several endpoints, the client distributes requests in round
        robin and skips unreachable endpoints. For the pods of a headless Kubernetes service, pass
        ``dns:///NAME:PORT``; the client then uses round robin over the addresses of NAME.
    tls : Tls, optional
        Encryption and certificates.
    headers : mapping of str to str, optional
        Headers of every request, for example a token.
    keepalive : tritonclient.grpc.KeepAliveOptions, optional
        Interval and timeout of the pings that check an idle connection.
    batch_size : int, optional
        Maximum number of faces per request, by default 32. The server's configuration may lower it, and
        requests with large frames contain fewer faces (`MAX_REQUEST_BYTES`).
    in_flight : int
        Maximum number of concurrent requests of a call. Together with `batch_size` it bounds the memory that
        a call needs in addition to its answers.
    timeout : float
        Seconds after which one try of a request fails.
    retry : Retry, optional
        How long the client retries a request while the server is unreachable or its queues are full.
    shm : bool or "cuda"
        True sends all tensors through system shared memory, "cuda" sends frames through CUDA shared memory.
        Both need a server on this machine that allows shared memory.
    cuda_device : int
        Index of the GPU for ``shm="cuda"``, the same for client and server.

    Raises
    ------
    ValueError
        If a setting is out of its range, an address is malformed, or a TLS file cannot be read.
    TypeError
        If `retry` is not a `Retry`.
    """

    def __init__(
        self,
        url: str | Sequence[str] = DEFAULT_URL,
        *,
        tls: Tls | None = None,
        headers: Mapping[str, str] | None = None,
        keepalive: KeepAliveOptions | None = None,
        batch_size: int | None = None,
        in_flight: int = 4,
        timeout: float = 60.0,
        retry: Retry | None = None,
        shm: bool | str = False,
        cuda_device: int = 0,
    ) -> None:
        if in_flight < 1 or (batch_size is not None and batch_size < 1):
            raise ValueError("in_flight and batch_size must be at least 1")
        if retry is not None and not isinstance(retry, Retry):
            raise TypeError(f"retry is {retry!r}: pass a Retry; Retry(seconds=0) sends every request once")
        if not 0 < timeout <= MAX_TIMEOUT:
            raise ValueError(
                f"timeout is {timeout}: it must be more than 0 and at most {MAX_TIMEOUT:g} seconds"
            )
        self.target = target(url)
        if shm and self.target.startswith("ipv4:"):
            raise ValueError("shm needs a single server on this machine: pass one address")
        self._channel_arguments = {
            "url": self.target,
            "creds": tls.credentials() if tls else None,
            "channel_args": channel_options(url, tls, keepalive or KeepAliveOptions()),
        }
        # gRPC requires names in lower case.
        self.headers = {name.lower(): value for name, value in (headers or {}).items()}
        self.batch_size = batch_size
        self.in_flight = in_flight
        self.timeout = timeout
        self.retry = retry or Retry()
        self._transport = _create_transport(shm, cuda_device)
        self._models: dict[str, Model] = {}
        self._is_closed = False

    def config_error(self, error: InferenceServerException, model: str) -> FaceServiceError:
        """Return an error that explains why the server did not return a model's configuration or metadata.

        Parameters
        ----------
        error : InferenceServerException
            tritonclient's error.
        model : str
            Name of the model.
        """
        status, message = error.status(), error.message() or ""
        if "Socket closed" in message:
            return ServiceUnavailableError(
                f"{self.target} closes the connection: pass the gRPC port (8001 by default), not the HTTP "
                f"port, and the TLS settings and certificate that the server requires ({message})",
                status,
            )
        if is_retryable(error) and status in RETRYABLE_STATUS:
            return ServiceUnavailableError(
                f"no server answers at {self.target}: check that the server runs and that this is the "
                f"address of its gRPC endpoint, port 8001 by default ({message})",
                status,
            )
        if status == NOT_FOUND and model in ACTION_UNIT_MODELS:
            return ServiceUnavailableError(
                f"the server at {self.target} computes no action units, because it has no model {model} "
                "ready: serve an AU checkpoint with `make serve AU_WEIGHTS=FILE.skops` "
                f"(docs/action_units.md), or wait until the model is loaded ({message})",
                status,
            )
        if status == NOT_FOUND:
            return ServiceUnavailableError(
                f"the server at {self.target} has no model {model} ready: serve the project's "
                f"model_repository, or wait until the model is loaded ({message})",
                status,
            )
        if status == DEADLINE_EXCEEDED:
            return DeadlineError(
                f"{self.target} did not answer in time: check the address, and whether the server hangs",
                status,
            )
        return FaceServiceError(
            f"{self.target} does not return its configuration: {message} (if access is restricted, pass a "
            "token or key in headers)",
            status,
        )

    def _call_options(self, on_invalid: str, deadline: float | None) -> CallOptions:
        """Return the options of a call that starts now."""
        self._check_open()
        if on_invalid not in ON_INVALID:
            raise ValueError(f"on_invalid is {on_invalid!r}: pass 'raise' or 'nan'")
        if deadline is not None and math.isnan(deadline):
            raise ValueError("deadline is NaN: pass seconds, or None")
        end = math.inf if deadline is None else time.monotonic() + deadline
        return CallOptions(self.retry, self.timeout, end, skip_invalid=on_invalid == "nan")

    def _check_open(self) -> None:
        if self._is_closed:
            raise FaceServiceError("the client is closed: create a new client")

    def _control_arguments(self, seconds: float | None) -> dict[str, Any]:
        """Return the arguments of tritonclient's calls for metadata and readiness."""
        timeout = self.timeout if seconds is None else min(self.timeout, seconds)
        return {"headers": self.headers, "client_timeout": max(timeout, MIN_TIMEOUT)}

    def _face_call(self, model: Model, frames: Any, landmarks: Any, outputs: Sequence[str]) -> Call:
        """Return a call that sends frames and landmarks."""
        on_gpu = isinstance(self._transport, CudaSharedMemoryTransport)
        return Call(model, validate_faces(frames, landmarks, on_gpu), tuple(outputs), {}, frames)

    def _aligned_call(self, model: Model, hog: Any, landmarks: Any) -> Call:
        """Return a call that sends HOG features and aligned landmarks to the model `au`."""
        (hog_size,) = model.inputs["HOG"][1]
        return Call(model, validate_aligned_faces(hog, landmarks, hog_size), ("AU",), {}, None)

    def _pose_call(self, model: Model, landmarks: Any, options: CallOptions) -> Call:
        """Return a call that sends landmarks only."""
        points = validate_landmarks(landmarks)
        invalid = faces_without_pose(points)
        if invalid and not options.skip_invalid:
            raise InvalidFacesError(invalid)
        return Call(model, Faces(points), ("POSE",), invalid, landmarks)


def _create_transport(shm: bool | str, cuda_device: int) -> Transport:
    if shm == "cuda":
        return CudaSharedMemoryTransport(cuda_device)
    if shm not in (True, False):
        raise ValueError(f"shm is {shm!r}: pass True, False or 'cuda'")
    return SystemSharedMemoryTransport() if shm else MessageTransport()
