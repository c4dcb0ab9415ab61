"""py-feat's AU checkpoints: a `.skops` file with its class XGBClassifier or SVMClassifier.

The layout and the region of each AU are those of `feat/au_detectors/StatLearning/SL_test.py` in py-feat
2.1.5.
"""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from export.au.attributes import describe, get_attribute, get_object
from export.au.booster import parse_booster
from export.au.class_names import BOOSTER, KINDS, PCA, SCALER, XGB_CLASSIFIER
from export.au.classifiers import LANDMARK_VALUES, ActionUnit, AuCheckpoint, Linear, Projection, Region, Trees
from export.au.estimators import (
    check_binary_classes,
    fold_projection,
    parse_calibrator,
    parse_linear,
)
from export.au.skops_archive import read_file
from export.au.skops_values import SkopsObject, read_skops
from export.errors import ExportError, located

ACTION_UNITS = tuple("1 2 4 5 6 7 9 10 11 12 14 15 17 20 23 24 25 26 28 43".split())  # noqa: SIM905
"""Numbers of the AUs that py-feat knows, in the order of its columns."""

MAX_TREES, MAX_NODES = 100_000, 3_000_000
"""Bounds of all trees together, which limit an export to half a minute and 3 GB of memory.

The published checkpoint has 2,400 trees with 600,000 nodes.
"""

_REGIONS: tuple[Region, ...] = ("upper", "lower", "full")

_AUS_OF_REGIONS: dict[str, dict[Region, set[str]]] = {
    "xgb": {"upper": {"1", "2", "7"}, "lower": {"11", "14", "17", "23", "24", "26"}},
    "svm": {"upper": {"1", "4", "6"}, "lower": {"11", "12", "17"}},
}
"""AUs of the regions upper and lower; the classifiers of all other AUs read the region full."""


def load_au_checkpoint(path: Path) -> AuCheckpoint:
    """Read and validate a checkpoint of py-feat's AU classifiers. Nothing in it is imported or executed.

    Parameters
    ----------
    path : Path
        The `.skops` file.

    Returns
    -------
    AuCheckpoint

    Raises
    ------
    ExportError
        If the file is missing, damaged or no checkpoint of AU classifiers, has a type that this reader does
        not support, or its parts do not fit each other. The message names the file and the part.
    """
    with located(str(path)):
        data = read_file(path)
        root = read_skops(data)
        kind = KINDS.get(root.class_name)
        if kind is None:
            raise ExportError(f"it holds {root.class_name}, not py-feat's XGBClassifier or SVMClassifier")
        projections = _parse_projections(root)
        units = _parse_units(root, kind, projections)
    facts = {"weights": path.name, "weights_sha256": hashlib.sha256(data).hexdigest()}
    return AuCheckpoint(kind, projections, units, facts | _describe(kind, projections, units))


def _parse_projections(root: SkopsObject) -> dict[Region, Projection]:
    projections: dict[Region, Projection] = {}
    for region in _REGIONS:
        scaler = get_object(root, f"scaler_{region}", SCALER)
        pca = get_object(root, f"pca_model_{region}", PCA)
        with located(f"region {region}"):
            projections[region] = fold_projection(scaler, pca)
    lengths = {region: len(projection.matrix) for region, projection in projections.items()}
    if len(set(lengths.values())) > 1:
        raise ExportError(f"the regions read HOG features of different lengths: {_join(lengths)}")
    return projections


def _parse_units(
    root: SkopsObject, kind: Literal["xgb", "svm"], projections: dict[Region, Projection]
) -> tuple[ActionUnit, ...]:
    classifiers = _get_by_unit(root, "classifiers")
    calibrators = _get_by_unit(root, "calibrators") if kind == "xgb" else {}
    units = []
    for number in _unit_numbers(root, kind, classifiers):
        with located(f"AU{number}"):
            region = _region_of(kind, number)
            classifier, inputs = _parse_classifier(classifiers[number], kind)
            components = projections[region].matrix.shape[1]
            if inputs != components + LANDMARK_VALUES:
                raise ExportError(
                    f"the classifier has {inputs} inputs, but region {region} gives {components} components "
                    f"and {LANDMARK_VALUES} landmark coordinates"
                )
            calibrator = parse_calibrator(calibrators[number]) if number in calibrators else None
        units.append(ActionUnit(f"AU{number:0>2}", region, classifier, calibrator))
        _check_size(units)
    return tuple(units)


