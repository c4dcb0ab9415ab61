"""The caller's faces: checked once, cut into requests that the server takes."""

import dataclasses
import math
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from triton_face_client.torch_bridge import as_array, is_tensor

LANDMARKS = 68
OUTER_EYE_CORNERS = (36, 45)
"""Their distance is the unit of `pose_mlp` (SPEC section 5)."""

LARGEST_PIXEL = 2.0
"""Floats are in [0, 1]; interpolation may overshoot."""

LARGEST_SHARE = 2.0
"""Landmarks in shares of the frame go from 0 to 1, a little beyond for a face at its edge."""

REQUEST_BYTES = 64 * 2**20
"""Most bytes of frames in a request; beyond it a request has fewer faces. gRPC itself ends at 2 GB."""

Tensors = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Faces:
    """The faces of a call.

    Attributes
    ----------
    landmarks : ndarray, shape (N, 68, 2)
        Landmarks (x, y).
    frames : ndarray or tensor, shape (N, 3, H, W), or list of N ndarrays of shape (3, H, W), or None
        uint8 or floating; a tensor where it may stay on its GPU, None where a model needs landmarks alone.
    """

    landmarks: np.ndarray
    frames: Any = None

    def __len__(self) -> int:
        """Return the number of faces."""
        return len(self.landmarks)

    def batches(self, most: int, left_out: Collection[int] = ()) -> Iterator[np.ndarray]:
        """Give the indices of the faces of each request: frames of one size and type, at most `most`."""
        for alike in self._alike(np.setdiff1d(np.arange(len(self)), list(left_out))):
            count = min(most, max(1, REQUEST_BYTES // self._bytes_a_face(alike[0])))
            for first in range(0, len(alike), count):
                yield alike[first : first + count]

    def tensors(self, rows: np.ndarray) -> dict[str, Any]:
        """Return the request's tensors for these faces, in the types that the service takes."""
        tensors = {"LANDMARKS": np.ascontiguousarray(self.landmarks[rows], dtype=np.float32)}
        if self.frames is None:
            return tensors
        if isinstance(self.frames, list):
            frames = np.stack([self.frames[row] for row in rows])
        else:
            frames = self.frames[_as_slice(rows)]
        if is_tensor(frames):
            frames = (frames if is_bytes(frames) else frames.float()).contiguous()
        else:
            frames = np.ascontiguousarray(frames, dtype=None if is_bytes(frames) else np.float32)
        return {"FRAMES_UINT8" if is_bytes(frames) else "FRAMES": frames} | tensors

    def _alike(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        groups: dict[tuple[Any, ...], Any] = defaultdict(list)
        if isinstance(self.frames, list):
            for row in rows.tolist():
                groups[self.frames[row].shape, is_bytes(self.frames[row])].append(row)
        elif len(rows):
            groups[()] = rows
        for group in groups.values():
            yield np.asarray(group)

    def _bytes_a_face(self, row: int) -> int:
        if self.frames is None:
            return self.landmarks[row].size * 4
        return math.prod(self.frames[row].shape) * (1 if is_bytes(self.frames[row]) else 4)


def checked_faces(frames: Any, landmarks: Any, on_gpu: bool = False) -> Faces:
    """Check the faces of a call.

    Parameters
    ----------
    frames : array or tensor, shape (N, 3, H, W), or sequence of N of shape (3, H, W)
        uint8 from 0 to 255, or floating in [0, 1]. In a sequence they may differ in size.
    landmarks : array or tensor, shape (N, 68, 2)
        Pixels of the frames.
    on_gpu : bool
        Whether a tensor of frames may stay where it is.

    Raises
    ------
    ValueError
        When a shape or a type is another, or the numbers of frames and landmarks differ.
    """
    points = checked_landmarks(landmarks)
    if isinstance(frames, Sequence):
        checked: Any = [_checked_frame(as_array(frame)) for frame in frames]
    else:
        checked = frames.detach() if on_gpu and is_tensor(frames) else as_array(frames)
        if checked.ndim != 4 or (len(checked) and not (checked.shape[1] == 3 and math.prod(checked.shape))):
            raise ValueError(f"frames have the shape {_shape(checked)}, not [N, 3, H, W]{_hint(checked)}")
        _check_type(checked)
    if len(checked) != len(points):
        raise ValueError(f"{len(checked)} frames, but landmarks of {len(points)} faces")
    largest = np.fmax.reduce(np.abs(points), axis=None, initial=0.0)
    if 0 < largest <= LARGEST_SHARE:
        raise ValueError(
            f"no landmark is larger than {largest:.2f}, so they are shares of the frame: multiply them by "
            "its width and height; extract_hog_features takes shares [N, 136]"
        )
    if len(checked) and not is_bytes(checked[0]) and checked[0].max() > LARGEST_PIXEL:
        warnings.warn(
            "frames are floats beyond 1: divide those from 0 to 255 by 255, or send them as uint8",
            stacklevel=4,
        )
    return Faces(points, checked)


def checked_landmarks(landmarks: Any) -> np.ndarray:
    """Return landmarks ``[N, 68, 2]`` as an array, or raise a ValueError that says what they are."""
    points = as_array(landmarks)
    if points.ndim != 3 or points.shape[1:] != (LANDMARKS, 2):
        raise ValueError(
            f"landmarks have the shape {_shape(points)}, not [N, 68, 2]: MediaPipe's 478 or 468 points go "
            "through triton_face_client.landmarks.from_mediapipe, normalized [N, 136] through "
            "extract_hog_features"
        )
    if not np.issubdtype(points.dtype, np.number) or np.iscomplexobj(points):
        raise ValueError(f"landmarks are of type {points.dtype}, not numbers")
    return points


def pose_faults(landmarks: np.ndarray) -> dict[int, str]:
    """Find the faces ``[N, 68, 2]`` without a pose. `pose_mlp` looks at landmarks alone and refuses none."""
    with np.errstate(over="ignore"):  # as it is sent
        finite = np.isfinite(landmarks.astype(np.float32)).all(axis=2)
    right_corner, left_corner = landmarks[:, OUTER_EYE_CORNERS[0]], landmarks[:, OUTER_EYE_CORNERS[1]]
    faults = dict.fromkeys(
        np.flatnonzero((right_corner == left_corner).all(axis=1)).tolist(),
        "no eye distance: points {} and {} coincide".format(*OUTER_EYE_CORNERS),
    )
    for face in np.flatnonzero(~finite.all(axis=1)).tolist():
        faults[face] = f"non-finite landmark: point {np.argmin(finite[face])} is NaN or infinite"
    return faults


def _checked_frame(frame: np.ndarray) -> np.ndarray:
    if frame.ndim != 3 or frame.shape[0] != 3 or not frame.size:
        raise ValueError(f"a frame has the shape {_shape(frame)}, not [3, H, W]{_hint(frame)}")
    _check_type(frame)
    return frame


def is_bytes(frames: Any) -> bool:
    """Tell whether an array or a tensor is of type uint8."""
    return str(frames.dtype).endswith("uint8")


def _check_type(frames: Any) -> None:
    if not (is_bytes(frames) or "float" in str(frames.dtype)):
        raise ValueError(f"frames are of type {frames.dtype}: send uint8 from 0 to 255, or floats in [0, 1]")


def _hint(frames: Any) -> str:
    """Say how to mend channels in the last place, the commonest mistake."""
    if frames.ndim < 3 or frames.shape[-1] != 3:
        return ""
    return ": channels go first, numpy.moveaxis(frames, -1, -3)"


def _shape(values: Any) -> list[int]:
    return list(values.shape)


def _as_slice(rows: np.ndarray) -> np.ndarray | slice:
    """Take neighbours as a view instead of a copy."""
    if rows[-1] - rows[0] == len(rows) - 1:
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows
