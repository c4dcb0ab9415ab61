"""XGBoost boosters for two classes -> `Trees`.

A booster that was pickled or stored by skops is a serialization snapshot, ``{"Config": ..., "Model": ...}``;
a saved model is the content of ``Model``. XGBoost 1.6 and newer write them in UBJSON, 1.0 to 1.5 in JSON
text, older releases in a binary format. The fields are those of
https://xgboost.readthedocs.io/en/stable/tutorials/saving_model.html, with these differences between releases:

- Numbers of the parameters are strings. `base_score` is ``"5E-1"``, from 3.1 on ``"[5E-1]"``.
- `base_score` is a probability for binary:logistic and a margin for binary:hinge. XGBoost 3.2 keeps a
  probability `BASE_SCORE_BOUND` away from 0 and 1, and writes 0 if no example of the training was positive;
  older releases do neither.
- `split_conditions` has the threshold of a split and the output of a leaf.
- `iteration_indptr` and `num_parallel_tree` are missing in old models; XGBoost then assumes one tree for each
  iteration.
"""

import re

import numpy as np
from numpy.typing import NDArray

from export.au.classifiers import Objective, Trees
from export.au.json_text import decode_json
from export.au.quoting import quote
from export.au.ubjson import decode_ubjson
from export.errors import ExportError, located

OBJECTIVES: tuple[Objective, ...] = ("binary:logistic", "binary:hinge")

BASE_SCORE_BOUND = np.float32(1e-6)

MAX_TREE_DEPTH = 1_000
"""ONNX Runtime loads trees by recursion, which overflows the stack for some 10,000 levels."""

Json = dict[str, object]


def parse_booster(data: bytes) -> tuple[Trees, int]:
    """Parse a booster.

    Parameters
    ----------
    data : bytes
        A serialization snapshot or a saved model, as UBJSON or JSON text.

    Returns
    -------
    trees : Trees
        The trees up to the best iteration, if training stopped early, else all. Nodes that no root leads to,
        which pruning leaves behind, are dropped.
    features : int
        Number of inputs.

    Raises
    ------
    ExportError
        If the bytes are no booster, the booster has a type that is not supported, a tree is no tree, or a
        number is not finite.
    """
    document = _decode(data)
    model = _get_object(document, "Model") if "Model" in document else document
    learner = _get_object(model, "learner")
    objective = _get_objective(learner)
    booster = _get_object(learner, "gradient_booster")
    name = booster.get("name")
    if not isinstance(name, str) or name != "gbtree":
        raise ExportError(f"the booster is {quote(name)}; only gbtree is supported")
    parameters = _get_object(learner, "learner_model_param")
    _check_single_output(parameters)
    features = _get_integer(parameters, "num_feature")
    forest = _get_object(booster, "model")
    trees = _get_list(forest, "trees")
    used = _count_used_trees(learner, forest, len(trees))
    parts = []
    for index, tree in enumerate(trees[:used]):
        with located(f"tree {index}"):
            parts.append(_parse_tree(tree, features))
    roots = np.cumsum([0, *(len(part[0]) for part in parts[:-1])])
    return Trees(
        objective=objective,
        base_margin=_parse_base_margin(parameters, objective),
        roots=roots.astype(np.int64),
        feature=np.concatenate([feature for feature, _, _, _ in parts]),
        value=np.concatenate([value for _, value, _, _ in parts]),
        left=_concatenate_children(roots, [left for _, _, left, _ in parts]),
        right=_concatenate_children(roots, [right for _, _, _, right in parts]),
    ), features


def _decode(data: bytes) -> Json:
    if not data.startswith(b"{"):
        raise ExportError(
            "the booster is not JSON or UBJSON, probably XGBoost's old binary format. Load the checkpoint "
            "with the XGBoost release that wrote it, save each booster with save_model, load these files "
            "with XGBoost 1.7 and store the checkpoint again"
        )
    document = decode_json(data) if data[1:].lstrip()[:1] in (b'"', b"}") else decode_ubjson(data)
    if not isinstance(document, dict):
        raise ExportError("the booster is not a JSON object")
    return document


