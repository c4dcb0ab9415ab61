"""The command line: `python -m export COMMAND`."""

import argparse
import sys

from export.errors import ExportError
from export.hog import command as hog
from export.pose import command as pose
from export.pose.training import evaluate, train

COMMANDS = {
    "hog": (hog, "HOG features of masked faces -> hog/1/model.onnx"),
    "pose": (pose, "a pose checkpoint -> pose_mlp/1/model.onnx"),
    "train-pose": (train, "train a pose checkpoint on synthetic heads"),
    "evaluate-pose": (evaluate, "measure a pose checkpoint beside a geometric baseline"),
}


def main() -> int:
    """Run one command; a user's error is one line on standard error and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m export", description="Build the ONNX models; train and judge the pose network."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    arguments = parser.parse_args()
    try:
        arguments.run(arguments)
    except ExportError as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
