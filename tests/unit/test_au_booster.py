"""The reader of XGBoost's boosters, with models that are damaged, unsuitable or hostile."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.au.booster import MAX_TREE_DEPTH, parse_booster
from export.au.ubjson import decode_ubjson
from export.errors import ExportError
from tests.support.edited_checkpoint import EditedCheckpoint

OLD_FILES = Path(__file__).resolve().parents[1] / "data" / "au_checkpoints"

Json = dict[str, Any]


def booster_bytes(release: str, unit: str = "AU1") -> bytes:
    return EditedCheckpoint(OLD_FILES / f"xgboost_{release}.skops").get_booster(unit)


@pytest.fixture
def snapshot() -> Json:
    return json.loads(booster_bytes("1.5.2"))


def parse(snapshot: Json) -> Any:
    return parse_booster(json.dumps(snapshot).encode())


def learner(snapshot: Json) -> Json:
    return snapshot["Model"]["learner"]


def forest(snapshot: Json) -> Json:
    return learner(snapshot)["gradient_booster"]["model"]


def tree(snapshot: Json) -> Json:
    return forest(snapshot)["trees"][2]


def test_thresholds_and_leaves_keep_their_bits():
    """UBJSON has the float32 of the model, JSON text its shortest decimal number."""
    trees, _ = parse_booster(booster_bytes("1.7.6"))
    stored = decode_ubjson(booster_bytes("1.7.6"))["Model"]["learner"]["gradient_booster"]["model"]["trees"]
    expected = np.concatenate([stored_tree["split_conditions"] for stored_tree in stored])
    assert trees.value.dtype == np.float32
    assert trees.value.tobytes() == expected.astype(np.float32).tobytes()
    # The two releases trained the same trees.
    assert parse_booster(booster_bytes("1.5.2"))[0].value.tobytes() == trees.value.tobytes()


@pytest.mark.parametrize(
    ("text", "margin"),
    [
        ("1E-7", -13.81551),
        ("[0E0]", -13.81551),
        ("1E-6", -13.81551),
        ("[1E0]", 13.74516),
        ("9.999999E-1", 13.74516),
    ],
)
def test_base_score_close_to_0_and_1_is_bounded_as_by_xgboost_3_2(snapshot: Json, text: str, margin: float):
    """The margins are those of XGBoost 3.2.0 with `output_margin=True` and trees of one leaf of 0."""
    learner(snapshot)["learner_model_param"]["base_score"] = text
    assert parse(snapshot)[0].base_margin == pytest.approx(margin, rel=1e-6)


@pytest.mark.parametrize("text", ["2.5E-1", "[2.5E-1]", "0.25"])
def test_base_score_is_a_probability_for_logistic_and_a_margin_for_hinge(snapshot: Json, text: str):
    learner(snapshot)["learner_model_param"]["base_score"] = text
    assert parse(snapshot)[0].base_margin == pytest.approx(np.log(0.25 / 0.75))
    learner(snapshot)["objective"]["name"] = "binary:hinge"
    assert parse(snapshot)[0].base_margin == 0.25


def test_trees_after_the_best_iteration_are_dropped(snapshot: Json):
    everything, _ = parse(snapshot)
    learner(snapshot)["attributes"]["best_iteration"] = "1"
    trees, _ = parse(snapshot)
    assert len(everything.roots) == 4
    np.testing.assert_array_equal(trees.roots, everything.roots[:2])
    np.testing.assert_array_equal(trees.value, everything.value[: everything.roots[2]])
    forest(snapshot)["gbtree_model_param"]["num_parallel_tree"] = "2"
    assert len(parse(snapshot)[0].roots) == 4


def test_pruned_nodes_are_dropped(snapshot: Json):
    """Pruning turns a split into a leaf and leaves its children behind."""
    changed = tree(snapshot)
    children = changed["left_children"][0], changed["right_children"][0]
    pruned = next(child for child in children if changed["left_children"][child] != -1)
    below = changed["left_children"][pruned], changed["right_children"][pruned]
    for node in (pruned, *below):
        changed["left_children"][node] = changed["right_children"][node] = -1
    changed["split_conditions"][pruned] = 0.125
    trees, _ = parse(snapshot)
    first, end = trees.roots[2], trees.roots[3]
    assert end - first < len(changed["left_children"])
    assert 0.125 in trees.value[first:end]
    assert set(trees.left[first:end]) <= {-1, *range(first, end)}
    reached = np.concatenate([[first], trees.left[first:end], trees.right[first:end]])
    assert sorted(reached[reached >= 0]) == list(range(first, end))


def _set_node(key: str, node: int, value: object) -> Callable[[Json], None]:
    def edit(snapshot: Json) -> None:
        tree(snapshot)[key][node] = value

    return edit


def _set_parameter(name: str, value: object) -> Callable[[Json], None]:
    return lambda snapshot: learner(snapshot)["learner_model_param"].update({name: value})


def _set_tree(**fields: object) -> Callable[[Json], None]:
    return lambda snapshot: tree(snapshot).update(fields)


def _circle(snapshot: Json) -> None:
    """Make two splits each other's child, which the root does not reach."""
    size = len(tree(snapshot)["left_children"])
    for key, numbers in (("left_children", [size + 1, size]), ("right_children", [size + 2, size + 3])):
        tree(snapshot)[key] += [*numbers, -1, -1]
    for key in ("split_indices", "split_conditions", "split_type"):
        tree(snapshot)[key] += [0, 0, 0, 0]
    tree(snapshot)["tree_param"]["num_nodes"] = str(size + 4)


