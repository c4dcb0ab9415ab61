"""Settings of the HOG features, as parameters of hog's configuration."""

import dataclasses
from collections.abc import Mapping

from export.errors import ExportError

NORMS = ("L1", "L1-sqrt", "L2", "L2-Hys")

MAX_ORIENTATIONS = 45
"""From 58 on, py-feat's float32 rounding puts some exactly vertical gradients into the neighbouring bin."""

MAX_FACE_SIZE = 1_500
"""Limit in pixels: the masked faces of a request of 128 faces then have 3.5 GB."""

MAX_FEATURES = 1_000_000
"""Limit per face: a request of 128 faces then has 512 MB of features."""


@dataclasses.dataclass(frozen=True)
class HogSettings:
    """Settings with the names of `skimage.feature.hog`; the defaults are those of py-feat's AU classifiers.

    Attributes
    ----------
    orientations : int
        Number of orientation bins, 1 to `MAX_ORIENTATIONS`.
    pixels_per_cell : int
        Side of a cell in pixels.
    cells_per_block : int
        Side of a block in cells.
    block_norm : str
        One of `NORMS`.
    transform_sqrt : bool
        Whether gradients are computed from the square roots of the pixels.

    Raises
    ------
    ExportError
        If a setting is out of range.
    """

    orientations: int = 8
    pixels_per_cell: int = 8
    cells_per_block: int = 2
    block_norm: str = "L2-Hys"
    transform_sqrt: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.orientations <= MAX_ORIENTATIONS:
            raise ExportError(f"orientations must be 1 to {MAX_ORIENTATIONS}, it is {self.orientations}")
        for name in ("pixels_per_cell", "cells_per_block"):
            if getattr(self, name) < 1:
                raise ExportError(f"{name} must be at least 1, it is {getattr(self, name)}")
        if self.block_norm not in NORMS:
            raise ExportError(f"block_norm must be one of {', '.join(NORMS)}, it is {self.block_norm!r}")

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> "HogSettings":
        """Read parameters of hog's configuration. A missing parameter has its default.

        Raises
        ------
        ExportError
            If a parameter is invalid.
        """
        texts = {**cls().as_parameters(), **parameters}
        return cls(
            orientations=_whole_number(texts, "orientations"),
            pixels_per_cell=_whole_number(texts, "pixels_per_cell"),
            cells_per_block=_whole_number(texts, "cells_per_block"),
            block_norm=texts["block_norm"],
            transform_sqrt=_truth_value(texts, "transform_sqrt"),
        )

    def as_parameters(self) -> dict[str, str]:
        """Return the parameters of hog's configuration."""
        return {
            "orientations": str(self.orientations),
            "pixels_per_cell": str(self.pixels_per_cell),
            "cells_per_block": str(self.cells_per_block),
            "block_norm": self.block_norm,
            "transform_sqrt": str(self.transform_sqrt).lower(),
        }

    def as_options(self, face_size: int) -> str:
        """Return the options of `python -m export hog` that select a face size and these settings."""
        return (
            f"--face-size {face_size} --orientations {self.orientations} --cell {self.pixels_per_cell} "
            f"--block {self.cells_per_block} --norm {self.block_norm} "
            f"--{'' if self.transform_sqrt else 'no-'}transform-sqrt"
        )

    def feature_length(self, face_size: int) -> int:
        """Return the number of features of a square face of `face_size` pixels.

        Raises
        ------
        ExportError
            If the face is smaller than a block or 2 pixels or larger than `MAX_FACE_SIZE`, or has more than
            `MAX_FEATURES` features.
        """
        if face_size < 2:
            raise ExportError(f"the face size must be at least 2 pixels, for gradients, it is {face_size}")
        if face_size > MAX_FACE_SIZE:
            raise ExportError(f"the face size must be at most {MAX_FACE_SIZE} pixels, it is {face_size}")
        smallest = self.pixels_per_cell * self.cells_per_block
        if face_size < smallest:
            raise ExportError(
                f"the face size must be at least {smallest} pixels, it is {face_size}: a block has "
                f"{self.cells_per_block} cells a side, a cell {self.pixels_per_cell} pixels"
            )
        blocks = face_size // self.pixels_per_cell - self.cells_per_block + 1
        length = blocks**2 * self.cells_per_block**2 * self.orientations
        if length > MAX_FEATURES:
            raise ExportError(
                f"a face would have {length} features, more than {MAX_FEATURES}: choose larger cells, "
                "smaller blocks or fewer orientations"
            )
        return length


PYFEAT_OPTIONS = HogSettings().as_options(face_size=112)
"""Face size and settings with which py-feat trains AU classifiers, as options of `python -m export hog`."""

PYFEAT_COMMAND = f"python -m export hog {PYFEAT_OPTIONS}"
"""Builds the HOG features of py-feat's AU classifiers."""


def _whole_number(texts: Mapping[str, str], name: str) -> int:
    if not texts[name].isdecimal():
        raise ExportError(f"{name} must be a whole number, it is {texts[name]!r}")
    return int(texts[name])


def _truth_value(texts: Mapping[str, str], name: str) -> bool:
    if texts[name] not in ("true", "false"):
        raise ExportError(f"{name} must be true or false, it is {texts[name]!r}")
    return texts[name] == "true"
