"""The pose network as a torch module: from landmarks to poses, built new or from a checkpoint."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as encode_safetensors
from torch import nn

from export.atomic import replacing
from export.errors import ExportError
from export.pose.checkpoint import INPUTS, OUTPUTS, PoseCheckpoint, load_pose_checkpoint

EYE_CORNERS = (36, 45)
"""The outer corners of the eyes. The distance between them is the unit of the network's input."""

SMALLEST_EYE_DISTANCE = 1e-6
"""Lower limit of that distance, in units of the landmarks."""

HIDDEN = (512, 256, 128)
DROPOUT = 0.0
"""Each batch holds new faces, so the network cannot memorise any; dropout would only blur the angles."""


class PoseNetwork(nn.Module):
    """The pose network with its output statistics.

    Parameters
    ----------
    layers : nn.Sequential
        Layers of layout v1 or v2, ``[N, 136]`` to ``[N, 6]``.
    mean, std : Tensor, shape (6,)
        The pose is ``layers(x) * std + mean``.
    """

    def __init__(self, layers: nn.Sequential, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self.net = layers
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, landmarks: torch.Tensor) -> torch.Tensor:
        """Return poses ``[N, 6]`` of landmarks ``[N, 68, 2]`` in any unit, y down.

        A pose is raw Pitch, Roll, Yaw in radians, then X, Y, Z.
        """
        return self.net(network_input(landmarks)) * self.std + self.mean


def network_input(landmarks: torch.Tensor) -> torch.Tensor:
    """Centre, scale and flatten landmarks for the network.

    Parameters
    ----------
    landmarks : Tensor, shape (N, 68, 2)
        In any unit, y down.

    Returns
    -------
    Tensor, shape (N, 136)
        All x, then all y, minus their means, divided by the distance of the outer eye corners.
    """
    axes = landmarks.transpose(1, 2)
    centred = axes - axes.mean(dim=2, keepdim=True)
    left, right = EYE_CORNERS
    eye_distance = (axes[:, :, left] - axes[:, :, right]).norm(dim=1).clamp_min(SMALLEST_EYE_DISTANCE)
    return (centred / eye_distance[:, None, None]).flatten(1)


def new_network(mean: torch.Tensor, std: torch.Tensor) -> PoseNetwork:
    """Build an untrained network of layout v2, initialised from torch's global random state."""
    return PoseNetwork(_layers("v2", HIDDEN), mean, std)


def build_network(checkpoint: PoseCheckpoint) -> PoseNetwork:
    """Build the network of a checkpoint, in evaluation mode."""
    layers = _layers(checkpoint.layout, checkpoint.hidden)
    layers.load_state_dict(checkpoint.state)
    return PoseNetwork(layers, torch.from_numpy(checkpoint.mean), torch.from_numpy(checkpoint.std)).eval()


def load_network(weights: Path, meta: Path | None = None) -> PoseNetwork:
    """Read a checkpoint and build its network; see `load_pose_checkpoint`."""
    return build_network(load_pose_checkpoint(weights, meta))


def save_network(network: PoseNetwork, weights: Path, facts: dict[str, Any]) -> None:
    """Write ``NAME.safetensors`` and ``NAME.json``, each atomically.

    Parameters
    ----------
    network : PoseNetwork
        A network of layout v2.
    weights : Path
        The file of the weights; the description is written beside it.
    facts : dict
        Facts about the training, stored under ``training``.

    Raises
    ------
    ExportError
        When a weight is not finite or a file cannot be written.
    """
    tensors = {f"net.{name}": tensor for name, tensor in network.net.state_dict().items()}
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise ExportError("the training diverged: a weight is not finite; nothing was written")
    description = {
        "architecture": {
            "layout": "v2",
            "inputs": INPUTS,
            "hidden": list(HIDDEN),
            "outputs": OUTPUTS,
            "dropout": DROPOUT,
            "output_names": ["Pitch", "Roll", "Yaw", "X", "Y", "Z"],
            "output_normalization": {"mean": network.mean.tolist(), "std": network.std.tolist()},
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
def estimate_poses(network: PoseNetwork, landmarks: np.ndarray) -> np.ndarray:
    """Return raw poses, float32 ``[N, 6]``, of landmarks ``[N, 68, 2]`` in any unit, y down."""
    # Centre first, because float32 rounds large coordinates.
    centred = landmarks - landmarks.mean(axis=1, keepdims=True)
    return network(torch.from_numpy(centred.astype(np.float32))).numpy()


def _layers(layout: str, widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    inputs = INPUTS
    for width in widths:
        layers.append(nn.Linear(inputs, width))
        layers += [nn.LayerNorm(width), nn.GELU()] if layout == "v2" else [nn.ReLU()]
        layers.append(nn.Dropout(DROPOUT))
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, OUTPUTS))
