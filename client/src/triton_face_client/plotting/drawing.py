"""Pictures of what the service makes of faces.

They are drawn with matplotlib: ``pip install 'triton-face-client[plot]'``. Its pyplot, which would choose a
backend for the notebook that this is called from, is not used.
"""

import contextlib
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from matplotlib.text import Text

from triton_face_client.pose import subject_pose

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

NOSE_TIP = 30

AXIS_COLORS = ("tab:red", "tab:green", "tab:blue")

BRIGHT_AXIS_COLORS = ("#ff3b30", "#34e05f", "#3fa7ff")
"""The same hues for a sheet, where the arrows are thin and lie on small faces."""

MASK_COLOR = "#ffd60a"

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".pdf", ".svg")

DPI = 110

MOST_FACES = 500
"""On a sheet: some 8000 pixels a side, which picture viewers still open."""

OUTSIDE_MASK = 0.3
"""How bright a sheet leaves the pixels that HOG does not see."""

LEGEND = (
    "Left: the aligned face, its mask (yellow, dark outside), landmarks (cyan), head axes (x red, y green, z "
    "blue); white is off the crop. Right: HOG, edges of each cell. Angles: + is up, to the subject's right."
)

# Lengths of a sheet, inches.
PICTURE = 1.7
GAP = 0.06
CAPTION = 0.42
MARGIN = 0.18
TITLE = 0.4
LINE = 0.14

CAPTION_POINTS = 8
LEGEND_CHARACTERS = 17
"""To an inch."""
REASON_CHARACTERS = 24
"""In a line as wide as one picture; a reason without a crop has two pictures' width."""
REASON_LINES = 11


@dataclass(frozen=True)
class SheetFace:
    """One face of a sheet.

    Attributes
    ----------
    row : int
        Its row in the table.
    place : str
        Where it was seen, such as a file's name and a frame.
    face : mapping of str to ndarray, optional
        Its row of ALIGNED_FACES, MASK, ALIGNED_LANDMARKS, HOG, POSE, and of AFFINE: from pixels of the image
        that POSE is of to aligned pixels, stretched if the crop was. None when it was refused.
    crop : ndarray of float, shape (3, H, W), optional
        Values in [0, 1]; shown when it was refused.
    reason : str
        Why it was refused.
    """

    row: int
    place: str
    face: Mapping[str, np.ndarray] | None = None
    crop: np.ndarray | None = None
    reason: str = ""


