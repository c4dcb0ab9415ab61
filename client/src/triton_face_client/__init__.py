"""Client of the triton-face-features service."""

from triton_face_client.async_client import AsyncFaceFeatureClient
from triton_face_client.client import FaceFeatureClient
from triton_face_client.errors import (
    DeadlineError,
    FaceServiceError,
    InvalidFacesError,
    ServiceUnavailableError,
)
from triton_face_client.pose import subject_pose
from triton_face_client.pyfeat import (
    align_faces,
    connect,
    detect_au,
    extract_faces,
    extract_hog_features,
    pose_from_landmarks,
)
from triton_face_client.requests.answers import Answers
from triton_face_client.requests.retry import Retry
from triton_face_client.transports.channel import Tls

__all__ = [
    "Answers",
    "AsyncFaceFeatureClient",
    "DeadlineError",
    "FaceFeatureClient",
    "FaceServiceError",
    "InvalidFacesError",
    "Retry",
    "ServiceUnavailableError",
    "Tls",
    "align_faces",
    "connect",
    "detect_au",
    "extract_faces",
    "extract_hog_features",
    "pose_from_landmarks",
    "subject_pose",
]
