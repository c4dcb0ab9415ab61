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


@dataclasses.dataclass(frozen=True)
class Manage:
    """A call of tritonclient's that takes the server no time: its method, and what it is given."""

    method: str
    arguments: dict[str, Any]


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

    def close(self) -> list[Manage]:
        """Let go of everything; return what the server must be told."""


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
        """Take an output; Triton has answered with status OK and an empty one when its memory was full."""
        values, (_, shape) = result.as_numpy(name), self._outputs[name]
        if values is None or values.shape != shape:
            found = "none" if values is None else f"one of the shape {list(values.shape)}"
            raise FaceServiceError(
                f"the server's answer has {found} for {name} {list(shape)}; look at its log"
            )
        return values


class Messages:
    """The transport of messages alone."""

    @contextlib.contextmanager
    def lent(self, inputs: Mapping[str, np.ndarray], outputs: Outputs) -> Iterator[Message]:  # noqa: ARG002
        """Lend a message."""
        yield Message(outputs)

    def close(self) -> list[Manage]:
        """Return nothing: the server knows of nothing."""
        return []


def plain_input(name: str, values: Any) -> InferInput:
    """Return an input of the shape of an array or a tensor, still without data."""
    return InferInput(name, list(values.shape), INPUT_TYPES[name])
