"""Client of the triton-face-features service."""

from triton_face_client.client import FaceFeatureClient
from triton_face_client.pose import subject_pose

__all__ = ["FaceFeatureClient", "subject_pose"]
