"""Draw landmarks, HOG features and head axes into a matplotlib panel."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import FancyArrowPatch
from numpy.typing import NDArray

from triton_face_client.hog_settings import HogSettings
from triton_face_client.video.crops import Float

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
"""First point, end (exclusive) and whether the contour is closed, in iBUG/OpenFace order."""

NOSE_TIP = 30


def displayable(face: NDArray[np.float32]) -> NDArray[np.float32]:
    """Convert a face ``[3, H, W]`` to ``[H, W, 3]`` and clip the fill value 128 to 1 (white)."""
    return face.transpose(1, 2, 0).clip(0, 1)


def draw_contours(panel: Axes, points: NDArray[Any], width: float) -> None:
    """Draw the contours of landmarks ``[68, 2]``."""
    for first, end, closed in CONTOURS.values():
        contour = points[first:end]
        if closed:
            contour = np.concatenate([contour, contour[:1]])
        panel.plot(contour[:, 0], contour[:, 1], "-", color="cyan", linewidth=width)


def draw_hog(
    panel: Axes, features: NDArray[np.float32], settings: HogSettings, face_size: int, width: float
) -> None:
    """Draw each HOG cell as strokes along its edges, with the strength (`cell_strengths`) as opacity."""
    strengths = cell_strengths(features, settings, face_size)
    cells_a_side, orientations = len(strengths), settings.orientations
    gradient = np.pi * (np.arange(orientations) + 0.5) / orientations
    along_edge = 0.45 * settings.pixels_per_cell * np.stack([-np.sin(gradient), np.cos(gradient)], axis=1)
    row, column = np.mgrid[:cells_a_side, :cells_a_side]
    centres = (np.stack([column, row], axis=-1) + 0.5)[:, :, None] * settings.pixels_per_cell
    strokes = np.stack([centres - along_edge, centres + along_edge], axis=3).reshape(-1, 2, 2)
    # The strengths of a uniform face are all zero.
    opacities = strengths.ravel() / max(strengths.max(), np.finfo(np.float32).tiny)
    panel.add_collection(
        # Rasterize the strokes in PDF and SVG, too: sixty faces have a hundred thousand of them.
        LineCollection(strokes, colors="white", alpha=opacities, linewidths=width, rasterized=True)
    )
    panel.set(xlim=(0, face_size), ylim=(face_size, 0), aspect="equal", facecolor="black")
    panel.set(xticks=[], yticks=[])


def cell_strengths(
    features: NDArray[np.float32], settings: HogSettings, face_size: int
) -> NDArray[np.float64]:
    """Average the blocks of HOG features ``[F]`` back to cells ``[cells, cells, orientations]``.

    Raises
    ------
    ValueError
        If a face of `face_size` pixels has another number of features with these settings.
    """
    if features.size != settings.feature_length(face_size):
        raise ValueError(
            f"a face of {face_size} pixels has {features.size} HOG features, not the "
            f"{settings.feature_length(face_size)} of {settings}: the server's configuration of hog and its "
            "model differ; run `python -m export hog` on its model repository"
        )
    block, blocks_a_side = settings.cells_per_block, settings.blocks_a_side(face_size)
    blocks = features.reshape(blocks_a_side, blocks_a_side, block, block, settings.orientations)
    cells_a_side = blocks_a_side + block - 1
    total = np.zeros((cells_a_side, cells_a_side, settings.orientations))
    block_counts = np.zeros((cells_a_side, cells_a_side, 1))
    for row in range(block):
        for column in range(block):
            cells = np.s_[row : row + blocks_a_side, column : column + blocks_a_side]
            total[cells] += blocks[:, :, row, column]
            block_counts[cells] += 1
    return total / block_counts


def head_rotation(pose: Float) -> NDArray[np.float64]:
    """Return the head's rotation ``[3, 3]`` in camera axes for a raw pose ``[6]`` (see `subject_pose`)."""
    (cos_a, cos_b, cos_c), (sin_a, sin_b, sin_c) = np.cos(pose[:3]), np.sin(pose[:3])
    about_x = np.array([[1, 0, 0], [0, cos_a, -sin_a], [0, sin_a, cos_a]])
    about_y = np.array([[cos_b, 0, sin_b], [0, 1, 0], [-sin_b, 0, cos_b]])
    about_z = np.array([[cos_c, -sin_c, 0], [sin_c, cos_c, 0], [0, 0, 1]])
    rotation: NDArray[np.float64] = about_z @ about_y @ about_x
    return rotation


def pose_axes(pose: Float, image_to_picture: Float) -> NDArray[np.float64]:
    """Project the head's axes into a picture.

    Parameters
    ----------
    pose : ndarray of float, shape (6,)
        Raw pose in the image.
    image_to_picture : ndarray of float, shape (2, 2)
        Linear map from directions (x, y) in the image to directions in the picture.

    Returns
    -------
    ndarray of float64, shape (3, 2)
        Projections of unit vectors along the head's axes x, y and z. On a frontal face, x points to the
        image's right, y down, and z towards the camera (projection 0).
    """
    rotation = head_rotation(pose)
    # The head's z axis points away from the camera; the picture shows its opposite, along the nose.
    directions = np.stack([rotation[:2, 0], rotation[:2, 1], -rotation[:2, 2]])
    projected: NDArray[np.float64] = directions @ np.asarray(image_to_picture).T
    return projected


def draw_axes(
    panel: Axes, nose: NDArray[Any], axes: NDArray[np.float64], colors: Sequence[str], width: float
) -> None:
    """Draw the head's axes ``[3, 2]`` as arrows from the tip of the nose; draw nothing for NaN."""
    if not np.isfinite(axes).all():
        return
    for axis, color in zip(axes, colors, strict=True):
        tip = nose + axis
        # Unlike an annotation, a patch whose tip is outside the panel is clipped instead of omitted.
        panel.add_patch(
            FancyArrowPatch(
                (nose[0], nose[1]),
                (tip[0], tip[1]),
                zorder=4,
                arrowstyle="-|>",
                color=color,
                linewidth=width,
                mutation_scale=4 * width,
                shrinkA=2,
                shrinkB=2,
            )
        )
