"""`python -m export hog`: build the HOG model, check it against scikit-image, store it."""

import argparse
import importlib.metadata
from pathlib import Path

import numpy as np
from skimage.feature import hog as skimage_hog

from export.errors import ExportError
from export.hog.face_size import outdated_configs
from export.hog.graph import BLOCK, CELL, ORIENTATIONS, build_hog_graph, feature_length
from export.onnx_session import run_on_cpu
from export.repository import add_repository_argument, configured_face_size, store_model

TOLERANCE = 1e-5
"""Largest accepted difference of a feature; features are in [0, 1]."""

SMALLEST_FACE = CELL * BLOCK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "--face-size",
        type=int,
        metavar="PIXELS",
        help="change the side of the aligned face in all configs (default: keep align_mask's face_size)",
    )
    add_repository_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    """Export with the options of the command line."""
    path, difference = export_hog(arguments.repository, arguments.face_size)
    print(f"{path}: differs from scikit-image by at most {difference:.1e} on the check's faces")


def export_hog(repository: Path, face_size: int | None = None) -> tuple[Path, float]:
    """Build, check and store the HOG model.

    Parameters
    ----------
    repository : Path
        The model repository; ``hog/1/model.onnx`` in it is replaced.
    face_size : int, optional
        New side of the aligned face in pixels. Configurations with another face size are changed, too.
        Default: the parameter face_size of align_mask.

    Returns
    -------
    Path, float
        The file and the largest difference from scikit-image in the check.

    Raises
    ------
    ExportError
        If the size is too small, the check fails, or no size is given and the configurations disagree. An
        error leaves all files unchanged.
    """
    size = configured_face_size(repository) if face_size is None else face_size
    if size < SMALLEST_FACE:
        raise ExportError(f"the face size must be at least {SMALLEST_FACE} pixels, it is {size}")
    configs = outdated_configs(repository, size)
    if configs and face_size is None:
        names = ", ".join(str(path.relative_to(repository)) for path in configs)
        raise ExportError(
            f"{names}: face_size or dims differ from face_size {size} of align_mask/config.pbtxt; run "
            f"`python -m export hog --face-size {size}`, which updates them"
        )
    model = build_hog_graph(size)
    faces = check_faces(size)
    difference = float(np.abs(run_on_cpu(model, faces) - reference_features(faces)).max())
    if not difference <= TOLERANCE:
        raise ExportError(
            f"the HOG model differs from scikit-image by {difference}, more than {TOLERANCE}: "
            "nothing was written. Install the version of onnxruntime in requirements-export.txt"
        )
    facts = {
        "made_from": "the definition of skimage.feature.hog, as an ONNX graph",
        "face_size": str(size),
        "orientations": str(ORIENTATIONS),
        "pixels_per_cell": str(CELL),
        "cells_per_block": str(BLOCK),
        "block_norm": "L2-Hys",
        "features": str(feature_length(size)),
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
    noise = generator.random((3, 3, face_size, face_size), dtype=np.float32)
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


def reference_features(faces: np.ndarray) -> np.ndarray:
    """Return scikit-image's HOG ``[N, features]`` of faces ``[N, 3, S, S]``."""
    return np.stack(
        [
            skimage_hog(
                face,
                orientations=ORIENTATIONS,
                pixels_per_cell=(CELL, CELL),
                cells_per_block=(BLOCK, BLOCK),
                block_norm="L2-Hys",
                channel_axis=0,
            )
            for face in faces
        ]
    )
