"""`python -m export train-pose`: train the pose network on synthetic heads."""

import argparse
import copy
import dataclasses
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from tqdm import tqdm

from export.errors import ExportError
from export.pose.network import PoseNetwork, new_network, save_network
from export.pose.training.dataset import Faces, synthetic_faces, with_mirrored
from export.pose.training.landmarker_noise import TRAINING_POINT_OFFSET

DEFAULT_OUT = Path("build/pose_mlp.safetensors")
"""Differs from the shipped checkpoint, so that you can evaluate a new checkpoint before you replace it."""

STEPS = 11_000
FACES_PER_STEP = 512
"""Faces drawn per step. The batch also holds their mirror images, so it is twice as large."""

PEAK_LEARNING_RATE = 2e-3
WARM_UP = 500
WEIGHT_DECAY = 1e-4
AVERAGING_DECAY = 0.999
"""Decay of the exponential moving average of the weights, which is evaluated and saved."""

TRANSLATION_WEIGHT = 0.01
"""Weight of the loss of standardised X, Y, Z relative to the loss of angles in `ANGLE_UNIT`."""

ANGLE_UNIT = math.radians(1.0)
"""The loss is linear in larger errors and quadratic in smaller ones (smooth L1)."""

HELD_OUT_FACES = 8192
HELD_OUT_SEED_OFFSET = 1_000_003
CHECK_EVERY = 1000
PATIENCE = 10
"""Training stops after this number of checks without a smaller mean error on the held-out faces."""


@dataclasses.dataclass(frozen=True)
class TrainedNetwork:
    """Result of a training run.

    Attributes
    ----------
    network : PoseNetwork
        The averaged weights of the best check, in evaluation mode.
    facts : dict
        Seed, steps, duration and held-out errors, for the checkpoint's JSON.
    """

    network: PoseNetwork
    facts: dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "--out",
        type=Path,
        default=DEFAULT_OUT,
        metavar="FILE.safetensors",
        help="file of the weights; the .json is written beside it (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="equal seeds give equal weights")
    parser.add_argument(
        "--steps", type=int, default=STEPS, help="maximum number of training steps (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: all cores)")


def run(args: argparse.Namespace) -> None:
    """Train with the options of the command line, and write the checkpoint."""
    if args.out.suffix != ".safetensors":
        raise ExportError(f"--out must end in .safetensors, it is {args.out}")
    if args.threads is not None:
        if args.threads < 1:
            raise ExportError(f"--threads must be at least 1, it is {args.threads}")
        torch.set_num_threads(args.threads)
    _check_writable(args.out)
    trained = train(steps=args.steps, seed=args.seed)
    save_network(trained.network, args.out, trained.facts)
    errors = trained.facts["held_out_mae_degrees"]
    print(
        f"wrote {args.out} and {args.out.with_suffix('.json')}; held-out MAE in degrees: "
        + ", ".join(f"{name} {value:.2f}" for name, value in errors.items())
    )


