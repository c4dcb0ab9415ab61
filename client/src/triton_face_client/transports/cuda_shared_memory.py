"""CUDA shared memory: frames go to a server on the same machine through memory of its GPU.

Frames that are torch tensors on that GPU are copied within it and never leave it. The other tensors are small
and go in the message. tritonclient's own utilities do the work; they need the package cuda-python, the extra
`cuda`.
"""

import contextlib
import uuid
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from tritonclient.grpc import InferInput

from triton_face_client.errors import FaceServiceError
from triton_face_client.torch_bridge import is_tensor
from triton_face_client.transports.messages import Manage, Message, Outputs, plain_input
from triton_face_client.transports.region_pool import RegionPool

FRAMES = ("FRAMES", "FRAMES_UINT8")


class CudaRegion(Message):
    """A piece of GPU memory that the frames of one request at a time lie in.

    Attributes
    ----------
    name : str
        What the server knows it by.
    size : int
        Bytes.
    was_announced : bool
        Whether the server has been told of it, and may know it.
    """

    def __init__(self, cuda: ModuleType, size: int, device: int) -> None:
        super().__init__({})
        self.name = f"triton_face_{uuid.uuid4().hex}"
        self.size = size
        self.was_announced = False
        self._registered = False
        self._cuda = cuda
        self._device = device
        try:
            self._handle = cuda.create_shared_memory_region(self.name, size, device)
        except cuda.CudaSharedMemoryException as error:
            raise FaceServiceError(
                f"no memory of GPU {device} to be had ({error}); shm=False does without"
            ) from error

    def expect(self, outputs: Outputs) -> None:
        """Note what the next request asks for."""
        self._outputs = outputs

    @property
    def registration(self) -> Manage | None:
        """Return how the server gets to know it, or None when it does."""
        if self._registered:
            return None
        self.was_announced = True
        arguments = {
            "name": self.name,
            "raw_handle": self._cuda.get_raw_handle(self._handle),
            "device_id": self._device,
            "byte_size": self.size,
        }
        return Manage("register_cuda_shared_memory", arguments)

    def is_registered(self) -> None:
        """Note that the server has mapped it."""
        self._registered = True

    def input(self, name: str, values: Any) -> InferInput:
        """Copy frames in, or take another tensor into the message; return the input."""
        if name not in FRAMES:
            return super().input(name, values)
        if is_tensor(values):
            self._cuda.set_shared_memory_region_from_dlpack(self._handle, [values])
        else:
            self._cuda.set_shared_memory_region(self._handle, [values])
        return plain_input(name, values).set_shared_memory(self.name, values.nbytes)

    def close(self) -> None:
        """Let go of it."""
        self._cuda.destroy_shared_memory_region(self._handle)
        self._handle = None


class CudaMemory(RegionPool[CudaRegion]):
    """The transport through memory of one GPU.

    Parameters
    ----------
    device : int
        The GPU, which client and server must see by the same number.

    Raises
    ------
    ValueError
        When cuda-python is not installed.
    """

    def __init__(self, device: int) -> None:
        try:
            from tritonclient.utils import cuda_shared_memory
        # tritonclient's way to say that cuda-python is missing.
        except RuntimeError as error:
            raise ValueError(
                "shm='cuda' needs the package cuda-python: pip install 'triton-face-client[cuda]'"
            ) from error
        super().__init__(
            lambda size: CudaRegion(cuda_shared_memory, size, device), "unregister_cuda_shared_memory"
        )

    @contextlib.contextmanager
    def lent(self, inputs: Mapping[str, Any], outputs: Outputs) -> Iterator[Message]:
        """Lend a region with room for the frames; a message where there are none."""
        frames = next((inputs[name] for name in FRAMES if name in inputs), None)
        if frames is None:
            yield Message(outputs)
            return
        with self.borrowed(frames.nbytes) as region:
            region.expect(outputs)
            yield region
