"""Pose-MLP checkpoints: `NAME.safetensors` with the weights and `NAME.json` with the statistics.

Two layouts exist (SPEC section 5), both one `nn.Sequential` called `net`:

- v2: per hidden layer Linear, LayerNorm, GELU (exact), Dropout; the last layer a bare Linear.
- v1: per hidden layer Linear, ReLU, Dropout; the last layer a bare Linear.

A checkpoint says which one it is by its keys: `net.1.weight` is a LayerNorm gain, one-dimensional.
"""

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from export.errors import ExportError

INPUTS = 136
"""68 centred, scaled x followed by 68 centred, scaled y."""

OUTPUTS = 6
"""Pitch, Roll, Yaw in radians, then X, Y, Z."""


EYE_CORNERS = (36, 45)
"""The outer corners of the eyes; their distance is the unit of the network's input."""

SMALLEST_EYE_DISTANCE = 1e-6
"""The distance is clamped to this, in units of the landmarks."""

DEFAULT_CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "pose_mlp.safetensors"
"""The project's own."""


@dataclasses.dataclass(frozen=True)
class HiddenLayer:
    """One hidden layer: float32 `weight` [out, in], `bias` [out]; in v2 LayerNorm's `gain`, `shift` [out]."""

    weight: np.ndarray
    bias: np.ndarray
    gain: np.ndarray | None = None
    shift: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class PoseCheckpoint:
    """A validated pose MLP.

    Attributes
    ----------
    layout : str
        ``"v1"`` or ``"v2"``.
    hidden : tuple of HiddenLayer
        The hidden layers, first to last.
    weight, bias : ndarray of float32
        The output layer, ``[6, hidden]`` and ``[6]``.
    mean, std : ndarray of float32, shape (6,)
        Output statistics; the pose is ``z * std + mean``.
    origin : dict of str to str
        Where it came from: file names and SHA-256 sums, for the metadata of what is built from it.
    """

    layout: str
    hidden: tuple[HiddenLayer, ...]
    weight: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    origin: dict[str, str]


def load_pose_checkpoint(weights: Path, meta: Path | None = None) -> PoseCheckpoint:
    """Read and check a pose-MLP checkpoint.

    Parameters
    ----------
    weights : Path
        The ``.safetensors`` file.
    meta : Path, optional
        The ``.json`` file; by default the one beside `weights` with the same name.

    Returns
    -------
    PoseCheckpoint

    Raises
    ------
    ExportError
        When a file is missing, truncated or of another shape, or a number in it is not finite.
    """
    weights_bytes = _read(weights)
    meta = meta or weights.with_suffix(".json")
    meta_bytes = _read(meta)
    architecture = _parse_architecture(meta_bytes, meta)
    tensors = _parse_tensors(weights_bytes, weights)
    layout, hidden, output = _split_layers(tensors, architecture["hidden"], weights)
    return PoseCheckpoint(
        layout=layout,
        hidden=hidden,
        weight=output.weight,
        bias=output.bias,
        mean=architecture["mean"],
        std=architecture["std"],
        origin={
            "weights": weights.name,
            "weights_sha256": hashlib.sha256(weights_bytes).hexdigest(),
            "meta": meta.name,
            "meta_sha256": hashlib.sha256(meta_bytes).hexdigest(),
        },
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ExportError(
            f"cannot read {path}: {error.strerror}. A pose checkpoint is two files, "
            "NAME.safetensors and NAME.json; name them with --weights and --meta"
        ) from error


def _parse_architecture(data: bytes, path: Path) -> dict[str, Any]:
    try:
        architecture = json.loads(data)["architecture"]
        hidden = architecture["hidden"]
        statistics = architecture["output_normalization"]
        mean, std = statistics["mean"], statistics["std"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ExportError(
            f"{path} is not a pose-MLP description ({error!r}): it needs architecture.hidden and "
            "architecture.output_normalization.mean and .std"
        ) from error
    if (
        not isinstance(hidden, list)
        or not hidden
        or not all(type(width) is int and width > 0 for width in hidden)
    ):
        raise ExportError(f"{path}: architecture.hidden must be a list of layer widths, it is {hidden!r}")
    return {
        "hidden": hidden,
        "mean": _statistic(mean, "mean", path),
        "std": _statistic(std, "std", path),
    }


def _statistic(values: object, name: str, path: Path) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        array = np.empty(0, dtype=np.float32)
    if array.shape != (OUTPUTS,) or not np.isfinite(array).all():
        raise ExportError(
            f"{path}: output_normalization.{name} must be {OUTPUTS} finite numbers, it is {values!r}"
        )
    return array


def _parse_tensors(data: bytes, path: Path) -> dict[str, np.ndarray]:
    try:
        tensors = load_safetensors(data)  # torch's, because NumPy has no bfloat16
    except SafetensorError as error:
        raise ExportError(
            f"{path} is not a whole safetensors file ({error}); fetch or copy it again"
        ) from error
    for key, tensor in tensors.items():
        if not re.fullmatch(r"net\.\d+\.(weight|bias)", key):
            raise ExportError(
                f"{path}: unexpected tensor {key!r}; a pose MLP holds net.<i>.weight and net.<i>.bias alone"
            )
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise ExportError(f"{path}: tensor {key!r} ({tensor.dtype}) is not finite floating point")
    return {key: tensor.float().numpy() for key, tensor in tensors.items()}


def _split_layers(
    tensors: dict[str, np.ndarray], widths: list[int], path: Path
) -> tuple[str, tuple[HiddenLayer, ...], HiddenLayer]:
    """Take the layers out of `tensors` by their index in the `nn.Sequential`, and check every shape."""
    layout = "v2" if getattr(tensors.get("net.1.weight"), "ndim", 0) == 1 else "v1"
    stride = 4 if layout == "v2" else 3
    remaining = dict(tensors)

    def take(index: int, kind: str, shape: tuple[int, ...]) -> np.ndarray:
        key = f"net.{index}.{kind}"
        tensor = remaining.pop(key, None)
        if tensor is None or tensor.shape != shape:
            found = "missing" if tensor is None else f"of shape {list(tensor.shape)}"
            raise ExportError(
                f"{path}: {key} is {found}; a {layout} pose MLP with hidden layers {widths} "
                f"has it of shape {list(shape)}. Do the weights and the JSON belong together?"
            )
        return tensor

    hidden = []
    inputs = INPUTS
    for number, width in enumerate(widths):
        index = number * stride
        weight, bias = take(index, "weight", (width, inputs)), take(index, "bias", (width,))
        norm = (
            (take(index + 1, "weight", (width,)), take(index + 1, "bias", (width,))) if layout == "v2" else ()
        )
        hidden.append(HiddenLayer(weight, bias, *norm))
        inputs = width
    last = len(widths) * stride
    output = HiddenLayer(take(last, "weight", (OUTPUTS, inputs)), take(last, "bias", (OUTPUTS,)))
    if remaining:
        raise ExportError(f"{path}: tensors that the JSON does not describe: {sorted(remaining)}")
    return layout, tuple(hidden), output
