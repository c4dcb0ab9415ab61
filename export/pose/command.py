"""`python -m export pose`: load a pose checkpoint, build its model, check it against torch, store it."""

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load

from export.errors import ExportError
from export.onnx_session import run_on_cpu
from export.pose.checkpoint import DEFAULT_CHECKPOINT, PoseCheckpoint, load_pose_checkpoint
from export.pose.graph import build_pose_graph
from export.pose.hub import fetch_published_checkpoint
from export.pose.training.dataset import sample_faces
from export.repository import add_repository_argument, store_model

CHECKED_FACES = 64

TOLERANCE = 1e-5
"""Largest difference, as a share of the largest pose value, or absolute where that is below 1."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--weights",
        type=Path,
        default=DEFAULT_CHECKPOINT,
        metavar="FILE.safetensors",
        help="pose checkpoint, v1 or v2 layout (default: the project's own)",
    )
    source.add_argument("--hub", action="store_true", help="fetch the checkpoint that py-feat published")
    parser.add_argument(
        "--meta",
        type=Path,
        metavar="FILE.json",
        help="its description (default: beside the weights, with the same name)",
    )
    add_repository_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    """Export with the options of the command line."""
    weights, meta = arguments.weights, arguments.meta
    if arguments.hub and meta:
        raise ExportError("--hub fetches its own description; leave --meta out")
    if arguments.hub:
        weights, meta = fetch_published_checkpoint()
    path, difference = export_pose(arguments.repository, weights, meta)
    print(f"{path}: from {weights}, angles differ from torch by at most {difference:.1e} rad")


def export_pose(repository: Path, weights: Path, meta: Path | None = None) -> tuple[Path, float]:
    """Build, check and store the pose model.

    Parameters
    ----------
    repository : Path
        The model repository; ``pose_mlp/1/model.onnx`` in it is replaced.
    weights, meta : Path
        The checkpoint's two files; see `load_pose_checkpoint`.

    Returns
    -------
    Path, float
        The file and the largest difference of an angle from torch, radians, that the check saw.

    Raises
    ------
    ExportError
        When the checkpoint is not usable or the check fails; the old model stays.
    """
    checkpoint = load_pose_checkpoint(weights, meta)
    model = build_pose_graph(checkpoint)
    landmarks = _check_landmarks()
    built = run_on_cpu(model, landmarks)
    reference = reference_pose(checkpoint, weights, landmarks)
    difference = float(np.abs(built - reference).max())
    angle_difference = float(np.abs(built - reference)[:, :3].max())
    if not difference <= TOLERANCE * max(1.0, float(np.abs(reference).max())):
        raise ExportError(
            f"the pose model differs from torch by {difference}, more than {TOLERANCE}: nothing was "
            f"written. Are the numbers in {weights} of a trained network?"
        )
    facts = checkpoint.origin | {
        "made_from": f"pose checkpoint of layout {checkpoint.layout}",
        "hidden": str([len(layer.bias) for layer in checkpoint.hidden]),
        "checked_against": f"torch {torch.__version__}",
        "largest_difference_rad": f"{angle_difference:.3e}",
    }
    return store_model(model, facts, repository, "pose_mlp"), angle_difference


def reference_pose(checkpoint: PoseCheckpoint, weights: Path, landmarks: np.ndarray) -> np.ndarray:
    """Compute poses ``[N, 6]`` of landmarks ``[N, 68, 2]`` with torch's own layers and loader."""
    network = torch.nn.Sequential()
    for layer in checkpoint.hidden:
        width, inputs = layer.weight.shape
        network.append(torch.nn.Linear(inputs, width))
        if checkpoint.layout == "v2":
            network.extend([torch.nn.LayerNorm(width), torch.nn.GELU(), torch.nn.Dropout()])
        else:
            network.extend([torch.nn.ReLU(), torch.nn.Dropout()])
    network.append(torch.nn.Linear(*reversed(checkpoint.weight.shape)))
    network.load_state_dict(
        {key.removeprefix("net."): tensor for key, tensor in load(weights.read_bytes()).items()}
    )
    points = torch.from_numpy(landmarks)
    centred = points - points.mean(dim=1, keepdim=True)
    unit = torch.linalg.norm(points[:, 36] - points[:, 45], dim=1).clamp(min=1e-6)
    features = (centred / unit[:, None, None]).transpose(1, 2).flatten(1)
    with torch.inference_mode():
        standardized = network.eval()(features).numpy()
    return standardized * checkpoint.std + checkpoint.mean


def _check_landmarks() -> np.ndarray:
    """Draw float32 landmarks ``[N, 68, 2]`` of synthetic faces in all poses."""
    return sample_faces(CHECKED_FACES, torch.Generator().manual_seed(0)).landmarks.numpy()
