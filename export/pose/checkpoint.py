"""Pose checkpoints: `NAME.safetensors` with the weights and `NAME.json` with the output statistics.

There are two layouts (docs/SPEC.md, section 5), each an `nn.Sequential` called `net`:

- v2: each hidden layer is Linear, LayerNorm, exact GELU, Dropout; the output layer is Linear.
- v1: each hidden layer is Linear, ReLU, Dropout; the output layer is Linear.

The keys show the layout: only in v2 is `net.1.weight`, the gain of a LayerNorm, one-dimensional.
"""

import dataclasses
import itertools
import json
import re
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from export.errors import ExportError
from export.pose.origin import describe_origin

INPUTS = 136
"""68 centred, scaled x followed by 68 centred, scaled y."""

OUTPUTS = 6
"""Pitch, Roll, Yaw in radians, then X, Y, Z."""


@dataclasses.dataclass(frozen=True)
class PoseCheckpoint:
    """A validated checkpoint.

    Attributes
    ----------
    layout : str
        ``"v1"`` or ``"v2"``.
    hidden : tuple of int
        Widths of the hidden layers, first to last.
    state : dict of str to Tensor
        Float32 weights and biases by their names in the `nn.Sequential`, for instance ``"0.weight"``.
    mean, std : ndarray of float32, shape (6,)
        Output statistics; the pose is ``output * std + mean``.
    origin : dict of str to str
        Names and hashes of the two files; see `describe_origin`.
    """

    layout: str
    hidden: tuple[int, ...]
    state: dict[str, torch.Tensor]
    mean: np.ndarray
    std: np.ndarray
    origin: dict[str, str]


def load_pose_checkpoint(weights: Path, meta: Path | None = None) -> PoseCheckpoint:
    """Read and validate a pose checkpoint.

    Parameters
    ----------
    weights : Path
        The ``.safetensors`` file.
    meta : Path, optional
        The ``.json`` file. Default: the file beside `weights` with the same name.

    Returns
    -------
    PoseCheckpoint

    Raises
    ------
    ExportError
        When a file is missing or truncated, a shape is wrong, or a number is not finite.
    """
    weights_bytes = _read(weights)
    meta = meta or weights.with_suffix(".json")
    meta_bytes = _read(meta)
    hidden, mean, std = _parse_description(meta_bytes, meta)
    state = _parse_tensors(weights_bytes, weights)
    layout = "v2" if getattr(state.get("1.weight"), "ndim", 0) == 1 else "v1"
    _check_shapes(state, layout, hidden, weights)
    origin = describe_origin((weights.name, weights_bytes), (meta.name, meta_bytes))
    return PoseCheckpoint(layout, hidden, state, mean, std, origin)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ExportError(
            f"cannot read {path}: {error.strerror}. A pose checkpoint is two files, "
            "NAME.safetensors and NAME.json; name them with --weights and --meta"
        ) from error


def _parse_description(data: bytes, path: Path) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
    """Return the hidden widths, and mean and standard deviation of the outputs."""
    try:
        architecture = json.loads(data)["architecture"]
        hidden = architecture["hidden"]
        statistics = architecture["output_normalization"]
        mean, std = statistics["mean"], statistics["std"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ExportError(
            f"{path} does not describe a pose checkpoint ({error!r}): it needs architecture.hidden and "
            "architecture.output_normalization.mean and .std"
        ) from error
    is_list = isinstance(hidden, list) and len(hidden) > 0
    if not is_list or not all(type(width) is int and width > 0 for width in hidden):
        raise ExportError(f"{path}: architecture.hidden must be a list of layer widths, it is {hidden!r}")
    return tuple(hidden), _parse_statistic(mean, "mean", path), _parse_statistic(std, "std", path)


def _parse_statistic(values: object, name: str, path: Path) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        array = np.empty(0, dtype=np.float32)
    if array.shape != (OUTPUTS,) or not np.isfinite(array).all():
        raise ExportError(
            f"{path}: output_normalization.{name} must be {OUTPUTS} finite numbers, it is {values!r}"
        )
    return array


def _parse_tensors(data: bytes, path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors as float32, without the prefix ``net.`` of their names."""
    try:
        tensors = load_safetensors(data)
    except SafetensorError as error:
        raise ExportError(
            f"{path} is not a complete safetensors file ({error}); download or copy it again"
        ) from error
    for key, tensor in tensors.items():
        if not re.fullmatch(r"net\.\d+\.(weight|bias)", key):
            raise ExportError(
                f"{path}: unexpected tensor {key!r}; a pose checkpoint holds only "
                "net.<i>.weight and net.<i>.bias"
            )
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise ExportError(
                f"{path}: tensor {key!r} ({tensor.dtype}) must be finite floating-point numbers"
            )
    return {key.removeprefix("net."): tensor.float() for key, tensor in tensors.items()}


def _check_shapes(state: dict[str, torch.Tensor], layout: str, hidden: tuple[int, ...], path: Path) -> None:
    expected = _tensor_shapes(layout, hidden)
    for name, shape in expected.items():
        found = tuple(state[name].shape) if name in state else None
        if found != shape:
            problem = "missing" if found is None else f"of shape {list(found)}"
            raise ExportError(
                f"{path}: net.{name} is {problem}; a {layout} checkpoint with hidden layers {list(hidden)} "
                f"has it in shape {list(shape)}. Do the weights and the JSON belong together?"
            )
    extra = sorted(f"net.{name}" for name in state.keys() - expected.keys())
    if extra:
        raise ExportError(f"{path}: the JSON does not describe these tensors: {', '.join(extra)}")


def _tensor_shapes(layout: str, hidden: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor by its name in the `nn.Sequential`."""
    modules_per_layer = 4 if layout == "v2" else 3
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, (inputs, outputs) in enumerate(itertools.pairwise((INPUTS, *hidden, OUTPUTS))):
        linear = layer * modules_per_layer
        shapes |= {f"{linear}.weight": (outputs, inputs), f"{linear}.bias": (outputs,)}
        if layout == "v2" and layer < len(hidden):
            shapes |= {f"{linear + 1}.weight": (outputs,), f"{linear + 1}.bias": (outputs,)}
    return shapes
