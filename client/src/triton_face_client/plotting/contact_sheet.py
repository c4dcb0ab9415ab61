"""Draw a contact sheet: a tile with two pictures for each face."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

from triton_face_client.hog_settings import HogSettings
from triton_face_client.plotting.action_units import top_action_units
from triton_face_client.plotting.panels import (
    NOSE_TIP,
    displayable,
    draw_axes,
    draw_contours,
    draw_hog,
    pose_axes,
)
from triton_face_client.plotting.picture_files import DPI, check_picture_path, save_figure
from triton_face_client.pose import subject_pose

AXIS_COLORS = ("#ff3b30", "#34e05f", "#3fa7ff")
"""Bright, because the arrows are thin and the faces small."""

MASK_COLOR = "#ffd60a"

MAX_FACES = 500
"""Limit for one sheet: picture viewers still open its picture of about 7000 pixels a side."""

OUTSIDE_BRIGHTNESS = 0.3
"""Factor for the pixels outside the mask."""

LEGEND = (
    "Left: the aligned face, its mask (yellow, dark outside), landmarks (cyan), head axes (x red, y green, "
    "z blue); white is off the crop. Right: HOG, edges of each cell. Angles: + is up, to the subject's right."
)

ACTION_UNITS_LEGEND = ' AU: the four largest values; "+3": three more are at least 0.5.'

# Lengths in inches.
PICTURE = 1.7
GAP = 0.06
CAPTION = 0.42
MARGIN = 0.18
TITLE = 0.4
LINE = 0.14

CAPTION_POINTS = 8
CHARACTERS_PER_INCH = 17
REASON_CHARACTERS = 24
"""Characters of a line as wide as one picture. Without a crop, the reason fills two pictures."""
REASON_LINES = 11


@dataclass(frozen=True)
class SheetFace:
    """One face of a sheet.

    Attributes
    ----------
    row : int
        Row of the landmark table.
    location : str
        File and frame, for the caption.
    outputs : mapping of str to ndarray, optional
        The face's row of ALIGNED_FACES, MASK, ALIGNED_LANDMARKS, HOG, POSE, AFFINE and, on a sheet with
        action units, AU. Unlike the server's AFFINE, which maps the crop, this AFFINE maps pixels of the
        image to aligned pixels; POSE refers to the image. None for a face without features.
    crop : ndarray of float32, shape (3, H, W), optional
        Values in [0, 1]; shown for a face without features.
    reason : str
        Reason why the face has no features.
    """

    row: int
    location: str
    outputs: Mapping[str, NDArray[Any]] | None = None
    crop: NDArray[np.float32] | None = None
    reason: str = ""


def draw_sheet(
    path: Path, faces: Sequence[SheetFace], settings: HogSettings, action_units: Sequence[str] = ()
) -> None:
    """Draw a contact sheet and save it.

    The left picture of each face shows the aligned face, dark outside the mask, with landmarks and the head's
    axes; the right one shows its HOG. A face without features has its crop and the reason instead.

    Parameters
    ----------
    path : Path
        The picture, with one of `picture_files.SUFFIXES`; written atomically.
    faces : sequence of SheetFace
        1 to `MAX_FACES` faces.
    settings : HogSettings
        Settings of HOG.
    action_units : sequence of str
        Names of the columns of AU; the caption of each face then has a line with its action units.

    Raises
    ------
    ValueError
        If the picture cannot be written, or the number of faces is not 1 to `MAX_FACES`.
    """
    check_picture_path(path)
    if not 1 <= len(faces) <= MAX_FACES:
        raise ValueError(f"a sheet has 1 to {MAX_FACES} faces, not {len(faces)}")
    sheet = _Sheet(len(faces), _sheet_title(faces), bool(action_units))
    for tile, face in enumerate(faces):
        _draw_tile(sheet, tile, face, settings, action_units)
    save_figure(sheet.figure, path)


def tile_columns(count: int) -> int:
    """Return the number of tiles per row that makes a sheet of `count` tiles about square."""
    tile_width, tile_height = 2 * PICTURE, PICTURE + CAPTION
    return min(count, round((count * tile_height / tile_width) ** 0.5) or 1)


class _Sheet:
    """A figure with tiles at positions in inches, so that no text overlaps for any number of faces."""

    def __init__(self, count: int, title: str, has_action_units: bool) -> None:
        self._columns = tile_columns(count)
        self._tile_height = PICTURE + CAPTION + LINE * has_action_units
        rows = -(-count // self._columns)
        self._width = self._columns * (2 * PICTURE + GAP + MARGIN) + MARGIN
        text = LEGEND + ACTION_UNITS_LEGEND * has_action_units
        legend = textwrap.wrap(text, int((self._width - 2 * MARGIN) * CHARACTERS_PER_INCH))
        self._header = TITLE + LINE * len(legend) + GAP
        self._height = self._header + rows * self._tile_height + GAP
        self.figure = Figure(figsize=(self._width, self._height), dpi=DPI)
        FigureCanvasAgg(self.figure)  # Text.get_window_extent needs a canvas.
        self._write(MARGIN, self._height - 0.12, [title], fontsize=11, weight="bold")
        self._write(MARGIN, self._height - TITLE, legend, fontsize=CAPTION_POINTS, color="0.3")

    def panel(self, tile: int, first: int, count: int = 1) -> Axes:
        """Add axes that span `count` of a tile's two pictures, from picture `first` (0 or 1) on."""
        left, top = self._corner(tile)
        left += first * (PICTURE + GAP)
        width = count * (PICTURE + GAP) - GAP
        bottom = top - PICTURE
        box = (left / self._width, bottom / self._height, width / self._width, PICTURE / self._height)
        return self.figure.add_axes(box)

    def caption(self, tile: int, heading: str, lines: Sequence[str]) -> None:
        """Write lines under a tile; shorten `heading` to the tile's width."""
        left, top = self._corner(tile)
        text = self._write(left, top - PICTURE - GAP, [heading, *lines], fontsize=CAPTION_POINTS)
        max_width = (2 * PICTURE + GAP) * self.figure.dpi
        length = len(heading)
        while (width := text.get_window_extent().width) > max_width:
            length = min(length - 1, int(length * max_width / width))
            text.set_text("\n".join([_shortened(heading, length), *lines]))

    def _write(self, left: float, top: float, lines: Sequence[str], **style: Any) -> Text:
        text = "\n".join(lines)
        # parse_math is off because a file name may contain dollar signs.
        style |= {"va": "top", "linespacing": 1.15, "parse_math": False}
        return self.figure.text(left / self._width, top / self._height, text, **style)

    def _corner(self, tile: int) -> tuple[float, float]:
        """Return a tile's left and top edge, inches from the figure's left and bottom."""
        row, column = divmod(tile, self._columns)
        left = MARGIN + column * (2 * PICTURE + GAP + MARGIN)
        return left, self._height - self._header - row * self._tile_height


