"""The orientation bin of each gradient, as nodes of the HOG graph.

Convention
----------
``gx`` runs along columns (x, to the right), ``gy`` along rows (y, downwards). An orientation is the angle
of the gradient, ``atan2(gy, gx)`` modulo 180 degrees; of n bins, bin k covers
``[180 k / n, 180 (k + 1) / n)`` degrees.

ONNX has no atan2. Comparisons find the bin instead. A gradient that points upwards counts as its
opposite, which has the same orientation. Two facts determine the bin: the side to which the gradient leans,
right (below 90 degrees) or left, and the range of its slope ``|gy| / |gx|`` between the borders
``tan(180° k / n)`` below 90 degrees. Bins k and n - 1 - k have the same range on opposite sides. If n is odd,
the steepest range is one bin, on both sides.

The borders between bins at 45, 90, 135 and 180 degrees need care. (180 is a border for each n, 90 for even n,
45 and 135 for multiples of 4.) Gradients of textureless and synthetic regions lie exactly on these borders.
Gradients along the edge of the fill value, where 128 is beside small and similar values, lie within a float32
ulp of them. For these gradients the rounding of the reference, py-feat with torch, decides. It computes
atan2, degrees, modulo and division in float32, which moves its borders down by about 1e-7 radians, depending
on the sign of ``gy``. `BORDER_SHIFTS` holds these shifts, measured on 4 million gradients at each border of 8
bins. They hold for each n, because the division by the bin width rounds no smaller angle up to one of these
borders. The other borders are irrational slopes, near which gradients are no more frequent than elsewhere.

Square roots of pixels have another reference, scikit-image, which computes angles in float64. The rounding of
py-feat cannot be reproduced, because torch does not round all square roots correctly on a CPU. Quotients of
square roots can be irrational slopes: tan 60° between 0, 0.25 and 0.75. Therefore the *exact* nodes have no
shifts and compare slopes in float64.
"""

import itertools
import math

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
gradient near 180 degrees stays in the last bin, because the reference clamps the bin.
"""


def slope_ranges(orientations: int) -> list[str]:
    """Return tensors of the graph that are 1 where the slope is in a range, else 0.

    Their names have the angles to the horizontal, in whole degrees, ascending. Up to two bins have one range
    and need no tensor.
    """
    degrees = [_degrees(border, orientations) for border in _slope_borders(orientations)]
    if not degrees:
        return []
    return [f"from_{low}_to_{high}" for low, high in itertools.pairwise([0, *degrees, 90])]


def orientation_constants(orientations: int, exact: bool) -> list[str]:
    """Return the constants of `orientation_nodes`."""
    if orientations == 1:
        return []
    datatype = "double" if exact else "float"
    angles = {
        _half_bins(border, orientations)
        for border in _slope_borders(orientations)
        if not _is_diagonal(border, orientations)
    }
    constants = ["float zero = {0.0}"]
    if orientations > 2:
        constants.append("float one = {1.0}")
    for half_bins in sorted(angles):
        tangent = math.tan(math.radians(90 / orientations * half_bins))
        digits = 17 if exact else 9
        constants.append(f"{datatype} tan_width{_suffix(half_bins)} = {{{tangent:.{digits}e}}}")
    return constants if exact else [*constants, *_shift_constants(orientations)]


def _shift_constants(orientations: int) -> list[str]:
    constants = [f"float lean_factor = {{{BORDER_SHIFTS['downward_90']}}}"]
    if orientations % 4 == 0:
        constants.append(f"float right_factor = {{{-2 * BORDER_SHIFTS['downward_45']}}}")
        constants.append(f"float left_factor = {{{2 * BORDER_SHIFTS['downward_135']}}}")
    return [*constants, f"float horizontal_factor = {{{BORDER_SHIFTS['downward_180']}}}"]


def orientation_nodes(orientations: int, exact: bool) -> str:
    """Return nodes from gx, gy and magnitude to the magnitudes of each side and the slope ranges.

    Parameters
    ----------
    orientations : int
        Number of bins.
    exact : bool
        Whether borders are exact, as in scikit-image, or shifted, as in py-feat.
    """
    if orientations == 1:
        return ""
    lean, diagonals, horizontal = (
        (_EXACT_LEAN, _EXACT_DIAGONALS, _EXACT_HORIZONTAL) if exact else (_LEAN, _DIAGONALS, _HORIZONTAL)
    )
    return "".join(
        [
            _STEPS,
            lean,
            diagonals if orientations % 4 == 0 else "",
            _slopes(orientations, exact),
            horizontal,
            _SIDES,
        ]
    )


def bin_planes(orientations: int) -> dict[str, str]:
    """Return the planes of the bins in order: the name of each tensor, and the node that computes it.

    A plane has the magnitudes of the gradients in its bin, and 0 elsewhere. The node is empty if
    `orientation_nodes` has computed the plane already.
    """
    if orientations == 1:
        return {"magnitude": ""}
    if orientations == 2:
        return {"right_magnitude": "", "left_magnitude": ""}
    ranges = slope_ranges(orientations)
    both_sides = {}
    if orientations % 2:
        steepest = ranges.pop()
        both_sides = {f"both_{steepest}": f"both_{steepest} = Mul (magnitude, {steepest})"}
    right, left = (
        {f"{side}_{slope}": f"{side}_{slope} = Mul ({side}_magnitude, {slope})" for slope in slopes}
        for side, slopes in (("right", ranges), ("left", ranges[::-1]))
    )
    return right | both_sides | left


_STEPS = """
    points_up = Less (gy, zero)
    run = Abs (gx)
    rise = Abs (gy)
