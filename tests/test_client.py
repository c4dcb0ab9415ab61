"""The client's own logic; what it gets from the server is tested in test_serving."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from tritonclient.utils import InferenceServerException

from triton_face_client import FaceFeatureClient, subject_pose


def nose_direction(pitch: float, roll: float, yaw: float) -> np.ndarray:
    """Where the nose of a head points in camera axes (x right, y down, z away), from raw angles."""
    return Rotation.from_euler("xyz", [pitch, roll, yaw]).apply([0, 0, -1])


def test_the_subjects_convention_has_the_signs_it_says():
    pitch_up, roll_right, yaw_right = 0.3, 0.2, 0.25
    raw_up = np.array([[-pitch_up, 0, 0, 1, 2, 3]])
    assert nose_direction(*raw_up[0, :3])[1] < 0  # up in the image
    np.testing.assert_allclose(subject_pose(raw_up), [[pitch_up, 0, 0, 1, 2, 3]])

    raw_turned = np.array([[0, yaw_right, 0, 1, 2, 3]])
    assert nose_direction(*raw_turned[0, :3])[0] < 0  # the subject's right is the image's left
    np.testing.assert_allclose(subject_pose(raw_turned), [[0, 0, yaw_right, 1, 2, 3]])

    raw_tilted = np.array([[0, 0, -roll_right, 1, 2, 3]])
    crown = Rotation.from_euler("xyz", raw_tilted[0, :3]).apply([0, -1, 0])
    assert crown[0] < 0  # the crown goes to the image's left
    np.testing.assert_allclose(subject_pose(raw_tilted), [[0, roll_right, 0, 1, 2, 3]])


def test_an_unreachable_server_is_unavailable():
    with FaceFeatureClient("127.0.0.1:9") as client, pytest.raises(InferenceServerException) as caught:
        client.pose(np.zeros((1, 68, 2), dtype=np.float32))
    assert caught.value.status() == "StatusCode.UNAVAILABLE"
