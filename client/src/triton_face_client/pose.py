"""Head pose: conversion of raw angles to the convention of py-feat's tables (docs/SPEC.md, section 5)."""

from typing import Any

import numpy as np

from triton_face_client.torch_bridge import as_array, as_type_of


def subject_pose(pose: Any) -> Any:
    """Convert raw poses to the Pitch, Roll and Yaw of py-feat's tables.

    Conventions
    -----------
    Raw: the head's rotation in camera axes (x right, y down, z away from the camera) is
    ``Rz(c) @ Ry(b) @ Rx(a)`` with Pitch = a, Roll = b, Yaw = c. With the identity, the head faces the camera.
    The raw Roll is the angle that is usually called yaw.

    py-feat's tables: +Pitch looks up; +Roll tilts the head, and +Yaw turns it, to the subject's right. Pitch
    is minus the raw Pitch, Roll is minus the raw Yaw, and Yaw is the raw Roll.

    Parameters
    ----------
    pose : array or torch tensor, shape (N, 6)
        Raw Pitch, Roll, Yaw in radians, then X, Y, Z.

    Returns
    -------
    array or torch tensor, shape (N, 6)
        Pitch, Roll, Yaw of py-feat's tables in radians; X, Y, Z unchanged.
    """
    values = as_array(pose)
    pitch, roll, yaw = values[:, 0], values[:, 1], values[:, 2]
    converted = np.concatenate([np.stack([-pitch, -yaw, roll], axis=1), values[:, 3:]], axis=1)
    return as_type_of(pose, converted)
