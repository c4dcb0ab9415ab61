"""The faces of a call to the model `au`, which needs HOG features and aligned landmarks instead of frames."""

import dataclasses
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triton_face_client.requests.faces import LANDMARK_COUNT
from triton_face_client.torch_bridge import as_array


@dataclasses.dataclass(frozen=True)
class AlignedFaces:
    """HOG features and aligned landmarks of the faces of a call.

    Attributes
    ----------
    hog : ndarray of float32, shape (N, F)
    landmarks : ndarray of int64, shape (N, 68, 2)
        (x, y) in pixels of the aligned face.
    """

    hog: NDArray[np.float32]
    landmarks: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of faces."""
        return len(self.hog)

    def batches(self, batch_size: int, excluded: Collection[int] = ()) -> Iterator[NDArray[np.intp]]:
        """Yield the indices of each request's faces, at most `batch_size`, without the `excluded` faces."""
        included = np.setdiff1d(np.arange(len(self)), list(excluded))
        for first in range(0, len(included), batch_size):
            yield included[first : first + batch_size]

    def tensors(self, rows: NDArray[np.intp]) -> dict[str, Any]:
        """Return the input tensors of a request by name."""
        return {"HOG": self.hog[rows], "ALIGNED_LANDMARKS": self.landmarks[rows]}


def validate_aligned_faces(hog: Any, landmarks: Any, hog_size: int) -> AlignedFaces:
    """Validate the arguments of a call and return its faces.

    Parameters
    ----------
    hog : array or tensor, shape (N, hog_size)
        HOG features.
    landmarks : array or tensor, shape (N, 68, 2)
        (x, y) in whole pixels of the aligned face.
    hog_size : int
        Number of HOG features that the model reads.

    Raises
    ------
    ValueError
        If a shape differs from these, the numbers of faces differ, a feature is not finite, or a landmark is
        not a whole number.
    """
    features, points = as_array(hog), as_array(landmarks)
    if features.ndim != 2 or features.shape[1] != hog_size:
        raise ValueError(
            f"HOG features have the shape {list(features.shape)}, but the server's AU classifiers read "
            f"[N, {hog_size}]: pass the features that the same server computes"
        )
    if points.ndim != 3 or points.shape[1:] != (LANDMARK_COUNT, 2):
        raise ValueError(f"aligned landmarks have the shape {list(points.shape)}, not [N, 68, 2]")
    if len(features) != len(points):
        raise ValueError(f"HOG features of {len(features)} faces, but aligned landmarks of {len(points)}")
    with np.errstate(over="ignore"):
        features = np.ascontiguousarray(features, dtype=np.float32)
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise ValueError(f"face {np.argmin(finite)}: a HOG feature is NaN or infinite: leave this face out")
    # NaN and infinite landmarks are not equal to their truncated values either.
    with np.errstate(invalid="ignore"):
        whole = (points == np.trunc(points).astype(np.int64)).all(axis=(1, 2))
    if not whole.all():
        raise ValueError(
            f"face {np.argmin(whole)}: an aligned landmark is not a whole number of pixels: pass "
            "ALIGNED_LANDMARKS as the server returns them"
        )
    return AlignedFaces(features, np.ascontiguousarray(points, dtype=np.int64))
