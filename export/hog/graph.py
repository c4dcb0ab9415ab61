"""The HOG features of py-feat's AU classifiers as an ONNX graph (docs/SPEC.md, section 4).

The graph is written node by node, because `torch.onnx.export` dropped the ``1e-10`` of the block norm as
negligible, and each blank block became NaN. It uses only operators that ONNX Runtime has for CPU and CUDA. No
operator mixes faces, so a face's features do not depend on its batch.

On a CPU, memory traffic takes most of the time, because each operator writes its complete result. Therefore
the graph computes a separate plane ``[N, 1, S, S]`` for each channel's gradients and for each bin; a plane of
a few faces fits the cache. A single tensor of all eight bins made the graph 1.5 times as slow.
"""

import onnx
import onnx.parser

from export.hog.orientation import bin_planes, orientation_constants, orientation_nodes
from export.hog.settings import HogSettings

DEFAULT_SETTINGS = HogSettings()


def build_hog_graph(face_size: int, settings: HogSettings = DEFAULT_SETTINGS) -> onnx.ModelProto:
    """Build MASKED_FACES float32 ``[N, 3, face_size, face_size]`` -> HOG float32 ``[N, features]``.

    The features equal those of `skimage.feature.hog` with the same settings and ``channel_axis=-1`` within
    1e-5, except along the border of fill values (docs/SPEC.md, section 4). Their order is block row, block
    column, cell row, cell column, orientation.

    Parameters
    ----------
    face_size : int
        Side of the faces in pixels, at least one block.
    settings : HogSettings
        By default those of py-feat's AU classifiers.

    Raises
    ------
    ExportError
        If no block fits into the face, or the face has too many features.

    References
    ----------
    Dalal and Triggs, "Histograms of oriented gradients for human detection", CVPR 2005.
    """
    length = settings.feature_length(face_size)
    orientations, block = settings.orientations, settings.cells_per_block
    constants = [
        *_GRADIENT_CONSTANTS,
        *_block_constants(block),
        *orientation_constants(orientations, exact=settings.transform_sqrt),
        *_NORM_CONSTANTS[settings.block_norm],
        *_channel_constants(),
        f"int64[2] feature_shape = {{0, {length}}}",
    ]
    text = f"""
    <ir_version: 8, opset_import: ["": 17], producer_name: "triton-face-features">
    hog (float[N, 3, {face_size}, {face_size}] MASKED_FACES) => (float[N, {length}] HOG)
    <
        {", ".join(constants)}
    >
    {{
        {_gradients(settings.transform_sqrt)}
        {_STRONGEST_CHANNEL}
        {orientation_nodes(orientations, exact=settings.transform_sqrt)}
        {_cells(orientations, settings.pixels_per_cell)}
        {_blocks(block)}
        {_NORMS[settings.block_norm]}
        HOG = Reshape (features, feature_shape)
    }}
    """
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model, full_check=True)
    return model


_CHANNELS = ("r", "g", "b")

_END = 2**63 - 1
"""The end of an axis, in Slice."""

_GRADIENT_CONSTANTS = (
    "int64[2] channel_and_row = {1, 2}",
    "int64[2] channel_and_column = {1, 3}",
    "int64[8] row_padding = {0, 0, 1, 0, 0, 0, 1, 0}",
    "int64[8] column_padding = {0, 0, 0, 1, 0, 0, 0, 1}",
)


def _channel_constants() -> list[str]:
    """Return the slices of each channel's next and previous neighbours."""
    return [
        f"int64[2] {channel}_{name} = {{{position}}}"
        for index, channel in enumerate(_CHANNELS)
        for name, position in (
            ("next", f"{index}, 2"),
            ("next_end", f"{index + 1}, {_END}"),
            ("previous", f"{index}, 0"),
            ("previous_end", f"{index + 1}, -2"),
        )
    ]


def _gradients(transform_sqrt: bool) -> str:
    """Return centred differences and their magnitudes; 0 in the first and last column (gx) and row (gy)."""
    if not transform_sqrt:
        return "".join(_differences("MASKED_FACES", c) + _MAGNITUDE.format(c=c) for c in _CHANNELS)
    return "roots = Sqrt (MASKED_FACES)" + "".join(
        _differences("roots", c) + _EXACT_MAGNITUDE.format(c=c) for c in _CHANNELS
    )


def _differences(pixels: str, c: str) -> str:
    return f"""
    right_{c} = Slice ({pixels}, {c}_next, {c}_next_end, channel_and_column)
    left_{c} = Slice ({pixels}, {c}_previous, {c}_previous_end, channel_and_column)
    inner_gx_{c} = Sub (right_{c}, left_{c})
    gx_{c} = Pad (inner_gx_{c}, column_padding)
    below_{c} = Slice ({pixels}, {c}_next, {c}_next_end, channel_and_row)
    above_{c} = Slice ({pixels}, {c}_previous, {c}_previous_end, channel_and_row)
    inner_gy_{c} = Sub (below_{c}, above_{c})
    gy_{c} = Pad (inner_gy_{c}, row_padding)
"""