def _check_writable(path: Path) -> None:
    """Fail before the training, not after it, if the folder of `path` is not writable."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror}") from error


def train(steps: int = STEPS, seed: int = 0, faces_per_step: int = FACES_PER_STEP) -> TrainedNetwork:
    """Train a network from scratch.

    Parameters
    ----------
    steps : int
        Maximum number of training steps, at least 1.
    seed : int
        Seed of weights and faces. The same seed, machine and thread count give the same weights.
    faces_per_step : int
        Faces drawn per step, without their mirror images.

    Returns
    -------
    TrainedNetwork

    Raises
    ------
    ExportError
        When `steps` is less than 1 or the loss stops being finite.
    """
    if steps < 1:
        raise ExportError(f"--steps must be at least 1, it is {steps}")
    begin = time.monotonic()
    held_out = synthetic_faces(HELD_OUT_FACES, torch.Generator().manual_seed(seed + HELD_OUT_SEED_OFFSET))
    generator = torch.Generator().manual_seed(seed)
    network = _initial_network(seed, generator)
    best, facts = _fit(network, held_out, generator, steps, faces_per_step)
    facts |= {
        "seed": seed,
        "faces_per_step": 2 * faces_per_step,
        "minutes": round((time.monotonic() - begin) / 60, 1),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }
    return TrainedNetwork(best, facts)


def _initial_network(seed: int, generator: torch.Generator) -> PoseNetwork:
    """Build a network with the output statistics of a sample of faces."""
    poses = with_mirrored(synthetic_faces(HELD_OUT_FACES, generator)).poses
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return new_network(poses.mean(dim=0), poses.std(dim=0))


def _fit(
    network: PoseNetwork,
    held_out: Faces,
    generator: torch.Generator,
    steps: int,
    faces_per_step: int,
) -> tuple[PoseNetwork, dict[str, Any]]:
    """Run the steps; return the best averaged network and facts about the training."""
    averaged, best = copy.deepcopy(network).eval(), copy.deepcopy(network).eval()
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    best_errors, best_step = torch.full((3,), torch.inf), 0
    bar = tqdm(range(1, steps + 1), desc="training", unit="step", mininterval=1.0)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LEARNING_RATE * _relative_learning_rate(step, steps)
        faces = with_mirrored(synthetic_faces(faces_per_step, generator, TRAINING_POINT_OFFSET))
        _train_step(network, optimizer, faces, step)
        _update_average(averaged, network, min(AVERAGING_DECAY, step / (step + 10)))
        if step % CHECK_EVERY and step != steps:
            continue
        errors = angle_errors(averaged, held_out).mean(dim=0)
        bar.set_postfix_str("MAE " + "/".join(f"{error:.2f}" for error in errors) + "°")
        if errors.mean() < best_errors.mean():
            best_errors, best_step = errors, step
            best.load_state_dict(averaged.state_dict())
        elif step - best_step >= PATIENCE * CHECK_EVERY:
            break
    names = ("pitch", "roll", "yaw")
    return best, {
        "steps": step,
        "best_step": best_step,
        "held_out_faces": len(held_out.poses),
        "held_out_mae_degrees": {
            name: round(error.item(), 3) for name, error in zip(names, best_errors, strict=True)
        },
    }


def _relative_learning_rate(step: int, steps: int) -> float:
    """Return the fraction of the peak learning rate: linear warm-up, then cosine decay to zero."""
    warm_up = min(WARM_UP, max(steps // 10, 1))
    if step <= warm_up:
        return step / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1)))


def _train_step(network: PoseNetwork, optimizer: torch.optim.Optimizer, faces: Faces, step: int) -> None:
    loss = pose_loss(network(faces.landmarks), faces.poses, network.std)
    if not torch.isfinite(loss):
        raise ExportError(
            f"the training diverged at step {step}: the loss is {loss.item()}; try another --seed"
        )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def pose_loss(estimated: torch.Tensor, true: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Return the mean smooth L1 loss of poses ``[N, 6]``: angles in degrees, X, Y, Z standardised.

    Parameters
    ----------
    estimated, true : Tensor, shape (N, 6)
        Raw poses.
    std : Tensor, shape (6,)
        Standard deviations of the outputs; the last three scale X, Y, Z.
    """
    difference = estimated - true
    angles, translations = difference[:, :3] / ANGLE_UNIT, difference[:, 3:] / std[3:]
    zero = torch.zeros(())
    return functional.smooth_l1_loss(angles, zero.expand_as(angles)) + (
        TRANSLATION_WEIGHT * functional.smooth_l1_loss(translations, zero.expand_as(translations))
    )


@torch.no_grad()
def _update_average(averaged: PoseNetwork, network: PoseNetwork, decay: float) -> None:
    torch._foreach_lerp_(list(averaged.parameters()), list(network.parameters()), 1 - decay)


@torch.inference_mode()
def angle_errors(network: PoseNetwork, faces: Faces) -> torch.Tensor:
    """Return absolute errors ``[N, 3]`` of raw Pitch, Roll, Yaw in degrees."""
    estimated = network(faces.landmarks)
    return (estimated - faces.poses)[:, :3].abs().rad2deg()
