"""py-feat's functions, computed by the service: change one import and keep the code.

Replace ``from feat.utils.face_mask import extract_hog_features_batched`` with
``from triton_face_client.pyfeat import extract_hog_features_batched``. Arguments and results are those of
py-feat 2.1.5 (docs/SPEC.md, section 6); errors are those of `FaceFeatureClient`. Each function also has a
shorter name without py-feat's suffix. Where py-feat returns a torch tensor, these functions return a tensor
for tensors and an array for arrays.

The functions use the server at ``TRITON_FACE_URL``, by default 127.0.0.1:8001. `connect` selects another
server and sets the options of `FaceFeatureClient`; the argument `client` selects a client for one call.
"""

import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triton_face_client.base_client import DEFAULT_URL
from triton_face_client.client import FaceFeatureClient
from triton_face_client.hog_settings import HogSettings
from triton_face_client.pose import subject_pose
from triton_face_client.requests.faces import LANDMARK_COUNT
from triton_face_client.torch_bridge import as_array

URL_VARIABLE = "TRITON_FACE_URL"

CONVENTIONS = ("raw", "subject")

# Empty, or {"client": the module's client}; `connect` or the first use of a function sets it.
_default: dict[str, FaceFeatureClient] = {}
_default_lock = threading.Lock()


def connect(url: str | None = None, **settings: Any) -> FaceFeatureClient:
    """Select the server of this module's functions, and return the client.

    Parameters
    ----------
    url : str, optional
        ``HOST:PORT``; by default the environment variable ``TRITON_FACE_URL``.
    **settings
        Further parameters of `FaceFeatureClient`.
    """
    client = FaceFeatureClient(url or os.environ.get(URL_VARIABLE, DEFAULT_URL), **settings)
    # The previous client stays open, because another thread may be using it.
    with _default_lock:
        _default["client"] = client
    return client


def extract_hog_features(
    extracted_faces: Any, landmarks: Any, hog_layer: Any = None, *, client: FaceFeatureClient | None = None
) -> tuple[NDArray[np.float32], list[NDArray[np.int64]]]:
    """Compute the HOG features for py-feat's AU classifiers: py-feat's `extract_hog_features_batched`.

    Parameters
    ----------
    extracted_faces : array or tensor, shape (N, 3, S, S)
        Face crops, floating in [0, 1], or uint8.
    landmarks : array or tensor, shape (N, 136)
        x0, y0, x1, y1, ..., normalized to 0 to 1 of the crop's width and height.
    hog_layer : HOGLayer, optional
        py-feat's HOG layer; its settings are compared with the server's. By default the features have the
        server's settings.
    client : FaceFeatureClient, optional
        By default the module's client (`connect`).

    Returns
    -------
    features : ndarray of float32, shape (N, features)
        HOG features, 5408 with the default settings; an array even if the arguments are tensors, as in
        py-feat.
    aligned_landmarks : list of N ndarrays of int64, shape (68, 2)
        (x, y) in pixels of the aligned face.

    Raises
    ------
    ValueError
        If the landmarks have another layout, or `hog_layer` has other settings than the server.
    """
    client = client or _client()
    if len(landmarks) == 0:
        datatype, shape = client.model("ensemble").outputs["HOG"]
        return np.empty((0, *shape), datatype), []
    _check_hog_layer(client, hog_layer)
    frames, normalized = as_array(extracted_faces), as_array(landmarks)
    if normalized.ndim != 2 or normalized.shape[1] != 2 * LANDMARK_COUNT:
        raise ValueError(
            f"landmarks have the shape {list(normalized.shape)}, not [N, 136], 68 normalized points (x, y): "
            "convert MediaPipe's 478 or 468 points with triton_face_client.landmarks.from_mediapipe; "
            "FaceFeatureClient.features accepts pixels [N, 68, 2]"
        )
    size = np.array(frames.shape[:-3:-1], dtype=normalized.dtype)  # width, height
    pixels = normalized.reshape(-1, LANDMARK_COUNT, 2) * size
    answers = client.features(frames, pixels, ["HOG", "ALIGNED_LANDMARKS"])
    return answers["HOG"], list(answers["ALIGNED_LANDMARKS"])