def check_picture_path(path: Path) -> None:
    """Check, before the work is done, that a picture can be written.

    Raises
    ------
    ValueError
        When the suffix is of no picture, or the folder does not exist.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: pictures end in {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder")


def draw_face(
    path: Path,
    crop: np.ndarray,
    landmarks: np.ndarray,
    face: Mapping[str, np.ndarray],
    pixel_aspect: float = 1.0,
) -> None:
    """Draw six panels about one face and save them.

    Parameters
    ----------
    path : Path
        The file, with one of `SUFFIXES`; it is written whole or not at all.
    crop : ndarray of float32, shape (3, H, W)
        What was sent, values in [0, 1].
    landmarks : ndarray of float32, shape (68, 2)
        In pixels of `crop`.
    face : mapping of str to ndarray
        One face's row of HOG, POSE, ALIGNED_LANDMARKS, MASK, ALIGNED_FACES and MASKED_FACES.
    pixel_aspect : float
        Height over width, in the image that POSE is of, of what became a pixel of `crop`. The panel with the
        pose has the image's proportions.

    Raises
    ------
    ValueError
        When the file cannot be written.
    """
    check_picture_path(path)
    figure = Figure(figsize=(11, 7.6), layout="constrained")
    panels = figure.subplots(2, 3)
    image = crop.transpose(1, 2, 0)
    _show(panels[0, 0], image, "FRAMES and LANDMARKS")
    _draw_landmarks(panels[0, 0], landmarks)
    _show(panels[0, 1], _displayable(face["ALIGNED_FACES"]), "ALIGNED_FACES, ALIGNED_LANDMARKS")
    _draw_landmarks(panels[0, 1], face["ALIGNED_LANDMARKS"])
    _show(panels[0, 2], face["MASK"], "MASK: hull and forehead")
    _show(panels[1, 0], _displayable(face["MASKED_FACES"]), "MASKED_FACES")
    _draw_hog(panels[1, 1], face["HOG"], len(face["MASK"]), 1.4)
    panels[1, 1].set_title("HOG: edges of each cell", fontsize=10)
    _show(panels[1, 2], image, "POSE: head axes (x red, y green, z blue)")
    panels[1, 2].set_aspect(pixel_aspect)
    axes = 0.5 * np.ptp(landmarks[:, 0]) * pose_axes(face["POSE"], np.diag([1, 1 / pixel_aspect]))
    _draw_axes(panels[1, 2], landmarks[NOSE_TIP], axes, AXIS_COLORS, 2.5)
    _save(figure, path)


def draw_sheet(path: Path, faces: Sequence[SheetFace]) -> None:
    """Draw a contact sheet and save it.

    Each face has two pictures. On the left is the aligned face, dark outside the mask, with its landmarks and
    the head's axes; on the right its HOG. A face that was refused has its crop and the reason instead.

    Parameters
    ----------
    path : Path
        The file, with one of `SUFFIXES`; it is written whole or not at all.
    faces : sequence of SheetFace
        At least one and at most `MOST_FACES`.

    Raises
    ------
    ValueError
        When the file cannot be written, or for another number of faces.
    """
    check_picture_path(path)
    if not 1 <= len(faces) <= MOST_FACES:
        raise ValueError(f"a sheet has 1 to {MOST_FACES} faces, not {len(faces)}")
    sheet = _Sheet(len(faces), _sheet_title(faces))
    for place, face in enumerate(faces):
        _draw_tile(sheet, place, face)
    _save(sheet.figure, path)


def tile_columns(count: int) -> int:
    """Return how many tiles lie side by side in a sheet of `count`, so that it is about square."""
    tile_width, tile_height = 2 * PICTURE, PICTURE + CAPTION
    return min(count, round((count * tile_height / tile_width) ** 0.5) or 1)


def head_rotation(pose: np.ndarray) -> np.ndarray:
    """Return the head's rotation ``[3, 3]`` in camera axes, of a raw pose ``[6]`` (SPEC section 5)."""
    (cos_a, cos_b, cos_c), (sin_a, sin_b, sin_c) = np.cos(pose[:3]), np.sin(pose[:3])
    about_x = np.array([[1, 0, 0], [0, cos_a, -sin_a], [0, sin_a, cos_a]])
    about_y = np.array([[cos_b, 0, sin_b], [0, 1, 0], [-sin_b, 0, cos_b]])
    about_z = np.array([[cos_c, -sin_c, 0], [sin_c, cos_c, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def pose_axes(pose: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """Project the head's axes into a picture.

    Parameters
    ----------
    pose : ndarray, shape (6,)
        Raw, of the image.
    picture : ndarray, shape (2, 2)
        How directions (x, y) of the image become directions of the picture.

    Returns
    -------
    ndarray of float64, shape (3, 2)
        Of axes of length 1 in the image: x to the image's right, y down, z out of the face.
    """
    axes = head_rotation(pose)
    # z points away from the camera; drawn is its opposite, where the nose points.
    seen = np.stack([axes[:2, 0], axes[:2, 1], -axes[:2, 2]])
    return seen @ np.asarray(picture).T


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


class _Sheet:
    """A figure whose tiles have places measured in inches, so that nothing overlaps at any size."""

    def __init__(self, count: int, title: str) -> None:
        self._columns = tile_columns(count)
        rows = -(-count // self._columns)
        self._width = self._columns * (2 * PICTURE + GAP + MARGIN) + MARGIN
        legend = textwrap.wrap(LEGEND, int((self._width - 2 * MARGIN) * LEGEND_CHARACTERS))
        self._header = TITLE + LINE * len(legend) + GAP
        self._height = self._header + rows * (PICTURE + CAPTION) + GAP
        self.figure = Figure(figsize=(self._width, self._height), dpi=DPI)
        FigureCanvasAgg(self.figure)  # to measure text with
        self._write(MARGIN, self._height - 0.12, [title], fontsize=11, weight="bold")
        self._write(MARGIN, self._height - TITLE, legend, fontsize=CAPTION_POINTS, color="0.3")

    def panel(self, tile: int, picture: int, pictures: int = 1) -> Axes:
        """Add axes over `pictures` pictures of a tile, from the `picture`-th on."""
        left, top = self._corner(tile)
        left += picture * (PICTURE + GAP)
        width = pictures * (PICTURE + GAP) - GAP
        bottom = top - PICTURE
        box = (left / self._width, bottom / self._height, width / self._width, PICTURE / self._height)
        return self.figure.add_axes(box)

    def caption(self, tile: int, heading: str, line: str) -> None:
        """Write two lines under a tile, the first as much of `heading` as there is room for."""
        left, top = self._corner(tile)
        text = self._write(left, top - PICTURE - GAP, [heading, line], fontsize=CAPTION_POINTS)
        room = (2 * PICTURE + GAP) * self.figure.dpi
        most = len(heading)
        while (width := text.get_window_extent().width) > room:
            most = min(most - 1, int(most * room / width))
            text.set_text(f"{_shortened(heading, most)}\n{line}")

    def _write(self, left: float, top: float, lines: Sequence[str], **style: Any) -> Text:
        text = "\n".join(lines)
        # A file may have dollars in its name: no formulas.
        style |= {"va": "top", "linespacing": 1.15, "parse_math": False}
        return self.figure.text(left / self._width, top / self._height, text, **style)

    def _corner(self, tile: int) -> tuple[float, float]:
        """Return a tile's left and top, inches from the figure's left and bottom."""
        row, column = divmod(tile, self._columns)
        left = MARGIN + column * (2 * PICTURE + GAP + MARGIN)
        return left, self._height - self._header - row * (PICTURE + CAPTION)


def _sheet_title(faces: Sequence[SheetFace]) -> str:
    refused = sum(face.face is None for face in faces)
    title = "1 face" if len(faces) == 1 else f"{len(faces)} faces"
    return f"{title}, {refused} of them without features" if refused else title


def _draw_tile(sheet: _Sheet, tile: int, face: SheetFace) -> None:
    pose = ""
    if face.face is None:
        _draw_refused(sheet, tile, face)
    else:
        _draw_aligned(sheet.panel(tile, 0), face.face)
        _draw_hog(sheet.panel(tile, 1), face.face["HOG"], len(face.face["MASK"]), 0.9)
        pose = _pose_caption(face.face["POSE"])
    sheet.caption(tile, f"row {face.row}  ·  {face.place}" if face.place else f"row {face.row}", pose)


def _shortened(text: str, most: int) -> str:
    """Leave out the middle: files of one recording differ at the end of their names."""
    kept = most - 1
    return text[: kept // 2] + "…" + text[-(kept - kept // 2) :]


def _pose_caption(pose: np.ndarray) -> str:
    if not np.isfinite(pose).all():
        return "no pose"
    pitch, roll, yaw = np.degrees(subject_pose(pose[None])[0, :3])
    return f"pitch {_signed(pitch)}   yaw {_signed(yaw)}   roll {_signed(roll)}"


def _signed(degrees: float) -> str:
    whole = round(float(degrees))
    return f"{whole:+d}°".replace("-", "−") if whole else "0°"


def _draw_refused(sheet: _Sheet, tile: int, face: SheetFace) -> None:
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


def _draw_aligned(panel: Axes, face: Mapping[str, np.ndarray]) -> None:
    mask, points, affine = face["MASK"], face["ALIGNED_LANDMARKS"], face["AFFINE"]
    panel.imshow(_displayable(face["ALIGNED_FACES"]) * np.where(mask, 1, OUTSIDE_MASK)[..., None])
    panel.autoscale(False)
    # Drawn, not turned off: the frame tells the white of the fill from the page.
    panel.set(xticks=[], yticks=[])
    panel.spines[:].set(color="0.6", linewidth=0.5)
    _draw_contours(panel, points, 0.6)
    if mask.any():
        # A border around the mask closes its outline at the edges; above the jaw, colours do not blend.
        places = np.arange(-1, len(mask) + 1)
        panel.contour(places, places, np.pad(mask, 1), [0.5], colors=MASK_COLOR, linewidths=1, zorder=3)
    linear = affine[:, :2] / np.abs(np.linalg.det(affine[:, :2])) ** 0.5
    axes = 0.35 * len(mask) * pose_axes(face["POSE"], linear)
    _draw_axes(panel, points[NOSE_TIP], axes, BRIGHT_AXIS_COLORS, 1.6)


def _show(panel: Axes, image: np.ndarray, title: str) -> None:
    panel.imshow(image, cmap="gray")
    panel.autoscale(False)
    panel.set_title(title, fontsize=10)
    panel.set_axis_off()


def _displayable(face: np.ndarray) -> np.ndarray:
    """Bring the fill's 128 into the picture's range."""
    return face.transpose(1, 2, 0).clip(0, 1)


def _draw_landmarks(panel: Axes, points: np.ndarray) -> None:
    _draw_contours(panel, points, 0.8)
    panel.plot(points[:, 0], points[:, 1], ".", color="yellow", markersize=3)


def _draw_contours(panel: Axes, points: np.ndarray, width: float) -> None:
    for first, end, closed in CONTOURS.values():
        contour = points[first:end]
        if closed:
            contour = np.concatenate([contour, contour[:1]])
        panel.plot(contour[:, 0], contour[:, 1], "-", color="cyan", linewidth=width)


def _draw_hog(panel: Axes, features: np.ndarray, face_size: int, width: float) -> None:
    """Draw every cell as strokes along its edges, as strong as the mean of the blocks it is in."""
    cells = cell_strengths(features)
    count = len(cells)
    cell = face_size / count
    gradient = np.pi * (np.arange(ORIENTATIONS) + 0.5) / ORIENTATIONS
    along_edge = 0.45 * cell * np.stack([-np.sin(gradient), np.cos(gradient)], axis=1)
    row, column = np.mgrid[:count, :count]
    centres = (np.stack([column, row], axis=-1) + 0.5)[:, :, None] * cell
    strokes = np.stack([centres - along_edge, centres + along_edge], axis=3).reshape(-1, 2, 2)
    # A face of a single colour has no edge at all.
    strengths = cells.ravel() / max(cells.max(), np.finfo(np.float32).tiny)
    panel.add_collection(
        # As pixels in PDF and SVG too: sixty faces have a hundred thousand strokes.
        LineCollection(strokes, colors="white", alpha=strengths, linewidths=width, rasterized=True)
    )
    panel.set(xlim=(0, face_size), ylim=(face_size, 0), aspect="equal", facecolor="black")
    panel.set(xticks=[], yticks=[])


def _draw_axes(panel: Axes, nose: np.ndarray, axes: np.ndarray, colors: Sequence[str], width: float) -> None:
    if not np.isfinite(axes).all():
        return  # a pose that the service refused
    for axis, color in zip(axes, colors, strict=True):
        # Annotations would vanish, and not be cut off, where a tip lies outside the panel.
        panel.add_patch(
            FancyArrowPatch(
                nose,
                nose + axis,
                zorder=4,
                arrowstyle="-|>",
                color=color,
                linewidth=width,
                mutation_scale=4 * width,
                shrinkA=2,
                shrinkB=2,
            )
        )


def _save(figure: Figure, path: Path) -> None:
    """Write the whole file or nothing."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        figure.savefig(part, dpi=DPI, format=path.suffix[1:].lower())
        part.replace(path)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
