"""Expected outputs, computed independently of the project.

This module does not import the project. scipy and scikit-image compute masks and HOG, called as at training
time. NumPy computes alignment and warp in float64, and masks a second time in exact integers. torch's float32
atan2 gives the orientation bins, as in py-feat.
"""

from unittest import mock

import numpy as np
import skimage.feature._hog
import torch
from scipy.spatial import ConvexHull
from skimage.feature import hog
from skimage.morphology.convex_hull import grid_points_in_poly


def affine(landmarks: np.ndarray, face_size: int = 112, box_enlarge: float = 2.5) -> np.ndarray:
    """Return one face's affine map, float64 ``[2, 3]``, from its landmarks ``[68, 2]`` as complex numbers."""
    z = landmarks[:, 0].astype(np.float64) + 1j * landmarks[:, 1].astype(np.float64)
    right, left = z[36:42].sum() / 6, z[42:48].sum() / 6
    rotation = np.conj(left - right) / abs(left - right)
    level = np.array([right, left, z[30], z[48], z[54]]) * rotation
    low = complex(level.real.min(), level.imag.min())
    high = complex(level.real.max(), level.imag.max())
    half = 0.5 * box_enlarge * max((high - low).real, (high - low).imag)
    scale = (face_size - 1) / 2 / half
    shift = scale * (half * (1 + 1j) - (low + high) / 2)
    along_x, along_y = scale * rotation, scale * rotation * 1j
    return np.array([[along_x.real, along_y.real, shift.real], [along_x.imag, along_y.imag, shift.imag]])


def warped(
    frame: np.ndarray, matrix: np.ndarray, face_size: int = 112, fill: float = 128.0
) -> tuple[np.ndarray, np.ndarray]:
    """Warp one frame ``[C, H, W]`` in float64.

    Returns
    -------
    face : ndarray, shape (C, face_size, face_size)
    certain : ndarray of bool, shape (face_size, face_size)
        False where the sampling point is so close to the frame's border that rounding decides its side.
    """
    _, height, width = frame.shape
    v, u = np.mgrid[:face_size, :face_size].astype(np.float64)
    inverse = np.linalg.inv(matrix[:, :2].astype(np.float64))
    x, y = np.einsum("ij,jvu->ivu", inverse, np.stack([u - matrix[0, 2], v - matrix[1, 2]]))
    outside_by = np.maximum(
        np.abs(x - (width - 1) / 2) - width / 2, np.abs(y - (height - 1) / 2) - height / 2
    )
    padded = np.pad(frame.astype(np.float64), ((0, 0), (2, 2), (2, 2)))
    column, row = np.floor(np.clip(x, -2, width)).astype(int), np.floor(np.clip(y, -2, height)).astype(int)
    fx, fy = np.clip(x, -2, width) - column, np.clip(y, -2, height) - row
    face = sum(
        weight * padded[:, row + 2 + down, column + 2 + right]
        for down, right, weight in (
            (0, 0, (1 - fy) * (1 - fx)),
            (0, 1, (1 - fy) * fx),
            (1, 0, fy * (1 - fx)),
            (1, 1, fy * fx),
        )
    )
    return np.where(outside_by > 0, fill, face), np.abs(outside_by) > 1e-3


def mask(landmarks: np.ndarray, face_size: int = 112) -> np.ndarray:
    """Return one face's mask from aligned integer landmarks, as SPEC section 3 defines it."""
    vertices = ConvexHull(landmarks).vertices
    filled = grid_points_in_poly(
        (face_size, face_size), [(landmarks[i, 1], landmarks[i, 0]) for i in vertices]
    )
    filled[0 : min(landmarks[0, 1], landmarks[16, 1]), landmarks[0, 0] : landmarks[16, 0]] = True
    return filled


