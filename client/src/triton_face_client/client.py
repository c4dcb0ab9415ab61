"""Blocking calls of the service over gRPC, from numpy arrays to numpy arrays."""

from collections.abc import Sequence

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import np_to_triton_dtype

ENSEMBLE_OUTPUTS = ("HOG", "POSE", "ALIGNED_LANDMARKS", "AFFINE", "MASK")
ALIGN_MASK_OUTPUTS = ("MASKED_FACES", "ALIGNED_FACES", "ALIGNED_LANDMARKS", "AFFINE", "MASK")

Tensors = dict[str, np.ndarray]


class FaceFeatureClient:
    """A connection to the service. Use it as a context manager, or `close` it.

    Parameters
    ----------
    url : str
        Host and port of the gRPC endpoint.

    Raises
    ------
    tritonclient.utils.InferenceServerException
        From every call, when the server is not reachable (StatusCode.UNAVAILABLE) or refuses a face
        (StatusCode.INVALID_ARGUMENT); the message then names the face and the reason.
    """

    def __init__(self, url: str = "127.0.0.1:8001") -> None:
        self.connection = grpcclient.InferenceServerClient(url)

    def __enter__(self) -> "FaceFeatureClient":
        """Return the client itself."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def features(
        self,
        frames: np.ndarray,
        landmarks: np.ndarray,
        outputs: Sequence[str] = ("HOG", "POSE"),
    ) -> Tensors:
        """Compute AU features and head pose.

        Parameters
        ----------
        frames : ndarray of float32 or uint8, shape (N, 3, H, W)
            Face crops or whole frames, one per face, values in [0, 1] or from 0 to 255. uint8 is sent as
            such, a quarter of the bytes, and divided by 255 in float32 on the server.
        landmarks : ndarray of float32, shape (N, 68, 2)
            iBUG/OpenFace landmarks (x, y) in pixels of `frames`.
        outputs : sequence of str
            Any of `ENSEMBLE_OUTPUTS`; what is not asked for is not computed.

        Returns
        -------
        dict of str to ndarray
            HOG float32 ``[N, 5408]``; POSE float32 ``[N, 6]``, raw Pitch, Roll, Yaw in radians, X, Y, Z
            (see `subject_pose`); ALIGNED_LANDMARKS int64 ``[N, 68, 2]``; AFFINE float32 ``[N, 2, 3]``,
            frame pixels to aligned pixels; MASK bool ``[N, 112, 112]``.
        """
        return self._infer("ensemble", _face_tensors(frames, landmarks), outputs)

    def align(
        self,
        frames: np.ndarray,
        landmarks: np.ndarray,
        outputs: Sequence[str] = ("MASKED_FACES", "ALIGNED_LANDMARKS"),
    ) -> Tensors:
        """Align and mask faces; inputs as in `features`.

        Returns
        -------
        dict of str to ndarray
            Any of `ALIGN_MASK_OUTPUTS`: MASKED_FACES and ALIGNED_FACES float32 ``[N, 3, 112, 112]``,
            the others as in `features`.
        """
        return self._infer("align_mask", _face_tensors(frames, landmarks), outputs)

    def pose(self, landmarks: np.ndarray) -> np.ndarray:
        """Compute raw head pose, float32 ``[N, 6]``, from landmarks ``[N, 68, 2]`` alone.

        A face with a NaN or infinite landmark has a row that is not finite.
        """
        return self._infer("pose_mlp", {"LANDMARKS": landmarks}, ["POSE"])["POSE"]

    def _infer(self, model: str, tensors: Tensors, outputs: Sequence[str]) -> Tensors:
        inputs = []
        for name, values in tensors.items():
            tensor = grpcclient.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
            inputs.append(tensor.set_data_from_numpy(values))
        requested = [grpcclient.InferRequestedOutput(name) for name in outputs]
        result = self.connection.infer(model, inputs, outputs=requested)
        return {name: result.as_numpy(name) for name in outputs}


def _face_tensors(frames: np.ndarray, landmarks: np.ndarray) -> Tensors:
    return {"FRAMES_UINT8" if frames.dtype == np.uint8 else "FRAMES": frames, "LANDMARKS": landmarks}
