"""The HOG layer of the AU classifiers as an ONNX graph (SPEC section 4).

The graph is written down node by node instead of being traced: an exporter's optimizer has dropped the
``1e-10`` of the block norm, and every blank block came out NaN. It holds only operators that ONNX Runtime
has for the CPU and for CUDA alike, each of them within one face, so that a face's features do not depend
on the faces beside it.

Convention
----------
``gx`` runs along columns (x, to the right), ``gy`` along rows (y, downwards). An orientation is the angle
of the gradient, ``atan2(gy, gx)`` modulo 180 degrees; bin ``k`` of 8 covers ``[22.5 k, 22.5 (k + 1))``.

ONNX has no atan2. The bin follows from comparisons alone: whether the gradient, turned to point downwards,
leans right (below 90 degrees) or left, and its steepness ``|gy| / |gx|`` against tan 22.5, 1 and
1 / tan 22.5. What needs care is the borders at 45, 90, 135 and 180 degrees. Gradients fall right on them
in flat and synthetic regions, and within a float32 ulp of them along the fill's edge, where 128 stands
against values that differ by little. There the reference's own rounding decides: it takes atan2, degrees,
the modulo and the division in float32, and so its borders lie some 1e-7 radians below the true ones, by
amounts that depend on the sign of ``gy``. `BORDER_SHIFTS` has them, measured on 4 million gradients at each
border with the torch that py-feat runs on; the differences compared with them are exact in float32 where
it matters. (The borders between these are irrational slopes, which no image prefers.)
"""

import math

import onnx
import onnx.parser

ORIENTATIONS = 8
CELL = 8
"""Pixels a side."""
BLOCK = 2
"""Cells a side."""

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
"""How far below each border, radians, the reference (torch 2.13, CPU) already counts a gradient above it.

Downward is ``gy >= 0``. Downward from 180 degrees on the bin is 0; an upward gradient near 180 degrees
stays in bin 7, because the reference clamps it there.
"""


def feature_length(face_size: int) -> int:
    """Return the number of HOG features of a square face of `face_size` pixels."""
    blocks = face_size // CELL - BLOCK + 1
    return blocks**2 * BLOCK**2 * ORIENTATIONS


def build_hog_graph(face_size: int) -> onnx.ModelProto:
    """Build MASKED_FACES float32 ``[N, 3, face_size, face_size]`` -> HOG float32 ``[N, features]``.

    The features are those of ``skimage.feature.hog(face, orientations=8, pixels_per_cell=(8, 8),
    cells_per_block=(2, 2), block_norm="L2-Hys", channel_axis=-1)``, in its order: block row, block
    column, cell row, cell column, orientation.

    Parameters
    ----------
    face_size : int
        Side of the faces, pixels; at least two cells.

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
        int64[2] feature_shape = {{0, {feature_length(face_size)}}}
    >
    {{
        {_GRADIENTS}
        {_STRONGEST_CHANNEL}
        {_ORIENTATION_BIN}
        {_CELLS}
        {_BLOCKS}
        {_NORMALIZATION}
    }}
    """
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model, full_check=True)
    return model


_CONSTANTS = f"""
    int64[1] row_axis = {{2}},
    int64[1] column_axis = {{3}},
    int64[1] at_0 = {{0}},
    int64[1] at_2 = {{2}},
    int64[1] at_second_last = {{-2}},
    int64[1] at_end = {{9223372036854775807}},
    int64[8] row_border = {{0, 0, 1, 0, 0, 0, 1, 0}},
    int64[8] column_border = {{0, 0, 0, 1, 0, 0, 0, 1}},
    int64[2] cell_axes = {{1, 2}},
    int64[2] block_00 = {{0, 0}},
    int64[2] block_01 = {{0, 1}},
    int64[2] block_10 = {{1, 0}},
    int64[2] block_11 = {{1, 1}},
    int64[2] block_00_end = {{-1, -1}},
    int64[2] block_01_end = {{-1, 9223372036854775807}},
    int64[2] block_10_end = {{9223372036854775807, -1}},
    int64[2] block_11_end = {{9223372036854775807, 9223372036854775807}},
    float zero = {{0.0}},
    float bin_0 = {{0.0}},
    float bin_7 = {{7.0}},
    float[1, 8, 1, 1] bins = {{0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0}},
    float tan_width = {{{math.tan(BIN_WIDTH):.9e}}},
    float downward_lean = {{{BORDER_SHIFTS["downward_90"]}}},
    float upward_lean = {{{BORDER_SHIFTS["upward_90"]}}},
    float downward_right = {{{-2 * BORDER_SHIFTS["downward_45"]}}},
    float upward_right = {{{-2 * BORDER_SHIFTS["upward_45"]}}},
    float downward_left = {{{2 * BORDER_SHIFTS["downward_135"]}}},
    float upward_left = {{{2 * BORDER_SHIFTS["upward_135"]}}},
    float downward_flat = {{{BORDER_SHIFTS["downward_180"]}}},
    float epsilon = {{1e-10}},
    float hysteresis = {{0.2}}
"""

