"""The reader of AU checkpoints and the NumPy reference: against py-feat, and with unsuitable files."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from export.au.checkpoint import load_au_checkpoint
from export.au.classifiers import AuCheckpoint, Isotonic, Sigmoid
from export.au.reference import calibrate, classify, reference_action_units
from export.errors import ExportError
from tests.support.au_checkpoints import VARIANTS
from tests.support.edited_checkpoint import EditedCheckpoint, json_node

OLD_FILES = Path(__file__).resolve().parents[1] / "data" / "au_checkpoints"
OLD_XGB = OLD_FILES / "xgboost_1.5.2.skops"
OLD_SVM = OLD_FILES / "scikit-learn_1.2.2_svm.skops"

COLUMNS = [
    f"AU{number:02}" for number in (1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15, 17, 20, 23, 24, 25, 26, 28, 43)
]


def check_projections(checkpoint: AuCheckpoint, reference: dict[str, np.ndarray]) -> None:
    for region, projection in checkpoint.projections.items():
        components = reference["HOG"] @ projection.matrix + projection.offset
        expected = reference[f"INPUTS_{region.upper()}"][:, : components.shape[1]]
        # scikit-learn computes the components in float32, without a mean with cancellation.
        np.testing.assert_allclose(components, expected, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_equal_those_of_pyfeat(au_checkpoints: dict[str, Path], variant: str):
    path = au_checkpoints[variant]
    checkpoint = load_au_checkpoint(path)
    reference = dict(np.load(path.with_suffix(".npz")))
    check_projections(checkpoint, reference)
    assert [unit.name for unit in checkpoint.units] == [f"AU{name[2:]:0>2}" for name in reference["NAMES"]]
    for column, unit in enumerate(checkpoint.units):
        inputs = reference[f"INPUTS_{unit.region.upper()}"]
        output = classify(unit.classifier, inputs)
        assert output.std() > 0, "the test would not notice a constant"
        np.testing.assert_allclose(output, reference["RAW"][:, column], atol=1e-6)
        expected = reference["AU"][:, column]
        # A calibrator has steep segments, therefore it gets py-feat's own probabilities.
        calibrated = calibrate(unit.calibrator, reference["RAW"][:, column])
        np.testing.assert_allclose(calibrated[~np.isnan(expected)], expected[~np.isnan(expected)], atol=1e-6)


def test_variants_have_what_their_options_say(au_checkpoints: dict[str, Path]):
    checkpoints = {name: load_au_checkpoint(path) for name, path in au_checkpoints.items()}
    for name in ("xgb", "svm"):
        assert [unit.name for unit in checkpoints[name].units] == COLUMNS
        assert checkpoints[name].kind == name
    calibrators = {name: {type(unit.calibrator) for unit in checkpoints[name].units} for name in VARIANTS}
    assert Isotonic in calibrators["xgb_isotonic"]
    assert Sigmoid in calibrators["xgb_sigmoid"]
    objectives = {unit.name: unit.classifier.objective for unit in checkpoints["xgb"].units}
    assert [name for name, objective in objectives.items() if objective == "binary:hinge"] == ["AU07"]
    trees = [len(unit.classifier.roots) for unit in checkpoints["xgb_early_stopping"].units]
    assert max(trees) < 80
    assert all(count % 2 == 0 for count in trees)
    components = {projection.matrix.shape for projection in checkpoints["xgb_isotonic"].projections.values()}
    assert len(components) == 3


def test_isotonic_calibrator_clips_where_scikit_learn_returns_nan(au_checkpoints: dict[str, Path]):
    path = au_checkpoints["xgb_isotonic_nan"]
    edited = EditedCheckpoint(path)
    x = edited.get_array("calibrators", "AU1", "X_thresholds_")
    y = edited.get_array("calibrators", "AU1", "y_thresholds_")
    assert x[0] > 0
    assert x[-1] < 1
    unit = load_au_checkpoint(path).units[0]
    assert calibrate(unit.calibrator, np.array([0.0, 1.0])).tolist() == [y[0], y[-1]]


@pytest.mark.parametrize("path", sorted(OLD_FILES.glob("*.skops")), ids=lambda path: path.stem)
def test_files_of_old_releases(path: Path):
    checkpoint = load_au_checkpoint(path)
    reference = np.load(path.with_suffix(".npz"))
    action_units = reference_action_units(checkpoint, reference["HOG"], reference["ALIGNED_LANDMARKS"])
    np.testing.assert_allclose(action_units, reference["AU"], atol=1e-6)


def test_origin_describes_the_file(au_checkpoints: dict[str, Path]):
    origin = load_au_checkpoint(OLD_XGB).origin
    assert origin == {
        "weights": "xgboost_1.5.2.skops",
        "weights_sha256": hashlib.sha256(OLD_XGB.read_bytes()).hexdigest(),
        "kind": "xgb",
        "hog_features": "64",
        "components": "upper 3, lower 3, full 3",
        "objectives": "AU01 binary:logistic, AU07 binary:hinge, AU11 binary:logistic",
        "calibrators": "none",
        "trees": "AU01 4, AU07 4, AU11 4",
    }
    assert load_au_checkpoint(OLD_SVM).origin["objectives"] == "AU04 linear, AU12 linear, AU43 linear"
    assert "AU01 isotonic" in load_au_checkpoint(au_checkpoints["xgb_isotonic"]).origin["calibrators"]


def assert_equal(one: AuCheckpoint, other: AuCheckpoint) -> None:
    """Assert that two checkpoints compute the same."""
    for region, projection in one.projections.items():
        assert_equal_fields(projection, other.projections[region])
    assert [(unit.name, unit.region) for unit in one.units] == [
        (unit.name, unit.region) for unit in other.units
    ]
    for unit, twin in zip(one.units, other.units, strict=True):
        assert_equal_fields(unit.classifier, twin.classifier)
        assert unit.calibrator is None
        assert twin.calibrator is None


def assert_equal_fields(one: object, other: object) -> None:
    assert type(one) is type(other)
    for field in dataclasses.fields(one):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


def test_a_saved_model_is_read_like_a_snapshot(tmp_path: Path):
    edited = EditedCheckpoint(OLD_XGB)
    snapshot = json.loads(edited.get_booster("AU1"))
    edited.set_booster("AU1", json.dumps(snapshot["Model"], indent=1).encode())
    assert_equal(load_au_checkpoint(edited.save(tmp_path / "saved.skops")), load_au_checkpoint(OLD_XGB))


def test_au_keys_select_and_order_the_units_of_xgb(tmp_path: Path):
    edited = EditedCheckpoint(OLD_XGB)
    edited.get("au_keys")["content"] = [json_node("AU11"), json_node("AU1")]
    checkpoint = load_au_checkpoint(edited.save(tmp_path / "selected.skops"))
    assert [(unit.name, unit.region) for unit in checkpoint.units] == [("AU11", "lower"), ("AU01", "upper")]


def test_feature_names_of_a_table_are_ignored(tmp_path: Path):
    edited = EditedCheckpoint(OLD_XGB)
    names = {"__module__": "numpy", "__class__": "ndarray", "__loader__": "NdArrayNode", "type": "json"}
    names |= {"content": [json_node("hog_0")], "shape": json_node("1")}
    edited.replace("scaler_upper", "feature_names_in_", node=names)
    assert_equal(load_au_checkpoint(edited.save(tmp_path / "names.skops")), load_au_checkpoint(OLD_XGB))


def _object_array(edited: EditedCheckpoint) -> None:
    node = {"__module__": "numpy", "__class__": "ndarray", "__loader__": "NdArrayNode", "type": "json"}
    edited.replace(
        "scaler_upper", "mean_", node=node | {"content": [json_node(1.0)], "shape": json_node("1")}
    )


def _scaled(*names: str, factor: float) -> Callable[[EditedCheckpoint], None]:
    def edit(edited: EditedCheckpoint) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            edited.set_array(*names, value=edited.get_array(*names) * factor)

    return edit


def _shortened(*names: str) -> Callable[[EditedCheckpoint], None]:
    return lambda edited: edited.set_array(*names, value=edited.get_array(*names)[:-1])


def _typed(*names: str, **fields: object) -> Callable[[EditedCheckpoint], None]:
    return lambda edited: edited.get(*names).update(fields)


def _function(edited: EditedCheckpoint) -> None:
    node = {"__module__": "os", "__class__": "system", "__loader__": "FunctionNode"}
    edited.replace("classifiers", "AU1", "eval_metric", node=node)


def _reduced(edited: EditedCheckpoint) -> None:
    arguments = {"__module__": "builtins", "__class__": "tuple", "__loader__": "TupleNode"}
    node = {"__module__": "os", "__class__": "system", "__loader__": "ConstructorFromReduceNode"}
    edited.replace("calibrators", node=node | {"content": arguments | {"content": [json_node("true")]}})


def _circle(edited: EditedCheckpoint) -> None:
    state = edited.schema["content"]
    state["__id__"] = 1
    edited.replace("calibrators", node=dict.fromkeys(state) | {"__loader__": "CachedNode", "__id__": 1})


def _two_types(edited: EditedCheckpoint) -> None:
    edited.replace("calibrators", node=json_node(1) | {"__id__": edited.get("scaler_upper")["__id__"]})


def _deep(edited: EditedCheckpoint) -> None:
    node = json_node(1)
    for _ in range(200):
        node = {"__module__": "builtins", "__class__": "list", "__loader__": "ListNode", "content": [node]}
    edited.replace("calibrators", node=node)


def _same_classifier(name: str) -> Callable[[EditedCheckpoint], None]:
    return lambda edited: edited.replace("classifiers", name, node=edited.get("classifiers", "AU1"))


def _calibrator(**fields: object) -> Callable[[EditedCheckpoint], None]:
    """Return an edit that adds an isotonic calibrator with changed attributes."""

    def edit(edited: EditedCheckpoint) -> None:
        empty = {"__module__": "builtins", "__class__": "dict", "__loader__": "DictNode"}
        keys = {"__module__": "builtins", "__class__": "list", "__loader__": "ListNode", "content": []}
        node = {
            "__module__": "sklearn.isotonic",
            "__class__": "IsotonicRegression",
            "__loader__": "ObjectNode",
        }
        node["content"] = empty | {"content": {}, "key_types": keys}
        edited.replace("calibrators", node=empty | {"content": {"AU1": node}, "key_types": keys})
        attributes = {"X_thresholds_": [0.1, 0.9], "y_thresholds_": [0.2, 0.7], "X_min_": 0.1, "X_max_": 0.9}
        for name, value in (attributes | fields).items():
            if isinstance(value, list):
                edited.set_array("calibrators", "AU1", name, value=np.array(value))
            else:
                edited.set_value("calibrators", "AU1", name, value=value)

    return edit


def _unknown_calibrator(edited: EditedCheckpoint) -> None:
    _calibrator()(edited)
    edited.replace("calibrators", "AU1", node=edited.get("scaler_upper"))


def _calibrator_of_unknown_unit(edited: EditedCheckpoint) -> None:
    _calibrator()(edited)
    edited.replace("calibrators", "AU99", node=edited.get("calibrators", "AU1"))


UNSUITABLE_XGB = {
    "function": (_function, "os.system"),
    "constructor": (_reduced, "os.system"),
    "unknown class": (
        _typed("pca_model_full", __class__="IncrementalPCA"),
        "_pca.IncrementalPCA is not supported",
    ),
    "class of two lines": (
        _typed("pca_model_full", __class__="P\nCA\x1b[31m"),
        r"_pca.P\\nCA\\x1b\[31m' is not",
    ),
    "attribute of two lines": (
        lambda edited: edited.replace("a\nb" * 99, node=json_node([])),
        r"schema.json: 'a\\nba\\nb.*: a JsonNode holds",
    ),
    "member of two lines": (
        _typed("scaler_upper", "mean_", file="a\nb"),
        r"mean_: 'a\\nb': the archive lacks",
    ),
    "other object": (_typed(__module__="sklearn.svm._classes", __class__="SVC"), "not py-feat's"),
    "unknown loader": (_typed("scaler_lower", __loader__="TreeNode"), "TreeNode"),
    "loader is a list": (_typed("scaler_lower", __loader__=[]), "not supported"),
    "object array": (_object_array, "scaler_upper: mean_: an object array"),
    "pickled array": (
        lambda edited: edited.set_array("scaler_upper", "mean_", value=np.array([None, 1])),
        "an object array, which is a pickle",
    ),
    "two types of one object": (_two_types, "denotes objects of two types"),
    "circle": (_circle, "contains itself"),
    "deep": (_deep, "inside one another"),
    "missing region": (
        lambda edited: edited.remove("pca_model_lower"),
        "lacks the attribute pca_model_lower",
    ),
    "swapped": (
        lambda edited: edited.replace("pca_model_full", node=edited.get("scaler_full")),
        "pca_model_full is sklearn.preprocessing._data.StandardScaler",
    ),
    "no components": (lambda edited: edited.remove("pca_model_full", "components_"), "region full"),
    "scaler's length": (
        _shortened("scaler_full", "mean_"),
        "mean_ of .*StandardScaler has 63 values, not 64",
    ),
    "PCA's length": (_shortened("pca_model_full", "mean_"), "mean_ of .*PCA has 63 values, not 64"),
    "components": (
        _shortened("pca_model_upper", "components_"),
        "AU1: the classifier has 139 inputs, but region upper gives 2",
    ),
    "infinite mean": (
        _scaled("pca_model_full", "mean_", factor=np.inf),
        "mean_ has values that are not finite",
    ),
    "negative scale": (_scaled("scaler_full", "scale_", factor=-1), "scale_ of StandardScaler has values"),
    "zero scale": (_scaled("scaler_full", "scale_", factor=0), "scale_ of StandardScaler has values"),
    "overflow": (_scaled("scaler_full", "scale_", factor=1e-320), "StandardScaler and PCA is not finite"),
    "scale is text": (
        lambda edited: edited.set_value("scaler_full", "scale_", value="1"),
        "scale_ is '1', not an array",
    ),
    "flag": (lambda edited: edited.set_value("scaler_full", "with_std", value=2), "with_std is 2"),
    "missing classifier": (lambda edited: edited.remove("classifiers", "AU7"), "classifiers lacks AU7"),
    "classifiers": (lambda edited: edited.set_value("classifiers", value=3), "classifiers is 3, not a dict"),
    "unknown unit": (_same_classifier("AU45"), "'AU45', an AU unknown to py-feat"),
    "padded unit": (_same_classifier("AU01"), "'AU01', an AU unknown to py-feat"),
    "unknown key": (
        lambda edited: edited.get("au_keys")["content"].append(json_node("AU45")),
        "au_keys names 'AU45'",
    ),
    "key twice": (lambda edited: edited.get("au_keys")["content"].append(json_node("AU1")), "one twice"),
    "no key": (lambda edited: edited.get("au_keys").update(content=[]), "names no AU"),
    "other classifier": (
        lambda edited: edited.replace("classifiers", "AU7", node=edited.get("scaler_full")),
        "AU7: the classifier is sklearn.preprocessing._data.StandardScaler",
    ),
    "missing values": (
        lambda edited: edited.set_value("classifiers", "AU1", "missing", value=0.0),
        "AU1: the classifier treats inputs of 0.0 as missing",
    ),
    "other classes": (
        lambda edited: edited.set_array("classifiers", "AU1", "classes_", value=np.array([-1, 1])),
        r"AU1: the classes are \[-1, 1\]",
    ),
    "no booster": (
        lambda edited: edited.remove("classifiers", "AU1", "_Booster"),
        "lacks the attribute _Booster",
    ),
    "lost booster": (
        lambda edited: edited.set_value("classifiers", "AU1", "_Booster", "handle", value=None),
        "handle is None, not bytes",
    ),
    "calibrator": (_unknown_calibrator, "AU1: the calibrator is .*StandardScaler"),
    "calibrator's unit": (_calibrator_of_unknown_unit, "calibrators names 'AU99'"),
    "falling thresholds": (_calibrator(X_thresholds_=[0.9, 0.1]), "does not increase"),
    "calibrator's length": (_calibrator(y_thresholds_=[0.1]), "y_thresholds_ of .* has 1 values, not 2"),
    "calibrator's range": (_calibrator(X_max_=0.8), "X_min_ and X_max_"),
    "huge components": (_scaled("pca_model_full", "components_", factor=1e39), "has numbers beyond 1e\\+30"),
    "huge calibrator": (_calibrator(y_thresholds_=[0.0, 1e39]), "y_thresholds_ has numbers beyond"),
    "long calibrator": (
        _calibrator(X_thresholds_=np.linspace(0.1, 0.9, 100_001).tolist()),
        "X_thresholds_ has 100,001 values, more than 100,000",
    ),
    "calibrator is NaN": (_calibrator(y_thresholds_=[np.nan, 1.0]), "not finite"),
}


@pytest.mark.parametrize("name", UNSUITABLE_XGB)
def test_unsuitable_xgb_checkpoints_are_refused_by_name(tmp_path: Path, name: str):
    edit, message = UNSUITABLE_XGB[name]
    check_refused(OLD_XGB, edit, message, tmp_path)


UNSUITABLE_SVM = {
    "classes": (
        lambda edited: edited.set_array("classifiers", "AU4", "classes_", value=np.array([0, 1, 2])),
        r"AU4: the classes are \[0, 1, 2\]",
    ),
    "length": (
        lambda edited: edited.set_array("classifiers", "AU12", "coef_", value=np.ones((1, 138))),
        "AU12: the classifier has 138 inputs, but region lower gives 3 components and 136 landmark",
    ),
    "rows": (
        lambda edited: edited.set_array("classifiers", "AU4", "coef_", value=np.ones((3, 139))),
        "must be one row",
    ),
    "bias": (
        lambda edited: edited.set_array("classifiers", "AU4", "intercept_", value=np.array([np.nan])),
        "intercept_ is an array",
    ),
    "no bias": (
        lambda edited: edited.remove("classifiers", "AU4", "intercept_"),
        "lacks the attribute intercept_",
    ),
    "unknown unit": (
        lambda edited: edited.replace("classifiers", "AU45", node=edited.get("classifiers", "AU4")),
        "'AU45', an AU unknown to py-feat",
    ),
    "no unit": (lambda edited: edited.get("classifiers").update(content={}), "names no AU"),
    "other classifier": (
        lambda edited: edited.replace("classifiers", "AU4", node=edited.get("scaler_full")),
        "AU4: the classes are",
    ),
}


@pytest.mark.parametrize("name", UNSUITABLE_SVM)
def test_unsuitable_svm_checkpoints_are_refused_by_name(tmp_path: Path, name: str):
    edit, message = UNSUITABLE_SVM[name]
    check_refused(OLD_SVM, edit, message, tmp_path)


def test_an_svc_needs_a_linear_kernel(au_checkpoints: dict[str, Path], tmp_path: Path):
    def edit(edited: EditedCheckpoint) -> None:
        edited.set_value("classifiers", "AU2", "kernel", value="rbf")

    check_refused(au_checkpoints["svc"], edit, "AU2: the SVC has the kernel 'rbf'", tmp_path)


def check_refused(source: Path, edit: Callable[[EditedCheckpoint], None], message: str, folder: Path) -> None:
    edited = EditedCheckpoint(source)
    edit(edited)
    path = edited.save(folder / "edited.skops")
    with pytest.raises(ExportError, match=message) as raised:
        load_au_checkpoint(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 700


@pytest.mark.parametrize("bound", ["MAX_TREES", "MAX_NODES"])
def test_number_of_trees_and_nodes_is_bounded(monkeypatch: pytest.MonkeyPatch, bound: str):
    """The three AUs have 4 trees each; the bounds apply to their sum."""
    monkeypatch.setattr(f"export.au.checkpoint.{bound}", 11)
    with pytest.raises(ExportError, match=r"AU01 to AU\d\d have \d+ trees with \d+ nodes; the bounds are"):
        load_au_checkpoint(OLD_XGB)
