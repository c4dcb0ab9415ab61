"""Which faces cannot be served, and why: the caller's errors of SPEC section 3 and the configured limits.

Every check looks at all faces at once and answers with `Faults`, the index of each bad face and a reason
that says what to do. A face without a fault here goes through the whole pipeline.
"""

from collections.abc import Sequence

import numpy as np
import torch

Faults = dict[int, str]
"""Index of a face -> what is wrong with it."""

SMALLEST_EYE_DISTANCE = 1e-6
"""Pixels. Below it the eye axis is rounding noise of float32 landmarks, and the face has no upright."""

ALIGNED_LIMIT = 2**20
"""Aligned pixels. Within it float64 holds the integer geometry of the hull exactly, with room to spare."""

PIXEL_LIMIT = 1e18
"""Above it the squares in the HOG's block norm leave float32, and the features would be NaN or 0."""

SMALLEST_HULL = 3
"""Vertices."""

NO_HULL = "points on one line: the 68 landmarks have no convex hull"

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
"""What a fault can be: its text up to the colon."""


def reason(fault: str) -> str:
    """Return which of `REASONS` a fault has."""
    return fault.partition(":")[0]


def request_fault(faces: int, height: int, width: int, most_pixels: int) -> str | None:
    """Say why a request with frames of this size in pixels is refused as a whole, or None."""
    if faces * height * width <= most_pixels:
        return None
    return (
        f"request over the pixel limit: {faces} frames of {width}x{height} pixels, in all {most_pixels} are "
        f"served; send at most {most_pixels // (height * width)} of them a request, or crop the faces first"
    )


def frame_fault(height: int, width: int, smallest_side: int, most_pixels: int) -> str | None:
    """Say why frames of this size in pixels are refused, or None when they are served."""
    if min(height, width) < smallest_side:
        return (
            f"frame too small: {width}x{height} pixels, each side needs at least {smallest_side}; "
            "send the face crop or the whole frame"
        )
    if height * width > most_pixels:
        return (
            f"frame over the pixel limit: {width}x{height} = {height * width} pixels, the limit is "
            f"{most_pixels}; crop the face first, or raise max_frame_pixels in align_mask's config.pbtxt"
        )
    return None


def pixel_faults(frames: torch.Tensor) -> Faults:
    """Find the frames ``[N, C, H, W]`` that hold a NaN, an infinity or a pixel beyond `PIXEL_LIMIT`."""
    if frames.dtype == torch.uint8:
        return {}
    # A NaN is both maximum and minimum of what it is in, and within no limit.
    if frames.amax() <= PIXEL_LIMIT and frames.amin() >= -PIXEL_LIMIT:
        return {}
    pixels = frames.flatten(1)
    within = (pixels.amax(dim=1) <= PIXEL_LIMIT) & (pixels.amin(dim=1) >= -PIXEL_LIMIT)
    return {
        face: f"pixel absurdly large: over {PIXEL_LIMIT:g}, FRAMES are in [0, 1]"
        if torch.isfinite(frames[face]).all()
        else "non-finite pixel: FRAMES has NaN or infinity in it"
        for face in (~within).nonzero().flatten().tolist()
    }


def landmark_faults(landmarks: np.ndarray, height: int, width: int, farthest: float) -> Faults:
    """Find the faces whose landmarks ``[N, 68, 2]`` cannot be aligned.

    Parameters
    ----------
    landmarks : ndarray of float32, shape (N, 68, 2)
        Landmarks (x, y) in frame pixels.
    height, width : int
        Size of the frames, pixels.
    farthest : float
        How far outside its frame a landmark may lie, pixels.
    """
    low, high = landmarks.min(axis=1), landmarks.max(axis=1)
    sound = (low >= -farthest) & (high <= np.array([width, height]) + farthest)
    sound &= (low < high).any(axis=1, keepdims=True)
    if sound.all():
        return {}
    return {
        face: _landmark_fault(landmarks[face].astype(np.float64), height, width, farthest)
        for face in np.flatnonzero(~sound.all(axis=1)).tolist()
    }


def _landmark_fault(points: np.ndarray, height: int, width: int, farthest: float) -> str:
    """Say what is wrong with a face's landmarks, float64 ``[68, 2]``."""
    finite = np.isfinite(points).all(axis=1)
    if not finite.all():
        return f"non-finite landmark: point {np.argmin(finite)} is NaN or infinite"
    outside = np.maximum(-points, points - (width, height)).max(axis=1)
    if outside.max() > farthest:
        return (
            f"landmark absurdly far off: point {outside.argmax()} lies {outside.max():.6g} pixels outside "
            f"the frame, the limit is {farthest:g}; LANDMARKS are pixels of FRAMES"
        )
    return "all landmarks are equal: there is no face to align"


def eye_faults(eye_distance: torch.Tensor) -> Faults:
    """Find the faces whose eye centres, `eye_distance` ``[N]`` pixels apart, coincide."""
    bad = (eye_distance < SMALLEST_EYE_DISTANCE).nonzero().flatten().tolist()
    return dict.fromkeys(bad, "no eye distance: the centres of points 36-41 and 42-47 coincide")


def aligned_faults(landmarks: np.ndarray) -> Faults:
    """Find the faces whose aligned landmarks, int64 ``[N, 68, 2]``, run out of range."""
    if landmarks.min(initial=0) >= -ALIGNED_LIMIT and landmarks.max(initial=0) <= ALIGNED_LIMIT:
        return {}
    in_range = (landmarks >= -ALIGNED_LIMIT) & (landmarks <= ALIGNED_LIMIT)
    return dict.fromkeys(
        np.flatnonzero(~in_range.all(axis=(1, 2))).tolist(),
        "landmark absurdly far off: the eyes, nose and mouth lie so close together that another point is "
        f"over {ALIGNED_LIMIT} aligned pixels away",
    )


def hull_faults(hulls: Sequence[np.ndarray]) -> Faults:
    """Find the faces whose hull has no area, by its vertices ``[V, 2]``."""
    return {face: NO_HULL for face, hull in enumerate(hulls) if len(hull) < SMALLEST_HULL}
