"""The state machine of one request, without I/O.

`run_request` is a generator that yields actions: send the request, wait, register shared memory. The blocking
and the asynchronous client perform each action and send its result back into the generator, or throw its
error. Retries, deadlines and invalid faces therefore follow the same rules in both clients.
"""

import dataclasses
import re
import time
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from triton_face_client.errors import (
    DEADLINE_EXCEEDED,
    INVALID_ARGUMENT,
    DeadlineError,
    FaceServiceError,
    InvalidFacesError,
    ServiceUnavailableError,
)
from triton_face_client.requests.faces import RequestFaces, Tensors
from triton_face_client.requests.model_config import Model
from triton_face_client.requests.retry import Retry, is_retryable
from triton_face_client.transports.base import (
    MANAGE_TIMEOUT,
    ManageRegion,
    RequestBuffer,
    TensorSpecs,
    Transport,
)

INVALID_FACE = re.compile(r"\bface (\d+): (.*?)(?=; face \d+: |; and \d+ more|$)")
"""Index (within the request) and reason of an invalid face, in align_mask's error message."""
UNNAMED_FACES = re.compile(r"; and (\d+) more$")
"""Number of further invalid faces, which the message does not name."""

# Parts of Triton's error messages.
UNKNOWN_REGION = "Unable to find shared memory region"
REGION_IN_USE = "currently in use"

MIN_TIMEOUT = 1e-3
"""Seconds. gRPC treats a non-positive timeout as no timeout."""

CLOSE_WAIT_SECONDS = 2.0
"""Maximum time, in seconds, that `close` of a client waits for requests of cancelled or failed calls.

The client never cancels a request: Triton 2.51 has crashed (SIGSEGV in its gRPC endpoint) about once in a few
thousand cancellations. The server usually completes these requests within milliseconds.
"""

UNREGISTER_TRIES, UNREGISTER_WAIT = 100, 0.05
"""Attempts to unregister a region, and seconds between them. Triton keeps it while requests use it."""


@dataclasses.dataclass(frozen=True)
class CallOptions:
    """Retries and time limits of a call, and its treatment of invalid faces.

    Attributes
    ----------
    retry : Retry
        Waits between the attempts of a request.
    timeout : float
        Seconds for one attempt.
    deadline : float
        Time of `time.monotonic` at which the call fails; infinite without a deadline.
    skip_invalid : bool
        Whether the call continues without invalid faces instead of failing.
    """

    retry: Retry
    timeout: float
    deadline: float
    skip_invalid: bool

    @property
    def seconds_left(self) -> float:
        """Seconds for the next attempt, at most `timeout`; negative after the deadline."""
        return min(self.timeout, self.deadline - time.monotonic())


@dataclasses.dataclass(frozen=True)
class Send:
    """Send an inference request; the action's result is tritonclient's `InferResult`."""

    model: str
    inputs: list[InferInput]
    outputs: list[InferRequestedOutput]
    timeout: float

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of tritonclient's `infer` and `async_infer`."""
        return {
            "model_name": self.model,
            "inputs": self.inputs,
            "outputs": self.outputs,
            # The time limit in the server's queue, in microseconds; the client's is in seconds.
            "timeout": int(self.timeout * 1e6),
            "client_timeout": self.timeout,
        }


@dataclasses.dataclass(frozen=True)
class Wait:
    """Wait for `seconds`."""

    seconds: float


Action = Send | Wait | ManageRegion
ActionGenerator = Generator[Action, Any, Any]
"""Yields actions, and receives the result of each."""

InvalidFaces = dict[int, str]
"""Index of each invalid face in the call, and the reason."""
RequestGenerator = Generator[Action, Any, InvalidFaces]
"""An action generator that returns the invalid faces of its request."""


@dataclasses.dataclass(frozen=True)
class BatchRequest:
    """A request with some of the faces of a call.

    Attributes
    ----------
    model : Model
        The model that computes the outputs.
    faces : RequestFaces
        All faces of the call.
    rows : ndarray of int
        Indices of the request's faces.
    outputs : tuple of str
        The requested outputs.
    store : callable of (ndarray of int, dict of str to ndarray)
        Receives indices of faces and their outputs. It must copy the outputs, which may be views of shared
        memory.
    """

    model: Model
    faces: RequestFaces
    rows: NDArray[np.intp]
    outputs: tuple[str, ...]
    store: Callable[[NDArray[np.intp], Tensors], None]


def run_request(request: BatchRequest, options: CallOptions, transport: Transport) -> RequestGenerator:
    """Send a request, with retries, until its outputs are stored.

    If the server rejects the request for invalid faces and `options.skip_invalid` is set, the client sends
    the other faces again, until no face is rejected: the server names at most eight invalid faces at a time.

    Returns
    -------
    dict of int to str
        Index of each invalid face in the call, and the reason.

    Raises
    ------
    InvalidFacesError
        If the server rejects faces and `options.skip_invalid` is not set.
    ServiceUnavailableError, DeadlineError, FaceServiceError
        If no try succeeds.
    """
    rows, invalid = request.rows, InvalidFaces()
    while len(rows):
        try:
            yield from _send_with_retries(request, rows, options, transport)
        except InferenceServerException as error:
            rejected = _rejected_faces(error, rows)
            if not rejected:
                raise _as_client_error(error) from None
            if not options.skip_invalid:
                unnamed = UNNAMED_FACES.search(error.message())
                raise InvalidFacesError(rejected, int(unnamed[1]) if unnamed else 0) from None
            invalid |= rejected
            rows = rows[~np.isin(rows, list(rejected))]
        else:
            break
    return invalid


