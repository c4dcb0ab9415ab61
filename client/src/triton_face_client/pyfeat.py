"""py-feat's calls, answered by the service: change one import and keep the code.

``from feat.utils.face_mask import extract_hog_features_batched`` becomes
``from triton_face_client.pyfeat import extract_hog_features_batched``. Arguments, results and errors are
those of py-feat 2.1.5 (SPEC section 6); each call also has a shorter name without py-feat's suffix. What
py-feat gives as a torch tensor is one here for tensors, and an array for arrays.

The server is the one at ``TRITON_FACE_URL``, by default 127.0.0.1:8001; `connect` names another and takes the
settings of `FaceFeatureClient`. Every call also takes a `client` of its own.
"""

import os
import threading
from typing import Any

import numpy as np

from triton_face_client.base_client import DEFAULT_URL
from triton_face_client.client import FaceFeatureClient
from triton_face_client.pose import subject_pose
from triton_face_client.requests.faces import LANDMARKS
from triton_face_client.torch_bridge import as_array

URL_VARIABLE = "TRITON_FACE_URL"

HOG_SETTINGS = {
    "orientations": 8,
    "pixels_per_cell": 8,
    "cells_per_block": 2,
    "transform_sqrt": False,
    "block_normalization": "l2-hys",
}
"""Attributes of py-feat's HOGLayer that compute what the service does (SPEC section 4)."""

CONVENTIONS = ("raw", "subject")

_default: dict[str, FaceFeatureClient] = {}
_default_lock = threading.Lock()


def connect(url: str | None = None, **settings: Any) -> FaceFeatureClient:
    """Choose the server of the calls in this module, and return its client.

    Parameters
    ----------
    url : str, optional
        As of `FaceFeatureClient`; without it ``TRITON_FACE_URL``.
    **settings
        As of `FaceFeatureClient`.
    """
    client = FaceFeatureClient(url or os.environ.get(URL_VARIABLE, DEFAULT_URL), **settings)
    # The former one is not closed: another thread may be in the midst of a call of its.
    with _default_lock:
        _default["client"] = client
    return client


def extract_hog_features(
    extracted_faces: Any, landmarks: Any, hog_layer: Any = None, *, client: FaceFeatureClient | None = None
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Compute the HOG features that py-feat's AU classifiers take: `extract_hog_features_batched`.

    Parameters
    ----------
    extracted_faces : array or tensor, shape (N, 3, S, S)
        Face crops, floating in [0, 1], or uint8.
    landmarks : array or tensor, shape (N, 136)
        x0, y0, x1, y1, ... as shares of the crop, 0 to 1.
    hog_layer : HOGLayer, optional
        py-feat's, looked at to make sure that it is what the service computes.
    client : FaceFeatureClient, optional
        Another server than the module's.

    Returns
    -------
    features : ndarray of float32, shape (N, 5408)
        HOG features; an array for tensors too, as py-feat gives them.
    aligned_landmarks : list of N ndarrays of int64, shape (68, 2)
        Pixels of the aligned face.

    Raises
    ------
    ValueError
        For landmarks of another layout, or a `hog_layer` of other settings.
    """
    client = client or _client()
    if len(landmarks) == 0:
        datatype, shape = client.model("ensemble").outputs["HOG"]
        return np.empty((0, *shape), datatype), []
    _check_hog_layer(hog_layer)
    frames, shares = as_array(extracted_faces), as_array(landmarks)
    if shares.ndim != 2 or shares.shape[1] != 2 * LANDMARKS:
        raise ValueError(
            f"landmarks have the shape {list(shares.shape)}, not [N, 136], 68 points (x, y) as shares of the "
            "crop: translate MediaPipe's 478 or 468 points with "
            "triton_face_client.landmarks.from_mediapipe, and give pixels [N, 68, 2] to "
            "FaceFeatureClient.features"
        )
    size = np.array(frames.shape[:-3:-1], dtype=shares.dtype)  # width, height
    pixels = shares.reshape(-1, LANDMARKS, 2) * size
    answers = client.features(frames, pixels, ["HOG", "ALIGNED_LANDMARKS"])
    return answers["HOG"], list(answers["ALIGNED_LANDMARKS"])


def extract_faces(
    frames: Any,
    landmarks: Any,
    face_size: int = 112,
    box_enlarge: float = 2.5,
    *,
    client: FaceFeatureClient | None = None,
) -> tuple[Any, list[np.ndarray]]:
    """Align and mask faces: `extract_faces_from_landmarks_batched`.

    Parameters
    ----------
    frames : array or tensor, shape (N, 3, H, W)
        Face crops or whole frames, floating in [0, 1], or uint8.
    landmarks : array or tensor, shape (N, 68, 2)
        Pixels of the frames.
    face_size, box_enlarge
        Must be what the server is configured to.
    client : FaceFeatureClient, optional
        Another server than the module's.

    Returns
    -------
    masked_faces : array or tensor of float32, shape (N, 3, 112, 112)
        Aligned faces, 0 outside the mask.
    aligned_landmarks : list of N ndarrays of int64, shape (68, 2)
        Pixels of the aligned face.
    """
    client = client or _client()
    _check_alignment(client, face_size, box_enlarge)
    answers = client.align(frames, landmarks, ["MASKED_FACES", "ALIGNED_LANDMARKS"])
    return answers["MASKED_FACES"], list(as_array(answers["ALIGNED_LANDMARKS"]))


def align_faces(
    frames: Any,
    landmarks: Any,
    face_size: int = 112,
    box_enlarge: float = 2.5,
    *,
    client: FaceFeatureClient | None = None,
) -> tuple[Any, Any, Any]:
    """Align faces: `align_faces_batched`. Parameters as of `extract_faces`.

    Returns
    -------
    aligned_faces : array or tensor of float32, shape (N, 3, 112, 112)
        128 where the aligned face leaves the frame.
    aligned_landmarks : array or tensor of int64, shape (N, 68, 2)
        Pixels of the aligned face.
    affine : array or tensor of float32, shape (N, 2, 3)
        Frame pixels to aligned pixels.
    """
    client = client or _client()
    _check_alignment(client, face_size, box_enlarge)
    answers = client.align(frames, landmarks, ["ALIGNED_FACES", "ALIGNED_LANDMARKS", "AFFINE"])
    return answers["ALIGNED_FACES"], answers["ALIGNED_LANDMARKS"], answers["AFFINE"]


def pose_from_landmarks(
    landmarks_2d: Any,
    bboxes: Any = None,  # noqa: ARG001
    *,
    convention: str = "raw",
    client: FaceFeatureClient | None = None,
) -> Any:
    """Compute head pose from landmarks: `pose_from_landmarks_mlp`.

    Parameters
    ----------
    landmarks_2d : array or tensor, shape (N, 68, 2)
        Pixels, y down.
    bboxes : object, optional
        Not looked at, as in py-feat.
    convention : {"raw", "subject"}
        As the network gives it, or as py-feat's tables do: +pitch up, +yaw to the subject's right, +roll
        tilted to the subject's right (see `subject_pose`).
    client : FaceFeatureClient, optional
        Another server than the module's.

    Returns
    -------
    array or tensor of float32, shape (N, 6)
        Pitch, Roll, Yaw in radians, then X, Y, Z; NaN for a face with a NaN or infinite landmark.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention is {convention!r}: give 'raw' or 'subject'")
    # py-feat has NaN for a face without a pose, and no error.
    pose = (client or _client()).pose(landmarks_2d, on_invalid="nan")
    return pose if convention == "raw" else subject_pose(pose)


extract_hog_features_batched = extract_hog_features
extract_faces_from_landmarks_batched = extract_faces
align_faces_batched = align_faces
pose_from_landmarks_mlp = pose_from_landmarks


def _client() -> FaceFeatureClient:
    with _default_lock:
        if "client" not in _default:
            _default["client"] = FaceFeatureClient(os.environ.get(URL_VARIABLE, DEFAULT_URL))
        return _default["client"]


def _check_hog_layer(layer: Any) -> None:
    other = [
        f"{name}={getattr(layer, name)!r}"
        for name, value in HOG_SETTINGS.items()
        if layer is not None and getattr(layer, name, value) != value
    ]
    if other:
        raise ValueError(
            f"hog_layer has {', '.join(other)}, the service computes {HOG_SETTINGS}: use py-feat for others"
        )


def _check_alignment(client: FaceFeatureClient, face_size: int, box_enlarge: float) -> None:
    served = client.model("align_mask").parameters
    if (int(served["face_size"]), float(served["box_enlarge"])) != (face_size, box_enlarge):
        raise ValueError(
            f"face_size={face_size}, box_enlarge={box_enlarge}, but the server is configured to "
            f"{served['face_size']} and {served['box_enlarge']}: they are parameters of align_mask's config"
        )
