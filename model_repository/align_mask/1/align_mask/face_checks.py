"""Checks that find invalid faces: errors of the caller (SPEC section 3) and the configured limits.

Each function checks all faces of a batch and returns `InvalidFaces`. Every face that passes all checks can be
aligned, warped and masked.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

InvalidFaces = dict[int, str]
"""Index of an invalid face -> message: its reason, one of `REASONS`, a colon and the details."""

MIN_EYE_DISTANCE = 1e-6
"""Pixels. Below this distance, the direction between the eyes is rounding noise of float32 landmarks."""

MAX_ALIGNED_COORDINATE = 2**20
"""Pixels. Up to this value, int64 and float64 represent all products in the computation of a hull exactly."""

MAX_PIXEL_VALUE = 1e18
"""Above this value, the squares in HOG's block norm overflow float32, and features would be NaN or 0."""

MIN_HULL_VERTICES = 3

REASONS = (
    "frame too small",
    "frame over the pixel limit",
    "non-finite pixel",
    "pixel absurdly large",
    "non-finite landmark",
    "landmark absurdly far off",
    "all landmarks are equal",
    "no eye distance",
    "points on one line",
)


def reason_of(message: str) -> str:
    """Return the reason, one of `REASONS`, at the start of an invalid face's message."""
    return message.partition(":")[0]


def request_size_error(faces: int, height: int, width: int, max_pixels: int) -> str | None:
    """Return an error message if all frames of a request together exceed `max_pixels`, else None."""
    pixels = faces * height * width
    # `frame_size_error` limits a single frame.
    if pixels <= max_pixels or faces == 1:
        return None
    max_faces = max(1, max_pixels // (height * width))
    return (
        f"request over the pixel limit: {faces} frames of {width}x{height} pixels have {pixels} pixels, the "
        f"limit is {max_pixels}; send fewer frames per request, at most {max_faces} of this size, or crop "
        "the faces first"
    )


def frame_size_error(height: int, width: int, min_side: int, max_pixels: int) -> str | None:
    """Return an error message if frames of this size are too small or too large, else None."""
    if min(height, width) < min_side:
        return (
            f"frame too small: {width}x{height} pixels, each side needs at least {min_side}; "
            "send the face crop or the whole frame"
        )
    if height * width > max_pixels:
        return (
            f"frame over the pixel limit: {width}x{height} = {height * width} pixels, the limit is "
            f"{max_pixels}; crop the face first, or raise max_frame_pixels in align_mask's config.pbtxt"
        )
    return None


def check_pixels(frames: torch.Tensor) -> InvalidFaces:
    """Find frames ``[N, C, H, W]`` with a NaN, an infinity or an absolute value over `MAX_PIXEL_VALUE`."""
    if frames.dtype == torch.uint8:
        return {}
    # The maximum and minimum of pixels with a NaN are NaN, for which both comparisons are false.
    if frames.amax() <= MAX_PIXEL_VALUE and frames.amin() >= -MAX_PIXEL_VALUE:
        return {}
    pixels = frames.flatten(1)
    valid = (pixels.amax(dim=1) <= MAX_PIXEL_VALUE) & (pixels.amin(dim=1) >= -MAX_PIXEL_VALUE)
    return {
        face: f"pixel absurdly large: over {MAX_PIXEL_VALUE:g}, FRAMES must be in [0, 1]"
        if torch.isfinite(frames[face]).all()
        else "non-finite pixel: FRAMES contains NaN or infinity"
        for face in (~valid).nonzero().flatten().tolist()
    }


def check_landmarks(
    landmarks: NDArray[np.float32], height: int, width: int, max_distance: float
) -> InvalidFaces:
    """Find landmarks that are not finite, too far outside their frame or all equal.

    Parameters
    ----------
    landmarks : ndarray of float32, shape (N, 68, 2)
        Landmarks (x, y) in frame pixels.
    height, width : int
        Size of the frames, pixels.
    max_distance : float
        Maximum distance of a landmark outside its frame, pixels.
    """
    low, high = landmarks.min(axis=1), landmarks.max(axis=1)
    valid = (low >= -max_distance) & (high <= np.array([width, height]) + max_distance)
    valid &= (low < high).any(axis=1, keepdims=True)
    if valid.all():
        return {}
    return {
        face: _landmark_error(landmarks[face].astype(np.float64), height, width, max_distance)
        for face in np.flatnonzero(~valid.all(axis=1)).tolist()
    }


def _landmark_error(points: NDArray[np.float64], height: int, width: int, max_distance: float) -> str:
    """Return the message for one face with invalid landmarks ``[68, 2]``."""
    finite = np.isfinite(points).all(axis=1)
    if not finite.all():
        return f"non-finite landmark: point {np.argmin(finite)} is NaN or infinite"
    outside = np.maximum(-points, points - (width, height)).max(axis=1)
    if outside.max() > max_distance:
        return (
            f"landmark absurdly far off: point {outside.argmax()} lies {outside.max():.6g} pixels outside "
            f"the frame, the limit is {max_distance:g}; LANDMARKS are pixels of FRAMES"
        )
    return "all landmarks are equal: there is no face to align"


def check_eye_distance(eye_distance: torch.Tensor) -> InvalidFaces:
    """Find faces whose eye centres coincide; `eye_distance` ``[N]`` is in frame pixels."""
    invalid = (eye_distance < MIN_EYE_DISTANCE).nonzero().flatten().tolist()
    return dict.fromkeys(invalid, "no eye distance: the centres of points 36-41 and 42-47 coincide")


def check_aligned_landmarks(landmarks: NDArray[np.int64]) -> InvalidFaces:
    """Find faces with an aligned landmark, ``[N, 68, 2]``, beyond `MAX_ALIGNED_COORDINATE`."""
    limit = MAX_ALIGNED_COORDINATE
    if landmarks.min(initial=0) >= -limit and landmarks.max(initial=0) <= limit:
        return {}
    valid = (landmarks >= -limit) & (landmarks <= limit)
    return dict.fromkeys(
        np.flatnonzero(~valid.all(axis=(1, 2))).tolist(),
        "landmark absurdly far off: eyes, nose and mouth lie so close together that another point is over "
        f"{limit} aligned pixels away",
    )


def check_hulls(hulls: Sequence[NDArray[np.int32]]) -> InvalidFaces:
    """Find faces whose convex hull, given by its vertices ``[V, 2]``, has no area."""
    message = "points on one line: the 68 landmarks have no convex hull"
    return {face: message for face, hull in enumerate(hulls) if len(hull) < MIN_HULL_VERTICES}
