"""The HOG graph with other settings, against scikit-image and against py-feat's own `HOGLayer`.

The references differ from each other where rounding decides the bin of a gradient (docs/SPEC.md, section 4).
The graph follows py-feat, or scikit-image for square roots of pixels. 97 of 100 faces equal both.
"""

import hashlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from google.protobuf import json_format

from align_mask.pipeline import process
from align_mask.settings import Settings
from align_mask.stage_clock import StageClock
from export.hog.graph import build_hog_graph
from export.hog.settings import MAX_ORIENTATIONS, NORMS, HogSettings
from export.repository import DEFAULT_REPOSITORY, read_config
from tests.support import oracles
from tests.support.face_data import photo_faces

PYFEAT_SCRIPT = Path(__file__).resolve().parents[1] / "tools" / "pyfeat_hog.py"

TOLERANCE = 1e-5
MAX_UNEQUAL_FRACTION = 0.03

HISTOGRAMS = list(itertools.product((6, 8, 9, 12), (4, 8, 16), (False, True)))
"""Orientations, pixels per cell and square root, on which the histograms of the cells depend."""

BLOCKS = list(itertools.product((1, 2, 3), NORMS))
"""Cells per block and block norm."""

COMBINATIONS = [
    HogSettings(orientations, pixels, cells, norm, transform_sqrt)
    for (orientations, pixels, transform_sqrt), (cells, norm) in itertools.product(HISTOGRAMS, BLOCKS)
]


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    """Return 100 masked faces ``[100, 3, 112, 112]``: 60 of a photograph and 40 synthetic ones."""
    frames, landmarks = photo_faces(60, 801)
    frames[::4] = np.round(frames[::4] * 255) / np.float32(255)
    landmarks[::6] += np.float32([45, -25])  # the jaw and a part of the face are outside the crop
    config = json_format.MessageToDict(
        read_config(DEFAULT_REPOSITORY, "align_mask"), preserving_proto_field_name=True
    )
    aligned = process(
        torch.from_numpy(frames),
        torch.from_numpy(landmarks),
        frozenset({"MASKED_FACES"}),
        Settings.from_model_config(config),
        StageClock(),
    )
    return np.concatenate([aligned.outputs["MASKED_FACES"].numpy(), synthetic_faces()])


def synthetic_faces() -> np.ndarray:
    """Return noise with blank blocks, equal channels and fill values, and straight edges of 10 directions."""
    generator = np.random.default_rng(802)
    noise = generator.random((30, 3, 112, 112), dtype=np.float32)
    noise[:10, :, :, :50] = 0
    noise[10:20] = noise[10:20, :1]
    noise[20:, :, 60:, 70:] = 128
    noise[20:25, :, :40] = 0.4
    y, x = np.mgrid[:112, :112] - 56
    directions = ((0, 1), (1, 0), (1, 1), (1, -1), (-1, -1), (2, 1), (-1, 2), (-1, 0), (0, -1), (3, -1))
    edges = [np.broadcast_to(row * y + column * x > 0, (3, 112, 112)) for row, column in directions]
    return np.concatenate([noise, np.array(edges, dtype=np.float32)])


def features(settings: HogSettings, faces: np.ndarray) -> np.ndarray:
    model = build_hog_graph(faces.shape[-1], settings)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    batches = np.split(faces, range(4, len(faces), 4))
    return np.concatenate([session.run(None, {"MASKED_FACES": batch})[0] for batch in batches])


def unequal_fraction(computed: np.ndarray, expected: np.ndarray) -> float:
    assert computed.shape == expected.shape
    return float((np.abs(computed - expected).max(axis=1) > TOLERANCE).mean())


@pytest.mark.parametrize("settings", COMBINATIONS[::23], ids=str)
def test_features_equal_scikit_image(faces: np.ndarray, settings: HogSettings):
    subset = faces[::2]
    expected = np.array([oracles.hog_features(face, **vars(settings)) for face in subset])
    assert unequal_fraction(features(settings, subset), expected) <= MAX_UNEQUAL_FRACTION