def _check_size(units: list[ActionUnit]) -> None:
    forests = [unit.classifier for unit in units if isinstance(unit.classifier, Trees)]
    trees = sum(len(forest.roots) for forest in forests)
    nodes = sum(len(forest.feature) for forest in forests)
    if trees > MAX_TREES or nodes > MAX_NODES:
        raise ExportError(
            f"{units[0].name} to {units[-1].name} have {trees:,} trees with {nodes:,} nodes; the bounds are "
            f"{MAX_TREES:,} and {MAX_NODES:,}"
        )


def _get_by_unit(root: SkopsObject, name: str) -> dict[str, object]:
    """Return `classifiers` or `calibrators` by number of the AU; py-feat's keys are "AU1" to "AU43"."""
    by_key = root.attributes.get(name)
    if name == "calibrators" and by_key is None:
        return {}
    if not isinstance(by_key, dict):
        raise ExportError(f"{name} is {describe(by_key)}, not a dict by AU")
    for key in by_key:
        _check_known(key, name)
    return {key.removeprefix("AU"): value for key, value in by_key.items()}


def _check_known(key: object, place: str) -> None:
    known = [f"AU{number}" for number in ACTION_UNITS]
    if not isinstance(key, str) or key not in known:
        raise ExportError(
            f"{place} names {describe(key)}, an AU unknown to py-feat, which knows {', '.join(known)}"
        )


def _unit_numbers(root: SkopsObject, kind: str, classifiers: dict[str, object]) -> list[str]:
    """Return the AUs in the order of py-feat's output.

    `SVMClassifier` predicts the AUs that have classifiers, `XGBClassifier` those in its attribute `au_keys`.
    """
    if kind == "svm":
        numbers = [number for number in ACTION_UNITS if number in classifiers]
    else:
        keys = root.attributes.get("au_keys", [f"AU{number}" for number in ACTION_UNITS])
        if not isinstance(keys, list):
            raise ExportError(f"au_keys is {describe(keys)}, not a list of AUs")
        for key in keys:
            _check_known(key, "au_keys")
        numbers = [str(key).removeprefix("AU") for key in keys]
    missing = [f"AU{number}" for number in numbers if number not in classifiers]
    if missing:
        raise ExportError(f"classifiers lacks {', '.join(missing)}, which au_keys or py-feat's default names")
    if not numbers or len(set(numbers)) != len(numbers):
        raise ExportError("the checkpoint names no AU, or one twice")
    return numbers


def _region_of(kind: str, number: str) -> Region:
    regions = _AUS_OF_REGIONS[kind]
    return next((region for region, numbers in regions.items() if number in numbers), "full")


def _parse_classifier(source: object, kind: str) -> tuple[Trees | Linear, int]:
    """Return the classifier and the number of its inputs."""
    if kind == "svm":
        if not isinstance(source, SkopsObject):
            raise ExportError(f"the classifier is {describe(source)}, not a support vector machine")
        linear = parse_linear(source)
        return linear, len(linear.weights)
    if not isinstance(source, SkopsObject) or source.class_name != XGB_CLASSIFIER:
        raise ExportError(f"the classifier is {describe(source)}, not {XGB_CLASSIFIER}")
    if "classes_" in source.attributes:
        check_binary_classes(source)
    missing = source.attributes.get("missing")
    if missing is not None and not (isinstance(missing, float) and math.isnan(missing)):
        raise ExportError(
            f"the classifier treats inputs of {describe(missing)} as missing; only missing=NaN is supported"
        )
    handle = get_attribute(get_object(source, "_Booster", BOOSTER), "handle")
    if not isinstance(handle, bytes):
        raise ExportError(f"the booster's handle is {describe(handle)}, not bytes")
    return parse_booster(handle)


def _describe(
    kind: str, projections: dict[Region, Projection], units: tuple[ActionUnit, ...]
) -> dict[str, str]:
    """Return the facts of a checkpoint for the metadata of the ONNX file."""
    facts = {
        "kind": kind,
        "hog_features": str(len(projections["full"].matrix)),
        "components": _join({region: part.matrix.shape[1] for region, part in projections.items()}),
        "objectives": _join({unit.name: _objective(unit.classifier) for unit in units}),
        "calibrators": _join(
            {unit.name: type(unit.calibrator).__name__.lower() for unit in units if unit.calibrator}
        )
        or "none",
    }
    trees = {unit.name: len(unit.classifier.roots) for unit in units if isinstance(unit.classifier, Trees)}
    return facts | ({"trees": _join(trees)} if trees else {})


def _objective(classifier: Trees | Linear) -> str:
    return classifier.objective if isinstance(classifier, Trees) else "linear"


def _join(values: Mapping[Any, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())
