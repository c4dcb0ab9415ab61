"""The conversation about one request: what is sent, waited for and sent again until its faces are answered.

It is a generator that knows nothing of connections. It yields what is to be done next, an action, and gets
back what came of it, so that the blocking and the asynchronous client follow the same rules.
"""

import dataclasses
import re
import time
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from triton_face_client.errors import (
    DeadlineError,
    FaceServiceError,
    InvalidFacesError,
    ServiceUnavailableError,
)
from triton_face_client.requests.faces import Faces, Tensors
from triton_face_client.requests.model_config import Model
from triton_face_client.requests.retry import Retry, may_go_well_again
from triton_face_client.transports.messages import INVALID_ARGUMENT, MANAGE_SECONDS, Lease, Manage, Transport

BLAMED = re.compile(r"\bface (\d+): (.*?)(?=; face \d+: |; and \d+ more|$)")
"""A face and its reason in a refusal of align_mask; it names the first few."""
UNNAMED = re.compile(r"; and (\d+) more$")
"""How many it does not name."""

DEADLINE_EXCEEDED = "StatusCode.DEADLINE_EXCEEDED"
REGION_LOST = "Unable to find shared memory region"
REGION_IN_USE = "currently in use"

SHORTEST_SECONDS = 1e-3
"""gRPC takes a deadline that is over for none."""

LINGER_SECONDS = 2.0
"""How long a client that is closed waits for answers nobody wants any more.

Requests are not cancelled: Triton 2.51 has crashed (SIGSEGV in its gRPC endpoint) when some were, once in a
few thousand. The server computes them in milliseconds.
"""

FORGET_TRIES, FORGET_WAIT = 100, 0.05
"""A request that was given up runs on for a while on the server, which keeps its region: 5 s in all."""


@dataclasses.dataclass(frozen=True)
class Policy:
    """How far a request goes.

    Attributes
    ----------
    retry : Retry
        When it is sent again.
    timeout : float
        Seconds for one try.
    deadline : float
        Moment of `time.monotonic` when the whole call must be over; infinite without one.
    keep_invalid : bool
        Whether refused faces are left out instead of failing the call.
    """

    retry: Retry
    timeout: float
    deadline: float
    keep_invalid: bool

    @property
    def seconds_left(self) -> float:
        """Return the seconds until the deadline, not more than `timeout` and perhaps less than 0."""
        return min(self.timeout, self.deadline - time.monotonic())


@dataclasses.dataclass(frozen=True)
class Send:
    """Send this inference request and hand back its `InferResult`."""

    model: str
    inputs: list[InferInput]
    outputs: list[InferRequestedOutput]
    seconds: float

    @property
    def arguments(self) -> dict[str, Any]:
        """Return the arguments of tritonclient's calls."""
        return {
            "model_name": self.model,
            "inputs": self.inputs,
            "outputs": self.outputs,
            # The server's queue gives up when the client does: microseconds there, seconds here.
            "timeout": int(self.seconds * 1e6),
            "client_timeout": self.seconds,
        }


@dataclasses.dataclass(frozen=True)
class Wait:
    """Wait these seconds."""

    seconds: float


Action = Send | Wait | Manage
Refused = dict[int, str]
"""Faces that the service refuses, by their index in the call, and why."""

Conversation = Generator[Action, Any, Any]
Deliver = Callable[[np.ndarray, Tensors], None]


@dataclasses.dataclass(frozen=True)
class Question:
    """The faces of a call that are asked for in one request.

    Attributes
    ----------
    model : Model
        Who is asked.
    faces : Faces
        All faces of the call.
    rows : ndarray of int
        Which of them are in the request.
    outputs : tuple of str
        What is asked for.
    deliver : callable of (ndarray of int, dict of str to ndarray)
        Takes the faces that are answered and their outputs. It copies: the arrays may lie in shared memory.
    """

    model: Model
    faces: Faces
    rows: np.ndarray
    outputs: tuple[str, ...]
    deliver: Deliver


def converse(question: Question, policy: Policy, transport: Transport) -> Conversation:
    """Ask until every face has its answer or its refusal; return the refusals.

    Parameters
    ----------
    question : Question
        What is asked.
    policy : Policy
        How far to go.
    transport : Transport
        How the tensors go.

    Raises
    ------
    InvalidFacesError
        When faces are refused and the policy does not leave them out.
    ServiceUnavailableError, DeadlineError, FaceServiceError
        When no try succeeds.
    """
    rows, refused = question.rows, {}
    while len(rows):
        try:
            yield from _tries(question, rows, policy, transport)
        except InferenceServerException as error:
            blamed = _blamed(error, rows)
            if not blamed:
                raise _as_ours(error) from None
            if not policy.keep_invalid:
                rest = UNNAMED.search(error.message())
                raise InvalidFacesError(blamed, int(rest[1]) if rest else 0) from None
            refused |= blamed
            rows = rows[~np.isin(rows, list(blamed))]
        else:
            break
    return refused