def release_regions(transport: Transport) -> ActionGenerator:
    """Release the transport's shared memory and unregister it from the server."""
    transport.close()
    for _ in range(UNREGISTER_TRIES):
        server_responds = yield from _unregister_regions(transport)
        if not server_responds or not transport.has_unregistrations:
            return
        yield Wait(UNREGISTER_WAIT)


def _send_with_retries(
    request: BatchRequest, rows: NDArray[np.intp], options: CallOptions, transport: Transport
) -> Generator[Action, Any, None]:
    waits = options.retry.waits()
    while True:
        try:
            yield from _send_once(request, rows, options, transport)
        except FaceServiceError:
            # The client raises these errors itself; a retry would not help.
            raise
        except InferenceServerException as error:
            # A server that has restarted does not know the region. The next attempt registers another region.
            region_is_unknown = UNKNOWN_REGION in (error.message() or "")
            wait = next(waits, None) if region_is_unknown or is_retryable(error) else None
            if wait is None:
                raise
            if time.monotonic() + wait >= options.deadline:
                raise DeadlineError(
                    "the next attempt would start after the deadline; the last attempt failed: "
                    f"{error.message()}",
                    DEADLINE_EXCEEDED,
                ) from None
            yield Wait(wait)
        else:
            return


def _send_once(
    request: BatchRequest, rows: NDArray[np.intp], options: CallOptions, transport: Transport
) -> Generator[Action, Any, None]:
    if options.seconds_left <= 0:
        raise DeadlineError("the deadline has passed", DEADLINE_EXCEEDED)
    tensors = request.faces.tensors(rows)
    expected = _expected_outputs(request, len(rows))
    with transport.acquire_buffer(tensors, expected) as buffer:
        registration = buffer.start_registration()
        if registration is not None:
            yield from _register(registration, buffer, options, transport)
        inputs = [buffer.input(name, values) for name, values in tensors.items()]
        outputs = [buffer.output(name) for name in expected]
        result = yield Send(request.model.name, inputs, outputs, max(options.seconds_left, MIN_TIMEOUT))
        request.store(rows, {name: buffer.read(name, result) for name in expected})


def _expected_outputs(request: BatchRequest, face_count: int) -> TensorSpecs:
    specs = {}
    for name in request.outputs:
        datatype, shape = request.model.outputs[name]
        specs[name] = datatype, (face_count, *shape)
    return specs


def _register(
    registration: ManageRegion, buffer: RequestBuffer, options: CallOptions, transport: Transport
) -> Generator[Action, Any, None]:
    yield from _unregister_regions(transport)
    timeout = max(MIN_TIMEOUT, min(MANAGE_TIMEOUT, options.seconds_left))
    try:
        yield dataclasses.replace(registration, timeout=timeout)
        buffer.mark_registered()
    except InferenceServerException as error:
        if is_retryable(error) or error.status() == DEADLINE_EXCEEDED:
            raise
        raise FaceServiceError(
            f"the server does not accept shared memory ({error.message()}): run it on this machine with "
            "access to its /dev/shm, from Triton 26.04 with --allow-client-shm=true; if the endpoint is "
            "restricted, pass its key in headers; or use shm=False, which needs no shared memory",
            error.status(),
        ) from None


def _unregister_regions(transport: Transport) -> Generator[Action, Any, bool]:
    """Unregister the discarded regions; return whether the server responds in time."""
    for action in transport.pop_unregistrations():
        try:
            yield action
        except InferenceServerException as error:
            if error.status() == DEADLINE_EXCEEDED:
                return False
            if REGION_IN_USE in (error.message() or ""):
                transport.requeue_unregistration(action)
            # After any other error the server does not have the region.
    return True


def _rejected_faces(error: InferenceServerException, rows: NDArray[np.intp]) -> InvalidFaces:
    """Return the invalid faces that an error message names, by their index in the call."""
    if error.status() != INVALID_ARGUMENT:
        return {}
    named = {int(index): reason for index, reason in INVALID_FACE.findall(error.message() or "")}
    return {int(rows[index]): reason for index, reason in named.items() if index < len(rows)}


def _as_client_error(error: InferenceServerException) -> FaceServiceError:
    if isinstance(error, FaceServiceError):
        return error
    message = error.message() or "the server gave no reason"
    if error.status() == DEADLINE_EXCEEDED:
        return DeadlineError(
            "the server did not answer in time: raise timeout or deadline, or check the server's load with "
            f"`triton-face info` ({message})",
            error.status(),
        )
    kind = ServiceUnavailableError if is_retryable(error) else FaceServiceError
    return kind(message, error.status())
