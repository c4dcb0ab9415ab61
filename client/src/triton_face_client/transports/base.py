"""The interface of a transport, which carries the tensors of requests and responses.

`grpc_message`, `system_shared_memory` and `cuda_shared_memory` implement it. For each request a `Transport`
provides a `RequestBuffer`, which turns tensors into tritonclient's inputs and outputs and reads the response.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferInput, InferRequestedOutput, InferResult

from triton_face_client.errors import FaceServiceError

INPUT_TYPES = {
    "FRAMES": "FP32",
    "FRAMES_UINT8": "UINT8",
    "LANDMARKS": "FP32",
    "HOG": "FP32",
    "ALIGNED_LANDMARKS": "INT64",
}
"""Triton's data type of each input."""

TensorSpec = tuple[np.dtype[Any], tuple[int, ...]]
"""Type and shape of a tensor."""

TensorSpecs = Mapping[str, TensorSpec]
"""Type and shape of tensors by name. The first dimension of each shape is the number of faces."""

Callback = Callable[[Any, Exception | None], None]
"""Receives an action's result and None, or None and its error."""

MANAGE_TIMEOUT = 10.0
"""Seconds. A healthy server registers or unregisters a region within milliseconds."""


@dataclasses.dataclass(frozen=True)
class ManageRegion:
    """Register or unregister a shared-memory region.

    Attributes
    ----------
    method : str
        Name of a method of tritonclient's `InferenceServerClient`.
    region : dict of str to Any
        Arguments of the method that describe the region.
    timeout : float
        Seconds.
    """

    method: str
    region: dict[str, Any]
    timeout: float = MANAGE_TIMEOUT

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the method."""
        return self.region | {"client_timeout": self.timeout}


class RequestBuffer(Protocol):
    """Memory for the tensors of one request: the gRPC message or a shared-memory region."""

    def start_registration(self) -> ManageRegion | None:
        """Return the action that registers the memory with the server, or None if that is not needed."""

    def mark_registered(self) -> None:
        """Record that the server has registered the memory."""

    def input(self, name: str, values: Any) -> InferInput:
        """Return the input that contains a tensor or refers to it."""

    def output(self, name: str) -> InferRequestedOutput:
        """Return the requested output."""

    def read(self, name: str, result: InferResult) -> NDArray[Any]:
        """Return an output of the response. The array is valid until the buffer is released."""


class Transport(Protocol):
    """A way to send tensors to the server."""

    def acquire_buffer(
        self, inputs: Mapping[str, Any], outputs: TensorSpecs
    ) -> contextlib.AbstractContextManager[RequestBuffer]:
        """Provide a buffer for a request with these tensors, until the context ends."""

    def close(self) -> None:
        """Release the memory of all buffers that are not in use."""

    def pop_unregistrations(self) -> list[ManageRegion]:
        """Return and clear the actions that unregister released regions."""

    def requeue_unregistration(self, action: ManageRegion) -> None:
        """Keep an action for another try. Call this if the server still uses the region."""

    @property
    def has_unregistrations(self) -> bool:
        """Whether `pop_unregistrations` would return an action."""


def create_input(name: str, values: Any) -> InferInput:
    """Return an input with the shape of an array or a tensor, without its data."""
    return InferInput(name, list(values.shape), INPUT_TYPES[name])


def check_output(result: InferResult, name: str, shape: tuple[int, ...]) -> None:
    """Raise a FaceServiceError unless the response has an output of this shape.

    When its memory was full, Triton has sent responses without outputs and with status OK.
    """
    output = result.get_output(name)
    found = None if output is None else tuple(output.shape)
    if found != shape:
        raise FaceServiceError(
            f"the server's response has {'no' if found is None else list(found)} {name}, not {list(shape)}: "
            "look at the server's log"
        )
