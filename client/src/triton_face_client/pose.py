"""The two frames in which head pose is given (SPEC section 5)."""

from typing import Any

import numpy as np

from triton_face_client.torch_bridge import as_array, like


def subject_pose(pose: Any) -> Any:
    """Turn raw poses into the convention of py-feat's tables.

    Convention
    ----------
    Raw Pitch, Roll and Yaw are the angles a, b, c of the head's rotation ``Rz(c) @ Ry(b) @ Rx(a)`` in
    camera axes (x right, y down, z away from the camera); the identity faces the camera. So raw Roll is
    what people call yaw. In the subject's convention +pitch looks up, +yaw to the subject's right, and
    +roll tilts to the subject's right.

    Parameters
    ----------
    pose : array or torch tensor, shape (N, 6)
        Raw Pitch, Roll, Yaw in radians, then X, Y, Z.

    Returns
    -------
    array or torch tensor, shape (N, 6)
        Pitch, Roll, Yaw in radians in the subject's convention; X, Y, Z unchanged.
    """
    values = as_array(pose)
    pitch, roll, yaw = values[:, 0], values[:, 1], values[:, 2]
    return like(np.concatenate([np.stack([-pitch, -yaw, roll], axis=1), values[:, 3:]], axis=1), pose)
