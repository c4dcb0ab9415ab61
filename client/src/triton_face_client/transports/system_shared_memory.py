"""System shared memory between the client and a server on the same machine.

The client unlinks a region's file in /dev/shm as soon as the server has mapped the region. The kernel then
frees the memory when both processes have unmapped it, even if one of them is killed.
"""

import contextlib
import uuid
from collections.abc import Iterator, Mapping
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferInput, InferRequestedOutput, InferResult

from triton_face_client.transports.base import (
    ManageRegion,
    TensorSpec,
    TensorSpecs,
    check_output,
    create_input,
)
from triton_face_client.transports.region_pool import RegionPool

DEV_SHM = Path("/dev/shm")

ALIGNMENT = 64
"""Bytes, alignment of tensors in a region: the size of a cache line."""


class SystemRegion:
    """A region of shared memory that holds all tensors of a request.

    Attributes
    ----------
    name : str
        Name under which the region is registered with the server.
    key : str
        Name of its file in /dev/shm, after a slash. The file exists until the server has mapped the region.
    size : int
        Bytes.
    registration_sent : bool
        Whether the server may have registered the region.
    """

    def __init__(self, size: int) -> None:
        self.name = f"triton_face_{uuid.uuid4().hex}"
        self.key = f"/{self.name}"
        self.size = size
        self.registration_sent = False
        self._is_registered = False
        self._memory = _create_shared_memory(self.name, size)
        self._is_linked = True
        self._arrays: dict[str, NDArray[Any]] = {}
        self._offsets: dict[str, int] = {}

    def lay_out(self, tensors: TensorSpecs) -> None:
        """Assign each tensor its offset in the region."""
        self._arrays, self._offsets, end = {}, {}, 0
        for name, (datatype, shape) in tensors.items():
            self._offsets[name] = end
            self._arrays[name] = np.ndarray(shape, datatype, self._memory.buf, end)
            end += _aligned_bytes((datatype, shape))

    def start_registration(self) -> ManageRegion | None:
        """Return the action that registers the region with the server, or None if it is registered."""
        if self._is_registered:
            return None
        self.registration_sent = True
        region = {"name": self.name, "key": self.key, "byte_size": self.size}
        return ManageRegion("register_system_shared_memory", region)

    def mark_registered(self) -> None:
        """Record that the server has mapped the region, and remove the region's name from /dev/shm."""
        self._is_registered = True
        self._unlink()

    def input(self, name: str, values: NDArray[Any]) -> InferInput:
        """Copy an array into the region; return the input that refers to it."""
        self._arrays[name][...] = values
        return create_input(name, values).set_shared_memory(self.name, values.nbytes, self._offsets[name])

    def output(self, name: str) -> InferRequestedOutput:
        """Return the requested output, which the server writes into the region."""
        requested = InferRequestedOutput(name)
        requested.set_shared_memory(self.name, self._arrays[name].nbytes, self._offsets[name])
        return requested

    def read(self, name: str, result: InferResult) -> NDArray[Any]:
        """Return an output as a view of the region."""
        check_output(result, name, self._arrays[name].shape)
        return self._arrays[name]

    def close(self) -> None:
        """Release the memory."""
        self._unlink()
        self._arrays = {}
        # BufferError: the traceback of an error may still refer to arrays in the region. The memory is freed
        # with these arrays.
        with contextlib.suppress(BufferError):
            self._memory.close()

    def _unlink(self) -> None:
        if self._is_linked:
            self._is_linked = False
            self._memory.unlink()


class SystemSharedMemoryTransport(RegionPool[SystemRegion]):
    """The transport through system shared memory."""

    def __init__(self) -> None:
        super().__init__(SystemRegion, "unregister_system_shared_memory")

    @contextlib.contextmanager
    def acquire_buffer(
        self, inputs: Mapping[str, NDArray[Any]], outputs: TensorSpecs
    ) -> Iterator[SystemRegion]:
        """Provide a region that holds the inputs and the outputs."""
        tensors = {name: (values.dtype, values.shape) for name, values in inputs.items()} | dict(outputs)
        with self.acquire_region(sum(map(_aligned_bytes, tensors.values()))) as region:
            region.lay_out(tensors)
            yield region


def _create_shared_memory(name: str, size: int) -> shared_memory.SharedMemory:
    """Create shared memory; if that fails or is interrupted, remove its file from /dev/shm."""
    try:
        return shared_memory.SharedMemory(name=name, create=True, size=size)
    except BaseException:
        # Python's resource tracker would remove the file, but may not know it yet when Ctrl-C interrupts.
        (DEV_SHM / name).unlink(missing_ok=True)
        raise


def _aligned_bytes(tensor: TensorSpec) -> int:
    """Return the bytes of a tensor, rounded up to a multiple of `ALIGNMENT`."""
    datatype, shape = tensor
    size = int(np.prod(shape)) * datatype.itemsize
    return -(-size // ALIGNMENT) * ALIGNMENT