def exact_hull_mask(landmarks: np.ndarray, face_size: int = 112) -> np.ndarray:
    """Return the mask of the hull of integer landmarks, edges included.

    Andrew's monotone chain gives the corners; the tests of half-planes use exact integers.
    """
    points = sorted({(int(x), int(y)) for x, y in landmarks})

    def chain(ordered: list[tuple[int, int]]) -> list[tuple[int, int]]:
        corners: list[tuple[int, int]] = []
        for point in ordered:
            while len(corners) > 1 and _cross(corners[-2], corners[-1], point) <= 0:
                corners.pop()
            corners.append(point)
        return corners[:-1]

    corners = chain(points) + chain(points[::-1])
    y, x = np.mgrid[:face_size, :face_size]
    inside = np.ones((face_size, face_size), dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        inside &= (bx - ax) * (y - ay) - (by - ay) * (x - ax) >= 0
    return inside


def _cross(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> int:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def hog_features(
    face: np.ndarray,
    orientations: int = 8,
    pixels_per_cell: int = 8,
    cells_per_block: int = 2,
    block_norm: str = "L2-Hys",
    transform_sqrt: bool = False,
) -> np.ndarray:
    """Return scikit-image's HOG ``[features]`` of one masked face ``[3, S, S]``."""
    return hog(
        face.transpose(1, 2, 0),
        orientations=orientations,
        pixels_per_cell=(pixels_per_cell, pixels_per_cell),
        cells_per_block=(cells_per_block, cells_per_block),
        block_norm=block_norm,
        transform_sqrt=transform_sqrt,
        channel_axis=-1,
    )


def skimage_cells(
    face: np.ndarray, orientations: int, pixels_per_cell: int, transform_sqrt: bool
) -> np.ndarray:
    """Return scikit-image's histograms ``[rows, columns, orientations]`` before block normalization."""
    with mock.patch.object(skimage.feature._hog, "_hog_normalize_block", lambda block, **_: block):
        return hog(
            face.transpose(1, 2, 0),
            orientations=orientations,
            pixels_per_cell=(pixels_per_cell, pixels_per_cell),
            cells_per_block=(1, 1),
            transform_sqrt=transform_sqrt,
            feature_vector=False,
            channel_axis=-1,
        )[:, :, 0, 0]


def normalized_blocks(cells: np.ndarray, cells_per_block: int, block_norm: str) -> np.ndarray:
    """Return features ``[N, features]`` of histograms ``[N, rows, columns, orientations]``, in float64."""
    side = (cells_per_block, cells_per_block)
    blocks = np.lib.stride_tricks.sliding_window_view(cells.astype(np.float64), side, axis=(1, 2))
    blocks = blocks.transpose(0, 1, 2, 4, 5, 3)
    features = blocks.reshape(*blocks.shape[:3], -1)

    def over_l2(values: np.ndarray) -> np.ndarray:
        return values / np.sqrt((values**2).sum(axis=3, keepdims=True) + 1e-10)

    if block_norm in ("L1", "L1-sqrt"):
        features = features / (features.sum(axis=3, keepdims=True) + 1e-5)
    else:
        features = over_l2(features)
    if block_norm == "L1-sqrt":
        features = np.sqrt(features)
    if block_norm == "L2-Hys":
        features = over_l2(np.minimum(features, 0.2))
    return features.reshape(len(cells), -1)


def orientation_bins(gx: np.ndarray, gy: np.ndarray, orientations: int = 8) -> np.ndarray:
    """Return the bins of float32 gradients by float32 atan2, as SPEC section 4 defines them."""
    degrees = torch.rad2deg(torch.atan2(torch.from_numpy(gy), torch.from_numpy(gx))) % 180.0
    return (degrees / (180 / orientations)).long().clamp(0, orientations - 1).numpy()


def gradients(face: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return gx and gy, float32 ``[S, S]``, of each pixel's strongest channel of a face ``[3, S, S]``."""
    gx, gy = np.zeros_like(face), np.zeros_like(face)
    gx[:, :, 1:-1] = face[:, :, 2:] - face[:, :, :-2]
    gy[:, 1:-1] = face[:, 2:] - face[:, :-2]
    strongest = np.sqrt(gx**2 + gy**2).argmax(axis=0)[None]
    return np.take_along_axis(gx, strongest, 0)[0], np.take_along_axis(gy, strongest, 0)[0]


def hog_by_definition(
    face: np.ndarray,
    orientations: int = 8,
    pixels_per_cell: int = 8,
    cells_per_block: int = 2,
    block_norm: str = "L2-Hys",
) -> np.ndarray:
    """Return HOG ``[features]`` of one face, by SPEC section 4: float64 sums, bins from float32 atan2."""
    gx, gy = gradients(face)
    magnitude = np.sqrt(gx**2 + gy**2).astype(np.float64)
    bins = orientation_bins(gx, gy, orientations)
    side = len(magnitude) // pixels_per_cell
    inside = np.s_[: side * pixels_per_cell, : side * pixels_per_cell]
    cells = np.zeros((side, side, orientations))
    for k in range(orientations):
        plane = (magnitude * (bins == k))[inside]
        cells[..., k] = plane.reshape(side, pixels_per_cell, side, pixels_per_cell).mean(axis=(1, 3))
    return normalized_blocks(cells[None], cells_per_block, block_norm)[0]


class PoseNet(torch.nn.Module):
    """py-feat's pose MLP in either layout, with its input normalization and output statistics."""

    def __init__(self, hidden: tuple[int, ...], layer_norm: bool) -> None:
        super().__init__()
        layers: list[torch.nn.Module] = []
        inputs = 136
        for width in hidden:
            layers.append(torch.nn.Linear(inputs, width))
            layers += [torch.nn.LayerNorm(width), torch.nn.GELU()] if layer_norm else [torch.nn.ReLU()]
            layers.append(torch.nn.Dropout(0.15))
            inputs = width
        self.net = torch.nn.Sequential(*layers, torch.nn.Linear(inputs, 6))

    @torch.inference_mode()
    def pose(self, landmarks: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
        """Return poses ``[N, 6]`` of landmarks ``[N, 68, 2]``."""
        x, y = torch.from_numpy(landmarks).unbind(dim=2)
        unit = torch.hypot(x[:, 36] - x[:, 45], y[:, 36] - y[:, 45]).clamp_min(1e-6)[:, None]
        features = torch.cat([(x - x.mean(1, keepdim=True)) / unit, (y - y.mean(1, keepdim=True)) / unit], 1)
        return self.eval().net(features).numpy() * std + mean
