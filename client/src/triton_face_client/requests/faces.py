"""The faces of a call: validate them, and split them into requests of limited size."""

import dataclasses
import math
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import MAX_GRPC_MESSAGE_SIZE

from triton_face_client.torch_bridge import as_array, is_tensor

LANDMARK_COUNT = 68
OUTER_EYE_CORNERS = (36, 45)
"""Landmarks whose distance is the unit of length of `pose_mlp` (docs/SPEC.md, section 5)."""

MAX_FLOAT_PIXEL = 2.0
"""Floating frames are in [0, 1], or slightly outside after interpolation. Larger values suggest 0 to 255."""

MAX_NORMALIZED_LANDMARK = 2.0
"""Landmarks up to this value count as normalized: fractions of the frame, 0 to 1 or slightly outside."""

MAX_REQUEST_BYTES = 64 * 2**20
"""Maximum bytes of the frames in a request of several faces. A larger frame is sent alone.

The value keeps such requests below all limits on their size:

- gRPC's limit of 2 GB (2**31 - 1 bytes) per message;
- align_mask's parameter `max_request_pixels`: 64 MiB hold at most 22 million pixels (UINT8, 3 bytes each);
- the server's /dev/shm (1 GiB in a pod), through which requests reach align_mask's stub processes.

align_mask's parameter `max_frame_pixels` limits a single frame. Its default is 3840 x 2160 pixels, which
are 100 MB in FP32.
"""

MAX_FRAME_BYTES = MAX_GRPC_MESSAGE_SIZE - 2**20
"""Bytes of the largest frame that fits into a gRPC message. 1 MiB is left for the rest of the message."""

Tensors = dict[str, NDArray[Any]]


class RequestFaces(Protocol):
    """The faces of a call: `Faces`, or `AlignedFaces` for the model `au`."""

    def __len__(self) -> int:
        """Return the number of faces."""

    def batches(self, batch_size: int, excluded: Collection[int] = ()) -> Iterator[NDArray[np.intp]]:
        """Yield the indices of each request's faces, at most `batch_size`, without the `excluded` faces."""

    def tensors(self, rows: NDArray[np.intp]) -> dict[str, Any]:
        """Return the input tensors of a request by name."""


