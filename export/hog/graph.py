"""The HOG features of py-feat's AU classifiers as an ONNX graph (docs/SPEC.md, section 4).

The graph is written node by node, because `torch.onnx.export` dropped the ``1e-10`` of the block norm as
negligible, and each blank block became NaN. It uses only operators that ONNX Runtime has for CPU and CUDA. No
operator mixes faces, so a face's features do not depend on its batch.

On a CPU, memory traffic takes most of the time, because each operator writes its complete result. Therefore
the graph computes a separate plane ``[N, 1, S, S]`` for each channel's gradients and for each bin; a plane of
a few faces fits the cache. A single tensor of all eight bins made the graph 1.5 times as slow.

Convention
----------
``gx`` runs along columns (x, to the right), ``gy`` along rows (y, downwards). An orientation is the angle
of the gradient, ``atan2(gy, gx)`` modulo 180 degrees; bin ``k`` of 8 covers ``[22.5 k, 22.5 (k + 1))``.

ONNX has no atan2. Comparisons find the bin instead. A gradient that points upwards counts as its
opposite, which has the same orientation. Two facts determine the bin: the side to which the gradient leans,
right (below 90 degrees) or left, and the range of its slope ``|gy| / |gx|`` between the limits tan 22.5°, 1
and 1 / tan 22.5°.

The borders between bins at 45, 90, 135 and 180 degrees need care. Gradients of textureless and synthetic
regions lie exactly on these borders. Gradients along the edge of the fill value, where 128 is beside small
and similar values, lie within a float32 ulp of them. For these gradients the rounding of the reference, py-
feat with torch, decides. It computes atan2, degrees, modulo and division in float32, which moves its borders
down by about 1e-7 radians, depending on the sign of ``gy``. `BORDER_SHIFTS` holds these shifts, measured on
4 million gradients at each border. The other borders are irrational slopes, near which gradients are no more
frequent than elsewhere.
"""

import math

import onnx
import onnx.parser

ORIENTATIONS = 8
CELL = 8
"""Side of a cell, in pixels."""
BLOCK = 2
"""Side of a block, in cells."""

BIN_WIDTH = math.radians(180 / ORIENTATIONS)

BORDER_SHIFTS = {
    "downward_45": 5.2293e-8,
    "downward_90": 1.35102e-7,
    "downward_135": 9.6858e-8,
    "downward_180": 2.70205e-7,
    "upward_45": 1.11759e-7,
    "upward_90": 1.03316e-7,
    "upward_135": 1.56462e-7,
}
"""Radians by which the reference (torch 2.13, CPU) changes the bin before each border.

Downward means ``gy >= 0``. A downward gradient past the shifted border at 180 degrees is in bin 0. An upward
gradient near 180 degrees stays in bin 7, because the reference clamps the bin.
"""


def feature_length(face_size: int) -> int:
    """Return the number of HOG features of a square face of `face_size` pixels."""
    blocks = face_size // CELL - BLOCK + 1
    return blocks**2 * BLOCK**2 * ORIENTATIONS


def build_hog_graph(face_size: int) -> onnx.ModelProto:
    """Build MASKED_FACES float32 ``[N, 3, face_size, face_size]`` -> HOG float32 ``[N, features]``.

    The features equal ``skimage.feature.hog(face, orientations=8, pixels_per_cell=(8, 8),
    cells_per_block=(2, 2), block_norm="L2-Hys", channel_axis=-1)`` within 1e-5, except along the border of
    fill values (docs/SPEC.md, section 4). Their order is block row, block column, cell row, cell column,
    orientation.

    Parameters
    ----------
    face_size : int
        Side of the faces in pixels, at least two cells.

    References
    ----------
    Dalal and Triggs, "Histograms of oriented gradients for human detection", CVPR 2005.
    """
    text = f"""
    <ir_version: 8, opset_import: ["": 17], producer_name: "triton-face-features">
    hog (float[N, 3, {face_size}, {face_size}] MASKED_FACES)
        => (float[N, {feature_length(face_size)}] HOG)
    <
        {_CONSTANTS},
        {_channel_constants()},
        int64[2] feature_shape = {{0, {feature_length(face_size)}}}
    >
    {{
        {_gradients()}
        {_STRONGEST_CHANNEL}
        {_ORIENTATION}
        {_cells()}
        {_BLOCKS}
        {_NORMALIZATION}
    }}
    """
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model, full_check=True)
    return model


