"""The ONNX graph of AU classifiers against hand-calculated faces and an evaluation in NumPy."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from export.au.check import check_au_graph
from export.au.checkpoint import load_au_checkpoint
from export.au.classifiers import (
    LANDMARK_VALUES,
    ActionUnit,
    AuCheckpoint,
    Isotonic,
    Linear,
    Objective,
    Projection,
    Sigmoid,
    Trees,
)
from export.au.graph import build_au_graph
from export.au.reference import reference_action_units
from export.errors import ExportError
from tests.support.au_checkpoints import VARIANTS
from tests.support.random_classifiers import (
    HOG_FEATURES,
    Sizes,
    random_hog,
    random_landmarks,
    random_svm,
    random_xgb,
)

KINDS = {
    "trees": lambda: random_xgb(1),
    "calibrated trees": lambda: random_xgb(2, calibrated=True),
    "linear": lambda: random_svm(3),
}


class Graph:
    """A graph in a session with a single thread, as the configuration of `au` sets it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(
        self, hog: NDArray[np.float32], landmarks: NDArray[np.int64], output: str = "AU"
    ) -> NDArray[np.float32]:
        """Return an output."""
        return self._session.run([output], {"HOG": hog, "ALIGNED_LANDMARKS": landmarks})[0]


def faces(count: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    return random_hog(generator, count), random_landmarks(generator, count)


def stumps(
    leaves: list[tuple[float, float]],
    *,
    threshold: float = 0.5,
    feature: int = 0,
    base_margin: float = 0.0,
    objective: Objective = "binary:logistic",
) -> Trees:
    """Return one tree of a single split for each pair of leaves."""
    count = len(leaves)
    roots = 3 * np.arange(count)
    values = np.array([(threshold, *pair) for pair in leaves], np.float32).ravel()
    return Trees(
        objective=objective,
        base_margin=base_margin,
        roots=roots,
        feature=np.tile([feature, -1, -1], count),
        value=values,
        left=np.stack([roots + 1, *2 * [np.full(count, -1)]], axis=1).ravel(),
        right=np.stack([roots + 2, *2 * [np.full(count, -1)]], axis=1).ravel(),
    )


def checkpoint_of(*units: ActionUnit) -> AuCheckpoint:
    """Return a checkpoint of two features, which are also the components of each region."""
    identity = Projection(np.eye(2), np.zeros(2))
    kind = "svm" if isinstance(units[0].classifier, Linear) else "xgb"
    return AuCheckpoint(kind, {"upper": identity, "lower": identity, "full": identity}, units, {})


def logistic(margin: float) -> float:
    return 1 / (1 + np.exp(-margin))


def test_split_goes_left_below_its_threshold_and_right_at_it():
    graph = Graph(build_au_graph(checkpoint_of(ActionUnit("AU01", "upper", stumps([(-1, 2)]))), 2))
    below = np.nextafter(np.float32(0.5), np.float32(0))
    hog = np.array([[below, 0], [0.5, 0]], np.float32)
    np.testing.assert_allclose(
        graph(hog, np.zeros((2, 68, 2), np.int64)).ravel(), [logistic(-1), logistic(2)], atol=1e-7
    )


def test_landmarks_follow_the_components_x_and_y_interleaved():
    nose_y = 2 + 2 * 30 + 1
    trees = stumps([(-1, 2)], feature=nose_y, threshold=40)
    graph = Graph(build_au_graph(checkpoint_of(ActionUnit("AU01", "lower", trees)), 2))
    landmarks = np.full((2, 68, 2), 39)
    landmarks[1, 30, 1] = 40
    au = graph(np.zeros((2, 2), np.float32), landmarks).ravel()
    np.testing.assert_allclose(au, [logistic(-1), logistic(2)], atol=1e-7)


@pytest.mark.parametrize(
    ("leaves", "expected"), [([2**24, 1, -(2**24)], 0), ([1, 2**24, -(2**24)], 0), ([2**24, -(2**24), 1], 1)]
)
def test_leaves_are_added_in_float32_in_the_order_of_the_trees(leaves: list[float], expected: int):
    trees = stumps([(leaf, leaf) for leaf in leaves], objective="binary:hinge")
    graph = Graph(build_au_graph(checkpoint_of(ActionUnit("AU07", "upper", trees)), 2))
    assert graph(np.zeros((40, 2), np.float32), np.zeros((40, 68, 2), np.int64)).tolist() == 40 * [[expected]]


def test_base_margin_is_added_first():
    trees = stumps([(-(2.0**24), 0)], base_margin=2**24, objective="binary:hinge")
    added = dataclasses.replace(trees, roots=np.tile(trees.roots, 2), base_margin=2**24 + 2)
    graph = Graph(build_au_graph(checkpoint_of(ActionUnit("AU07", "upper", added)), 2))
    assert graph(np.zeros((1, 2), np.float32), np.zeros((1, 68, 2), np.int64)) == 0


def test_linear_classifier_is_1_above_0():
    weights = np.zeros(2 + 136)
    weights[[0, 1, 2]] = 1, -2, 0.5
    unit = ActionUnit("AU12", "full", Linear(weights, -0.25))
    graph = Graph(build_au_graph(checkpoint_of(unit), 2))
    landmarks = np.zeros((3, 68, 2), np.int64)
    landmarks[2, 0, 0] = 1
    hog = np.array([[0.25, 0], [0.5, 0.0625], [0, 0.0625]], np.float32)
    assert graph(hog, landmarks).ravel().tolist() == [0, 1, 1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_action_units_equal_py_feats(au_checkpoints: dict[str, Path], variant: str):
    checkpoint = load_au_checkpoint(au_checkpoints[variant])
    with np.load(au_checkpoints[variant].with_suffix(".npz")) as pyfeat:
        hog, landmarks, expected = (pyfeat[name] for name in ("HOG", "ALIGNED_LANDMARKS", "AU"))
    au = Graph(build_au_graph(checkpoint, hog.shape[1]))(hog, landmarks)
    is_compared = ~np.isnan(expected)  # by isotonic calibrators with out_of_bounds="nan"
    assert is_compared.mean() > 0.9
    assert (np.abs(au - expected)[is_compared] <= 1e-5).mean() >= 0.999


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name.startswith("xgb")])
def test_classifiers_equal_py_feats_on_equal_inputs(au_checkpoints: dict[str, Path], variant: str):
    """Projections that copy the components from the HOG features replace the checkpoint's."""
    checkpoint = load_au_checkpoint(au_checkpoints[variant])
    with np.load(au_checkpoints[variant].with_suffix(".npz")) as pyfeat:
        landmarks, expected = pyfeat["ALIGNED_LANDMARKS"], pyfeat["AU"]
        inputs = {region: pyfeat[f"INPUTS_{region.upper()}"] for region in checkpoint.projections}
    components = {region: values[:, :-LANDMARK_VALUES] for region, values in inputs.items()}
    total = sum(values.shape[1] for values in components.values())
    copies = np.split(np.eye(total), np.cumsum([values.shape[1] for values in components.values()])[:-1], 1)
    projections = {
        region: Projection(copy, np.zeros(copy.shape[1]))
        for region, copy in zip(components, copies, strict=True)
    }
    graph = build_au_graph(dataclasses.replace(checkpoint, projections=projections), total)
    au = Graph(graph)(np.hstack([*components.values()]).astype(np.float32), landmarks)
    is_compared = ~np.isnan(expected)
    assert is_compared.mean() > 0.9
    np.testing.assert_allclose(au[is_compared], expected[is_compared], atol=1e-6)
    for column, unit in enumerate(checkpoint.units):
        if unit.calibrator is None and unit.classifier.objective == "binary:hinge":
            np.testing.assert_array_equal(au[:, column], expected[:, column])


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_action_units_equal_the_reference(kind: str, precision: str):
    checkpoint = KINDS[kind]()
    hog, landmarks = faces(100)
    expected = reference_action_units(checkpoint, hog, landmarks)
    assert expected.std(axis=0).max() > 0.1
    au = Graph(build_au_graph(checkpoint, precision=precision))(hog, landmarks)
    assert (np.abs(au - expected) <= 1e-6).mean() >= 0.999


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_action_units_do_not_depend_on_the_batch(kind: str, precision: str):
    graph = Graph(build_au_graph(KINDS[kind](), precision=precision))
    hog, landmarks = faces(128)
    alone = np.concatenate([graph(hog[i : i + 1], landmarks[i : i + 1]) for i in range(128)])
    for batch in (2, 3, 7, 8, 16, 31, 64, 100, 128):
        np.testing.assert_array_equal(graph(hog[:batch], landmarks[:batch]), alone[:batch])
    order = np.random.default_rng(1).permutation(128)
    np.testing.assert_array_equal(graph(hog[order], landmarks[order]), alone[order])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_non_finite_feature_makes_the_units_of_only_its_face_nan(kind: str, value: float):
    graph = Graph(build_au_graph(KINDS[kind]()))
    hog, landmarks = faces(9)
    valid = graph(hog, landmarks)
    hog[4, 4000] = value
    mixed = graph(hog, landmarks)
    assert np.isnan(mixed[4]).all()
    np.testing.assert_array_equal(np.delete(mixed, 4, axis=0), np.delete(valid, 4, axis=0))


