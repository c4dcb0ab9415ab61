"""Random AU classifiers with a fixed seed: the parts of `export.au.classifiers`, without a file."""

import dataclasses
import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from export.au.classifiers import (
    LANDMARK_VALUES,
    ActionUnit,
    AuCheckpoint,
    Isotonic,
    Linear,
    Objective,
    Projection,
    Region,
    Sigmoid,
    Trees,
)

HOG_FEATURES = 5408

XGB_REGIONS: Mapping[str, Region] = {
    "AU01": "upper",
    "AU02": "upper",
    "AU04": "full",
    "AU07": "upper",
    "AU11": "lower",
    "AU12": "full",
    "AU14": "lower",
    "AU43": "full",
}
"""py-feat's region of some AUs of its XGBClassifier, in the order of its columns."""

SVM_REGIONS: Mapping[str, Region] = {"AU01": "upper", "AU02": "full", "AU12": "lower", "AU43": "full"}
"""The same of its SVMClassifier."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a random checkpoint.

    Attributes
    ----------
    features : int
        HOG features.
    components : dict of Region to int
        Components of each region.
    trees, depth : int
        Of each AU.
    """

    features: int = HOG_FEATURES
    components: Mapping[Region, int] = dataclasses.field(
        default_factory=lambda: {"upper": 12, "lower": 17, "full": 23}
    )
    trees: int = 9
    depth: int = 4


def random_xgb(
    seed: int,
    sizes: Sizes | None = None,
    regions: Mapping[str, Region] = XGB_REGIONS,
    calibrated: bool = False,
) -> AuCheckpoint:
    """Return a checkpoint of trees; AU07 has a hinge, the other AUs are logistic.

    Parameters
    ----------
    seed : int
    sizes : Sizes, optional
    regions : mapping of str to Region
        Name and region of each AU.
    calibrated : bool
        Whether AUs have calibrators: isotonic and sigmoid in turn.
    """
    sizes = sizes or Sizes()
    generator = np.random.default_rng(seed)
    units = []
    for index, (name, region) in enumerate(regions.items()):
        objective: Objective = "binary:hinge" if name == "AU07" else "binary:logistic"
        trees = random_trees(generator, sizes.components[region], sizes.trees, sizes.depth, objective)
        calibrator = (random_isotonic(generator), Sigmoid(-4.0, 1.7))[index % 2] if calibrated else None
        units.append(ActionUnit(name, region, trees, calibrator))
    return AuCheckpoint("xgb", random_projections(generator, sizes), tuple(units), random_origin(seed))


def random_svm(
    seed: int, sizes: Sizes | None = None, regions: Mapping[str, Region] = SVM_REGIONS
) -> AuCheckpoint:
    """Return a checkpoint of linear classifiers, with the parameters of `random_xgb`."""
    sizes = sizes or Sizes()
    generator = np.random.default_rng(seed)
    units = []
    for name, region in regions.items():
        weights = generator.normal(size=sizes.components[region] + LANDMARK_VALUES)
        weights[sizes.components[region] :] /= 50
        units.append(ActionUnit(name, region, Linear(weights, float(generator.normal()))))
    return AuCheckpoint("svm", random_projections(generator, sizes), tuple(units), random_origin(seed))


def random_origin(seed: int) -> dict[str, str]:
    """Return the metadata that a reader of checkpoint files would add."""
    sha256 = hashlib.sha256(str(seed).encode()).hexdigest()
    return {"weights": f"random_{seed}.skops", "weights_sha256": sha256}


def random_projections(generator: np.random.Generator, sizes: Sizes) -> dict[Region, Projection]:
    """Return projections with components of about unit variance for HOG features like `random_hog`'s."""
    projections: dict[Region, Projection] = {}
    for region, count in sizes.components.items():
        matrix = generator.normal(scale=8 / np.sqrt(sizes.features), size=(sizes.features, count))
        projections[region] = Projection(matrix, -0.1 * matrix.sum(axis=0))
    return projections


def random_trees(
    generator: np.random.Generator, components: int, trees: int, depth: int, objective: Objective
) -> Trees:
    """Return binary trees; one in five splits reads a landmark, one in ten inner nodes ends early."""
    arrays: dict[str, list[float]] = {name: [] for name in ("feature", "value", "left", "right")}

    def add(level: int) -> int:
        index = len(arrays["feature"])
        for values in arrays.values():
            values.append(-1)
        if level == depth or (level > 1 and generator.random() < 0.1):
            arrays["value"][index] = generator.normal(scale=0.2)
            return index
        if generator.random() < 0.2:
            arrays["feature"][index] = components + generator.integers(LANDMARK_VALUES)
            arrays["value"][index] = generator.integers(10, 100) + generator.choice([0.0, 0.5])
        else:
            arrays["feature"][index] = generator.integers(components)
            arrays["value"][index] = generator.normal()
        arrays["left"][index] = add(level + 1)
        arrays["right"][index] = add(level + 1)
        return index

    roots = [add(0) for _ in range(trees)]
    return Trees(
        objective=objective,
        base_margin=float(np.float32(generator.normal(scale=0.5))),
        roots=np.array(roots, np.int64),
        feature=np.array(arrays["feature"], np.int64),
        value=np.array(arrays["value"], np.float32),
        left=np.array(arrays["left"], np.int64),
        right=np.array(arrays["right"], np.int64),
    )


def random_isotonic(generator: np.random.Generator) -> Isotonic:
    """Return an increasing function on a part of [0, 1], with flat pieces, thresholds exact in float32."""
    x = np.unique(generator.uniform(0.1, 0.9, 30).astype(np.float32))
    steps = generator.random(len(x)) * (generator.random(len(x)) < 0.6)
    y = np.cumsum(steps)
    return Isotonic(x.astype(np.float64), (y / y[-1]).astype(np.float32).astype(np.float64))


def random_hog(
    generator: np.random.Generator, faces: int, features: int = HOG_FEATURES
) -> NDArray[np.float32]:
    """Draw features in [0, 0.6], a third of them exactly 0, as of masked faces."""
    hog = generator.random((faces, features), dtype=np.float32) * np.float32(0.6)
    hog[generator.random(hog.shape) < 1 / 3] = 0
    return hog


def random_landmarks(generator: np.random.Generator, faces: int) -> NDArray[np.int64]:
    """Draw aligned landmarks ``[faces, 68, 2]`` on a face of 112 pixels, some outside."""
    return generator.integers(-8, 120, (faces, 68, 2))
