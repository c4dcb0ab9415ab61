"""`python -m export pose`: export a pose checkpoint to ONNX, check the model against torch, store it."""

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load

from export.errors import ExportError
from export.onnx_session import run_on_cpu
from export.pose.checkpoint import PoseCheckpoint, load_pose_checkpoint
from export.pose.graph import build_pose_graph
from export.pose.hub import fetch_published_checkpoint
from export.pose.network import build_network
from export.pose.origin import DEFAULT_CHECKPOINT
from export.pose.training.dataset import synthetic_faces
from export.repository import add_repository_argument, store_model

CHECKED_FACES = 64

TOLERANCE = 1e-5
"""Largest difference relative to the largest value of a pose; absolute if that value is below 1."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--weights",
        type=Path,
        default=DEFAULT_CHECKPOINT,
        metavar="FILE.safetensors",
        help="pose checkpoint of layout v1 or v2 (default: the project's own)",
    )
    source.add_argument("--hub", action="store_true", help="download the checkpoint that py-feat published")
    parser.add_argument(
        "--meta",
        type=Path,
        metavar="FILE.json",
        help="description of the checkpoint (default: the .json beside the weights)",
    )
    add_repository_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    """Export with the options of the command line."""
    weights, meta = arguments.weights, arguments.meta
    if arguments.hub and meta:
        raise ExportError("--hub downloads its own description; omit --meta")
    if arguments.hub:
        weights, meta = fetch_published_checkpoint()
    path, difference = export_pose(arguments.repository, weights, meta)
    print(f"{path}: from {weights}, angles differ from torch by at most {difference:.1e} rad")


def export_pose(repository: Path, weights: Path, meta: Path | None = None) -> tuple[Path, float]:
    """Export, check and store the pose model.

    Parameters
    ----------
    repository : Path
        The model repository; ``pose_mlp/1/model.onnx`` in it is replaced.
    weights, meta : Path
        The two files of the checkpoint; see `load_pose_checkpoint`.

    Returns
    -------
    Path, float
        The file and the largest difference of an angle from torch, in radians.

    Raises
    ------
    ExportError
        When the checkpoint is invalid or the check fails; the old model stays.
    """
    checkpoint = load_pose_checkpoint(weights, meta)
    model = build_pose_graph(build_network(checkpoint))
    landmarks = synthetic_faces(CHECKED_FACES, torch.Generator().manual_seed(0)).landmarks.numpy()
    exported = run_on_cpu(model, landmarks)
    reference = reference_pose(checkpoint, weights, landmarks)
    differences = np.abs(exported - reference)
    if not differences.max() <= TOLERANCE * max(1.0, float(np.abs(reference).max())):
        raise ExportError(
            f"the pose model differs from torch by {differences.max()}, more than {TOLERANCE}: nothing was "
            f"written. Check that {weights} holds a trained network"
        )
    angle_difference = float(differences[:, :3].max())
    facts = checkpoint.origin | {
        "made_from": f"pose checkpoint of layout {checkpoint.layout}",
        "hidden": str(list(checkpoint.hidden)),
        "checked_against": f"torch {torch.__version__}",
        "largest_difference_rad": f"{angle_difference:.3e}",
    }
    return store_model(model, facts, repository, "pose_mlp"), angle_difference


def reference_pose(checkpoint: PoseCheckpoint, weights: Path, landmarks: np.ndarray) -> np.ndarray:
    """Compute poses ``[N, 6]`` of landmarks ``[N, 68, 2]`` independently of `PoseNetwork`."""
    network = torch.nn.Sequential()
    inputs = 2 * 68
    for width in checkpoint.hidden:
        network.append(torch.nn.Linear(inputs, width))
        if checkpoint.layout == "v2":
            network.extend([torch.nn.LayerNorm(width), torch.nn.GELU(), torch.nn.Dropout()])
        else:
            network.extend([torch.nn.ReLU(), torch.nn.Dropout()])
        inputs = width
    network.append(torch.nn.Linear(inputs, 6))
    tensors = load(weights.read_bytes())
    network.load_state_dict({key.removeprefix("net."): tensor for key, tensor in tensors.items()})
    points = torch.from_numpy(landmarks)
    centred = points - points.mean(dim=1, keepdim=True)
    unit = torch.linalg.norm(points[:, 36] - points[:, 45], dim=1).clamp(min=1e-6)
    features = (centred / unit[:, None, None]).transpose(1, 2).flatten(1)
    with torch.inference_mode():
        outputs = network.eval()(features).numpy()
    return outputs * checkpoint.std + checkpoint.mean