def test_pass_through_outputs_are_the_inputs():
    graph = Graph(build_au_graph(random_xgb(1)))
    hog, landmarks = faces(3)
    np.testing.assert_array_equal(graph(hog, landmarks, "HOG_OUT"), hog)
    np.testing.assert_array_equal(graph(hog, landmarks, "ALIGNED_LANDMARKS_OUT"), landmarks)


def probabilities_on_first_landmark(count: int, calibrator: Isotonic | Sigmoid) -> tuple[Graph, np.ndarray]:
    """Return a graph whose probability depends on the first x, and the uncalibrated ones for 0 to count-1."""
    steps = [stumps([(-0.03, 0.05)], feature=2, threshold=step) for step in range(1, count)]
    merged = Trees(
        objective="binary:logistic",
        base_margin=-0.5,
        roots=3 * np.arange(len(steps)),
        feature=np.concatenate([step.feature for step in steps]),
        value=np.concatenate([step.value for step in steps]),
        left=np.concatenate([np.where(step.left < 0, -1, step.left + 3 * i) for i, step in enumerate(steps)]),
        right=np.concatenate(
            [np.where(step.right < 0, -1, step.right + 3 * i) for i, step in enumerate(steps)]
        ),
    )
    plain = ActionUnit("AU01", "upper", merged)
    graph = Graph(build_au_graph(checkpoint_of(plain, dataclasses.replace(plain, calibrator=calibrator)), 2))
    return graph, graph(*first_landmark(count))[:, 0]