def _get_objective(learner: Json) -> Objective:
    name = _get_object(learner, "objective").get("name")
    for objective in OBJECTIVES:
        if isinstance(name, str) and name == objective:
            return objective
    raise ExportError(f"the objective is {quote(name)}; {' and '.join(OBJECTIVES)} are supported")


def _check_single_output(parameters: Json) -> None:
    classes = _get_integer(parameters, "num_class", default=0)
    targets = _get_integer(parameters, "num_target", default=1)
    if classes not in (0, 1) or targets != 1:
        raise ExportError(
            f"the booster has {classes} classes and {targets} targets; an AU needs a binary classifier"
        )


def _count_used_trees(learner: Json, forest: Json, trees: int) -> int:
    """Return the number of trees up to the best iteration, as `XGBClassifier.predict_proba` uses them."""
    if _get_integers(forest, "tree_info").any():
        raise ExportError("tree_info assigns trees to several classes; an AU needs a binary classifier")
    parameters = _get_object(forest, "gbtree_model_param")
    declared = _get_integer(parameters, "num_trees")
    if declared != trees or trees == 0:
        raise ExportError(f"the booster declares {declared} trees and has {trees}; it needs at least one")
    attributes = learner.get("attributes", {})
    if not isinstance(attributes, dict) or "best_iteration" not in attributes:
        return trees
    iterations = _get_integer(attributes, "best_iteration") + 1
    if "iteration_indptr" in forest:
        ends = _get_integers(forest, "iteration_indptr")
        used = int(ends[iterations]) if iterations < len(ends) else -1
    else:
        used = iterations * _get_integer(parameters, "num_parallel_tree", default=1)
    if not 0 < used <= trees:
        raise ExportError(f"the best iteration is {iterations - 1}, which needs {used} of the {trees} trees")
    return used


def _parse_base_margin(parameters: Json, objective: Objective) -> float:
    text = parameters.get("base_score")
    score = _parse_base_score(text)
    if objective == "binary:hinge" and np.isfinite(score):
        return float(score)
    if objective == "binary:logistic" and 0 <= score <= 1:
        bounded = np.clip(score, BASE_SCORE_BOUND, np.float32(1) - BASE_SCORE_BOUND)
        # XGBoost takes the logarithm in float32. NumPy's in float32 is less exact than the C library's.
        return float(np.float32(-np.log(np.float64(np.float32(1) / bounded - np.float32(1)))))
    raise ExportError(
        f"base_score is {quote(text)}; {objective} needs "
        + ("a finite number" if objective == "binary:hinge" else "a number from 0 to 1")
    )


def _parse_base_score(text: object) -> np.float32:
    """Return the number in ``"5E-1"`` or ``"[5E-1]"``; NaN if there is none."""
    number = (
        re.fullmatch(r"\[?([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)\]?", text) if isinstance(text, str) else None
    )
    with np.errstate(over="ignore"):
        return np.float32(float(number[1])) if number else np.float32(np.nan)


_Arrays = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]


def _parse_tree(tree: object, features: int) -> _Arrays:
    """Return `feature`, `value`, `left` and `right` of a tree whose root is node 0."""
    if not isinstance(tree, dict):
        raise ExportError("it is not a JSON object")
    parameters = _get_object(tree, "tree_param")
    if _get_integer(parameters, "size_leaf_vector", default=0) > 1:
        raise ExportError(
            "its leaves are vectors (multi_strategy='multi_output_tree'), which is not supported"
        )
    left = _get_integers(tree, "left_children")
    right = _get_integers(tree, "right_children")
    feature = _get_integers(tree, "split_indices")
    value = _get_floats(tree, "split_conditions")
    kind = _get_integers(tree, "split_type") if "split_type" in tree else np.zeros_like(left)
    nodes = _get_integer(parameters, "num_nodes")
    if nodes < 1 or {len(left), len(right), len(feature), len(value), len(kind)} != {nodes}:
        raise ExportError(f"it declares {nodes} nodes, but its arrays have other lengths")
    reached = _find_reached_nodes(left, right)
    is_split = left != -1
    if np.any(kind[reached & is_split]):
        raise ExportError("it has categorical splits, which are not supported")
    wrong = np.flatnonzero(reached & is_split & ((feature < 0) | (feature >= features)))
    if wrong.size:
        raise ExportError(f"node {wrong[0]} reads input {feature[wrong[0]]} of {features}")
    wrong = np.flatnonzero(reached & ~np.isfinite(value))
    if wrong.size:
        raise ExportError(f"the value of node {wrong[0]} is {value[wrong[0]]}")
    position = np.cumsum(reached) - 1
    return (
        np.where(is_split, feature, -1)[reached],
        value[reached],
        np.where(is_split, position[left], -1)[reached],
        np.where(is_split, position[right], -1)[reached],
    )


