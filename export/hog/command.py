"""`python -m export hog`: build the HOG model, check it against scikit-image, store it."""

import argparse
import dataclasses
import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from skimage.feature import hog as skimage_hog

from export.errors import ExportError
from export.hog.configs import configured_settings, outdated_configs
from export.hog.graph import build_hog_graph
from export.hog.settings import NORMS, HogSettings
from export.onnx_session import run_on_cpu
from export.repository import add_repository_argument, configured_face_size, locked, store_model

TOLERANCE = 1e-5
"""Largest accepted difference of a feature; features are in [0, 1]."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command. An option that is not given keeps the configured setting."""
    parser.add_argument("--orientations", type=int, metavar="N", help="number of orientation bins")
    parser.add_argument(
        "--cell", dest="pixels_per_cell", type=int, metavar="PIXELS", help="side of a cell, in pixels"
    )
    parser.add_argument(
        "--block", dest="cells_per_block", type=int, metavar="CELLS", help="side of a block, in cells"
    )
    parser.add_argument("--norm", dest="block_norm", choices=NORMS, help="block norm")
    parser.add_argument(
        "--transform-sqrt",
        action=argparse.BooleanOptionalAction,
        help="compute gradients from the square roots of the pixels",
    )
    parser.add_argument(
        "--face-size", type=int, metavar="PIXELS", help="side of the aligned face, a parameter of align_mask"
    )
    parser.epilog = (
        "An option that is not given keeps the configured setting. Given options change all configurations."
    )
    add_repository_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    """Export with the options of the command line."""
    names = [field.name for field in dataclasses.fields(HogSettings)]
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    path, difference = export_hog(arguments.repository, arguments.face_size, **given)
    print(f"{path}: differs from scikit-image by at most {difference:.1e} on the check's faces")


def export_hog(repository: Path, face_size: int | None = None, **changes: Any) -> tuple[Path, float]:
    """Build, check and store the HOG model.

    Parameters
    ----------
    repository : Path
        The model repository; ``hog/1/model.onnx`` in it is replaced.
    face_size : int, optional
        New side of the aligned face in pixels. Default: the parameter face_size of align_mask.
    **changes
        New values of attributes of `HogSettings`. Default: the parameters of hog. With a face size or
        changes, all configurations are updated.

    Returns
    -------
    Path, float
        The file and the largest difference from scikit-image in the check.

    Raises
    ------
    ExportError
        If a setting is invalid or needs a larger face, the check fails, or nothing is to be changed and the
        configurations disagree. An error leaves all files unchanged.
    """
    with locked(repository):
        return _export_hog(repository, face_size, changes)


def _export_hog(repository: Path, face_size: int | None, changes: dict[str, Any]) -> tuple[Path, float]:
    settings = dataclasses.replace(configured_settings(repository), **changes)
    size = configured_face_size(repository) if face_size is None else face_size
    configs = outdated_configs(repository, size, settings)
    if configs and face_size is None and not changes:
        names = ", ".join(str(path.relative_to(repository)) for path in configs)
        raise ExportError(
            f"{names}: parameters or dims differ from face_size {size} of align_mask/config.pbtxt or from "
            f"the parameters of hog/config.pbtxt; run `python -m export hog "
            f"{settings.as_options(size)}`, which updates them"
        )
    model = build_hog_graph(size, settings)
    difference = _largest_difference(model, check_faces(size), settings)
    if not difference <= TOLERANCE:
        raise ExportError(
            f"the HOG model differs from scikit-image by {difference}, more than {TOLERANCE}: "
            "nothing was written. Install the version of onnxruntime in requirements-export.txt"
        )
    facts = {
        "made_from": "the definition of skimage.feature.hog, as an ONNX graph",
        "face_size": str(size),
        **settings.as_parameters(),
        "features": str(settings.feature_length(size)),
        "checked_against": f"scikit-image {importlib.metadata.version('scikit-image')}",
        "largest_difference": f"{difference:.3e}",
    }
    return store_model(model, facts, repository, "hog", configs), difference


def check_faces(face_size: int) -> np.ndarray:
    """Return float32 faces ``[N, 3, face_size, face_size]`` with the special cases of HOG.

    The cases are noise, blank blocks, equal channels, edges in 8 directions (some on the border of two
    bins), a corner with the fill value 128, and a blank face.
    """
    generator = np.random.default_rng(0)
    # Multiples of 1/256: quotients of their differences are no slopes within float32 rounding of a border.
    noise = (generator.integers(0, 256, (3, 3, face_size, face_size)) / 256).astype(np.float32)
    noise[1, :, :, : face_size // 2] = 0
    noise[2] = noise[2, :1]
    row, column = np.mgrid[:face_size, :face_size] - face_size // 2
    edges = [
        np.broadcast_to((row * y + column * x > 0).astype(np.float32), (3, face_size, face_size))
        for y, x in ((0, 1), (1, 0), (1, 1), (1, -1), (-1, 2), (2, 1), (-1, 0), (0, -1))
    ]
    with_fill = np.round(noise[0] * 4) / 4
    with_fill[:, face_size // 2 :, face_size // 3 :] = 128
    return np.stack([*noise, *edges, with_fill, np.zeros_like(with_fill)])


def _largest_difference(model: onnx.ModelProto, faces: np.ndarray, settings: HogSettings) -> float:
    """Return the largest difference of the model's features from scikit-image's."""
    computed = run_on_cpu(model, faces)
    return max(
        float(np.abs(features - _reference_features(face, settings)).max())
        for face, features in zip(faces, computed, strict=True)
    )


def _reference_features(face: np.ndarray, settings: HogSettings) -> np.ndarray:
    """Return scikit-image's HOG ``[features]`` of a face ``[3, S, S]``."""
    features: np.ndarray = skimage_hog(
        face,
        orientations=settings.orientations,
        pixels_per_cell=(settings.pixels_per_cell, settings.pixels_per_cell),
        cells_per_block=(settings.cells_per_block, settings.cells_per_block),
        block_norm=settings.block_norm,
        transform_sqrt=settings.transform_sqrt,
        channel_axis=0,
    )
    return features