_MAGNITUDE = """
    gx_squared_{c} = Mul (gx_{c}, gx_{c})
    gy_squared_{c} = Mul (gy_{c}, gy_{c})
    energy_{c} = Add (gx_squared_{c}, gy_squared_{c})
    magnitude_{c} = Sqrt (energy_{c})
"""

# The magnitude as scikit-image's hypot rounds it. The magnitudes of two channels can differ by rounding
# alone, for example of the gradients (0.5, sqrt 0.75) and (1, 0).
_EXACT_MAGNITUDE = """
    gx_64_{c} = Cast <to = 11> (gx_{c})
    gy_64_{c} = Cast <to = 11> (gy_{c})
    gx_squared_{c} = Mul (gx_64_{c}, gx_64_{c})
    gy_squared_{c} = Mul (gy_64_{c}, gy_64_{c})
    energy_{c} = Add (gx_squared_{c}, gy_squared_{c})
    magnitude_64_{c} = Sqrt (energy_{c})
    magnitude_{c} = Cast <to = 1> (magnitude_64_{c})
"""

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


def _cells(orientations: int, pixels: int) -> str:
    """Return the mean magnitude per cell and bin: [N, cell row, cell column, bin]."""
    planes = bin_planes(orientations)
    window = f"kernel_shape = [{pixels}, {pixels}], strides = [{pixels}, {pixels}]"
    pooled = "".join(
        f"""
    {node}
    {plane}_cells = AveragePool <{window}> ({plane})
"""
        for plane, node in planes.items()
    )
    return f"""
    {pooled}
    cells_by_bin = Concat <axis = 1> ({", ".join(f"{plane}_cells" for plane in planes)})
    cells = Transpose <perm = [0, 2, 3, 1]> (cells_by_bin)
"""


def _cells_of_block(block: int) -> dict[str, tuple[int, int]]:
    """Return a name for each cell of a block, with its row and column, in the order of the features."""
    digits = len(str(block - 1))
    return {
        f"{row:0{digits}}{column:0{digits}}": (row, column) for row in range(block) for column in range(block)
    }


def _block_constants(block: int) -> list[str]:
    """Return the slices of all cells that have the same place in their blocks."""
    if block == 1:
        return []
    places = _cells_of_block(block)
    ends = [_END if place == block - 1 else place - block + 1 for place in range(block)]
    return [
        "int64[2] cell_axes = {1, 2}",
        *(f"int64[2] block_{name} = {{{row}, {column}}}" for name, (row, column) in places.items()),
        *(
            f"int64[2] block_{name}_end = {{{ends[row]}, {ends[column]}}}"
            for name, (row, column) in places.items()
        ),
    ]


def _blocks(block: int) -> str:
    """Concatenate the cells of each block, in the order of the features."""
    if block == 1:
        return "blocks = Identity (cells)"
    places = _cells_of_block(block)
    slices = "".join(
        f"    cells_{name} = Slice (cells, block_{name}, block_{name}_end, cell_axes)\n" for name in places
    )
    return f"""
{slices}
    blocks = Concat <axis = 3> ({", ".join(f"cells_{name}" for name in places)})
"""


_NORM_CONSTANTS = {
    "L1": ["float epsilon = {1e-5}"],
    "L1-sqrt": ["float epsilon = {1e-5}"],
    "L2": ["float epsilon = {1e-10}"],
    "L2-Hys": ["float epsilon = {1e-10}", "float hysteresis = {0.2}"],
}

# With epsilon a blank block is 0, not NaN.
_L1 = """
    block_sum = ReduceL1 <axes = [3]> (blocks)
    block_norm = Add (block_sum, epsilon)
"""

_L2 = """
    block_energy = ReduceSumSquare <axes = [3]> (blocks)
    block_energy_above_0 = Add (block_energy, epsilon)
    block_norm = Sqrt (block_energy_above_0)
"""

_NORMS = {
    "L1": f"""
    {_L1}
    features = Div (blocks, block_norm)
""",
    "L1-sqrt": f"""
    {_L1}
    normalized = Div (blocks, block_norm)
    features = Sqrt (normalized)
""",
    "L2": f"""
    {_L2}
    features = Div (blocks, block_norm)
""",
    # Normalize, clip, normalize again.
    "L2-Hys": f"""
    {_L2}
    normalized = Div (blocks, block_norm)
    clipped = Min (normalized, hysteresis)
    clipped_energy = ReduceSumSquare <axes = [3]> (clipped)
    clipped_energy_above_0 = Add (clipped_energy, epsilon)
    clipped_norm = Sqrt (clipped_energy_above_0)
    features = Div (clipped, clipped_norm)
""",
}
