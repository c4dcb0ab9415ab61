"""Single requests without the client's checks, batching and retries."""

from collections.abc import Mapping, Sequence

import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.utils import np_to_triton_dtype

from triton_face_client import FaceFeatureClient


def tensor_input(name: str, values: np.ndarray) -> InferInput:
    """Return a request's input tensor."""
    return InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype)).set_data_from_numpy(values)


def infer(
    client: FaceFeatureClient,
    model: str,
    tensors: Mapping[str, np.ndarray],
    outputs: Sequence[str],
    timeout: float | None = None,
) -> dict[str, np.ndarray]:
    """Send one request with a timeout in seconds; tritonclient's exceptions propagate unchanged."""
    inputs = [tensor_input(name, values) for name, values in tensors.items()]
    requested = [InferRequestedOutput(name) for name in outputs]
    result = client.connection.infer(model, inputs, outputs=requested, client_timeout=timeout)
    return {name: result.as_numpy(name) for name in outputs}
