"""`python -m export evaluate-pose`: errors of a pose checkpoint and of two geometric baselines."""

import argparse
import dataclasses
import itertools
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from export.atomic import replacing
from export.errors import ExportError
from export.pose.network import PoseNetwork, estimate_poses, load_network
from export.pose.origin import DEFAULT_CHECKPOINT
from export.pose.training.dataset import check_landmarks, synthetic_faces
from export.pose.training.labelled_faces import read_faces
from export.pose.training.rigid_fit import METHODS, fitted_angles

SYNTHETIC_SEED = 20_000_003
"""Seed of the held-out faces; training with a seed below ten million does not use it."""

SYNTHETIC_FACES = 4000
ANGLES = ("Pitch", "Roll", "Yaw")
BIN_EDGES = (0.0, 15.0, 30.0, 45.0, 60.0, 75.0)
"""Degrees of |raw Roll|, the turn about the vertical axis that is usually called yaw."""

METHOD_TITLES = {"mlp": "MLP", "procrustes": "mean head, Procrustes", "pnp": "mean head, PnP"}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Errors of the network and of the baselines on a set of faces.

    Attributes
    ----------
    title : str
        Name of the set.
    angles : ndarray, shape (N, 3)
        Reference raw Pitch, Roll, Yaw in degrees.
    errors : dict of str to ndarray, shape (N, 3)
        Signed errors in degrees by method, estimate minus reference.
    """

    title: str
    angles: np.ndarray
    errors: dict[str, np.ndarray]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "--weights",
        type=Path,
        default=DEFAULT_CHECKPOINT,
        metavar="FILE.safetensors",
        help="checkpoint to evaluate (default: the project's own)",
    )
    parser.add_argument(
        "--meta", type=Path, default=None, help="its description (default: the .json beside the weights)"
    )
    parser.add_argument(
        "--faces",
        type=Path,
        nargs="*",
        default=[],
        metavar="FILE",
        help="NPZ or CSV files with landmarks and reference angles",
    )
    parser.add_argument(
        "--synthetic",
        type=int,
        default=SYNTHETIC_FACES,
        metavar="N",
        help="number of held-out synthetic faces (default: %(default)s)",
    )
    parser.add_argument(
        "--plot", type=Path, default=None, metavar="FILE.png", help="write a plot of the errors"
    )


def run(args: argparse.Namespace) -> None:
    """Evaluate with the options of the command line: print a table for each set of faces, draw the plot."""
    if args.synthetic < 0:
        raise ExportError(f"--synthetic must not be negative, it is {args.synthetic}")
    if args.plot is not None and args.plot.suffix.lower() != ".png":
        raise ExportError(f"--plot must end in .png, it is {args.plot}")
    network = load_network(args.weights, args.meta)
    sets = [(path.stem, *read_faces(path)) for path in args.faces]
    if args.synthetic:
        sets.append(("held-out synthetic faces", *held_out_faces(args.synthetic)))
    if not sets:
        raise ExportError("nothing to evaluate: name files with --faces, or set --synthetic above 0")
    comparisons = [compare_methods(network, *faces) for faces in sets]
    for comparison in comparisons:
        print(format_table(comparison))
    if args.plot is not None:
        plot_errors(comparisons, args.plot)
        print(f"wrote {args.plot}")


def held_out_faces(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw `count` held-out synthetic faces.

    Returns
    -------
    landmarks : ndarray, shape (count, 68, 2)
    angles : ndarray, shape (count, 3)
        Raw Pitch, Roll, Yaw in degrees.
    """
    faces = synthetic_faces(count, torch.Generator().manual_seed(SYNTHETIC_SEED))
    return faces.landmarks.double().numpy(), np.degrees(faces.poses[:, :3].double().numpy())


def compare_methods(
    network: PoseNetwork, title: str, landmarks: np.ndarray, angles: np.ndarray
) -> Comparison:
    """Run the network and both baselines on faces.

    Parameters
    ----------
    network : PoseNetwork
    title : str
        Name of the set.
    landmarks : ndarray, shape (N, 68, 2)
    angles : ndarray, shape (N, 3)
        Reference raw Pitch, Roll, Yaw in degrees.

    Raises
    ------
    ExportError
        When a face has a non-finite landmark or no eye distance.
    """
    check_landmarks(landmarks, title)
    estimates = {"mlp": estimate_poses(network, landmarks)[:, :3]}
    estimates |= {method: fitted_angles(landmarks, method) for method in METHODS}
    errors = {method: _wrapped(np.degrees(estimated) - angles) for method, estimated in estimates.items()}
    return Comparison(title, angles, errors)


