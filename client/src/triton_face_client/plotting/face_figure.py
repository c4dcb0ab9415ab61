"""Draw one face in six panels, and its action units beside them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from triton_face_client.hog_settings import HogSettings
from triton_face_client.plotting.action_units import draw_action_units
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

# Lengths in inches.
WIDTH, HEIGHT = 11, 7.6
ACTION_UNITS_WIDTH = 2.6


def draw_face(
    path: Path,
    crop: NDArray[np.float32],
    landmarks: Float,
    outputs: Mapping[str, NDArray[Any]],
    settings: HogSettings,
    pixel_aspect: float = 1.0,
    action_units: Sequence[str] = (),
) -> None:
    """Draw one face in six panels and, if there are any, its action units; save the figure.

    Parameters
    ----------
    path : Path
        The picture, with one of `picture_files.SUFFIXES`; written atomically.
    crop : ndarray of float32, shape (3, H, W)
        The crop that was sent, values in [0, 1].
    landmarks : ndarray of float, shape (68, 2)
        Pixels of `crop`.
    outputs : mapping of str to ndarray
        One face's row of HOG, POSE, ALIGNED_LANDMARKS, MASK, ALIGNED_FACES, MASKED_FACES and, with
        `action_units`, AU.
    settings : HogSettings
        Settings of HOG.
    pixel_aspect : float
        Height over width of a crop pixel in the image. The panel of POSE, which refers to the image, has the
        image's proportions.
    action_units : sequence of str
        Names of the columns of AU.

    Raises
    ------
    ValueError
        If the picture cannot be written.
    """
    check_picture_path(path)
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    panels_figure: Figure | SubFigure = figure
    if action_units:
        figure.set_figwidth(WIDTH + ACTION_UNITS_WIDTH)
        panels_figure, bars_figure = figure.subfigures(1, 2, width_ratios=(WIDTH, ACTION_UNITS_WIDTH))
        bars = bars_figure.subplots()
        draw_action_units(bars, action_units, outputs["AU"])
        bars.set_title("AU: action units", fontsize=10)
    panels = panels_figure.subplots(2, 3)
    image = crop.transpose(1, 2, 0)
    _show(panels[0, 0], image, "FRAMES and LANDMARKS")
    _draw_landmarks(panels[0, 0], landmarks)
    _show(panels[0, 1], displayable(outputs["ALIGNED_FACES"]), "ALIGNED_FACES, ALIGNED_LANDMARKS")
    _draw_landmarks(panels[0, 1], outputs["ALIGNED_LANDMARKS"])
    _show(panels[0, 2], outputs["MASK"], "MASK: hull and forehead")
    _show(panels[1, 0], displayable(outputs["MASKED_FACES"]), "MASKED_FACES")
    draw_hog(panels[1, 1], outputs["HOG"], settings, len(outputs["MASK"]), 1.4)
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