UNSUITABLE: dict[str, tuple[Callable[[Json], object], str]] = {
    "child outside": (_set_node("left_children", 0, 99), "tree 2: node 0 has the child 99, but the tree has"),
    "negative child": (_set_node("right_children", 0, -2), "node 0 has the child -2"),
    "one child": (_set_node("right_children", 0, -1), "node 0 has the child -1"),
    "child of itself": (_set_node("left_children", 1, 1), "node 1 is the child of node"),
    "root as child": (_set_node("left_children", 1, 0), "node 0 is the child of node 1 and the root"),
    "shared child": (_set_node("left_children", 0, 2), "node 2 is the child of node 0 and of another"),
    "circle": (_circle, "is in a circle or unreachable"),
    "input outside": (_set_node("split_indices", 0, 139), "node 0 reads input 139 of 139"),
    "negative input": (_set_node("split_indices", 0, -1), "node 0 reads input -1 of 139"),
    "NaN threshold": (_set_node("split_conditions", 0, float("nan")), "the value of node 0 is nan"),
    "infinite leaf": (_set_node("split_conditions", -1, float("-inf")), "is -inf"),
    "float32 overflow": (_set_node("split_conditions", 0, 1e300), "is inf"),
    "huge integer": (_set_node("left_children", 0, 10**30), "left_children must be a list of whole numbers"),
    "fractional child": (_set_node("left_children", 0, 1.5), "left_children must be a list of whole numbers"),
    "text": (_set_node("split_conditions", 0, "1"), "split_conditions must be a list of numbers"),
    "categorical": (_set_node("split_type", 0, 1), "categorical splits"),
    "lengths": (_set_tree(split_indices=[0]), "arrays have other lengths"),
    "no nodes": (_set_tree(tree_param={"num_nodes": "0"}), "declares 0 nodes"),
    "number of nodes": (_set_tree(tree_param={"num_nodes": "-3"}), "num_nodes must be a number in a string"),
    "vector leaf": (
        lambda snapshot: tree(snapshot)["tree_param"].update(size_leaf_vector="2"),
        "leaves are vectors",
    ),
    "tree": (lambda snapshot: forest(snapshot).update(trees=[1, 2, 3, 4]), "tree 0: it is not a JSON object"),
    "no trees": (lambda snapshot: forest(snapshot).update(trees=[]), "declares 4 trees and has 0"),
    "classes of trees": (lambda snapshot: forest(snapshot).update(tree_info=[0, 0, 0, 1]), "several classes"),
    "classes": (_set_parameter("num_class", "3"), "3 classes"),
    "targets": (_set_parameter("num_target", "2"), "2 targets"),
    "inputs": (_set_parameter("num_feature", 139), "num_feature must be a number in a string, it is 139"),
    "huge number": (_set_parameter("num_feature", "9" * 5000), "num_feature must be"),
    "base score below 0": (_set_parameter("base_score", "-1E-7"), "base_score is '-1E-7'"),
    "base score above 1": (_set_parameter("base_score", "[1.5E0]"), "needs a number from 0 to 1"),
    "base score NaN": (_set_parameter("base_score", "nan"), "base_score is 'nan'"),
    "base scores": (_set_parameter("base_score", "[1E-1,2E-1]"), "base_score is"),
    "base score inf": (_set_parameter("base_score", "1E999"), "base_score is"),
    "no base score": (_set_parameter("base_score", None), "base_score is None"),
    "objective": (
        lambda snapshot: learner(snapshot)["objective"].update(name="multi:softprob"),
        "the objective is 'multi:softprob'",
    ),
    "dart": (
        lambda snapshot: learner(snapshot)["gradient_booster"].update(name="dart"),
        "the booster is 'dart'; only gbtree",
    ),
    "no learner": (lambda snapshot: snapshot["Model"].pop("learner"), "lacks the object 'learner'"),
    "best iteration": (
        lambda snapshot: learner(snapshot)["attributes"].update(best_iteration="4"),
        "the best iteration is 4, which needs 5 of the 4 trees",
    ),
}