@pytest.fixture(scope="module")
def pyfeat_outputs(faces: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Return the outputs of `pyfeat_hog.py`: for each of `HISTOGRAMS`, one combination of `BLOCKS`."""
    python = os.environ.get("PYFEAT_PYTHON", f"{sys.prefix}-parity/bin/python")
    folder = tmp_path_factory.mktemp("pyfeat")
    np.savez(folder / "faces.npz", faces=faces)
    arguments = [
        {
            "orientations": orientations,
            "pixels_per_cell": pixels,
            "transform_sqrt": transform_sqrt,
            "cells_per_block": one_of_blocks(index)[0],
            "block_normalization": one_of_blocks(index)[1],
        }
        for index, (orientations, pixels, transform_sqrt) in enumerate(HISTOGRAMS)
    ]
    (folder / "settings.json").write_text(json.dumps(arguments))
    files = [str(folder / name) for name in ("faces.npz", "settings.json", "outputs.npz")]
    subprocess.run([python, str(PYFEAT_SCRIPT), *files], check=True)
    with np.load(folder / "outputs.npz") as outputs:
        return dict(outputs)


def one_of_blocks(index: int) -> tuple[int, str]:
    return BLOCKS[5 * index % len(BLOCKS)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "index", range(len(HISTOGRAMS)), ids=lambda index: "-".join(map(str, HISTOGRAMS[index]))
)
def test_features_of_all_settings_equal_both_references(
    faces: np.ndarray, pyfeat_outputs: dict[str, np.ndarray], index: int
):
    """Compute the references' histograms once for all blocks and norms, and check this on one combination."""
    orientations, pixels, transform_sqrt = HISTOGRAMS[index]
    cells = {
        "scikit-image": np.array(
            [oracles.skimage_cells(face, orientations, pixels, transform_sqrt) for face in faces]
        ),
        "py-feat": pyfeat_outputs[f"cells_{index}"],
    }
    one = HogSettings(orientations, pixels, *one_of_blocks(index), transform_sqrt)
    expected = np.array([oracles.hog_features(face, **vars(one)) for face in faces[::20]])
    assert_normalized(cells["scikit-image"][::20], one, expected)
    assert_normalized(cells["py-feat"], one, pyfeat_outputs[f"features_{index}"])

    fractions = {}
    for block, norm in BLOCKS:
        computed = features(HogSettings(orientations, pixels, block, norm, transform_sqrt), faces)
        for name, histograms in cells.items():
            expected = oracles.normalized_blocks(histograms, block, norm)
            fractions[name, block, norm] = unequal_fraction(computed, expected)
    assert max(fractions.values()) <= MAX_UNEQUAL_FRACTION, fractions


def assert_normalized(cells: np.ndarray, settings: HogSettings, expected: np.ndarray) -> None:
    computed = oracles.normalized_blocks(cells, settings.cells_per_block, settings.block_norm)
    np.testing.assert_allclose(computed, expected, atol=1e-6)


@pytest.mark.parametrize("orientations", [1, 2, 3, 6, 7, 9, 12, 16, 45])
@pytest.mark.parametrize("noise", [0, 1, 64])
def test_features_along_the_fill_value_equal_the_reference(orientations: int, noise: int):
    """Gradients along the edge lie within an ulp of the bins' borders. `noise` is in units of 2**-24."""
    generator = np.random.default_rng([orientations, noise])
    face = 0.4 + generator.integers(0, 2, (3, 112, 112)) * noise * 2.0**-24
    face[:, generator.integers(0, 2, (28, 28)).repeat(4, axis=0).repeat(4, axis=1).astype(bool)] = 128
    face = face.astype(np.float32)
    computed = features(HogSettings(orientations), face[None])[0]
    assert np.abs(computed - oracles.hog_by_definition(face, orientations)).max() < TOLERANCE
    computed = features(HogSettings(orientations, transform_sqrt=True), face[None])[0]
    expected = oracles.hog_features(face, orientations, transform_sqrt=True)
    assert np.abs(computed - expected).max() < TOLERANCE


@pytest.mark.parametrize("orientations", [6, 8, 9, 12, 24])
@pytest.mark.parametrize("levels", [4, 255])
def test_square_roots_of_few_levels_equal_scikit_image(orientations: int, levels: int):
    """Gradients lie within an ulp of irrational borders, such as 60 degrees between 0, 1/4 and 3/4."""
    generator = np.random.default_rng([orientations, levels])
    faces = (generator.integers(0, levels + 1, (5, 3, 112, 112)) / levels).astype(np.float32)
    settings = HogSettings(orientations, block_norm="L1-sqrt", transform_sqrt=True)
    expected = np.array([oracles.hog_features(face, **vars(settings)) for face in faces])
    np.testing.assert_allclose(features(settings, faces), expected, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("face_size", "settings"),
    [
        (112, HogSettings(pixels_per_cell=112, cells_per_block=1)),
        (112, HogSettings(orientations=45, pixels_per_cell=7, cells_per_block=12, block_norm="L2")),
        (97, HogSettings(orientations=1, pixels_per_cell=5, cells_per_block=19, block_norm="L1")),
        (16, HogSettings(orientations=2, pixels_per_cell=1, cells_per_block=1, transform_sqrt=True)),
        (2, HogSettings(pixels_per_cell=1, cells_per_block=1)),
    ],
)
def test_extreme_settings_equal_scikit_image(face_size: int, settings: HogSettings):
    face = photo_faces(1, 803, (112, 112))[0][:, :, :face_size, :face_size]
    expected = oracles.hog_features(face[0], **vars(settings))
    assert settings.feature_length(face_size) == len(expected)
    np.testing.assert_allclose(features(settings, face)[0], expected, atol=TOLERANCE)


@pytest.mark.filterwarnings("ignore:invalid value encountered in sqrt")
def test_square_roots_of_negative_pixels_are_nan_as_in_scikit_image():
    face = photo_faces(1, 804)[0]
    face[:, :, 50:60, 50:60] = -0.1
    expected = oracles.hog_features(face[0], transform_sqrt=True)
    assert np.isnan(expected).any()
    computed = features(HogSettings(transform_sqrt=True), face)[0]
    np.testing.assert_allclose(computed, expected, atol=TOLERANCE)


def test_exact_borders_are_in_the_upper_bin_up_to_the_maximum_of_orientations():
    """With 58 orientations py-feat's rounding puts a vertical gradient into the lower bin."""
    x, y, degrees = np.float32([1, 0, -1]), np.float32([1, 1, 1]), np.array([45, 90, 135])
    for orientations in range(1, MAX_ORIENTATIONS + 1):
        bins = oracles.orientation_bins(x, y, orientations)
        np.testing.assert_array_equal(bins, degrees * orientations // 180)
    assert oracles.orientation_bins(x, y, 58)[1] == 28


def test_default_graph_is_unchanged():
    """The bits of HOG, and its speed, must not change for existing users."""
    digest = hashlib.sha256(build_hog_graph(112).SerializeToString()).hexdigest()
    assert digest == "f2ff35e6a2c91338f4ad78d4d236f0668f27fb721c39ef4fe1b146a1636a920b"


def test_features_of_other_settings_do_not_depend_on_the_batch(faces: np.ndarray):
    settings = HogSettings(9, 16, 1, "L1-sqrt", transform_sqrt=True)
    session = onnxruntime.InferenceSession(build_hog_graph(112, settings).SerializeToString())
    together = session.run(None, {"MASKED_FACES": faces})[0]
    for face in range(0, 100, 9):
        alone = session.run(None, {"MASKED_FACES": faces[face : face + 1]})[0][0]
        np.testing.assert_array_equal(alone, together[face])
