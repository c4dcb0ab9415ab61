"""The ONNX graph of py-feat's AU classifiers: HOG features and aligned landmarks -> action units.

Trees
-----
The components of all regions are one matrix product; the aligned landmarks follow them as further columns.
Each AU is a TreeEnsembleRegressor over these columns, which adds the leaves in float32. The base margin is
its first tree, a single leaf. So the order of the sum, and therefore each bit of the margin, equals
XGBoost's: a hinge and an isotonic calibrator jump at the same faces.

Linear classifiers
------------------
Projection and classifier fold into one vector per AU, and the graph computes the few products in float64, as
py-feat does.

A face's bits do not depend on its batch, if the session has a single intra-op thread: with several threads,
TreeEnsembleRegressor divides the trees of large batches among them and adds partial sums.

Speed
-----
Measured with ONNX Runtime 1.23, one thread, 3 x 776 components, 20 AUs of 120 trees:

- The matrix product takes 0.28 ms per face of a batch of 32. For one face it takes 2 ms, the time to read the
  50 MB of the matrix from memory. One product per region, or one per
  block of features, takes as long as one product for all.
- The trees take 0.15 ms per face with one TreeEnsembleRegressor per AU and 0.25 ms with one for all, because
  the trees of one AU stay in the cache for all faces of a batch.
- For one face, the trees take 0.5 to 0.8 ms, because reading the matrix has replaced them in the cache. In
  huge pages (GLIBC_TUNABLES=glibc.malloc.hugetlb=1), product and trees take a quarter less.
- Larger batches are faster up to 128 faces, so the configuration has no `cpu_rows_per_run`.
- Components that no tree reads are left out of the product.
- Leaving out features that are 0 does not pay. A third of a face's features is 0, but not the same of each
  face, and only 7 % of the blocks are blank. Selecting features takes as long as the product saves.
"""

import dataclasses
from collections.abc import Iterable
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.au.classifiers import (
    LANDMARK_VALUES,
    ActionUnit,
    AuCheckpoint,
    Isotonic,
    Linear,
    Projection,
    Region,
    Sigmoid,
    Trees,
)

Precision = Literal["float32", "float64"]

OPSETS = (("", 17), ("ai.onnx.ml", 3))
"""ONNX Runtime 1.23 has every operator in these versions; ai.onnx.ml 5 deprecates TreeEnsembleRegressor."""

_ONNX_TYPES = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}


