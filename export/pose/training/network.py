"""The pose MLP as a torch module: built, saved, and rebuilt from a checkpoint of either layout."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save as encode_safetensors
from torch import nn

from export.atomic import replacing
from export.errors import ExportError
from export.pose.checkpoint import INPUTS, OUTPUTS, PoseCheckpoint, load_pose_checkpoint
from export.pose.training.dataset import network_input

HIDDEN = (512, 256, 128)
DROPOUT = 0.0
"""Every batch holds new faces, so nothing can be memorised; dropout would only blur the angles."""


class PoseNetwork(nn.Module):
    """The pose MLP with its output statistics.

    Parameters
    ----------
    layers : nn.Sequential
        Layers of SPEC's v1 or v2 layout, ``[N, 136]`` to ``[N, 6]``.
    mean, std : Tensor, shape (6,)
        The pose is ``layers(x) * std + mean``.
    """

    def __init__(self, layers: nn.Sequential, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self.net = layers
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return poses ``[N, 6]`` (raw Pitch, Roll, Yaw in radians, X, Y, Z) of ``[N, 136]``."""
        return self.net(inputs) * self.std + self.mean


def new_network(mean: torch.Tensor, std: torch.Tensor) -> PoseNetwork:
    """Build an untrained network of layout v2, initialised from torch's global random state."""
    return PoseNetwork(_layers("v2", HIDDEN), mean, std)


def load_network(weights: Path, meta: Path | None = None) -> PoseNetwork:
    """Rebuild the network of a checkpoint, in evaluation mode.

    Parameters
    ----------
    weights : Path
        The ``.safetensors`` file.
    meta : Path, optional
        The ``.json`` file; by default the one beside `weights`.

    Raises
    ------
    ExportError
        When the checkpoint is missing, damaged or of another shape.
    """
    checkpoint = load_pose_checkpoint(weights, meta)
    layers = _layers(checkpoint.layout, tuple(len(layer.bias) for layer in checkpoint.hidden))
    layers.load_state_dict(_state(checkpoint))
    statistics = torch.from_numpy(checkpoint.mean), torch.from_numpy(checkpoint.std)
    return PoseNetwork(layers, *statistics).eval()


def save_network(network: PoseNetwork, weights: Path, facts: dict[str, Any]) -> None:
    """Write ``NAME.safetensors`` and ``NAME.json``, each whole or not at all.

    Parameters
    ----------
    network : PoseNetwork
        A network of layout v2.
    weights : Path
        Where the weights go; the description goes beside them.
    facts : dict
        How it was trained, stored under ``training``.

    Raises
    ------
    ExportError
        When a weight is not finite or the files cannot be written.
    """
    tensors = {f"net.{key}": value.numpy() for key, value in network.net.state_dict().items()}
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise ExportError("the training diverged: a weight is not finite; nothing was written")
    description = {
        "architecture": {
            "layout": "v2",
            "inputs": INPUTS,
            "hidden": list(HIDDEN),
            "outputs": OUTPUTS,
            "dropout": DROPOUT,
            "output_names": ["Pitch", "Roll", "Yaw", "X", "Y", "Z"],
            "output_normalization": {
                "mean": [float(value) for value in network.mean],
                "std": [float(value) for value in network.std],
            },
        },
        "training": facts,
    }
    try:
        with (
            replacing(weights) as weights_file,
            replacing(weights.with_suffix(".json")) as description_file,
        ):
            weights_file.write_bytes(encode_safetensors(tensors))
            description_file.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ExportError(f"cannot write {weights}: {error.strerror}") from error


@torch.inference_mode()
def estimate(network: PoseNetwork, landmarks: np.ndarray) -> np.ndarray:
    """Return raw poses of faces.

    Parameters
    ----------
    network : PoseNetwork
    landmarks : ndarray, shape (N, 68, 2)
        In any unit, y down.

    Returns
    -------
    ndarray of float32, shape (N, 6)
        Pitch, Roll, Yaw in radians; X, Y, Z.
    """
    double = torch.from_numpy(np.asarray(landmarks, dtype=np.float64))
    return network(network_input(double).float()).numpy()


def _layers(layout: str, widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    inputs = INPUTS
    for width in widths:
        layers.append(nn.Linear(inputs, width))
        layers += [nn.LayerNorm(width), nn.GELU()] if layout == "v2" else [nn.ReLU()]
        layers.append(nn.Dropout(DROPOUT))
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, OUTPUTS))


def _state(checkpoint: PoseCheckpoint) -> dict[str, torch.Tensor]:
    """Return the checkpoint's arrays under the names that `_layers` gives them."""
    stride = 4 if checkpoint.layout == "v2" else 3
    state = {}
    for number, layer in enumerate(checkpoint.hidden):
        state[f"{number * stride}.weight"] = layer.weight
        state[f"{number * stride}.bias"] = layer.bias
        if checkpoint.layout == "v2":
            state[f"{number * stride + 1}.weight"] = layer.gain
            state[f"{number * stride + 1}.bias"] = layer.shift
    last = len(checkpoint.hidden) * stride
    state |= {f"{last}.weight": checkpoint.weight, f"{last}.bias": checkpoint.bias}
    return {key: torch.from_numpy(np.array(array)) for key, array in state.items()}
