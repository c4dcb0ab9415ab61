"""`python -m export au`: export py-feat's AU classifiers, check the model against NumPy, store it."""

import argparse
import importlib.metadata
import os
import sys
from pathlib import Path

import onnx

from export.au.check import TOLERANCE, Agreement, check_au_graph
from export.au.checkpoint import load_au_checkpoint
from export.au.classifiers import AuCheckpoint
from export.au.graph import Precision, build_au_graph
from export.au.hub import fetch_published_classifiers
from export.au.repository import Interface, write_au_repository
from export.errors import ExportError
from export.hog.configs import configured_settings
from export.hog.settings import PYFEAT_COMMAND, PYFEAT_OPTIONS
from export.repository import add_repository_argument, configured_face_size, read_config

DEFAULT_OUT = Path("build") / "au_repository"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--weights", type=Path, metavar="FILE.skops", help="py-feat's AU classifiers, of either kind"
    )
    source.add_argument(
        "--hub", choices=["xgb", "svm"], help="download the classifiers of this kind that py-feat published"
    )
    parser.add_argument(
        "--precision",
        choices=["float32", "float64"],
        default="float32",
        help="of the projection to the inputs of trees; float64 is slower (default: %(default)s)",
    )
    add_repository_argument(parser, "the model repository whose hog computes the features")
    parser.add_argument(
        "--out",
        type=Path,
        default=DEFAULT_OUT,
        metavar="DIR",
        help="the model repository of au and action_units, which is created or replaced "
        "(default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Export with the options of the command line."""
    weights = fetch_published_classifiers(arguments.hub) if arguments.hub else arguments.weights
    checkpoint = load_au_checkpoint(weights)
    path, agreement = export_au(checkpoint, arguments.repository, arguments.out, arguments.precision)
    print(
        f"{path}: {len(checkpoint.units)} action units from {weights}; {agreement.beyond} of "
        f"{agreement.compared} check values differ from the reference by more than {TOLERANCE}"
    )


def export_au(
    checkpoint: AuCheckpoint, repository: Path, out: Path, precision: Precision = "float32"
) -> tuple[Path, Agreement]:
    """Build, check and store the models `au` and `action_units`.

    Parameters
    ----------
    checkpoint : AuCheckpoint
        The classifiers.
    repository : Path
        The model repository whose `hog` computes the features; it stays unchanged.
    out : Path
        The model repository to write; see `write_au_repository`.
    precision : {"float32", "float64"}
        Type of the projection to components.

    Returns
    -------
    Path, Agreement
        The ONNX file and the result of the check.

    Raises
    ------
    ExportError
        If the classifiers read another number of features than `hog` computes, the check fails or a file
        cannot be written. `out` is then unchanged.
    """
    if Path(os.path.realpath(repository)) in Path(os.path.realpath(out)).parents:
        raise ExportError(
            f"{out} is inside {repository}, where Triton would take it for a model: name another folder with "
            "--out"
        )
    hog_features = _matching_hog_features(checkpoint, repository)
    face_size = configured_face_size(repository)
    model = build_au_graph(checkpoint, hog_features, precision)
    agreement = check_au_graph(model, checkpoint, precision)
    names = tuple(unit.name for unit in checkpoint.units)
    settings = configured_settings(repository)
    facts = (
        checkpoint.origin
        | settings.as_parameters()
        | {
            "made_from": f"py-feat's AU classifiers of kind {checkpoint.kind}",
            "action_units": ",".join(names),
            "precision": precision,
            "checked_against": "an evaluation in NumPy",
            "onnxruntime": importlib.metadata.version("onnxruntime"),
            "largest_classifier_difference": f"{agreement.classifiers:.3e}",
            "largest_difference": f"{agreement.pipeline:.3e}",
            "beyond_tolerance": f"{agreement.beyond} of {agreement.compared} values by more than {TOLERANCE}",
        }
    )
    onnx.helper.set_model_props(model, facts)
    options = settings.as_options(face_size)
    interface = Interface(names, hog_features, options, face_size, checkpoint.origin["weights_sha256"])
    return write_au_repository(out, model, interface), agreement


def _matching_hog_features(checkpoint: AuCheckpoint, repository: Path) -> int:
    """Return the number of HOG features; warn if the settings of `hog` are not py-feat's.

    Raises
    ------
    ExportError
        If the number differs between the classifiers and `hog`.
    """
    expected = len(next(iter(checkpoint.projections.values())).matrix)
    (configured,) = read_config(repository, "hog").output[0].dims
    weights = checkpoint.origin["weights"]
    path = repository / "hog" / "config.pbtxt"
    options = configured_settings(repository).as_options(configured_face_size(repository))
    if configured != expected:
        raise ExportError(
            f"the classifiers in {weights} read {expected} HOG features, but {path} says {configured}. "
            "Build hog with the face size and the settings of their training; py-feat's classifiers, with "
            f"5408 features, need `{PYFEAT_COMMAND}`"
        )
    if options != PYFEAT_OPTIONS:
        print(
            f"export: warning: {path} has `{options}`, but py-feat trains with "
            f"`{PYFEAT_OPTIONS}`. Make sure that {weights} was trained with the configured settings",
            file=sys.stderr,
        )
    return expected