@pytest.mark.parametrize("name", UNSUITABLE)
def test_unsuitable_boosters_are_refused_by_name(snapshot: Json, name: str):
    edit, message = UNSUITABLE[name]
    edit(snapshot)
    with pytest.raises(ExportError, match=message):
        parse(snapshot)


@pytest.mark.parametrize("data", [b"", b"\x00\x00\x00\x3f\x8b\x00\x00\x00", b"CONFIG-offset:", b"binf"])
def test_the_old_binary_format_is_refused_with_what_to_do(data: bytes):
    with pytest.raises(ExportError, match="old binary format. .* with XGBoost 1.7"):
        parse_booster(data)


@pytest.mark.parametrize(
    "data",
    [b"{", b'{"Model"', b'{"a": 1, "a": 2}', b'{"a": ' + b"[" * 100_000, b'{"\xff": 1}'],
    ids=["brace", "cut off", "key twice", "deep", "not UTF-8"],
)
def test_damaged_json_text_is_refused(data: bytes):
    with pytest.raises(ExportError, match="invalid"):
        parse_booster(data)


def test_a_booster_that_is_no_model_is_refused():
    with pytest.raises(ExportError, match="lacks the object 'learner'"):
        parse_booster(b"{}")


def _chain(snapshot: Json, splits: int) -> None:
    """Replace a tree by one whose splits follow each other."""
    size = 2 * splits + 1
    left = [node + 1 if node % 2 == 0 and node < size - 1 else -1 for node in range(size)]
    right = [node + 2 if node % 2 == 0 and node < size - 1 else -1 for node in range(size)]
    tree(snapshot).update(
        left_children=left,
        right_children=right,
        split_indices=[0] * size,
        split_conditions=[0.5] * size,
        split_type=[0] * size,
        tree_param={"num_nodes": str(size)},
    )


def test_depth_of_trees_is_bounded(snapshot: Json):
    """ONNX Runtime crashes while it loads a tree of 50,000 levels."""
    _chain(snapshot, MAX_TREE_DEPTH)
    assert parse(snapshot)[0].feature.size > 2 * MAX_TREE_DEPTH
    for splits in (MAX_TREE_DEPTH + 1, 50_000):
        _chain(snapshot, splits)
        with pytest.raises(ExportError, match=f"tree 2: it has {splits:,} levels of splits, more than 1,000"):
            parse(snapshot)