# Centred differences; 0 in the first and last column (gx) and row (gy).
_GRADIENTS = """
    right = Slice (MASKED_FACES, at_2, at_end, column_axis)
    left = Slice (MASKED_FACES, at_0, at_second_last, column_axis)
    inner_gx = Sub (right, left)
    channel_gx = Pad (inner_gx, column_border)
    below = Slice (MASKED_FACES, at_2, at_end, row_axis)
    above = Slice (MASKED_FACES, at_0, at_second_last, row_axis)
    inner_gy = Sub (below, above)
    channel_gy = Pad (inner_gy, row_border)
"""

# Per pixel the channel of largest magnitude, the first one on a tie. The magnitudes are compared after the
# square root, which makes ties of its own.
_STRONGEST_CHANNEL = """
    channel_gx_squared = Mul (channel_gx, channel_gx)
    channel_gy_squared = Mul (channel_gy, channel_gy)
    channel_energy = Add (channel_gx_squared, channel_gy_squared)
    channel_magnitude = Sqrt (channel_energy)
    magnitude_r, magnitude_g, magnitude_b = Split <axis = 1> (channel_magnitude)
    gx_r, gx_g, gx_b = Split <axis = 1> (channel_gx)
    gy_r, gy_g, gy_b = Split <axis = 1> (channel_gy)
    green_wins = Greater (magnitude_g, magnitude_r)
    magnitude_rg = Max (magnitude_r, magnitude_g)
    gx_rg = Where (green_wins, gx_g, gx_r)
    gy_rg = Where (green_wins, gy_g, gy_r)
    blue_wins = Greater (magnitude_b, magnitude_rg)
    magnitude = Max (magnitude_rg, magnitude_b)
    gx = Where (blue_wins, gx_b, gx_rg)
    gy = Where (blue_wins, gy_b, gy_rg)
"""

# A gradient that leans right has as many bins below it as thresholds its steepness is over; one that leans
# left has as many above it. Beside 45 and 135 degrees the angle is off by half of (rise - run) / run.
_ORIENTATION_BIN = """
    points_up = Less (gy, zero)
    run = Abs (gx)
    rise = Abs (gy)

    turned_gx = Neg (gx)
    lean = Where (points_up, turned_gx, gx)
    lean_shift = Where (points_up, upward_lean, downward_lean)
    lean_limit = Mul (rise, lean_shift)
    leans_left = LessOrEqual (lean, lean_limit)

    right_shift = Where (points_up, upward_right, downward_right)
    left_shift = Where (points_up, upward_left, downward_left)
    diagonal_shift = Where (leans_left, left_shift, right_shift)
    diagonal_limit = Mul (run, diagonal_shift)
    excess = Sub (rise, run)
    over_45 = Greater (excess, diagonal_limit)

    run_scaled = Mul (run, tan_width)
    rise_scaled = Mul (rise, tan_width)
    over_22 = GreaterOrEqual (rise, run_scaled)
    over_67 = GreaterOrEqual (rise_scaled, run)

    one_if_over_22 = Cast <to = 1> (over_22)
    one_if_over_45 = Cast <to = 1> (over_45)
    one_if_over_67 = Cast <to = 1> (over_67)
    over_22_and_45 = Add (one_if_over_22, one_if_over_45)
    bins_below = Add (over_22_and_45, one_if_over_67)
    bins_above = Sub (bin_7, bins_below)
    unwrapped_bin = Where (leans_left, bins_above, bins_below)

    flat_limit = Mul (run, downward_flat)
    is_flat = LessOrEqual (rise, flat_limit)
    points_down = Not (points_up)
    wraps = And (is_flat, points_down)
    bin = Where (wraps, bin_0, unwrapped_bin)
"""

# The mean over a cell's pixels of the magnitude in each bin: [N, cell row, cell column, orientation].
_CELLS = f"""
    in_bin = Equal (bin, bins)
    binned_magnitude = Where (in_bin, magnitude, zero)
    pooled = AveragePool <kernel_shape = [{CELL}, {CELL}], strides = [{CELL}, {CELL}]> (binned_magnitude)
    cells = Transpose <perm = [0, 2, 3, 1]> (pooled)
"""

# The four cells of every block side by side, which is the order of the features.
_BLOCKS = """
    cells_00 = Slice (cells, block_00, block_00_end, cell_axes)
    cells_01 = Slice (cells, block_01, block_01_end, cell_axes)
    cells_10 = Slice (cells, block_10, block_10_end, cell_axes)
    cells_11 = Slice (cells, block_11, block_11_end, cell_axes)
    blocks = Concat <axis = 3> (cells_00, cells_01, cells_10, cells_11)
"""

# L2-Hys: normalize, clip, normalize again. epsilon keeps blank blocks at 0.
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