def build_au_graph(
    checkpoint: AuCheckpoint, hog_features: int = 5408, precision: Precision = "float32"
) -> onnx.ModelProto:
    """Build HOG float32 ``[N, F]``, ALIGNED_LANDMARKS int64 ``[N, 68, 2]`` -> AU float32 ``[N, units]``.

    The outputs HOG_OUT and ALIGNED_LANDMARKS_OUT are the unchanged inputs. If a feature of a face is not
    finite, all its AUs are NaN; other faces are unaffected.

    Parameters
    ----------
    checkpoint : AuCheckpoint
        Trees for all AUs, or linear classifiers for all AUs.
    hog_features : int
        Number of features F, as of the projections.
    precision : {"float32", "float64"}
        Type of the projection to components. Linear classifiers always compute in float64.
    """
    builder = _GraphBuilder()
    landmarks = builder.add("Reshape", "ALIGNED_LANDMARKS", np.array([0, LANDMARK_VALUES], np.int64))
    if checkpoint.kind == "xgb":
        probabilities = _tree_probabilities(builder, checkpoint, landmarks, precision)
    else:
        probabilities = _linear_probabilities(builder, checkpoint, landmarks)
    calibrated = _calibrate(builder, checkpoint.units, probabilities)
    # Trees send NaN to an arbitrary leaf. The sum times 0 is NaN for a face with such a feature, else 0.
    total = builder.add("ReduceSum", "HOG", np.array([1], np.int64), keepdims=1)
    nan_or_zero = builder.add("Mul", total, np.float32(0))
    builder.add("Add", calibrated, nan_or_zero, output="AU")
    builder.add("Identity", "HOG", output="HOG_OUT")
    builder.add("Identity", "ALIGNED_LANDMARKS", output="ALIGNED_LANDMARKS_OUT")

    features, points = ["N", hog_features], ["N", 68, 2]
    graph = helper.make_graph(
        builder.nodes,
        "au",
        [
            helper.make_tensor_value_info("HOG", TensorProto.FLOAT, features),
            helper.make_tensor_value_info("ALIGNED_LANDMARKS", TensorProto.INT64, points),
        ],
        [
            helper.make_tensor_value_info("AU", TensorProto.FLOAT, ["N", len(checkpoint.units)]),
            helper.make_tensor_value_info("HOG_OUT", TensorProto.FLOAT, features),
            helper.make_tensor_value_info("ALIGNED_LANDMARKS_OUT", TensorProto.INT64, points),
        ],
        builder.initializers,
    )
    model = helper.make_model(
        graph,
        ir_version=8,
        opset_imports=[helper.make_opsetid(*opset) for opset in OPSETS],
        producer_name="triton-face-features",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


class _GraphBuilder:
    """Nodes and constants of a graph; tensors are named after their operator and a running number."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def add(
        self,
        operator: str,
        *inputs: "str | np.ndarray | np.generic",
        output: str | None = None,
        domain: str = "",
        **attributes: object,
    ) -> str:
        """Add a node; arrays among its inputs become constants. Return the name of its output."""
        output = output or f"{operator}_{len(self.nodes)}"
        names = [value if isinstance(value, str) else self._constant(value) for value in inputs]
        self.nodes.append(helper.make_node(operator, names, [output], domain=domain, **attributes))
        return output

    def _constant(self, value: "np.ndarray | np.generic") -> str:
        name = f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name


def _tree_probabilities(
    builder: _GraphBuilder, checkpoint: AuCheckpoint, landmarks: str, precision: Precision
) -> str:
    columns = _used_columns(checkpoint)
    projection = _join(
        [_select(checkpoint.projections[region], used.components) for region, used in columns.items()]
    )
    hog = "HOG" if precision == "float32" else builder.add("Cast", "HOG", to=TensorProto.DOUBLE)
    projected = builder.add("MatMul", hog, projection.matrix.astype(precision))
    # ONNX Runtime fuses MatMul and Add, but not Sub, into Gemm, whose rounding may depend on the batch.
    components = builder.add("Sub", projected, -projection.offset.astype(precision))
    points = builder.add("Cast", landmarks, to=_ONNX_TYPES[precision])
    inputs = builder.add("Concat", components, points, axis=1)
    if precision == "float64":
        inputs = builder.add("Cast", inputs, to=TensorProto.FLOAT)

    first_landmark = len(projection.offset)
    margins = []
    for unit in checkpoint.units:
        column_of = columns[unit.region].column_of(first_landmark)
        margins.append(
            builder.add(
                "TreeEnsembleRegressor",
                inputs,
                domain="ai.onnx.ml",
                n_targets=1,
                **_margin_trees(_trees(unit), column_of).attributes(),
            )
        )
    return _activate(builder, checkpoint.units, builder.add("Concat", *margins, axis=1))


@dataclasses.dataclass(frozen=True)
class _UsedColumns:
    """The components of a region that its trees read, and their first column in the matrix product."""

    components: NDArray[np.int64]
    total: int
    first: int

    def column_of(self, first_landmark: int) -> NDArray[np.int64]:
        """Return the column of each input of the region's classifiers; 0 for unused components."""
        column_of = np.zeros(self.total + LANDMARK_VALUES, np.int64)
        column_of[self.components] = self.first + np.arange(len(self.components))
        column_of[self.total :] = first_landmark + np.arange(LANDMARK_VALUES)
        return column_of


def _used_columns(checkpoint: AuCheckpoint) -> dict[Region, _UsedColumns]:
    columns: dict[Region, _UsedColumns] = {}
    first = 0
    for region, projection in checkpoint.projections.items():
        total = len(projection.offset)
        read = [_trees(unit).feature for unit in checkpoint.units if unit.region == region]
        inputs = np.unique(np.concatenate([np.empty(0, np.int64), *read]))
        components = inputs[(inputs >= 0) & (inputs < total)]
        columns[region] = _UsedColumns(components, total, first)
        first += len(components)
    return columns


def _select(projection: Projection, components: NDArray[np.int64]) -> Projection:
    return Projection(projection.matrix[:, components], projection.offset[components])


def _join(projections: list[Projection]) -> Projection:
    """Return one projection to the components of several."""
    return Projection(
        np.concatenate([projection.matrix for projection in projections], axis=1),
        np.concatenate([projection.offset for projection in projections]),
    )


def _trees(unit: ActionUnit) -> Trees:
    if not isinstance(unit.classifier, Trees):
        raise TypeError(f"{unit.name} of a checkpoint of kind xgb has no trees")
    return unit.classifier


def _linear(unit: ActionUnit) -> Linear:
    if not isinstance(unit.classifier, Linear):
        raise TypeError(f"{unit.name} of a checkpoint of kind svm has no linear classifier")
    return unit.classifier


class _TreeEnsemble:
    """The attributes of a TreeEnsembleRegressor, collected node by node."""

    def __init__(self) -> None:
        self._trees = 0
        self._nodes: dict[str, list[object]] = {
            name: []
            for name in ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids")
        }
        self._targets: dict[str, list[object]] = {
            name: [] for name in ("treeids", "nodeids", "ids", "weights")
        }

    def add_tree(self, nodes: Iterable["_Split | _Leaf"]) -> None:
        """Add a tree; its first node is the root."""
        for index, node in enumerate(nodes):
            is_leaf = isinstance(node, _Leaf)
            row = {
                "treeids": self._trees,
                "nodeids": index,
                "featureids": 0 if is_leaf else node.column,
                "values": 0.0 if is_leaf else node.value,
                "modes": "LEAF" if is_leaf else "BRANCH_LT",
                "truenodeids": 0 if is_leaf else node.left,
                "falsenodeids": 0 if is_leaf else node.right,
            }
            for name, value in row.items():
                self._nodes[name].append(value)
            if is_leaf:
                target = {"treeids": self._trees, "nodeids": index, "ids": node.target, "weights": node.value}
                for name, value in target.items():
                    self._targets[name].append(value)
        self._trees += 1

    def attributes(self) -> dict[str, object]:
        """Return the attributes by their names in ONNX."""
        nodes = {f"nodes_{name}": values for name, values in self._nodes.items()}
        return nodes | {f"target_{name}": values for name, values in self._targets.items()}


@dataclasses.dataclass(frozen=True)
class _Split:
    """Go to the node `left` if the input's column is less than `value`, else to `right`."""

    column: int
    value: float
    left: int
    right: int


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """Add `value` to an output of the ensemble."""

    value: float
    target: int = 0


def _margin_trees(trees: Trees, column_of: NDArray[np.int64]) -> _TreeEnsemble:
    """Return the base margin as a tree of one leaf, then the trees."""
    ensemble = _TreeEnsemble()
    ensemble.add_tree([_Leaf(trees.base_margin)])
    # Lists, because reading single elements of arrays is slow.
    left, right, value = trees.left.tolist(), trees.right.tolist(), trees.value.tolist()
    column = column_of[trees.feature].tolist()
    for root in trees.roots.tolist():
        order = _depth_first(root, left, right)
        position = {node: index for index, node in enumerate(order)}
        ensemble.add_tree(
            _Leaf(value[node])
            if left[node] < 0
            else _Split(column[node], value[node], position[left[node]], position[right[node]])
            for node in order
        )
    return ensemble


def _depth_first(root: int, left: list[int], right: list[int]) -> list[int]:
    order, pending = [], [root]
    while pending:
        node = pending.pop()
        order.append(node)
        if left[node] >= 0:
            pending += [right[node], left[node]]
    return order


def _activate(builder: _GraphBuilder, units: tuple[ActionUnit, ...], margins: str) -> str:
    """Return the classifiers' outputs: the logistic function of the margin, or 1 for a positive margin."""
    is_hinge = np.array([_trees(unit).objective == "binary:hinge" for unit in units])
    # As XGBoost: 1 / (1 + exp(-margin)) in float32. Rounded from float64, exp equals the C library's. ONNX
    # Runtime's Sigmoid in float32 differs by up to 2e-7, which a steep calibrator magnifies.
    exact = builder.add("Exp", builder.add("Neg", builder.add("Cast", margins, to=TensorProto.DOUBLE)))
    power = builder.add("Cast", exact, to=TensorProto.FLOAT)
    logistic = builder.add("Div", np.float32(1), builder.add("Add", power, np.float32(1)))
    if not is_hinge.any():
        return logistic
    positive = builder.add("Greater", margins, np.float32(0))
    return builder.add("Where", is_hinge, builder.add("Cast", positive, to=TensorProto.FLOAT), logistic)


def _linear_probabilities(builder: _GraphBuilder, checkpoint: AuCheckpoint, landmarks: str) -> str:
    """Return 1 where a linear classifier's score is positive, else 0."""
    weights, biases = [], []
    for unit in checkpoint.units:
        linear, projection = _linear(unit), checkpoint.projections[unit.region]
        of_components, of_landmarks = np.split(linear.weights, [len(projection.offset)])
        weights.append(np.concatenate([projection.matrix @ of_components, of_landmarks]))
        biases.append(projection.offset @ of_components + linear.bias)
    hog, points = (builder.add("Cast", name, to=TensorProto.DOUBLE) for name in ("HOG", landmarks))
    inputs = builder.add("Concat", hog, points, axis=1)
    products = builder.add("MatMul", inputs, np.stack(weights, axis=1))
    scores = builder.add("Add", products, np.array(biases))
    return builder.add("Cast", builder.add("Greater", scores, np.float64(0)), to=TensorProto.FLOAT)


def _calibrate(builder: _GraphBuilder, units: tuple[ActionUnit, ...], probabilities: str) -> str:
    """Apply the calibrators in float64, each to its column; other columns stay unchanged."""
    if all(unit.calibrator is None for unit in units):
        return probabilities
    exact = builder.add("Cast", probabilities, to=TensorProto.DOUBLE)
    calibrated = exact
    for kind, apply in ((Isotonic, _interpolate), (Sigmoid, _apply_sigmoid)):
        selected = np.array([isinstance(unit.calibrator, kind) for unit in units])
        if selected.any():
            result = apply(builder, units, probabilities, exact)
            calibrated = builder.add("Where", selected, result, calibrated)
    return builder.add("Cast", calibrated, to=TensorProto.FLOAT)


def _apply_sigmoid(
    builder: _GraphBuilder, units: tuple[ActionUnit, ...], _probabilities: str, exact: str
) -> str:
    """Return Platt's calibration of the columns that have one; other columns have any value."""
    sigmoids = [unit.calibrator if isinstance(unit.calibrator, Sigmoid) else Sigmoid(0, 0) for unit in units]
    slopes = np.array([sigmoid.slope for sigmoid in sigmoids], np.float64)
    intercepts = np.array([sigmoid.intercept for sigmoid in sigmoids], np.float64)
    exponent = builder.add("Add", builder.add("Mul", exact, slopes), intercepts)
    return builder.add("Sigmoid", builder.add("Neg", exponent))


@dataclasses.dataclass(frozen=True)
class _Piece:
    """From (x, y) to (x + width, y + rise); `start` is the first float32 number of the piece."""

    start: float
    x: float
    y: float
    width: float
    rise: float


def _interpolate(
    builder: _GraphBuilder, units: tuple[ActionUnit, ...], probabilities: str, exact: str
) -> str:
    """Return the isotonic calibration of the columns that have one; other columns have any value.

    A tree finds the piece of each probability: one operator for all AUs, in time logarithmic in the number
    of thresholds.
    """
    finder, pieces = _TreeEnsemble(), []
    for column, unit in enumerate(units):
        own = _pieces(unit.calibrator) if isinstance(unit.calibrator, Isotonic) else [_Piece(0, 0, 0, 1, 0)]
        finder.add_tree(_search_tree([piece.start for piece in own], column, len(pieces)))
        pieces += own
    found = builder.add(
        "TreeEnsembleRegressor",
        probabilities,
        domain="ai.onnx.ml",
        n_targets=len(units),
        **finder.attributes(),
    )
    piece = builder.add("Cast", found, to=TensorProto.INT64)
    x, y, width, rise = (
        builder.add("Gather", np.array([getattr(piece, name) for piece in pieces], np.float64), piece)
        for name in ("x", "y", "width", "rise")
    )
    # The quotient is at most 1, so that a steep piece cannot overflow.
    fraction = builder.add("Div", builder.add("Sub", exact, x), width)
    return builder.add("Add", y, builder.add("Mul", fraction, rise))


def _pieces(isotonic: Isotonic) -> list[_Piece]:
    """Return the pieces that contain float32 numbers, and the constant ones outside the thresholds."""
    x, y = isotonic.x, isotonic.y
    # p >= x is equal to p >= start for each float32 number p.
    start = _round_up(x)
    inner = [
        _Piece(float(start[i]), x[i], y[i], x[i + 1] - x[i], y[i + 1] - y[i])
        for i in range(len(x) - 1)
        if start[i] < start[i + 1]
    ]
    return [_Piece(-np.inf, 0, y[0], 1, 0), *inner, _Piece(float(start[-1]), 0, y[-1], 1, 0)]


def _round_up(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the smallest float32 number not below each value."""
    nearest = values.astype(np.float32)
    return np.where(nearest < values, np.nextafter(nearest, np.float32(np.inf)), nearest)


def _search_tree(starts: list[float], column: int, first: int) -> list[_Split | _Leaf]:
    """Return a balanced tree whose leaves are `first` + the index of the last start not above the input."""
    nodes: list[_Split | _Leaf] = []

    def add(low: int, high: int) -> None:
        if high - low == 1:
            nodes.append(_Leaf(float(first + low), column))
            return
        middle = (low + high) // 2
        index = len(nodes)
        nodes.append(_Leaf(0))  # replaced below, when the position of the right child is known
        add(low, middle)
        nodes[index] = _Split(column, starts[middle], index + 1, len(nodes))
        add(middle, high)

    add(0, len(starts))
    return nodes