def extract_faces(
    frames: Any,
    landmarks: Any,
    face_size: int = 112,
    box_enlarge: float = 2.5,
    *,
    client: FaceFeatureClient | None = None,
) -> tuple[Any, list[NDArray[np.int64]]]:
    """Align and mask faces: py-feat's `extract_faces_from_landmarks_batched`.

    Parameters
    ----------
    frames : array or tensor, shape (N, 3, H, W)
        Face crops or whole frames, floating in [0, 1], or uint8.
    landmarks : array or tensor, shape (N, 68, 2)
        (x, y) in pixels of the frames.
    face_size, box_enlarge
        Must equal the server's configuration.
    client : FaceFeatureClient, optional
        By default the module's client (`connect`).

    Returns
    -------
    masked_faces : array or tensor of float32, shape (N, 3, 112, 112)
        Aligned faces, 0 outside the hull mask.
    aligned_landmarks : list of N ndarrays of int64, shape (68, 2)
        (x, y) in pixels of the aligned face.

    Raises
    ------
    ValueError
        If `face_size` or `box_enlarge` differs from the server's configuration.
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
    """Align faces: py-feat's `align_faces_batched`. `extract_faces` describes the parameters and errors.

    Returns
    -------
    aligned_faces : array or tensor of float32, shape (N, 3, 112, 112)
        Aligned faces, with the fill value 128 where they extend beyond the frame.
    aligned_landmarks : array or tensor of int64, shape (N, 68, 2)
        (x, y) in pixels of the aligned face.
    affine : array or tensor of float32, shape (N, 2, 3)
        Map from pixels of the frame to pixels of the aligned face.
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
    """Compute head pose from landmarks: py-feat's `pose_from_landmarks_mlp`.

    Parameters
    ----------
    landmarks_2d : array or tensor, shape (N, 68, 2)
        (x, y), y down, in pixels of an image that has not been stretched.
    bboxes : object, optional
        Ignored, as in py-feat.
    convention : {"raw", "subject"}
        "raw" returns the output of the network. "subject" returns the Pitch, Roll and Yaw of py-feat's tables
        (see `subject_pose`).
    client : FaceFeatureClient, optional
        By default the module's client (`connect`).

    Returns
    -------
    array or tensor of float32, shape (N, 6)
        Pitch, Roll, Yaw in radians, then X, Y, Z; NaN for a face with a NaN or infinite
        landmark or coincident outer eye corners.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention is {convention!r}: pass 'raw' or 'subject'")
    # py-feat returns NaN for a face without a pose and raises no error.
    pose = (client or _client()).pose(landmarks_2d, on_invalid="nan")
    return pose if convention == "raw" else subject_pose(pose)


def detect_au(
    frame: Any, landmarks: Sequence[Any], *, client: FaceFeatureClient | None = None
) -> NDArray[np.float32]:
    """Compute action units from HOG features: `detect_au` of py-feat's AU classifiers.

    Replace ``detector.au_detector.detect_au(frame=hog_features, landmarks=[au_new_landmarks])`` with
    ``detect_au(frame=hog_features, landmarks=[au_new_landmarks])``. `FaceFeatureClient.action_units` computes
    the same values from frames in one request, without the transfer of 21 kB of HOG features per face from
    the server and back.

    Parameters
    ----------
    frame : array or tensor of float32, shape (N, 5408)
        HOG features (`extract_hog_features`).
    landmarks : sequence of array or tensor, each of shape (n, 68, 2)
        Aligned landmarks (x, y), whole pixels; the arrays are concatenated to N faces. Lists of n arrays
        ``[68, 2]``, as `extract_hog_features` returns them, are also accepted.
    client : FaceFeatureClient, optional
        By default the module's client (`connect`).

    Returns
    -------
    ndarray of float32, shape (N, K)
        One column for each of `FaceFeatureClient.action_unit_names`; an array even if the arguments are
        tensors, as in py-feat.

    Raises
    ------
    ValueError
        If a shape differs from these, a feature is not finite, or a landmark is not a whole number.
    ServiceUnavailableError
        If the server computes no action units.
    """
    parts = [_stacked(part) for part in landmarks]
    points = np.concatenate(parts) if parts else np.empty((0, LANDMARK_COUNT, 2), np.int64)
    return (client or _client())._aligned_action_units(frame, points)


extract_hog_features_batched = extract_hog_features
extract_faces_from_landmarks_batched = extract_faces
align_faces_batched = align_faces
pose_from_landmarks_mlp = pose_from_landmarks


def _client() -> FaceFeatureClient:
    with _default_lock:
        if "client" not in _default:
            _default["client"] = FaceFeatureClient(os.environ.get(URL_VARIABLE, DEFAULT_URL))
        return _default["client"]


def _stacked(points: Any) -> NDArray[Any]:
    """Return aligned landmarks ``[n, 68, 2]``, also given as a list of n arrays or tensors, as one array."""
    array = as_array([as_array(face) for face in points] if isinstance(points, Sequence) else points)
    if array.size == 0:
        return array.reshape(0, LANDMARK_COUNT, 2)
    if array.ndim != 3:
        raise ValueError(
            f"an element of landmarks has the shape {list(array.shape)}, not [n, 68, 2]: pass a list, "
            "landmarks=[aligned_landmarks], as to py-feat"
        )
    return array


def _check_hog_layer(client: FaceFeatureClient, layer: Any) -> None:
    if layer is None:
        return
    settings = HogSettings.from_parameters(client.model("hog").parameters)
    computed = {
        "orientations": settings.orientations,
        "pixels_per_cell": settings.pixels_per_cell,
        "cells_per_block": settings.cells_per_block,
        "transform_sqrt": settings.transform_sqrt,
        # py-feat's layer has the norm in lower case.
        "block_normalization": settings.block_norm.lower(),
        "feature_vector": True,
    }
    requested = {name: getattr(layer, name, value) for name, value in computed.items()}
    different = [name for name in computed if requested[name] != computed[name]]
    if different:
        raise ValueError(
            f"hog_layer has {_listed(requested, different)}, but the server {client.target} computes "
            f"{_listed(computed, different)}: change the server's settings with `python -m export hog` "
            "(docs/models.md), or pass a layer with the server's settings"
        )


def _listed(values: dict[str, Any], names: list[str]) -> str:
    return ", ".join(f"{name}={values[name]!r}" for name in names)


def _check_alignment(client: FaceFeatureClient, face_size: int, box_enlarge: float) -> None:
    configured = client.model("align_mask").parameters
    if (int(configured["face_size"]), float(configured["box_enlarge"])) != (face_size, box_enlarge):
        raise ValueError(
            f"face_size={face_size} and box_enlarge={box_enlarge} are requested, but the server is "
            f"configured to {configured['face_size']} and {configured['box_enlarge']} (config.pbtxt of "
            "align_mask): pass these values"
        )
