"""How a request's tensors reach the server and come back: in the message itself.

`shared_regions` and `cuda_regions` are the other ways. Each lends something for one request at a time, a
`Lease`, which turns tensors into tritonclient's inputs and outputs and reads the answer.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput, InferResult

from triton_face_client.errors import FaceServiceError

INVALID_ARGUMENT = "StatusCode.INVALID_ARGUMENT"

INPUT_TYPES = {"FRAMES": "FP32", "FRAMES_UINT8": "UINT8", "LANDMARKS": "FP32"}

Outputs = Mapping[str, tuple[np.dtype, tuple[int, ...]]]
"""Type and shape, the faces' dimension included, of each output of a request."""


MANAGE_SECONDS = 10.0
"""For the server to map a region or let go of it, which takes it milliseconds."""


@dataclasses.dataclass(frozen=True)
class Manage:
    """A call of tritonclient's that takes the server no time: its method, and what it is given."""

    method: str
    arguments: dict[str, Any]
    seconds: float = MANAGE_SECONDS


class Lease(Protocol):
    """What a transport lends to one request."""

    @property
    def registration(self) -> Manage | None:
        """Return what the server must be told before it is used, or None."""

    def is_registered(self) -> None:
        """Note that the server has been told."""

    def input(self, name: str, values: Any) -> InferInput:
        """Return the input that carries or refers to a tensor."""

    def output(self, name: str) -> InferRequestedOutput:
        """Return the output that is asked for."""

    def read(self, name: str, result: InferResult) -> np.ndarray:
        """Return an output of the answer; it need not outlive the lease."""


class Transport(Protocol):
    """A way for tensors to go."""

    def lent(self, inputs: Mapping[str, Any], outputs: Outputs) -> contextlib.AbstractContextManager[Lease]:
        """Lend what a request with these tensors needs."""

    def close(self) -> None:
        """Let go of everything."""

    def lost(self) -> list[Manage]:
        """Return how the server forgets what is not used again, once."""

    def still_lost(self, forgetting: Manage) -> None:
        """Note that the server has kept something for now."""

    @property
    def has_lost(self) -> bool:
        """Tell whether the server has kept something."""


def check_output(result: InferResult, name: str, shape: tuple[int, ...]) -> None:
    """Refuse an answer without an output; Triton has given one with status OK when its memory was full."""
    output = result.get_output(name)
    found = None if output is None else tuple(output.shape)
    if found != shape:
        raise FaceServiceError(
            f"the server's answer has {'no' if found is None else list(found)} {name}, not {list(shape)}; "
            "look at its log"
        )


class Message:
    """The tensors of one request, within its message."""

    registration = None

    def __init__(self, outputs: Outputs) -> None:
        self._outputs = outputs

    def is_registered(self) -> None:
        """Do nothing: the server need not be told."""

    def input(self, name: str, values: np.ndarray) -> InferInput:
        """Return the input that carries an array."""
        return plain_input(name, values).set_data_from_numpy(values)

    def output(self, name: str) -> InferRequestedOutput:
        """Return the output that is asked for."""
        return InferRequestedOutput(name)

    def read(self, name: str, result: InferResult) -> np.ndarray:
        """Return an output as it came."""
        check_output(result, name, self._outputs[name][1])
        return result.as_numpy(name)


class Messages:
    """The transport of messages alone."""

    @contextlib.contextmanager
    def lent(self, inputs: Mapping[str, np.ndarray], outputs: Outputs) -> Iterator[Message]:  # noqa: ARG002
        """Lend a message."""
        yield Message(outputs)

    has_lost = False

    def close(self) -> None:
        """Do nothing: there is nothing to let go of."""

    def lost(self) -> list[Manage]:
        """Return nothing: the server knows of nothing."""
        return []

    def still_lost(self, forgetting: Manage) -> None:
        """Do nothing."""


def plain_input(name: str, values: Any) -> InferInput:
    """Return an input of the shape of an array or a tensor, still without data."""
    return InferInput(name, list(values.shape), INPUT_TYPES[name])