"""

# Find the side to which the gradient, or its opposite if it points upwards, leans. The limit is gy times a
# factor that depends on the sign of gy: LeakyRelu scales a negative gy by the ratio of the two factors, and
# Mul applies the factor of downward gradients.
_LEAN = f"""
    gy_for_lean = LeakyRelu <alpha = {BORDER_SHIFTS["upward_90"] / BORDER_SHIFTS["downward_90"]}> (gy)
    lean_limit = Mul (gy_for_lean, lean_factor)
    left_of_limit = LessOrEqual (gx, lean_limit)
    leans_left = Xor (points_up, left_of_limit)
"""

_EXACT_LEAN = """
    opposite_gx = Neg (gx)
    gx_of_downward = Where (points_up, opposite_gx, gx)
    leans_left = LessOrEqual (gx_of_downward, zero)
"""

# Near a diagonal, the angle differs from the diagonal's by (rise - run) / (2 run).
_DIAGONALS = f"""
    gy_for_right = LeakyRelu <alpha = {-BORDER_SHIFTS["upward_45"] / BORDER_SHIFTS["downward_45"]}> (gy)
    right_limit = Mul (gy_for_right, right_factor)
    gy_for_left = LeakyRelu <alpha = {-BORDER_SHIFTS["upward_135"] / BORDER_SHIFTS["downward_135"]}> (gy)
    left_limit = Mul (gy_for_left, left_factor)
    diagonal_limit = Where (leans_left, left_limit, right_limit)
    excess = Sub (rise, run)
    over_45 = Greater (excess, diagonal_limit)
"""

# A diagonal is in the upper bin, which has the steeper slopes on the right and the flatter ones on the left.
_EXACT_DIAGONALS = """
    is_steep = Greater (rise, run)
    is_diagonal = Equal (rise, run)
    leans_right = Not (leans_left)
    is_right_diagonal = And (is_diagonal, leans_right)
    over_45 = Or (is_steep, is_right_diagonal)
"""

_HORIZONTAL = """
    horizontal_limit = Mul (run, horizontal_factor)
    is_horizontal = LessOrEqual (rise, horizontal_limit)
"""

_EXACT_HORIZONTAL = """
    is_horizontal = Equal (rise, zero)
"""

# The left bins have the gradients that lean left, except downward ones at 180 degrees, which are in bin 0.
_SIDES = """
    points_down = Not (points_up)
    wraps_to_0 = And (is_horizontal, points_down)
    stays = Not (wraps_to_0)
    is_left = And (leans_left, stays)
    one_if_left = Cast <to = 1> (is_left)
    left_magnitude = Mul (magnitude, one_if_left)
    right_magnitude = Sub (magnitude, left_magnitude)
"""


def _slopes(orientations: int, exact: bool) -> str:
    """Return the comparisons of the slope with the borders, and the ranges between them."""
    ranges = slope_ranges(orientations)
    if not ranges:
        return ""
    run, rise = ("run_64", "rise_64") if exact else ("run", "rise")
    nodes = ["run_64 = Cast <to = 11> (run)", "rise_64 = Cast <to = 11> (rise)"] if exact else []
    comparisons, casts, differences = [], [], []
    lower = "one"
    for border, name in zip(_slope_borders(orientations), ranges, strict=False):
        over = f"over_{_degrees(border, orientations)}"
        if not _is_diagonal(border, orientations):
            suffix = _suffix(_half_bins(border, orientations))
            # The tangent of the angle to the nearer axis is at most 1.
            if 4 * border < orientations:
                nodes.append(f"run_scaled{suffix} = Mul ({run}, tan_width{suffix})")
                comparisons.append(f"{over} = GreaterOrEqual ({rise}, run_scaled{suffix})")
            else:
                nodes.append(f"rise_scaled{suffix} = Mul ({rise}, tan_width{suffix})")
                comparisons.append(f"{over} = GreaterOrEqual (rise_scaled{suffix}, {run})")
        upper = f"one_if_{over}" if border < len(ranges) - 1 else ranges[-1]
        casts.append(f"{upper} = Cast <to = 1> ({over})")
        differences.append(f"{name} = Sub ({lower}, {upper})")
        lower = upper
    return "\n".join(["", *nodes, *comparisons, *casts, *differences, ""])


def _slope_borders(orientations: int) -> range:
    """Return the numbers k of the borders between 0 and 90 degrees."""
    return range(1, (orientations + 1) // 2)


def _degrees(border: int, orientations: int) -> int:
    return 180 * border // orientations


def _is_diagonal(border: int, orientations: int) -> bool:
    return 4 * border == orientations


def _half_bins(border: int, orientations: int) -> int:
    """Return a border's angle to the nearer axis, in halves of the bin width."""
    return min(2 * border, orientations - 2 * border)


def _suffix(half_bins: int) -> str:
    """Return the suffix of names for an angle to an axis, none for the width of a bin."""
    return "" if half_bins == 2 else f"_{half_bins}"
