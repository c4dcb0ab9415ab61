"""A deformable 3D head: the canonical face mesh plus linear identity and expression modes.

The canonical face mesh is MediaPipe's 3D model of an average face, with 468 vertices. Axes are the
camera's: x right, y down, z away from the camera; with the identity rotation the mean head faces the
camera. One unit is about 1 cm on an average adult.

The rotation of a deformed head is *defined* as the rotation of the mean mesh that fits its 468 vertices
best in least squares (Kabsch 1976), as a rigid fit of a tracked mesh measures it. A deformation may itself
rotate this fit, so each deformed head is rotated back by its fit before it gets a pose.
"""

import dataclasses
import functools
from importlib import resources

import numpy as np
import torch

LANDMARK_VERTICES = (
    # jaw
    127, 234, 93, 132, 58, 172, 150, 176, 152, 400, 379, 397, 288, 361, 323, 454, 356,
    # brows
    70, 63, 105, 66, 107, 336, 296, 334, 293, 300,
    # nose
    168, 197, 5, 4, 75, 97, 2, 326, 305,
    # eyes
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,
    # mouth, outer and inner
    61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181,
    78, 82, 13, 312, 308, 317, 14, 87,
)  # fmt: skip
"""The mesh vertex of each of the 68 iBUG landmarks."""

MIRRORED_LANDMARK = (
    *range(16, -1, -1),
    *range(26, 16, -1),
    27, 28, 29, 30, 35, 34, 33, 32, 31,
    45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,
    54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55,
    64, 63, 62, 61, 60, 67, 66, 65,
)  # fmt: skip
"""For each landmark, the index of its counterpart on the other side of the face."""

JAW = slice(0, 17)
JAW_STEPS = (0.15, 0.3, 0.45)
"""Slide targets: surface points to which a 2D landmarker may move a jaw point on a turned head.

Each step is a fraction of the way from the jaw point to the middle of the face.
"""

PROPORTIONS = (
    "width", "height", "depth", "jaw_length", "jaw_width", "jaw_depth",
    "nose_length", "nose_depth", "nose_width", "mouth_depth",
)  # fmt: skip
"""Names of the first identity modes."""

TYPICAL_PROPORTIONS = {"jaw_length": -1.4, "nose_depth": 1.6, "mouth_depth": 0.8}
"""Non-zero means of mode weights: tracked faces have shorter chins, and noses and lips that protrude more."""

EXPRESSIONS = (
    "jaw_open", "smile", "lip_corners_raise", "lips_stretch", "pucker", "mouth_sideways",
    "upper_lip_raise", "lower_lip_drop", "brow_raise", "inner_brow_raise", "brow_lower",
    "eyes_close", "left_eye_close", "right_eye_close",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class HeadModel:
    """Linear modes of the head, reduced to the landmarks and the rigid fit of the mesh.

    Attributes
    ----------
    points : Tensor, shape (68 + 17 * steps, 3)
        The mean head's landmarks, then the slide targets of the jaw points, step by step.
    point_modes : Tensor, shape (modes, points, 3)
        Change of `points` per unit of each mode.
    covariance : Tensor, shape (3, 3)
        Cross-covariance of the mean mesh with itself over all vertices.
    covariance_modes : Tensor, shape (modes, 3, 3)
        Change of a deformed mesh's cross-covariance with the mean mesh per unit of each mode.
    centroid_modes : Tensor, shape (modes, 3)
        Change of the mesh's centroid per unit of each mode.
    centroid : Tensor, shape (3,)
        The mean mesh's centroid, about which deformed heads are rotated back.
    identity_modes : int
        Number of identity modes, which come first; `EXPRESSIONS` follow in their order.
    """

    points: torch.Tensor
    point_modes: torch.Tensor
    covariance: torch.Tensor
    covariance_modes: torch.Tensor
    centroid_modes: torch.Tensor
    centroid: torch.Tensor
    identity_modes: int

    def typical_identity(self) -> torch.Tensor:
        """Return the mean identity weights, shape ``(identity_modes,)``."""
        weights = torch.zeros(self.identity_modes)
        for name, weight in TYPICAL_PROPORTIONS.items():
            weights[PROPORTIONS.index(name)] = weight
        return weights

    def deform(self, weights: torch.Tensor) -> torch.Tensor:
        """Return deformed heads in the canonical pose.

        Parameters
        ----------
        weights : Tensor, shape (N, modes)
            Mode weights. Identity: unit variance about `typical_identity`. Expressions: 0 (absent) to
            about 1 (full).

        Returns
        -------
        Tensor, shape (N, points, 3)
            Landmarks and slide targets, rotated back by the rigid fit of the whole mesh.
        """
        shift = weights @ self.centroid_modes
        points = self.points + torch.einsum("nm,mpc->npc", weights, self.point_modes)
        points = points - shift[:, None] - self.centroid
        covariance = self.covariance + torch.einsum("nm,mab->nab", weights, self.covariance_modes)
        return points @ fitted_rotation(covariance) + self.centroid


def fitted_rotation(covariance: torch.Tensor) -> torch.Tensor:
    """Return the rotations R that best map a reference onto targets, `target ≈ R · reference`.

    Parameters
    ----------
    covariance : Tensor, shape (N, 3, 3)
        Sums over points of `target ⊗ reference`, both centred.

    Returns
    -------
    Tensor, shape (N, 3, 3)
        Proper rotations (Kabsch 1976, by singular value decomposition).
    """
    left, _, right = torch.linalg.svd(covariance)
    sign = torch.linalg.det(left @ right)
    flip = torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign], dim=-1)
    return (left * flip[:, None]) @ right


