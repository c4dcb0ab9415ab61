"""The demo's picture: what the service makes of one face, panel by panel."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # a server has no screen

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from scipy.spatial.transform import Rotation

ORIENTATIONS = 8
BLOCK_CELLS = 2

CONTOURS = {
    "jaw": (0, 17, False),
    "right brow": (17, 22, False),
    "left brow": (22, 27, False),
    "nose bridge": (27, 31, False),
    "nostrils": (31, 36, False),
    "right eye": (36, 42, True),
    "left eye": (42, 48, True),
    "lips": (48, 60, True),
    "inner lips": (60, 68, True),
}
"""First point, end, closed: the iBUG/OpenFace layout."""

AXIS_COLORS = ("tab:red", "tab:green", "tab:blue")


def draw(path: Path, crop: np.ndarray, landmarks: np.ndarray, face: dict[str, np.ndarray]) -> None:
    """Draw the panels and save them as PNG.

    Parameters
    ----------
    path : Path
        The file.
    crop : ndarray of float32, shape (3, H, W)
        What was sent, values in [0, 1].
    landmarks : ndarray of float32, shape (68, 2)
        In pixels of `crop`.
    face : dict of str to ndarray
        One face's row of HOG, POSE, ALIGNED_LANDMARKS, MASK, ALIGNED_FACES and MASKED_FACES.
    """
    figure, panels = plt.subplots(2, 3, figsize=(11, 7.6), layout="constrained")
    image = crop.transpose(1, 2, 0)
    _show(panels[0, 0], image, "FRAMES and LANDMARKS")
    _draw_landmarks(panels[0, 0], landmarks)
    _show(panels[0, 1], _displayable(face["ALIGNED_FACES"]), "ALIGNED_FACES, ALIGNED_LANDMARKS")
    _draw_landmarks(panels[0, 1], face["ALIGNED_LANDMARKS"])
    _show(panels[0, 2], face["MASK"], "MASK: hull and forehead")
    _show(panels[1, 0], _displayable(face["MASKED_FACES"]), "MASKED_FACES")
    _draw_hog(panels[1, 1], face["HOG"], len(face["MASK"]))
    _show(panels[1, 2], image, "POSE: head axes (x red, y green, z blue)")
    _draw_axes(panels[1, 2], landmarks, face["POSE"])
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _show(panel: Axes, image: np.ndarray, title: str) -> None:
    panel.imshow(image, cmap="gray")
    panel.autoscale(False)
    panel.set_title(title, fontsize=10)
    panel.set_axis_off()


def _displayable(face: np.ndarray) -> np.ndarray:
    """Bring the fill's 128 into the picture's range."""
    return face.transpose(1, 2, 0).clip(0, 1)


def _draw_landmarks(panel: Axes, points: np.ndarray) -> None:
    for first, end, closed in CONTOURS.values():
        contour = points[first:end]
        if closed:
            contour = np.concatenate([contour, contour[:1]])
        panel.plot(contour[:, 0], contour[:, 1], "-", color="cyan", linewidth=0.8)
    panel.plot(points[:, 0], points[:, 1], ".", color="yellow", markersize=3)


def _draw_hog(panel: Axes, features: np.ndarray, face_size: int) -> None:
    """Draw every cell as strokes along its edges, as strong as the mean of the blocks it is in."""
    cells = cell_strengths(features)
    count = len(cells)
    cell = face_size / count
    gradient = np.pi * (np.arange(ORIENTATIONS) + 0.5) / ORIENTATIONS
    along_edge = 0.45 * cell * np.stack([-np.sin(gradient), np.cos(gradient)], axis=1)
    row, column = np.mgrid[:count, :count]
    centres = (np.stack([column, row], axis=-1) + 0.5)[:, :, None] * cell
    strokes = np.stack([centres - along_edge, centres + along_edge], axis=3).reshape(-1, 2, 2)
    strengths = cells.ravel() / cells.max()
    panel.add_collection(LineCollection(strokes, colors="white", alpha=strengths, linewidths=1.4))
    panel.set(xlim=(0, face_size), ylim=(face_size, 0), aspect="equal", facecolor="black")
    panel.set(xticks=[], yticks=[])
    panel.set_title("HOG: edges of each cell", fontsize=10)


def cell_strengths(features: np.ndarray) -> np.ndarray:
    """Average the blocks of HOG features ``[F]`` back to cells ``[cells, cells, orientations]``."""
    blocks_a_side = round((features.size / (BLOCK_CELLS**2 * ORIENTATIONS)) ** 0.5)
    blocks = features.reshape(blocks_a_side, blocks_a_side, BLOCK_CELLS, BLOCK_CELLS, ORIENTATIONS)
    cells_a_side = blocks_a_side + BLOCK_CELLS - 1
    total = np.zeros((cells_a_side, cells_a_side, ORIENTATIONS))
    members = np.zeros((cells_a_side, cells_a_side, 1))
    for row in range(BLOCK_CELLS):
        for column in range(BLOCK_CELLS):
            place = np.s_[row : row + blocks_a_side, column : column + blocks_a_side]
            total[place] += blocks[:, :, row, column]
            members[place] += 1
    return total / members


def _draw_axes(panel: Axes, landmarks: np.ndarray, pose: np.ndarray) -> None:
    """Draw the head's axes from the nose tip: x to the image's right, y down, z out of the face."""
    nose = landmarks[30]
    length = 0.5 * np.ptp(landmarks[:, 0])
    # Rz(c) @ Ry(b) @ Rx(a) of the raw columns a, b, c, SPEC section 5
    rotation = Rotation.from_euler("xyz", pose[:3]).as_matrix()
    # z points away from the camera; drawn is its opposite, where the nose points.
    for axis, color in zip((rotation[:, 0], rotation[:, 1], -rotation[:, 2]), AXIS_COLORS, strict=True):
        tip = nose + length * axis[:2]
        panel.annotate("", tip, nose, arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 2.5})
