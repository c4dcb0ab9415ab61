"""The command line: `python -m export COMMAND`."""

import argparse
import importlib
import sys

from export.errors import ExportError

COMMANDS = {
    "hog": ("export.hog.command", "build hog/1/model.onnx, the HOG features of masked faces"),
    "pose": ("export.pose.command", "build pose_mlp/1/model.onnx from a pose checkpoint"),
    "au": ("export.au.command", "build the models au and action_units from py-feat's AU classifiers"),
    "update-pose": ("export.pose.update", "rebuild pose_mlp/1/model.onnx if it is out of date"),
    "train-pose": ("export.pose.training.train", "train a pose checkpoint on synthetic heads"),
    "evaluate-pose": (
        "export.pose.training.evaluate",
        "measure the errors of a pose checkpoint and of two geometric baselines",
    ),
}
"""Module and summary of each command. The module is imported only when the command runs."""


def main() -> int:
    """Run one command; print an error as one line and return exit status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m export", description="Build the ONNX models; train and evaluate the pose network."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module_name, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if name in sys.argv[1:2]:
            module = importlib.import_module(module_name)
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    arguments = parser.parse_args()
    try:
        arguments.run(arguments)
    except ExportError as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    except MemoryError:
        print("export: not enough memory", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
