"""Draw one face in six panels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from triton_face_client.plotting.panels import (
    NOSE_TIP,
    displayable,
    draw_axes,
    draw_contours,
    draw_hog,
    pose_axes,
)
from triton_face_client.plotting.picture_files import check_picture_path, save_figure
from triton_face_client.video.crops import Float

AXIS_COLORS = ("tab:red", "tab:green", "tab:blue")


def draw_face(
    path: Path,
    crop: NDArray[np.float32],
    landmarks: Float,
    outputs: Mapping[str, NDArray[Any]],
    pixel_aspect: float = 1.0,
) -> None:
    """Draw one face in six panels and save the figure.

    Parameters
    ----------
    path : Path
        The picture, with one of `picture_files.SUFFIXES`; written atomically.
    crop : ndarray of float32, shape (3, H, W)
        The crop that was sent, values in [0, 1].
    landmarks : ndarray of float, shape (68, 2)
        Pixels of `crop`.
    outputs : mapping of str to ndarray
        One face's row of HOG, POSE, ALIGNED_LANDMARKS, MASK, ALIGNED_FACES and MASKED_FACES.
    pixel_aspect : float
        Height over width of a crop pixel in the image. The panel of POSE, which refers to the image, has the
        image's proportions.

    Raises
    ------
    ValueError
        If the picture cannot be written.
    """
    check_picture_path(path)
    figure = Figure(figsize=(11, 7.6), layout="constrained")
    panels = figure.subplots(2, 3)
    image = crop.transpose(1, 2, 0)
    _show(panels[0, 0], image, "FRAMES and LANDMARKS")
    _draw_landmarks(panels[0, 0], landmarks)
    _show(panels[0, 1], displayable(outputs["ALIGNED_FACES"]), "ALIGNED_FACES, ALIGNED_LANDMARKS")
    _draw_landmarks(panels[0, 1], outputs["ALIGNED_LANDMARKS"])
    _show(panels[0, 2], outputs["MASK"], "MASK: hull and forehead")
    _show(panels[1, 0], displayable(outputs["MASKED_FACES"]), "MASKED_FACES")
    draw_hog(panels[1, 1], outputs["HOG"], len(outputs["MASK"]), 1.4)
    panels[1, 1].set_title("HOG: edges of each cell", fontsize=10)
    _show(panels[1, 2], image, "POSE: head axes (x red, y green, z blue)")
    panels[1, 2].set_aspect(pixel_aspect)
    axes = 0.5 * np.ptp(landmarks[:, 0]) * pose_axes(outputs["POSE"], np.diag([1, 1 / pixel_aspect]))
    draw_axes(panels[1, 2], landmarks[NOSE_TIP], axes, AXIS_COLORS, 2.5)
    save_figure(figure, path)


def _show(panel: Axes, image: NDArray[Any], title: str) -> None:
    panel.imshow(image, cmap="gray")
    panel.autoscale(False)
    panel.set_title(title, fontsize=10)
    panel.set_axis_off()


def _draw_landmarks(panel: Axes, points: NDArray[Any]) -> None:
    draw_contours(panel, points, 0.8)
    panel.plot(points[:, 0], points[:, 1], ".", color="yellow", markersize=3)
