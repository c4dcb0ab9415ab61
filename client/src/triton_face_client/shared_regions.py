"""System shared memory between the client and a server on the same machine.

A region's name is removed as soon as the server has mapped it, so nothing stays in /dev/shm whatever happens
to the client afterwards: the memory itself is given back when both sides have let go of it.
"""

import contextlib
import threading
import uuid
from collections.abc import Iterator, Mapping
from multiprocessing import shared_memory

import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

ALIGNMENT = 64
"""Bytes; a cache line, and more than any type needs."""

GRANULE = 2**20
"""Bytes. Regions are whole multiples, so that requests of nearly one size share them."""

INVALID_ARGUMENT = "StatusCode.INVALID_ARGUMENT"

Shape = tuple[int, ...]


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
    registered : bool
        Whether the server knows it.
    """

    def __init__(self, size: int) -> None:
        self.name = f"triton_face_{uuid.uuid4().hex}"
        self.key = f"/{self.name}"
        self.size = size
        self.registered = False
        self._memory = shared_memory.SharedMemory(name=self.name, create=True, size=size)
        self._named = True
        self._places: dict[str, tuple[int, Shape, np.dtype]] = {}

    def lay_out(self, shapes: Mapping[str, Shape], types: Mapping[str, np.dtype]) -> None:
        """Give each tensor its place."""
        self._places, end = {}, 0
        for name, shape in shapes.items():
            self._places[name] = (end, shape, types[name])
            end += _room(shape, types[name])

    def array(self, name: str) -> np.ndarray:
        """Return a tensor, as an array that lies in the region."""
        offset, shape, datatype = self._places[name]
        return np.ndarray(shape, datatype, self._memory.buf, offset)

    def input(self, name: str, values: np.ndarray) -> InferInput:
        """Copy an array in; return the input that refers to it."""
        self.array(name)[...] = values
        tensor = InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
        return tensor.set_shared_memory(self.name, values.nbytes, self._places[name][0])

    def output(self, name: str) -> InferRequestedOutput:
        """Return the requested output that is written here."""
        requested = InferRequestedOutput(name)
        requested.set_shared_memory(self.name, self.array(name).nbytes, self._places[name][0])
        return requested

    def is_registered(self) -> None:
        """Note that the server has mapped it, and take its name out of /dev/shm."""
        self.registered = True
        self._remove_name()

    def close(self) -> None:
        """Let go of it."""
        self._remove_name()
        # Arrays that lie in it may be held by the traceback of an error; the process gives it back then.
        with contextlib.suppress(BufferError):
            self._memory.close()

    def _remove_name(self) -> None:
        if self._named:
            self._named = False
            self._memory.unlink()


class Regions:
    """The regions of a client: one for each request in flight, used again and again."""

    def __init__(self) -> None:
        self._free: list[Region] = []
        self._known: list[str] = []
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def lent(
        self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, Shape], types: Mapping[str, np.dtype]
    ) -> Iterator[Region]:
        """Lend a region with a place for each tensor.

        After a failure it is not used again: the server may still be at work in it, or know it no longer. A
        refusal is an answer.
        """
        shapes = {name: values.shape for name, values in inputs.items()} | dict(outputs)
        all_types = {name: values.dtype for name, values in inputs.items()} | dict(types)
        region = self._take(sum(_room(shape, all_types[name]) for name, shape in shapes.items()))
        region.lay_out(shapes, all_types)
        answered = False
        try:
            yield region
            answered = True
        except InferenceServerException as error:
            answered = error.status() == INVALID_ARGUMENT
            raise
        finally:
            if answered:
                self._free.append(region)
            else:
                self._let_go(region)

    def close(self) -> list[str]:
        """Let go of all of them; return the names that the server may still know."""
        with self._lock:
            regions, self._free = self._free, []
        for region in regions:
            self._let_go(region)
        names, self._known = self._known, []
        return names

    def _take(self, size: int) -> Region:
        with self._lock:
            for region in self._free:
                if region.size >= size:
                    self._free.remove(region)
                    return region
        return Region(-(-size // GRANULE) * GRANULE)

    def _let_go(self, region: Region) -> None:
        region.close()
        if region.registered:
            self._known.append(region.name)


def _room(shape: Shape, datatype: np.dtype) -> int:
    """Return the bytes of a tensor, up to where the next one may begin."""
    size = int(np.prod(shape)) * np.dtype(datatype).itemsize
    return -(-size // ALIGNMENT) * ALIGNMENT
