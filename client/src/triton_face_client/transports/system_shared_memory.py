"""System shared memory between the client and a server on the same machine.

A region's name is removed as soon as the server has mapped it, so nothing stays in /dev/shm whatever happens
to the client afterwards: the memory itself is given back when both sides have let go of it.
"""

import contextlib
import uuid
from collections.abc import Iterator, Mapping
from multiprocessing import shared_memory
from pathlib import Path

import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput, InferResult

from triton_face_client.transports.messages import Manage, Outputs, check_output, plain_input
from triton_face_client.transports.region_pool import RegionPool

DEV_SHM = Path("/dev/shm")

ALIGNMENT = 64
"""Bytes; a cache line, and more than any type needs."""


class Region:
    """A piece of shared memory that the tensors of one request at a time lie in.

    Attributes
    ----------
    name : str
        What the server knows it by.
    key : str
        Its name in /dev/shm, until the server has mapped it.
    size : int
        Bytes.
    was_announced : bool
        Whether the server has been told of it, and may know it.
    """

    def __init__(self, size: int) -> None:
        self.name = f"triton_face_{uuid.uuid4().hex}"
        self.key = f"/{self.name}"
        self.size = size
        self.was_announced = False
        self._registered = False
        self._memory = _named_memory(self.name, size)
        self._named = True
        self._arrays: dict[str, np.ndarray] = {}
        self._offsets: dict[str, int] = {}

    def lay_out(self, tensors: Outputs) -> None:
        """Give each tensor its place."""
        self._arrays, self._offsets, end = {}, {}, 0
        for name, (datatype, shape) in tensors.items():
            self._offsets[name] = end
            self._arrays[name] = np.ndarray(shape, datatype, self._memory.buf, end)
            end += _room(datatype, shape)

    @property
    def registration(self) -> Manage | None:
        """Return how the server gets to know it, or None when it does."""
        if self._registered:
            return None
        self.was_announced = True
        arguments = {"name": self.name, "key": self.key, "byte_size": self.size}
        return Manage("register_system_shared_memory", arguments)

    def is_registered(self) -> None:
        """Note that the server has mapped it, and take its name out of /dev/shm."""
        self._registered = True
        self._remove_name()

    def input(self, name: str, values: np.ndarray) -> InferInput:
        """Copy an array in; return the input that refers to it."""
        self._arrays[name][...] = values
        return plain_input(name, values).set_shared_memory(self.name, values.nbytes, self._offsets[name])

    def output(self, name: str) -> InferRequestedOutput:
        """Return the requested output that is written here."""
        requested = InferRequestedOutput(name)
        requested.set_shared_memory(self.name, self._arrays[name].nbytes, self._offsets[name])
        return requested

    def read(self, name: str, result: InferResult) -> np.ndarray:
        """Return an output, as an array that lies here."""
        check_output(result, name, self._arrays[name].shape)
        return self._arrays[name]

    def close(self) -> None:
        """Let go of it."""
        self._remove_name()
        self._arrays = {}
        # Arrays that lie in it may be held by the traceback of an error; the process gives it back then.
        with contextlib.suppress(BufferError):
            self._memory.close()

    def _remove_name(self) -> None:
        if self._named:
            self._named = False
            self._memory.unlink()


class SharedMemory(RegionPool[Region]):
    """The transport through system shared memory."""

    def __init__(self) -> None:
        super().__init__(Region, "unregister_system_shared_memory")

    @contextlib.contextmanager
    def lent(self, inputs: Mapping[str, np.ndarray], outputs: Outputs) -> Iterator[Region]:
        """Lend a region with a place for each tensor."""
        tensors = {name: (values.dtype, values.shape) for name, values in inputs.items()} | dict(outputs)
        with self.borrowed(sum(_room(*tensor) for tensor in tensors.values())) as region:
            region.lay_out(tensors)
            yield region


def _named_memory(name: str, size: int) -> shared_memory.SharedMemory:
    """Make a piece of shared memory whole, or leave nothing of it."""
    try:
        return shared_memory.SharedMemory(name=name, create=True, size=size)
    except BaseException:
        # Ctrl-C between its making and its entry with the resource tracker: nobody else would remove it.
        (DEV_SHM / name).unlink(missing_ok=True)
        raise


def _room(datatype: np.dtype, shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor, up to where the next one may begin."""
    size = int(np.prod(shape)) * np.dtype(datatype).itemsize
    return -(-size // ALIGNMENT) * ALIGNMENT
