"""`python -m export hog`: build the HOG model, check it against scikit-image, store it."""

import argparse
import importlib.metadata
from pathlib import Path

import numpy as np
from skimage.feature import hog as skimage_hog

from export.errors import ExportError
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
        help="side of the aligned face (default: what align_mask is configured for)",
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
        Side of the aligned face, pixels; by default what align_mask there is configured for.

    Returns
    -------
    Path, float
        The file and the largest difference from scikit-image that the check saw.

    Raises
    ------
    ExportError
        When the size is too small or not the configured one, or the check fails; the old model stays.
    """
    if face_size is None:
        face_size = configured_face_size(repository)
    if face_size < SMALLEST_FACE:
        raise ExportError(f"--face-size must be at least {SMALLEST_FACE} pixels, it is {face_size}")
    model = build_hog_graph(face_size)
    faces = check_faces(face_size)
    difference = float(np.abs(run_on_cpu(model, faces) - reference_features(faces)).max())
    if not difference <= TOLERANCE:
        raise ExportError(
            f"the HOG model differs from scikit-image by {difference}, more than {TOLERANCE}: "
            "nothing was written. This onnxruntime computes it wrongly; install the pinned one"
        )
    facts = {
        "made_from": "the definition of skimage.feature.hog, as an ONNX graph",
        "face_size": str(face_size),
        "orientations": str(ORIENTATIONS),
        "pixels_per_cell": str(CELL),
        "cells_per_block": str(BLOCK),
        "block_norm": "L2-Hys",
        "features": str(feature_length(face_size)),
        "checked_against": f"scikit-image {importlib.metadata.version('scikit-image')}",
        "largest_difference": f"{difference:.3e}",
    }
    return store_model(model, facts, repository, "hog"), difference


def check_faces(face_size: int) -> np.ndarray:
    """Return float32 faces ``[N, 3, face_size, face_size]`` with the special cases of HOG.

    Besides noise these are blank blocks, a blank face, edges in 8 directions (some on borders of bins), equal
    channels, and a corner of the fill value 128.
    """
    generator = np.random.default_rng(0)
    noise = generator.random((3, 3, face_size, face_size), dtype=np.float32)
    noise[1, :, :, : face_size // 2] = 0
    noise[2] = noise[2, :1]
    row, column = np.mgrid[:face_size, :face_size] - face_size // 2
    steps = [
        np.broadcast_to((row * y + column * x > 0).astype(np.float32), (3, face_size, face_size))
        for y, x in ((0, 1), (1, 0), (1, 1), (1, -1), (-1, 2), (2, 1), (-1, 0), (0, -1))
    ]
    filled = np.round(noise[0] * 4) / 4
    filled[:, face_size // 2 :, face_size // 3 :] = 128
    return np.stack([*noise, *steps, filled, np.zeros_like(filled)])


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