def _sheet_title(faces: Sequence[SheetFace]) -> str:
    without_features = sum(face.outputs is None for face in faces)
    title = "1 face" if len(faces) == 1 else f"{len(faces)} faces"
    return f"{title}, {without_features} of them without features" if without_features else title


def _draw_tile(
    sheet: _Sheet, tile: int, face: SheetFace, settings: HogSettings, action_units: Sequence[str]
) -> None:
    lines = []
    if face.outputs is None:
        _draw_reason(sheet, tile, face)
    else:
        _draw_aligned(sheet.panel(tile, 0), face.outputs)
        face_size = len(face.outputs["MASK"])
        draw_hog(sheet.panel(tile, 1), face.outputs["HOG"], settings, face_size, 0.9)
        lines.append(_pose_caption(face.outputs["POSE"]))
        if action_units:
            lines.append(top_action_units(action_units, face.outputs["AU"]))
    heading = f"row {face.row}  ·  {face.location}" if face.location else f"row {face.row}"
    sheet.caption(tile, heading, lines)


def _shortened(text: str, length: int) -> str:
    """Omit the middle of a text, because files of one recording differ at the end of their names."""
    kept = length - 1
    return text[: kept // 2] + "…" + text[-(kept - kept // 2) :]


def _pose_caption(pose: NDArray[np.float32]) -> str:
    if not np.isfinite(pose).all():
        return "no pose"
    pitch, roll, yaw = np.degrees(subject_pose(pose[None])[0, :3])
    return f"pitch {_signed(pitch)}   yaw {_signed(yaw)}   roll {_signed(roll)}"


def _signed(degrees: float) -> str:
    rounded = round(float(degrees))
    return f"{rounded:+d}°".replace("-", "−") if rounded else "0°"


def _draw_reason(sheet: _Sheet, tile: int, face: SheetFace) -> None:
    first = 0
    if face.crop is not None:
        panel = sheet.panel(tile, 0)
        panel.imshow(face.crop.transpose(1, 2, 0).clip(0, 1), aspect="auto")
        panel.set_axis_off()
        first = 1
    pictures = 2 - first
    panel = sheet.panel(tile, first, pictures)
    panel.set(xticks=[], yticks=[], facecolor="0.88")
    panel.spines[:].set_visible(False)
    lines = textwrap.wrap(face.reason, pictures * REASON_CHARACTERS, max_lines=REASON_LINES, placeholder=" …")
    panel.text(
        0.5,
        0.5,
        "\n".join(lines),
        transform=panel.transAxes,
        ha="center",
        va="center",
        fontsize=CAPTION_POINTS,
        parse_math=False,
    )


def _draw_aligned(panel: Axes, outputs: Mapping[str, NDArray[Any]]) -> None:
    mask, points, affine = outputs["MASK"], outputs["ALIGNED_LANDMARKS"], outputs["AFFINE"]
    panel.imshow(displayable(outputs["ALIGNED_FACES"]) * np.where(mask, 1, OUTSIDE_BRIGHTNESS)[..., None])
    panel.autoscale(False)
    # A visible border separates white pixels outside the crop from the white page.
    panel.set(xticks=[], yticks=[])
    panel.spines[:].set(color="0.6", linewidth=0.5)
    draw_contours(panel, points, 0.6)
    if mask.any():
        # Padding closes the outline at the edges of the picture. zorder puts it above the jaw's contour.
        pixels = np.arange(-1, len(mask) + 1)
        panel.contour(pixels, pixels, np.pad(mask, 1), [0.5], colors=MASK_COLOR, linewidths=1, zorder=3)
    # Remove the scale of AFFINE, so that the arrows have the same length on all tiles.
    linear = affine[:, :2] / np.abs(np.linalg.det(affine[:, :2])) ** 0.5
    axes = 0.35 * len(mask) * pose_axes(outputs["POSE"], linear)
    draw_axes(panel, points[NOSE_TIP], axes, AXIS_COLORS, 1.6)
