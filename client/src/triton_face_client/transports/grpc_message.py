"""Tensors inside the gRPC message: the default transport, for servers on any machine."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from numpy.typing import NDArray
from tritonclient.grpc import InferInput, InferRequestedOutput, InferResult

from triton_face_client.transports.base import ManageRegion, TensorSpecs, check_output, create_input


class MessageBuffer:
    """The tensors of one request, inside its message.

    Parameters
    ----------
    outputs : mapping of str to TensorSpec
        Type and shape of each requested output.
    """

    def __init__(self, outputs: TensorSpecs) -> None:
        self._outputs = outputs

    def start_registration(self) -> ManageRegion | None:
        """Return None: a message needs no registration."""
        return None

    def mark_registered(self) -> None:
        """Do nothing."""

    def input(self, name: str, values: Any) -> InferInput:
        """Return the input that contains an array."""
        return create_input(name, values).set_data_from_numpy(values)

    def output(self, name: str) -> InferRequestedOutput:
        """Return the requested output."""
        return InferRequestedOutput(name)

    def read(self, name: str, result: InferResult) -> NDArray[Any]:
        """Return an output of the response."""
        check_output(result, name, self._outputs[name][1])
        values: NDArray[Any] = result.as_numpy(name)
        return values


class MessageTransport:
    """The transport inside gRPC messages. It has no memory to release or to register."""

    has_unregistrations = False

    @contextlib.contextmanager
    def acquire_buffer(
        self,
        inputs: Mapping[str, Any],  # noqa: ARG002
        outputs: TensorSpecs,
    ) -> Iterator[MessageBuffer]:
        """Provide the buffer of a message."""
        yield MessageBuffer(outputs)

    def close(self) -> None:
        """Do nothing."""

    def pop_unregistrations(self) -> list[ManageRegion]:
        """Return an empty list."""
        return []

    def requeue_unregistration(self, action: ManageRegion) -> None:
        """Do nothing."""
