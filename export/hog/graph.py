"""The HOG layer of the AU classifiers as an ONNX graph (SPEC section 4).

The graph is written down node by node instead of being traced: an exporter's optimizer has dropped the
``1e-10`` of the block norm, and every blank block came out NaN. It holds only operators that ONNX Runtime
has for the CPU and for CUDA alike, each of them within one face, so that a face's features do not depend
on the faces beside it.

What a CPU pays for is memory: every operator writes its whole result. So no operator here writes more than
one plane ``[N, 1, S, S]`` a face: the channels' gradients and the eight bins are planes of their own, which
stay in the cache for a few faces at a time. One stack of eight planes instead, filled by Where and pooled at
once, took 1.5 times as long for the whole graph.

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

_END = 2**63 - 1  # ONNX's end of an axis

_CONSTANTS = f"""
    int64[2] channel_and_row = {{1, 2}},
    int64[2] channel_and_column = {{1, 3}},
    int64[8] row_border = {{0, 0, 1, 0, 0, 0, 1, 0}},
    int64[8] column_border = {{0, 0, 0, 1, 0, 0, 0, 1}},
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
    float lean_shift = {{{BORDER_SHIFTS["downward_90"]}}},
    float right_shift = {{{-2 * BORDER_SHIFTS["downward_45"]}}},
    float left_shift = {{{2 * BORDER_SHIFTS["downward_135"]}}},
    float flat_shift = {{{BORDER_SHIFTS["downward_180"]}}},
    float epsilon = {{1e-10}},
    float hysteresis = {{0.2}}
"""


def _channel_constants() -> str:
    """Return where each channel's forward and backward neighbours start and end."""
    return ",".join(
        f"""
    int64[2] {channel}_forward = {{{index}, 2}},
    int64[2] {channel}_forward_end = {{{index + 1}, {_END}}},
    int64[2] {channel}_back = {{{index}, 0}},
    int64[2] {channel}_back_end = {{{index + 1}, -2}}"""
        for index, channel in enumerate(_CHANNELS)
    )


def _gradients() -> str:
    """Return the centred differences; 0 in the first and last column (gx) and row (gy)."""
    return "".join(
        f"""
    right_{c} = Slice (MASKED_FACES, {c}_forward, {c}_forward_end, channel_and_column)
    left_{c} = Slice (MASKED_FACES, {c}_back, {c}_back_end, channel_and_column)
    inner_gx_{c} = Sub (right_{c}, left_{c})
    gx_{c} = Pad (inner_gx_{c}, column_border)
    below_{c} = Slice (MASKED_FACES, {c}_forward, {c}_forward_end, channel_and_row)
    above_{c} = Slice (MASKED_FACES, {c}_back, {c}_back_end, channel_and_row)
    inner_gy_{c} = Sub (below_{c}, above_{c})
    gy_{c} = Pad (inner_gy_{c}, row_border)
    gx_squared_{c} = Mul (gx_{c}, gx_{c})
    gy_squared_{c} = Mul (gy_{c}, gy_{c})
    energy_{c} = Add (gx_squared_{c}, gy_squared_{c})
    magnitude_{c} = Sqrt (energy_{c})
"""
        for c in _CHANNELS
    )


# Per pixel the channel of largest magnitude, the first one on a tie. The magnitudes are compared after the
# square root, which makes ties of its own.
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

# Which way the gradient, turned to point downwards, leans, and how steep it is: flat, low, high or upright,
# by the thresholds its steepness is over. Beside 45 and 135 degrees the angle is off by half of
# (rise - run) / run. The shifts are in proportion to |gy|, by one factor downwards and another one upwards,
# which is what LeakyRelu makes of gy.
_ORIENTATION = f"""
    points_up = Less (gy, zero)
    run = Abs (gx)
    rise = Abs (gy)

    lean_by_sign = LeakyRelu <alpha = {BORDER_SHIFTS["upward_90"] / BORDER_SHIFTS["downward_90"]}> (gy)
    lean_limit = Mul (lean_by_sign, lean_shift)
    left_of_limit = LessOrEqual (gx, lean_limit)
    leans_left = Xor (points_up, left_of_limit)

    right_by_sign = LeakyRelu <alpha = {-BORDER_SHIFTS["upward_45"] / BORDER_SHIFTS["downward_45"]}> (gy)
    right_limit = Mul (right_by_sign, right_shift)
    left_by_sign = LeakyRelu <alpha = {-BORDER_SHIFTS["upward_135"] / BORDER_SHIFTS["downward_135"]}> (gy)
    left_limit = Mul (left_by_sign, left_shift)
    diagonal_limit = Where (leans_left, left_limit, right_limit)
    excess = Sub (rise, run)
    over_45 = Greater (excess, diagonal_limit)

    run_scaled = Mul (run, tan_width)
    rise_scaled = Mul (rise, tan_width)
    over_22 = GreaterOrEqual (rise, run_scaled)
    over_67 = GreaterOrEqual (rise_scaled, run)

    one_if_over_22 = Cast <to = 1> (over_22)
    one_if_over_45 = Cast <to = 1> (over_45)
    upright = Cast <to = 1> (over_67)
    flat = Sub (one, one_if_over_22)
    low = Sub (one_if_over_22, one_if_over_45)
    high = Sub (one_if_over_45, upright)

    flat_limit = Mul (run, flat_shift)
    is_flat = LessOrEqual (rise, flat_limit)
    points_down = Not (points_up)
    wraps_to_0 = And (is_flat, points_down)
    stays = Not (wraps_to_0)
    is_left = And (leans_left, stays)
    one_if_left = Cast <to = 1> (is_left)
"""

# The bins in their order: a gradient rises from flat to upright on the right side, and falls on the left.
_BINS = (
    *(("right", steepness) for steepness in ("flat", "low", "high", "upright")),
    *(("left", steepness) for steepness in ("upright", "high", "low", "flat")),
)


def _cells() -> str:
    """Return the mean over a cell's pixels of the magnitude in each bin: [N, cell row, column, bin]."""
    planes = "".join(
        f"""
    {side}_{steepness} = Mul ({side}_magnitude, {steepness})
    {side}_{steepness}_cells = AveragePool <kernel_shape = [{CELL}, {CELL}], strides = [{CELL}, {CELL}]> (
        {side}_{steepness}
    )"""
        for side, steepness in _BINS
    )
    return f"""
    left_magnitude = Mul (magnitude, one_if_left)
    right_magnitude = Sub (magnitude, left_magnitude)
    {planes}
    cells_by_bin = Concat <axis = 1> ({", ".join(f"{side}_{steepness}_cells" for side, steepness in _BINS)})
    cells = Transpose <perm = [0, 2, 3, 1]> (cells_by_bin)
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