def mean_mesh() -> np.ndarray:
    """Return the 468 vertices of the mean head in camera axes, float64 ``[468, 3]``."""
    file = resources.files("export.pose.training") / "data" / "canonical_face.csv"
    vertices = np.loadtxt(file.open(), delimiter=",", skiprows=6)
    return vertices * [1.0, -1.0, -1.0]


@functools.cache
def head_model() -> HeadModel:
    """Build the head with its modes; deterministic."""
    mesh = mean_mesh()
    identity = _identity_modes(mesh)
    modes = np.concatenate([identity, _expression_modes(mesh)])
    point_weights = _point_weights(mesh)
    centred = mesh - mesh.mean(axis=0)

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))

    return HeadModel(
        points=tensor(point_weights @ mesh),
        point_modes=tensor(np.einsum("pv,mvc->mpc", point_weights, modes)),
        covariance=tensor(centred.T @ centred),
        covariance_modes=tensor(np.einsum("mva,vb->mab", modes, centred)),
        centroid_modes=tensor(modes.mean(axis=1)),
        centroid=tensor(mesh.mean(axis=0)),
        identity_modes=len(identity),
    )


def _point_weights(mesh: np.ndarray) -> np.ndarray:
    """Return weights ``[points, 468]`` that interpolate landmarks and slide targets from a mesh."""
    landmarks = np.eye(len(mesh))[list(LANDMARK_VERTICES)]
    slides = [_surface_weights(mesh, _towards_middle(mesh, step)) for step in JAW_STEPS]
    return np.concatenate([landmarks, *slides])


def _towards_middle(mesh: np.ndarray, step: float) -> np.ndarray:
    jaw = mesh[list(LANDMARK_VERTICES[JAW]), :2]
    mouth = np.array([0.0, mesh[list(LANDMARK_VERTICES[48:60]), 1].mean()])
    middle = np.stack([np.zeros(len(jaw)), np.minimum(jaw[:, 1], mouth[1])], axis=1)
    return jaw + step * (middle - jaw)


def _surface_weights(mesh: np.ndarray, targets: np.ndarray, neighbours: int = 4) -> np.ndarray:
    """Return weights ``[n, 468]`` that interpolate the surface at frontal positions `targets` ``[n, 2]``."""
    distance = np.linalg.norm(targets[:, None] - mesh[None, :, :2], axis=-1)
    nearest = np.argsort(distance, axis=1)[:, :neighbours]
    near = np.take_along_axis(distance, nearest, axis=1)
    weight = 1.0 / (near + 1e-3) ** 2
    result = np.zeros_like(distance)
    np.put_along_axis(result, nearest, weight / weight.sum(axis=1, keepdims=True), axis=1)
    return result


IDENTITY_SCALES = ((12.0, 0.07), (6.0, 0.07), (3.0, 0.06))
"""Correlation length and standard deviation per axis, in cm, of the random fields of an identity."""

ASYMMETRY = 0.6
"""Standard deviation of the antisymmetric part of an identity relative to the symmetric part."""