def _find_reached_nodes(left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which nodes the root leads to, after checking that the nodes form trees.

    Each split must have two children inside the tree, and each node at most one parent. Then every node
    descends from a node without parent or is part of a circle. The root must be the only split without
    parent; pruning leaves nodes without parent and children.
    """
    nodes = len(left)
    splits = np.flatnonzero((left != -1) | (right != -1))
    children = np.concatenate([left[splits], right[splits]])
    outside = np.flatnonzero((children < 0) | (children >= nodes))
    if outside.size:
        raise ExportError(
            f"node {splits[outside[0] % len(splits)]} has the child {children[outside[0]]}, "
            f"but the tree has {nodes} nodes"
        )
    parents = np.bincount(children, minlength=nodes)
    if parents[0] or parents.max() > 1:
        shared = 0 if parents[0] else int(parents.argmax())
        raise ExportError(
            f"node {shared} is the child of node {np.tile(splits, 2)[children == shared][0]} and "
            + ("the root" if shared == 0 else "of another node")
            + ": the nodes form no tree"
        )
    ancestor, depth = np.arange(nodes), np.zeros(nodes, np.int64)
    ancestor[children], depth[children] = np.tile(splits, 2), 1
    for _ in range(nodes.bit_length()):
        depth += depth[ancestor]
        ancestor = ancestor[ancestor]
    circular = splits[ancestor[splits] != 0]
    if circular.size:
        raise ExportError(
            f"node {circular[0]} is in a circle or unreachable from the root: the nodes form no tree"
        )
    reached: NDArray[np.bool_] = ancestor == 0
    deepest = int(depth[reached].max())
    if deepest > MAX_TREE_DEPTH:
        raise ExportError(f"it has {deepest:,} levels of splits, more than {MAX_TREE_DEPTH:,}")
    return reached


def _concatenate_children(roots: NDArray[np.int64], parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate(
        [np.where(part < 0, -1, part + root) for root, part in zip(roots, parts, strict=True)]
    )


def _get_object(parent: Json, key: str) -> Json:
    value = parent.get(key)
    if not isinstance(value, dict):
        raise ExportError(
            f"the booster lacks the object {key!r}; it is no XGBoost model or an incomplete one"
        )
    return value


def _get_list(parent: Json, key: str) -> list[object]:
    value = parent.get(key)
    if not isinstance(value, list):
        raise ExportError(f"the booster lacks the list {key!r}; it is no XGBoost model or an incomplete one")
    return value


def _get_integer(parent: Json, key: str, default: int | None = None) -> int:
    """Return a whole number from 0 to 2**31 - 1, which XGBoost writes as a string."""
    value = parent.get(key, None if default is None else str(default))
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{1,10}", value) or int(value) >= 2**31:
        raise ExportError(f"{key} must be a number in a string, it is {quote(value)}")
    return int(value)


def _get_integers(parent: Json, key: str) -> NDArray[np.int64]:
    value = _as_array(parent.get(key))
    if value.dtype.kind not in "biu" and value.size:
        raise ExportError(f"{key} must be a list of whole numbers")
    return value.astype(np.int64)


def _get_floats(parent: Json, key: str) -> NDArray[np.float32]:
    value = _as_array(parent.get(key))
    if value.dtype.kind not in "iuf":
        raise ExportError(f"{key} must be a list of numbers")
    with np.errstate(over="ignore"):
        return value.astype(np.float32)


def _as_array(value: object) -> NDArray[np.generic]:
    """Return a typed array of UBJSON or a list of JSON numbers as an array, else one of dtype object."""
    if isinstance(value, list) and all(type(item) in (bool, int, float) for item in value):
        return np.array(value)
    return value if isinstance(value, np.ndarray) else np.array([None])
