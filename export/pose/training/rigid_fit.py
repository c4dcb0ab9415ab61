"""Geometric baselines: the pose of the rigid mean head that fits the 68 points best, without learning.

There are two least-squares fits of the mean head to the image points:

- ``procrustes`` (Procrustes analysis): rotation, scale and shift under scaled orthographic projection, which
  ignores perspective;
- ``pnp`` (Perspective-n-Point): the same under perspective projection; the inverse camera distance is
  another unknown.

Levenberg-Marquardt solves them for all faces at once, from a frontal start and from the rotation nearest to
the best affine map. The better of both solutions is returned.
"""

import numpy as np

from export.pose.training.head import LANDMARK_VERTICES, mean_mesh

METHODS = ("procrustes", "pnp")

ITERATIONS = 40
DERIVATIVE_STEP = 1e-6
"""Step of the forward differences that approximate the derivatives."""

NEAREST = 15.0
"""Smallest camera distance of the perspective fit, in head units."""


def fitted_angles(landmarks: np.ndarray, method: str = "procrustes") -> np.ndarray:
    """Return the pose of the mean head that fits each face best.

    Parameters
    ----------
    landmarks : ndarray, shape (N, 68, 2)
        In any unit, y down.
    method : str
        ``"procrustes"`` or ``"pnp"``.

    Returns
    -------
    ndarray, shape (N, 3)
        Raw Pitch, Roll, Yaw in radians, each within ±pi.
    """
    head = mean_mesh()[list(LANDMARK_VERTICES)]
    head = head - head.mean(axis=0)
    faces = landmarks.astype(np.float64)
    faces = faces - faces.mean(axis=1, keepdims=True)
    faces = faces / np.sqrt((faces**2).sum(axis=2).mean(axis=1))[:, None, None]
    parameter_count = 7 if method == "pnp" else 6
    fits = [_minimise(head, faces, start[:, :parameter_count]) for start in _starts(head, faces)]
    costs = np.stack([_cost(head, faces, fit) for fit in fits])
    best = np.stack(fits)[costs.argmin(axis=0), np.arange(len(faces))]
    return _angles(_rotations(best[:, :3]))


def _starts(head: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return two starts ``[N, 7]``: frontal with the tilt of the eyes, and nearest to the best affine map."""
    frontal = np.zeros((len(faces), 7))
    eyes = faces[:, 45] - faces[:, 36]
    frontal[:, 2] = np.arctan2(eyes[:, 1], eyes[:, 0])
    frontal[:, 3] = -np.log(np.sqrt((head[:, :2] ** 2).sum(axis=1).mean()))
    frontal[:, 6] = 0.01
    near_affine = frontal.copy()
    maps = np.einsum("pa,npi->nia", np.linalg.pinv(head).T, faces)
    left, _, right = np.linalg.svd(maps, full_matrices=False)
    rows = left @ right
    third = np.cross(rows[:, 0], rows[:, 1])
    near_affine[:, :3] = _angles(np.concatenate([rows, third[:, None]], axis=1))
    return frontal, near_affine


def _rotations(angles: np.ndarray) -> np.ndarray:
    """Return rotations ``Rz(c) · Ry(b) · Rx(a)``, ``[N, 3, 3]``, of angles a, b, c ``[N, 3]``."""
    (sa, sb, sc), (ca, cb, cc) = np.sin(angles).T, np.cos(angles).T
    zero, one = np.zeros_like(sa), np.ones_like(sa)

    def matrix(*entries: np.ndarray) -> np.ndarray:
        return np.stack(entries, axis=-1).reshape(-1, 3, 3)

    about_x = matrix(one, zero, zero, zero, ca, -sa, zero, sa, ca)
    about_y = matrix(cb, zero, sb, zero, one, zero, -sb, zero, cb)
    about_z = matrix(cc, -sc, zero, sc, cc, zero, zero, zero, one)
    return about_z @ about_y @ about_x


def _angles(rotations: np.ndarray) -> np.ndarray:
    """Return a, b, c ``[N, 3]`` of ``Rz(c) · Ry(b) · Rx(a)``, b within ±pi/2."""
    pitch = np.arctan2(rotations[:, 2, 1], rotations[:, 2, 2])
    roll = np.arcsin(np.clip(-rotations[:, 2, 0], -1.0, 1.0))
    yaw = np.arctan2(rotations[:, 1, 0], rotations[:, 0, 0])
    return np.stack([pitch, roll, yaw], axis=1)


def _residuals(head: np.ndarray, faces: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    """Return image residuals ``[N, 136]``.

    `parameters` are three angles, the logarithm of the scale, the shift, and for PnP the inverse distance.
    """
    rotated = head @ _rotations(parameters[:, :3]).transpose(0, 2, 1)
    projected = np.exp(parameters[:, 3])[:, None, None] * rotated[..., :2]
    if parameters.shape[1] == 7:
        inverse = np.clip(parameters[:, 6], 0.0, 1.0 / NEAREST)
        projected = projected / (1.0 + rotated[..., 2:] * inverse[:, None, None])
    return (projected + parameters[:, None, 4:6] - faces).reshape(len(faces), -1)


def _cost(head: np.ndarray, faces: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    return (_residuals(head, faces, parameters) ** 2).sum(axis=1)


def _minimise(head: np.ndarray, faces: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Run Levenberg-Marquardt (Marquardt 1963) on all faces at once."""
    parameters, damping = start.copy(), np.full(len(start), 1e-3)
    residuals = _residuals(head, faces, parameters)
    for _ in range(ITERATIONS):
        steps = np.eye(parameters.shape[1]) * DERIVATIVE_STEP
        jacobian = np.stack(
            [_residuals(head, faces, parameters + step) - residuals for step in steps], axis=2
        ) / DERIVATIVE_STEP  # fmt: skip
        normal = jacobian.transpose(0, 2, 1) @ jacobian
        diagonal = np.einsum("nii->ni", normal) + 1e-12
        normal = normal + np.einsum("ni,ij->nij", diagonal * damping[:, None], np.eye(len(steps)))
        gradient = np.einsum("nri,nr->ni", jacobian, residuals)
        proposal = parameters - np.linalg.solve(normal, gradient[..., None])[..., 0]
        if proposal.shape[1] == 7:
            proposal[:, 6] = np.clip(proposal[:, 6], 0.0, 1.0 / NEAREST - 2 * DERIVATIVE_STEP)
        proposed = _residuals(head, faces, proposal)
        better = (proposed**2).sum(axis=1) < (residuals**2).sum(axis=1)
        parameters = np.where(better[:, None], proposal, parameters)
        residuals = np.where(better[:, None], proposed, residuals)
        damping = np.where(better, damping / 5, damping * 5).clip(1e-9, 1e9)
    return parameters