_CHANNELS = ("r", "g", "b")

_END = 2**63 - 1
"""The end of an axis, in Slice."""

_CONSTANTS = f"""
    int64[2] channel_and_row = {{1, 2}},
    int64[2] channel_and_column = {{1, 3}},
    int64[8] row_padding = {{0, 0, 1, 0, 0, 0, 1, 0}},
    int64[8] column_padding = {{0, 0, 0, 1, 0, 0, 0, 1}},
    int64[2] cell_axes = {{1, 2}},
    int64[2] block_00 = {{0, 0}},
    int64[2] block_01 = {{0, 1}},
    int64[2] block_10 = {{1, 0}},
    int64[2] block_11 = {{1, 1}},
    int64[2] block_00_end = {{-1, -1}},
    int64[2] block_01_end = {{-1, {_END}}},
    int64[2] block_10_end = {{{_END}, -1}},
    int64[2] block_11_end = {{{_END}, {_END}}},
    float zero = {{0.0}},
    float one = {{1.0}},
    float tan_width = {{{math.tan(BIN_WIDTH):.9e}}},
    float lean_factor = {{{BORDER_SHIFTS["downward_90"]}}},
    float right_factor = {{{-2 * BORDER_SHIFTS["downward_45"]}}},
    float left_factor = {{{2 * BORDER_SHIFTS["downward_135"]}}},
    float horizontal_factor = {{{BORDER_SHIFTS["downward_180"]}}},
    float epsilon = {{1e-10}},
    float hysteresis = {{0.2}}
"""


def _channel_constants() -> str:
    """Return the slices of each channel's next and previous neighbours."""
    return ",".join(
        f"""
    int64[2] {channel}_next = {{{index}, 2}},
    int64[2] {channel}_next_end = {{{index + 1}, {_END}}},
    int64[2] {channel}_previous = {{{index}, 0}},
    int64[2] {channel}_previous_end = {{{index + 1}, -2}}"""
        for index, channel in enumerate(_CHANNELS)
    )


def _gradients() -> str:
    """Return centred differences; 0 in the first and last column (gx) and row (gy)."""
    return "".join(
        f"""
    right_{c} = Slice (MASKED_FACES, {c}_next, {c}_next_end, channel_and_column)
    left_{c} = Slice (MASKED_FACES, {c}_previous, {c}_previous_end, channel_and_column)
    inner_gx_{c} = Sub (right_{c}, left_{c})
    gx_{c} = Pad (inner_gx_{c}, column_padding)
    below_{c} = Slice (MASKED_FACES, {c}_next, {c}_next_end, channel_and_row)
    above_{c} = Slice (MASKED_FACES, {c}_previous, {c}_previous_end, channel_and_row)
    inner_gy_{c} = Sub (below_{c}, above_{c})
    gy_{c} = Pad (inner_gy_{c}, row_padding)
    gx_squared_{c} = Mul (gx_{c}, gx_{c})
    gy_squared_{c} = Mul (gy_{c}, gy_{c})
    energy_{c} = Add (gx_squared_{c}, gy_squared_{c})
    magnitude_{c} = Sqrt (energy_{c})
"""
        for c in _CHANNELS
    )


# Choose the channel of largest magnitude at each pixel, the first one on a tie. The comparison must follow
# the square root, because its rounding creates ties.
_STRONGEST_CHANNEL = """
    green_wins = Greater (magnitude_g, magnitude_r)
    magnitude_rg = Max (magnitude_r, magnitude_g)
    gx_rg = Where (green_wins, gx_g, gx_r)
    gy_rg = Where (green_wins, gy_g, gy_r)
    blue_wins = Greater (magnitude_b, magnitude_rg)
    magnitude = Max (magnitude_rg, magnitude_b)
    gx = Where (blue_wins, gx_b, gx_rg)
    gy = Where (blue_wins, gy_b, gy_rg)
"""