def take_leave(transport: Transport) -> Conversation:
    """Let go of the transport's memory, and have the server do so too."""
    transport.close()
    for _ in range(FORGET_TRIES):
        answers = yield from _forget_lost(transport)
        if not answers or not transport.has_lost:
            return
        yield Wait(FORGET_WAIT)


def _tries(
    question: Question, rows: np.ndarray, policy: Policy, transport: Transport
) -> Generator[Action, Any, None]:
    waits = policy.retry.waits()
    while True:
        try:
            yield from _try(question, rows, policy, transport)
        except FaceServiceError:
            # Said by this client, and final.
            raise
        except InferenceServerException as error:
            lost = REGION_LOST in (error.message() or "")
            wait = next(waits, None) if lost or may_go_well_again(error) else None
            if wait is None:
                raise
            if time.monotonic() + wait >= policy.deadline:
                raise DeadlineError(
                    f"the deadline is over before another try; the last one: {error.message()}",
                    DEADLINE_EXCEEDED,
                ) from None
            yield Wait(wait)
        else:
            return


def _try(
    question: Question, rows: np.ndarray, policy: Policy, transport: Transport
) -> Generator[Action, Any, None]:
    if policy.seconds_left <= 0:
        raise DeadlineError("the deadline is over", DEADLINE_EXCEEDED)
    tensors = question.faces.tensors(rows)
    expected = {}
    for name in question.outputs:
        datatype, shape = question.model.outputs[name]
        expected[name] = datatype, (len(rows), *shape)
    with transport.lent(tensors, expected) as lease:
        if lease.registration is not None:
            yield from _register(lease, policy, transport)
        inputs = [lease.input(name, values) for name, values in tensors.items()]
        outputs = [lease.output(name) for name in expected]
        result = yield Send(question.model.name, inputs, outputs, max(policy.seconds_left, SHORTEST_SECONDS))
        question.deliver(rows, {name: lease.read(name, result) for name in expected})


def _register(lease: Lease, policy: Policy, transport: Transport) -> Generator[Action, Any, None]:
    yield from _forget_lost(transport)
    try:
        yield dataclasses.replace(
            lease.registration, seconds=max(SHORTEST_SECONDS, min(MANAGE_SECONDS, policy.seconds_left))
        )
        lease.is_registered()
    except InferenceServerException as error:
        if may_go_well_again(error) or error.status() == DEADLINE_EXCEEDED:
            raise
        raise FaceServiceError(
            f"the server does not take shared memory ({error.message()}): it must run on this machine, see "
            "its /dev/shm and, from Triton 26.04, be started with --allow-client-shm=true; where it is "
            "restricted, give its key in headers; shm=False does without",
            error.status(),
        ) from None


def _forget_lost(transport: Transport) -> Generator[Action, Any, bool]:
    """Have the server forget memory that is not used again; return whether it answers at all."""
    for forgetting in transport.lost():
        try:
            yield forgetting
        except InferenceServerException as error:
            if error.status() == DEADLINE_EXCEEDED:
                # The server hangs; nothing of it is to be had back.
                return False
            # Any other reason: it is gone already, with the server or with its region.
            if REGION_IN_USE in (error.message() or ""):
                transport.still_lost(forgetting)
    return True


def _blamed(error: InferenceServerException, rows: np.ndarray) -> dict[int, str]:
    """Return the faces that a refusal names, by their index in the call."""
    if error.status() != INVALID_ARGUMENT:
        return {}
    named = {int(place): reason for place, reason in BLAMED.findall(error.message() or "")}
    return {int(rows[place]): reason for place, reason in named.items() if place < len(rows)}


def _as_ours(error: InferenceServerException) -> FaceServiceError:
    if isinstance(error, FaceServiceError):
        return error
    message = error.message() or "no reason given"
    if error.status() == DEADLINE_EXCEEDED:
        return DeadlineError(
            "the server did not answer in time: give it longer with timeout or deadline, or look at its "
            f"load with `triton-face info` ({message})",
            error.status(),
        )
    kind = ServiceUnavailableError if may_go_well_again(error) else FaceServiceError
    return kind(message, error.status())
