"""CUDA shared memory: frames reach a server on the same machine through the memory of its GPU.

Frames that are torch tensors on that GPU are copied on the GPU and never to the host. The other tensors are
small and travel in the gRPC message. This module uses tritonclient's utilities, which need the package
cuda-python (extra `cuda`).
"""

import contextlib
import uuid
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from tritonclient.grpc import InferInput

from triton_face_client.errors import FaceServiceError
from triton_face_client.torch_bridge import is_tensor
from triton_face_client.transports.base import ManageRegion, TensorSpecs, create_input
from triton_face_client.transports.grpc_message import MessageBuffer
from triton_face_client.transports.region_pool import RegionPool

FRAME_INPUTS = ("FRAMES", "FRAMES_UINT8")


class CudaRegion(MessageBuffer):
    """A region of GPU memory that holds the frames of a request.

    Parameters
    ----------
    cuda : module
        `tritonclient.utils.cuda_shared_memory`.
    size : int
        Bytes.
    device : int
        Index of the GPU.

    Attributes
    ----------
    name : str
        Name under which the region is registered with the server.
    size : int
        Bytes.
    registration_sent : bool
        Whether the server may have registered the region.
    """

    def __init__(self, cuda: ModuleType, size: int, device: int) -> None:
        super().__init__({})
        self.name = f"triton_face_{uuid.uuid4().hex}"
        self.size = size
        self.registration_sent = False
        self._is_registered = False
        self._cuda = cuda
        self._device = device
        try:
            self._handle = cuda.create_shared_memory_region(self.name, size, device)
        except cuda.CudaSharedMemoryException as error:
            raise FaceServiceError(
                f"cannot allocate memory on GPU {device} ({error}): choose another GPU with cuda_device, or "
                "use shm=False, which needs no GPU"
            ) from error

    def set_outputs(self, outputs: TensorSpecs) -> None:
        """Set names, types and shapes of the next request's outputs, which travel in the gRPC message."""
        self._outputs = outputs

    def start_registration(self) -> ManageRegion | None:
        """Return the action that registers the region with the server, or None if it is registered."""
        if self._is_registered:
            return None
        self.registration_sent = True
        region = {
            "name": self.name,
            "raw_handle": self._cuda.get_raw_handle(self._handle),
            "device_id": self._device,
            "byte_size": self.size,
        }
        return ManageRegion("register_cuda_shared_memory", region)

    def mark_registered(self) -> None:
        """Record that the server has registered the region."""
        self._is_registered = True

    def input(self, name: str, values: Any) -> InferInput:
        """Copy frames into the region, or another tensor into the message; return the input."""
        if name not in FRAME_INPUTS:
            return super().input(name, values)
        if is_tensor(values):
            self._cuda.set_shared_memory_region_from_dlpack(self._handle, [values])
        else:
            self._cuda.set_shared_memory_region(self._handle, [values])
        return create_input(name, values).set_shared_memory(self.name, values.nbytes)

    def close(self) -> None:
        """Release the memory."""
        self._cuda.destroy_shared_memory_region(self._handle)
        self._handle = None


class CudaSharedMemoryTransport(RegionPool[CudaRegion]):
    """The transport through the memory of one GPU.

    Parameters
    ----------
    device : int
        Index of the GPU, the same for client and server.

    Raises
    ------
    ValueError
        If cuda-python is not installed.
    """

    def __init__(self, device: int) -> None:
        try:
            from tritonclient.utils import cuda_shared_memory
        # tritonclient raises RuntimeError if cuda-python is missing.
        except RuntimeError as error:
            raise ValueError(
                "shm='cuda' needs the package cuda-python: pip install 'triton-face-client[cuda]'"
            ) from error
        super().__init__(
            lambda size: CudaRegion(cuda_shared_memory, size, device), "unregister_cuda_shared_memory"
        )

    @contextlib.contextmanager
    def acquire_buffer(self, inputs: Mapping[str, Any], outputs: TensorSpecs) -> Iterator[MessageBuffer]:
        """Provide a region for the frames, or a message if the request has no frames."""
        frames = next((inputs[name] for name in FRAME_INPUTS if name in inputs), None)
        if frames is None:
            yield MessageBuffer(outputs)
            return
        with self.acquire_region(frames.nbytes) as region:
            region.set_outputs(outputs)
            yield region