def _identity_modes(mesh: np.ndarray, kept: float = 0.985) -> np.ndarray:
    """Return modes ``[modes, 468, 3]``: proportions, then smooth, mostly symmetric random fields.

    Each field is reduced to the principal modes that hold the fraction `kept` of its variance.
    """
    mirrored = _mirror_vertices(mesh)
    amplitude = _identity_amplitude(mesh)
    kernel = sum(
        deviation**2 * np.exp(-_squared_distances(mesh) / (2 * length**2))
        for length, deviation in IDENTITY_SCALES
    )
    kernel = kernel * amplitude[:, None] * amplitude[None]
    modes = [_proportion_modes(mesh)]
    # In a symmetric deformation (parity 1), opposite sides move equally in y and z and oppositely in x.
    for parity, deviation in ((1.0, 1.0), (-1.0, ASYMMETRY)):
        variance = deviation**2 / (1 + ASYMMETRY**2)
        yz_field = _principal_modes(variance * (kernel + parity * kernel[:, mirrored]), kept)
        x_field = _principal_modes(variance * (kernel - parity * kernel[:, mirrored]), kept)
        for axis, field in ((0, x_field), (1, yz_field), (2, yz_field)):
            modes.append(_along_axis(field, axis))
    return np.concatenate(modes)


def _along_axis(field: np.ndarray, axis: int) -> np.ndarray:
    modes = np.zeros((*field.shape, 3))
    modes[..., axis] = field
    return modes