def first_landmark(count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    landmarks = np.zeros((count, 68, 2), np.int64)
    landmarks[:, 0, 0] = np.arange(count)
    return np.zeros((count, 2), np.float32), landmarks


@pytest.mark.parametrize("thresholds", [1, 2, 3, 1000])
def test_isotonic_calibrator_interpolates(thresholds: int):
    count = 100
    _, probabilities = probabilities_on_first_landmark(count, Sigmoid(0, 0))
    generator = np.random.default_rng(thresholds)
    # Some thresholds equal a probability exactly, the first and the last among them.
    inner = generator.uniform(probabilities[20], probabilities[80], max(thresholds - 3, 0))
    x = np.unique([*probabilities[[20, 80, 50]][:thresholds].astype(np.float64), *inner])
    y = np.sort(generator.random(len(x)))
    graph, _ = probabilities_on_first_landmark(count, Isotonic(x, y))
    calibrated = graph(*first_landmark(count))[:, 1]
    np.testing.assert_allclose(calibrated, np.interp(probabilities, x, y), atol=1e-7)


def test_isotonic_calibrator_with_a_jump_between_neighbouring_numbers():
    _, probabilities = probabilities_on_first_landmark(100, Sigmoid(0, 0))
    at = np.float64(probabilities[50])
    x = np.array([0, np.nextafter(at, 0), at, np.nextafter(at, 1), 1])
    graph, _ = probabilities_on_first_landmark(100, Isotonic(x, np.array([0, 0, 0.25, 0.75, 0.75])))
    calibrated = graph(*first_landmark(100))[:, 1]
    np.testing.assert_array_equal(calibrated, np.repeat(np.float32([0, 0.25, 0.75]), [50, 1, 49]))


def test_sigmoid_calibrator():
    graph, probabilities = probabilities_on_first_landmark(100, Sigmoid(-6, 2.5))
    expected = 1 / (1 + np.exp(-6 * probabilities.astype(np.float64) + 2.5))
    np.testing.assert_allclose(graph(*first_landmark(100))[:, 1], expected, atol=1e-7)


def test_components_that_no_tree_reads_are_left_out():
    checkpoint = random_xgb(4, Sizes(trees=1, depth=2))
    weights = {tuple(value.dims) for value in build_au_graph(checkpoint).graph.initializer}
    read = {
        (unit.region, feature)
        for unit in checkpoint.units
        for feature in unit.classifier.feature
        if 0 <= feature < len(checkpoint.projections[unit.region].offset)
    }
    assert 0 < len(read) < 52
    assert (HOG_FEATURES, len(read)) in weights


def test_trees_that_read_only_landmarks():
    trees = stumps([(-1, 2)], feature=2, threshold=40)
    graph = Graph(build_au_graph(checkpoint_of(ActionUnit("AU01", "upper", trees)), 2))
    landmarks = np.full((1, 68, 2), 50)
    np.testing.assert_allclose(graph(np.zeros((1, 2), np.float32), landmarks), logistic(2), atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_check_accepts_the_graph_of_its_checkpoint(kind: str):
    checkpoint = KINDS[kind]()
    agreement = check_au_graph(build_au_graph(checkpoint), checkpoint, "float32")
    assert agreement.classifiers <= 1e-6
    assert agreement.beyond <= 1


def _other_offset(checkpoint: AuCheckpoint) -> AuCheckpoint:
    projection = checkpoint.projections["full"]
    moved = Projection(projection.matrix, projection.offset + 0.01)
    return dataclasses.replace(checkpoint, projections=checkpoint.projections | {"full": moved})


def _other_leaf(checkpoint: AuCheckpoint) -> AuCheckpoint:
    trees = checkpoint.units[0].classifier
    leaf = int(np.flatnonzero(trees.left < 0)[0])
    value = trees.value.copy()
    value[leaf] += 1
    unit = dataclasses.replace(checkpoint.units[0], classifier=dataclasses.replace(trees, value=value))
    return dataclasses.replace(checkpoint, units=(unit, *checkpoint.units[1:]))


@pytest.mark.parametrize("change", [_other_offset, _other_leaf])
def test_check_refuses_another_graph(change: Callable[[AuCheckpoint], AuCheckpoint]):
    checkpoint = random_xgb(5)
    with pytest.raises(ExportError, match=r"AUs of the model differ.*nothing was written; try --precision"):
        check_au_graph(build_au_graph(change(checkpoint)), checkpoint, "float32")
