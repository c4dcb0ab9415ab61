"""Settings of the server's HOG features."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class HogSettings:
    """Settings with the names of `skimage.feature.hog`; the defaults are those of py-feat's AU classifiers.

    Attributes
    ----------
    orientations : int
        Number of orientation bins.
    pixels_per_cell : int
        Side of a cell in pixels.
    cells_per_block : int
        Side of a block in cells.
    block_norm : str
        "L1", "L1-sqrt", "L2" or "L2-Hys".
    transform_sqrt : bool
        Whether gradients are computed from the square roots of the pixels.
    """

    orientations: int = 8
    pixels_per_cell: int = 8
    cells_per_block: int = 2
    block_norm: str = "L2-Hys"
    transform_sqrt: bool = False

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> "HogSettings":
        """Read the parameters of the model `hog`.

        A missing parameter has its default, because older servers have no parameters and only the defaults.

        Raises
        ------
        ValueError
            If a parameter is invalid.
        """
        default = cls()
        return cls(
            orientations=_positive(parameters, "orientations", default.orientations),
            pixels_per_cell=_positive(parameters, "pixels_per_cell", default.pixels_per_cell),
            cells_per_block=_positive(parameters, "cells_per_block", default.cells_per_block),
            block_norm=parameters.get("block_norm", default.block_norm),
            transform_sqrt=parameters.get("transform_sqrt", "false") == "true",
        )

    def blocks_a_side(self, face_size: int) -> int:
        """Return the number of blocks along a side of a face of `face_size` pixels."""
        return face_size // self.pixels_per_cell - self.cells_per_block + 1

    def feature_length(self, face_size: int) -> int:
        """Return the number of features of a square face of `face_size` pixels."""
        return self.blocks_a_side(face_size) ** 2 * self.cells_per_block**2 * self.orientations


def _positive(parameters: Mapping[str, str], name: str, default: int) -> int:
    text = parameters.get(name, str(default))
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(
            f"the parameter {name} of the server's model hog must be a whole number above 0, it is {text!r}: "
            "run `python -m export hog` on the server's model repository"
        )
    return int(text)