def _principal_modes(kernel: np.ndarray, kept: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(kernel)
    values, vectors = values[::-1].clip(0.0), vectors[:, ::-1]
    count = int(np.searchsorted(np.cumsum(values) / values.sum(), kept)) + 1
    return (vectors[:, :count] * np.sqrt(values[:count])).T


def _squared_distances(mesh: np.ndarray) -> np.ndarray:
    return ((mesh[:, None] - mesh[None]) ** 2).sum(axis=-1)


def _mirror_vertices(mesh: np.ndarray) -> np.ndarray:
    """Return the index of each vertex's mirror image; the mesh is symmetric in x."""
    reflected = mesh * [-1.0, 1.0, 1.0]
    return np.argmin(((mesh[:, None] - reflected[None]) ** 2).sum(axis=-1), axis=0)


def _identity_amplitude(mesh: np.ndarray) -> np.ndarray:
    """Return weights ``[468]``: the sides and the chin of tracked faces vary more than the middle."""
    side = np.clip((np.abs(mesh[:, 0]) - 4.5) / 3.0, 0.0, 1.0)
    chin = np.clip((mesh[:, 1] - 5.0) / 4.0, 0.0, 1.0)
    return 1.0 + 1.2 * np.maximum(side, chin)


def _proportion_modes(mesh: np.ndarray) -> np.ndarray:
    """Return one standard deviation of each proportion as displacements ``[proportions, 468, 3]`` in cm."""
    x, y, z = (mesh - mesh.mean(axis=0)).T
    zero = np.zeros_like(x)
    jaw = _ramp(mesh[:, 1], 1.5, 9.4)
    nose = np.exp(-((mesh[:, 0] / 1.6) ** 2) - ((mesh[:, 1] - 0.6) / 1.8) ** 2)
    named = {
        "width": (0.04 * x, zero, zero),
        "height": (zero, 0.04 * y, zero),
        "depth": (zero, zero, 0.05 * z),
        "jaw_length": (zero, 0.35 * jaw, zero),
        "jaw_width": (0.05 * jaw * x, zero, zero),
        "jaw_depth": (zero, zero, 0.3 * jaw),
        "nose_length": (zero, 0.15 * nose, zero),
        "nose_depth": (zero, zero, -0.25 * nose),
        "nose_width": (0.15 * nose * np.sign(x), zero, zero),
        "mouth_depth": (zero, zero, -0.25 * _bump(mesh, 0.0, MOUTH_HEIGHT, 1.8, 1.3)),
    }
    return np.stack([np.stack(named[name], axis=-1) for name in PROPORTIONS])


def _ramp(values: np.ndarray, start: float, stop: float) -> np.ndarray:
    """Rise smoothly from 0 at `start` to 1 at `stop`."""
    t = np.clip((values - start) / (stop - start), 0.0, 1.0)
    return t * t * (3 - 2 * t)


def _bump(mesh: np.ndarray, x: float, y: float, width: float, height: float) -> np.ndarray:
    """Return a Gaussian bump of unit height around a frontal position."""
    return np.exp(-(((mesh[:, 0] - x) / width) ** 2 + ((mesh[:, 1] - y) / height) ** 2) / 2)


def _expression_modes(mesh: np.ndarray) -> np.ndarray:
    """Return full-strength displacements ``[len(EXPRESSIONS), 468, 3]`` in cm."""
    mouth, brows, eyes = _mouth_modes(mesh), _brow_modes(mesh), _eye_modes(mesh)
    named = mouth | brows | eyes
    return np.stack([named[name] for name in EXPRESSIONS])


MOUTH_HEIGHT = 4.3
"""y coordinate of the line between the lips."""


def _mouth_modes(mesh: np.ndarray) -> dict[str, np.ndarray]:
    x, y, _z = mesh.T
    zero = np.zeros_like(x)
    around = _bump(mesh, 0.0, MOUTH_HEIGHT, 2.6, 1.6)
    corner = _bump(mesh, 2.5, MOUTH_HEIGHT, 1.3, 1.3) + _bump(mesh, -2.5, MOUTH_HEIGHT, 1.3, 1.3)
    is_lower_lip = (np.abs(x) < 2.6) & (y > MOUTH_HEIGHT)
    upper, lower = around * (y < MOUTH_HEIGHT), around * is_lower_lip
    smile = (
        0.6 * corner * np.sign(x),
        0.35 * lower - 0.3 * upper - 0.6 * corner,
        0.4 * corner,
    )
    return {
        "smile": np.stack(smile, axis=-1),
        "jaw_open": _jaw_rotation(mesh, np.radians(20.0)),
        "lip_corners_raise": np.stack([zero, -1.0 * corner, 0.3 * corner], axis=-1),
        "lips_stretch": np.stack([0.8 * corner * np.sign(x), zero, 0.7 * corner], axis=-1),
        "pucker": np.stack([-0.35 * around * x, zero, -0.5 * around], axis=-1),
        "mouth_sideways": np.stack([0.6 * around, zero, zero], axis=-1),
        "upper_lip_raise": np.stack([zero, -0.5 * upper, zero], axis=-1),
        "lower_lip_drop": np.stack([zero, 0.9 * lower, zero], axis=-1),
    }


def _jaw_rotation(mesh: np.ndarray, angle: float) -> np.ndarray:
    """Rotate the lower face about the jaw's axis, with a smooth transition in the cheeks.

    The jaw joints glide forward as the mouth opens, so the effective axis is below them.
    """
    joint = np.array([0.0, 4.0, 1.0])
    sine, cosine = np.sin(angle), np.cos(angle)
    arm = mesh - joint
    rotated = arm @ np.array([[1.0, 0.0, 0.0], [0.0, cosine, sine], [0.0, -sine, cosine]])
    below_lips = _ramp(mesh[:, 1], MOUTH_HEIGHT - 0.1, MOUTH_HEIGHT + 0.3)
    cheek = _ramp(mesh[:, 1], 2.5, 8.5)
    inner = _ramp(-np.abs(mesh[:, 0]), -2.6, -1.2)
    weight = inner * below_lips + (1 - inner) * cheek
    return (rotated - arm) * weight[:, None]


def _brow_modes(mesh: np.ndarray) -> dict[str, np.ndarray]:
    zero = np.zeros(len(mesh))
    brow = _bump(mesh, 3.5, -4.9, 2.2, 1.0) + _bump(mesh, -3.5, -4.9, 2.2, 1.0)
    inner = _bump(mesh, 1.3, -4.8, 1.0, 1.0) + _bump(mesh, -1.3, -4.8, 1.0, 1.0)
    x = mesh[:, 0]
    return {
        "brow_raise": np.stack([zero, -0.8 * brow, zero], axis=-1),
        "inner_brow_raise": np.stack([zero, -0.6 * inner, zero], axis=-1),
        "brow_lower": np.stack([-0.3 * inner * np.sign(x), 0.6 * brow.clip(0, 1), zero], axis=-1),
    }


def _eye_modes(mesh: np.ndarray) -> dict[str, np.ndarray]:
    right, left = _lid_closing(mesh, -3.2), _lid_closing(mesh, 3.2)
    return {"eyes_close": right + left, "left_eye_close": left, "right_eye_close": right}


def _lid_closing(mesh: np.ndarray, x: float) -> np.ndarray:
    """Move the lids of the eye at `x` to its axis; a negative weight opens the eye wide."""
    axis = -2.5
    lid = _bump(mesh, x, axis, 1.0, 0.7)
    displacement = np.zeros_like(mesh)
    displacement[:, 1] = -0.75 * lid * (mesh[:, 1] - axis)
    return displacement