# Find the side to which the gradient, or its opposite if it points upwards, leans, and the range of its
# slope. Near a diagonal, the angle differs from the diagonal's by (rise - run) / (2 run). Each limit is gy
# times a factor that depends on the sign of gy: LeakyRelu scales a negative gy by the ratio of the two
# factors, and Mul applies the factor of downward gradients.
_ORIENTATION = f"""
    points_up = Less (gy, zero)
    run = Abs (gx)
    rise = Abs (gy)

    gy_for_lean = LeakyRelu <alpha = {BORDER_SHIFTS["upward_90"] / BORDER_SHIFTS["downward_90"]}> (gy)
    lean_limit = Mul (gy_for_lean, lean_factor)
    left_of_limit = LessOrEqual (gx, lean_limit)
    leans_left = Xor (points_up, left_of_limit)

    gy_for_right = LeakyRelu <alpha = {-BORDER_SHIFTS["upward_45"] / BORDER_SHIFTS["downward_45"]}> (gy)
    right_limit = Mul (gy_for_right, right_factor)
    gy_for_left = LeakyRelu <alpha = {-BORDER_SHIFTS["upward_135"] / BORDER_SHIFTS["downward_135"]}> (gy)
    left_limit = Mul (gy_for_left, left_factor)
    diagonal_limit = Where (leans_left, left_limit, right_limit)
    excess = Sub (rise, run)
    over_45 = Greater (excess, diagonal_limit)

    run_scaled = Mul (run, tan_width)
    rise_scaled = Mul (rise, tan_width)
    over_22 = GreaterOrEqual (rise, run_scaled)
    over_67 = GreaterOrEqual (rise_scaled, run)

    one_if_over_22 = Cast <to = 1> (over_22)
    one_if_over_45 = Cast <to = 1> (over_45)
    from_67_to_90 = Cast <to = 1> (over_67)
    from_0_to_22 = Sub (one, one_if_over_22)
    from_22_to_45 = Sub (one_if_over_22, one_if_over_45)
    from_45_to_67 = Sub (one_if_over_45, from_67_to_90)

    horizontal_limit = Mul (run, horizontal_factor)
    is_horizontal = LessOrEqual (rise, horizontal_limit)
    points_down = Not (points_up)
    wraps_to_0 = And (is_horizontal, points_down)
    stays = Not (wraps_to_0)
    is_left = And (leans_left, stays)
    one_if_left = Cast <to = 1> (is_left)
"""

SLOPES = ("from_0_to_22", "from_22_to_45", "from_45_to_67", "from_67_to_90")
"""Tensors of the graph: 1 where the angle to the horizontal is in this range of degrees, else 0."""

_BINS = (*(("right", slope) for slope in SLOPES), *(("left", slope) for slope in reversed(SLOPES)))
"""Side and slope of each bin, in the order of the bins."""


def _cells() -> str:
    """Return the mean magnitude per cell and bin: [N, cell row, cell column, bin]."""
    planes = "".join(
        f"""
    {side}_{slope} = Mul ({side}_magnitude, {slope})
    {side}_{slope}_cells = AveragePool <kernel_shape = [{CELL}, {CELL}], strides = [{CELL}, {CELL}]> (
        {side}_{slope}
    )"""
        for side, slope in _BINS
    )
    return f"""
    left_magnitude = Mul (magnitude, one_if_left)
    right_magnitude = Sub (magnitude, left_magnitude)
    {planes}
    cells_by_bin = Concat <axis = 1> ({", ".join(f"{side}_{slope}_cells" for side, slope in _BINS)})
    cells = Transpose <perm = [0, 2, 3, 1]> (cells_by_bin)
"""


# Concatenate the four cells of each block, in the order of the features.
_BLOCKS = """
    cells_00 = Slice (cells, block_00, block_00_end, cell_axes)
    cells_01 = Slice (cells, block_01, block_01_end, cell_axes)
    cells_10 = Slice (cells, block_10, block_10_end, cell_axes)
    cells_11 = Slice (cells, block_11, block_11_end, cell_axes)
    blocks = Concat <axis = 3> (cells_00, cells_01, cells_10, cells_11)
"""

# L2-Hys: normalize, clip, normalize again. With epsilon a blank block is 0, not NaN.
_NORMALIZATION = """
    block_energy = ReduceSumSquare <axes = [3]> (blocks)
    block_energy_above_0 = Add (block_energy, epsilon)
    block_norm = Sqrt (block_energy_above_0)
    normalized = Div (blocks, block_norm)
    clipped = Min (normalized, hysteresis)
    clipped_energy = ReduceSumSquare <axes = [3]> (clipped)
    clipped_energy_above_0 = Add (clipped_energy, epsilon)
    clipped_norm = Sqrt (clipped_energy_above_0)
    features = Div (clipped, clipped_norm)
    HOG = Reshape (features, feature_shape)
"""