@dataclasses.dataclass(frozen=True)
class Faces:
    """The faces of a call.

    Attributes
    ----------
    landmarks : ndarray, shape (N, 68, 2)
        Landmarks (x, y) in pixels of the frames.
    frames : ndarray or tensor, shape (N, 3, H, W), or list of N ndarrays of shape (3, H, W), or None
        uint8 or floating. A tensor if the transport reads it on the GPU; None if the model needs landmarks
        only.
    """

    landmarks: NDArray[Any]
    frames: Any = None

    def __len__(self) -> int:
        """Return the number of faces."""
        return len(self.landmarks)

    def batches(self, batch_size: int, excluded: Collection[int] = ()) -> Iterator[NDArray[np.intp]]:
        """Yield the indices of each request's faces, without the `excluded` faces.

        A request has at most `batch_size` faces and `MAX_REQUEST_BYTES` of frames. All its frames have one
        shape and type.
        """
        included = np.setdiff1d(np.arange(len(self)), list(excluded))
        for group in self._groups_of_equal_frames(included):
            count = min(batch_size, max(1, MAX_REQUEST_BYTES // self._bytes_per_face(group[0])))
            for first in range(0, len(group), count):
                yield group[first : first + count]

    def tensors(self, rows: NDArray[np.intp]) -> dict[str, Any]:
        """Return the input tensors of a request by name: FP32 landmarks, and UINT8 or FP32 frames."""
        tensors = {"LANDMARKS": np.ascontiguousarray(self.landmarks[rows], dtype=np.float32)}
        if self.frames is None:
            return tensors
        if isinstance(self.frames, list):
            frames: Any = np.stack([self.frames[row] for row in rows])
        else:
            frames = self.frames[_slice_if_consecutive(rows)]
        if is_tensor(frames):
            frames = (frames if is_uint8(frames) else frames.float()).contiguous()
        else:
            frames = np.ascontiguousarray(frames, dtype=None if is_uint8(frames) else np.float32)
        return {"FRAMES_UINT8" if is_uint8(frames) else "FRAMES": frames} | tensors

    def _groups_of_equal_frames(self, rows: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
        if isinstance(self.frames, list):
            groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
            for row in rows.tolist():
                groups[self.frames[row].shape, is_uint8(self.frames[row])].append(row)
            yield from (np.asarray(group) for group in groups.values())
        elif len(rows):
            yield rows

    def _bytes_per_face(self, row: int) -> int:
        if self.frames is None:
            return 4 * math.prod(self.landmarks.shape[1:])
        return _request_bytes(self.frames[row])


def validate_faces(frames: Any, landmarks: Any, on_gpu: bool = False) -> Faces:
    """Validate the arguments of a call and return its faces.

    Parameters
    ----------
    frames : array or tensor, shape (N, 3, H, W), or sequence of N of shape (3, H, W)
        uint8 from 0 to 255, or floating in [0, 1]. The frames of a sequence may differ in size and type.
    landmarks : array or tensor, shape (N, 68, 2)
        (x, y) in pixels of the frames.
    on_gpu : bool
        Whether a tensor of frames stays on its device instead of becoming an array.

    Raises
    ------
    ValueError
        If a shape or type differs from these, the numbers of frames and landmarks differ, landmarks are
        normalized, or a frame exceeds `MAX_FRAME_BYTES`.

    Warns
    -----
    UserWarning
        If floating frames seem to be from 0 to 255.
    """
    points = validate_landmarks(landmarks)
    if isinstance(frames, Sequence):
        valid_frames: Any = [_validate_frame(as_array(frame)) for frame in frames]
    else:
        valid_frames = _validate_stacked_frames(
            frames.detach() if on_gpu and is_tensor(frames) else as_array(frames)
        )
    if len(valid_frames) != len(points):
        raise ValueError(f"{len(valid_frames)} frames, but landmarks of {len(points)} faces")
    largest = np.fmax.reduce(np.abs(points), axis=None, initial=0.0)
    if 0 < largest <= MAX_NORMALIZED_LANDMARK:
        raise ValueError(
            f"landmarks are normalized (the largest is {largest:.2f}), not pixels: multiply them by the "
            "frame's width and height; extract_hog_features accepts normalized landmarks [N, 136]"
        )
    if len(valid_frames) and not is_uint8(valid_frames[0]) and valid_frames[0].max() > MAX_FLOAT_PIXEL:
        warnings.warn(
            "floating frames have values above 1: divide frames of 0 to 255 by 255, or send them as uint8",
            stacklevel=4,
        )
    return Faces(points, valid_frames)


def validate_landmarks(landmarks: Any) -> NDArray[Any]:
    """Return landmarks ``[N, 68, 2]`` as an array; raise a ValueError for another shape or type."""
    points = as_array(landmarks)
    if points.ndim != 3 or points.shape[1:] != (LANDMARK_COUNT, 2):
        raise ValueError(
            f"landmarks have the shape {_shape(points)}, not [N, 68, 2]: convert MediaPipe's 478 or 468 "
            "points with triton_face_client.landmarks.from_mediapipe; extract_hog_features accepts "
            "normalized landmarks [N, 136]"
        )
    if not np.issubdtype(points.dtype, np.number) or np.iscomplexobj(points):
        raise ValueError(f"landmarks are of type {points.dtype}, not real numbers")
    return points


def faces_without_pose(landmarks: NDArray[Any]) -> dict[int, str]:
    """Find faces whose pose is undefined. The model `pose_mlp` does not check its input.

    Parameters
    ----------
    landmarks : ndarray, shape (N, 68, 2)

    Returns
    -------
    dict of int to str
        Index of each of these faces, and the reason.
    """
    # Requests contain float32; values beyond its range become infinite.
    with np.errstate(over="ignore"):
        finite = np.isfinite(landmarks.astype(np.float32)).all(axis=2)
    right_corner, left_corner = landmarks[:, OUTER_EYE_CORNERS[0]], landmarks[:, OUTER_EYE_CORNERS[1]]
    reasons: dict[int, str] = dict.fromkeys(
        np.flatnonzero((right_corner == left_corner).all(axis=1)).tolist(),
        "no eye distance: points {} and {} coincide".format(*OUTER_EYE_CORNERS),
    )
    for face in np.flatnonzero(~finite.all(axis=1)).tolist():
        reasons[face] = f"non-finite landmark: point {np.argmin(finite[face])} is NaN or infinite"
    return reasons


def is_uint8(frames: Any) -> bool:
    """Return whether an array or a tensor is of type uint8."""
    return str(frames.dtype).endswith("uint8")


def _validate_stacked_frames(frames: Any) -> Any:
    if frames.ndim != 4 or (len(frames) and not (frames.shape[1] == 3 and math.prod(frames.shape))):
        raise ValueError(f"frames have the shape {_shape(frames)}, not [N, 3, H, W]{_channels_hint(frames)}")
    _check_type(frames)
    if len(frames):
        _check_size(frames[0])
    return frames


def _validate_frame(frame: NDArray[Any]) -> NDArray[Any]:
    if frame.ndim != 3 or frame.shape[0] != 3 or not frame.size:
        raise ValueError(f"a frame has the shape {_shape(frame)}, not [3, H, W]{_channels_hint(frame)}")
    _check_type(frame)
    _check_size(frame)
    return frame


def _check_type(frames: Any) -> None:
    if not (is_uint8(frames) or "float" in str(frames.dtype)):
        raise ValueError(f"frames are of type {frames.dtype}: send uint8 from 0 to 255, or floats in [0, 1]")


def _check_size(frame: Any) -> None:
    if _request_bytes(frame) > MAX_FRAME_BYTES:
        raise ValueError(
            f"a frame of shape {_shape(frame)} has {_request_bytes(frame) / 1e9:.1f} GB, more than a gRPC "
            "message can hold (2 GB): send a crop of the face"
        )


def _request_bytes(frame: Any) -> int:
    """Return the bytes of a frame in a request, as UINT8 or FP32."""
    return int(math.prod(frame.shape)) * (1 if is_uint8(frame) else 4)


def _channels_hint(frames: Any) -> str:
    """Return how to fix frames with channels in the last dimension, the most common mistake."""
    if frames.ndim < 3 or frames.shape[-1] != 3:
        return ""
    return ": channels go first, numpy.moveaxis(frames, -1, -3)"


def _shape(values: Any) -> list[int]:
    return list(values.shape)


def _slice_if_consecutive(rows: NDArray[np.intp]) -> NDArray[np.intp] | slice:
    """Return consecutive indices as a slice, which selects a view instead of a copy."""
    if rows[-1] - rows[0] == len(rows) - 1:
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows
