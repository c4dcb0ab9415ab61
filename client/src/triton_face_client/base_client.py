"""What the blocking and the asynchronous client are set up with, and how a call of either begins."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tritonclient.grpc import KeepAliveOptions
from tritonclient.utils import InferenceServerException

from triton_face_client.errors import (
    DeadlineError,
    FaceServiceError,
    InvalidFacesError,
    ServiceUnavailableError,
)
from triton_face_client.requests.answers import Call
from triton_face_client.requests.faces import Faces, checked_faces, checked_landmarks, pose_faults
from triton_face_client.requests.model_config import Model
from triton_face_client.requests.request import DEADLINE_EXCEEDED, SHORTEST_SECONDS, Policy
from triton_face_client.requests.retry import AWAY, Retry, may_go_well_again
from triton_face_client.transports.channel import Tls, channel_options, target
from triton_face_client.transports.cuda_shared_memory import CudaMemory
from triton_face_client.transports.messages import Messages, Transport
from triton_face_client.transports.system_shared_memory import SharedMemory

ON_INVALID = ("raise", "nan")

LONGEST_SECONDS = 1e8
"""Three years; the server counts microseconds in 64 bits."""

DEFAULT_URL = "127.0.0.1:8001"


class Settings:
    """The settings that both clients take.

    Parameters
    ----------
    url : str or sequence of str
        ``HOST:PORT`` of the gRPC endpoint, or several, which take turns request by request; one that is
        away is left out until it is back. For the pods of a headless Kubernetes service give
        ``dns:///NAME:PORT``, whose addresses take turns too.
    tls : Tls, optional
        Encrypt, and show a certificate.
    headers : mapping of str to str, optional
        Sent with every request, for example a token.
    keepalive : tritonclient.grpc.KeepAliveOptions, optional
        When to ask whether a silent server is still there.
    batch_size : int, optional
        Faces a request. By default 32, or what the server's configuration allows if that is less; large
        frames make smaller requests.
    in_flight : int
        Requests under way at a time. With `batch_size` it bounds the memory that a call takes beside its
        answers.
    timeout : float
        Seconds until one try of a request fails.
    retry : Retry, optional
        How long a request is sent again while the server is away or full.
    shm : bool or "cuda"
        Send tensors through shared memory, or frames through memory of a GPU. The server must run on this
        machine and allow it.
    cuda_device : int
        The GPU of ``shm="cuda"``, which the server must see by the same number.

    Raises
    ------
    ValueError
        For a setting that cannot be.
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
            raise ValueError("in_flight and batch_size are at least 1")
        if retry is not None and not isinstance(retry, Retry):
            raise TypeError(f"retry is {retry!r}: give a Retry; Retry(seconds=0) sends everything once")
        if not 0 < timeout <= LONGEST_SECONDS:
            raise ValueError(f"timeout is {timeout}: seconds, more than 0 and at most {LONGEST_SECONDS:g}")
        self.target = target(url)
        if shm and self.target.startswith("ipv4:"):
            raise ValueError("shm=True needs the one server of this machine: give one address")
        self._channel_arguments = {
            "url": self.target,
            "creds": tls.credentials() if tls else None,
            "channel_args": channel_options(url, tls, keepalive or KeepAliveOptions()),
        }
        # gRPC takes lower case alone.
        self.headers = {name.lower(): value for name, value in (headers or {}).items()}
        self.batch_size = batch_size
        self.in_flight = in_flight
        self.timeout = timeout
        self.retry = retry or Retry()
        self._transport = _transport(shm, cuda_device)
        self._models: dict[str, Model] = {}

    def _policy(self, on_invalid: str, deadline: float | None) -> Policy:
        """Return how far a call that begins now may go."""
        if on_invalid not in ON_INVALID:
            raise ValueError(f"on_invalid is {on_invalid!r}: give 'raise' or 'nan'")
        if deadline is not None and math.isnan(deadline):
            raise ValueError("deadline is NaN: seconds, or None")
        end = math.inf if deadline is None else time.monotonic() + deadline
        return Policy(self.retry, self.timeout, end, keep_invalid=on_invalid == "nan")

    def _ask(self, seconds: float | None) -> dict[str, Any]:
        """Return the arguments of tritonclient's calls that ask the server about itself."""
        limit = self.timeout if seconds is None else min(self.timeout, seconds)
        return {"headers": self.headers, "client_timeout": max(limit, SHORTEST_SECONDS)}

    def _face_call(self, model: Model, frames: Any, landmarks: Any, outputs: Sequence[str]) -> Call:
        """Begin a call about frames with landmarks."""
        return Call(
            model,
            checked_faces(frames, landmarks, on_gpu=isinstance(self._transport, CudaMemory)),
            tuple(outputs),
            {},
            frames,
        )

    def _pose_call(self, model: Model, landmarks: Any, policy: Policy) -> Call:
        """Begin a call about landmarks alone."""
        points = checked_landmarks(landmarks)
        faults = pose_faults(points)
        if faults and not policy.keep_invalid:
            raise InvalidFacesError(faults)
        return Call(model, Faces(points), ("POSE",), faults, landmarks)

    def first_contact_error(self, error: InferenceServerException, model: str) -> FaceServiceError:
        """Say what to do when the server does not even tell its configuration."""
        status, message = error.status(), error.message() or ""
        if "Socket closed" in message:
            return ServiceUnavailableError(
                f"what answers at {self.target} closes the connection: is it the HTTP port (gRPC is 8001 by "
                f"default), or does it want TLS or another certificate? ({message})",
                status,
            )
        if may_go_well_again(error) and status in AWAY:
            return ServiceUnavailableError(
                f"no server answers at {self.target}: is the address that of the gRPC endpoint (port 8001 by "
                f"default), and does the server run? ({message})",
                status,
            )
        if status == "StatusCode.NOT_FOUND":
            return ServiceUnavailableError(
                f"the server at {self.target} has no model {model} ready: serve the project's "
                f"model_repository, or wait until it is loaded ({message})",
                status,
            )
        if status == DEADLINE_EXCEEDED:
            return DeadlineError(
                f"{self.target} did not answer in time: is the address right, and has the server hung?",
                status,
            )
        return FaceServiceError(
            f"{self.target} does not tell its configuration: {message} (a token or key goes into headers)",
            status,
        )


def _transport(shm: bool | str, cuda_device: int) -> Transport:
    if shm == "cuda":
        return CudaMemory(cuda_device)
    if shm not in (True, False):
        raise ValueError(f"shm is {shm!r}: give True, False or 'cuda'")
    return SharedMemory() if shm else Messages()