def _wrapped(degrees: np.ndarray) -> np.ndarray:
    """Return angles in degrees, wrapped to [-180, 180)."""
    return (degrees + 180.0) % 360.0 - 180.0


def _bins(angles: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Return the bins of |raw Roll| that have faces: name and mask ``[N]`` of each."""
    turn = np.abs(angles[:, 1])
    bins = []
    for low, high in itertools.pairwise(BIN_EDGES):
        below_high = turn <= high if high == BIN_EDGES[-1] else turn < high
        bins.append((f"{low:.0f}–{high:.0f}°", (turn >= low) & below_high))
    return [(name, mask) for name, mask in bins if mask.any()]


def _table_rows(angles: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Return name and mask ``[N]`` of each table row: all faces, |raw Roll| up to 60°, and each bin."""
    up_to_60 = np.abs(angles[:, 1]) <= 60.0
    totals = [("all", np.ones(len(angles), dtype=bool)), ("≤ 60°", up_to_60)]
    return [(name, mask) for name, mask in totals if mask.any()] + _bins(angles)


def format_table(comparison: Comparison) -> str:
    """Return a Markdown table of mean absolute errors in degrees, overall and in bins of |raw Roll|."""
    methods = list(comparison.errors)
    header = " | ".join(METHOD_TITLES[method] for method in methods)
    lines = [
        f"\n{comparison.title}: mean absolute error in degrees, raw Pitch / Roll / Yaw",
        f"| abs. raw Roll | faces | {header} |",
        "| --- | ---: |" + " --- |" * len(methods),
    ]
    for name, mask in _table_rows(comparison.angles):
        cells = [
            " / ".join(f"{mae:.2f}" for mae in np.abs(comparison.errors[method][mask]).mean(axis=0))
            for method in methods
        ]
        lines.append(f"| {name} | {int(mask.sum())} | {' | '.join(cells)} |")
    worst = np.abs(comparison.errors["mlp"]).max(axis=0)
    bias = comparison.errors["mlp"].mean(axis=0)
    lines.append("MLP, largest error: " + " / ".join(f"{value:.2f}" for value in worst))
    lines.append("MLP, mean error: " + " / ".join(f"{value:+.2f}" for value in bias))
    return "\n".join(lines)


def plot_errors(comparisons: list[Comparison], path: Path) -> None:
    """Plot mean absolute errors in bins of |raw Roll|: a row for each set, a column for each angle.

    Parameters
    ----------
    comparisons : list of Comparison
    path : Path
        The PNG file to write.

    Raises
    ------
    ExportError
        When the file cannot be written.
    """
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(10, 2.9 * len(comparisons)), layout="constrained")
        panels = figure.subplots(len(comparisons), 3, squeeze=False)
        for row, comparison in zip(panels, comparisons, strict=True):
            for column, panel in enumerate(row):
                _draw_panel(panel, comparison, column)
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
        try:
            with replacing(path) as temporary:
                figure.savefig(temporary, format="png", dpi=110)
        except OSError as error:
            raise ExportError(f"cannot write {path}: {error.strerror}") from error


def _draw_panel(panel: Axes, comparison: Comparison, column: int) -> None:
    bins = _bins(comparison.angles)
    width = 0.8 / len(comparison.errors)
    for number, (method, errors) in enumerate(comparison.errors.items()):
        positions = np.arange(len(bins)) + (number + 0.5) * width - 0.4
        means = [np.abs(errors[mask, column]).mean() for _, mask in bins]
        panel.bar(positions, means, width, label=METHOD_TITLES[method])
    labels = [f"{name}\nn = {int(mask.sum())}" for name, mask in bins]
    panel.set_xticks(np.arange(len(bins)), labels, fontsize=7)
    panel.set_title(f"{comparison.title}: {ANGLES[column]}")
    panel.set_xlabel("|raw Roll|, the turn to the side")
    panel.set_ylabel("MAE in degrees")
    panel.grid(axis="y", alpha=0.3)
