"""The command line that `make bench` and `make bench-au` share."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.speed.load import LoadError
from benchmarks.speed.pyfeat_process import PyFeatError
from deploy.local.errors import ServerError

RESULTS = Path(__file__).parents[1] / "results"

Result = dict[str, object]


def argument_parser(program: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the options `--rounds` and `--results`."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=description)
    parser.add_argument(
        "--rounds",
        type=int,
        default=7,
        help="rounds in process; half as many, at least 3, through the server (default: %(default)s)",
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="output folder")
    return parser


def served_rounds(rounds: int) -> int:
    """Return the number of rounds through the server."""
    return max(3, rounds // 2)


def run(
    target: str,
    name: str,
    folder: Path,
    measure: Callable[[], Result],
    write_page: Callable[[Result, Path], None],
) -> int:
    """Measure; write NAME.json and its page to `folder`; print the page.

    Parameters
    ----------
    target : str
        The target of make, for messages.
    name : str
        Name of the JSON file and of the page, ``NAME.md``, without suffix.
    folder : Path
        Output folder, which is created if it is missing.
    measure : callable
        Returns the result.
    write_page : callable
        Writes the page of a result to a folder.

    Returns
    -------
    int
        Exit status: 1, after one line of error, if py-feat's environment is unknown or a process fails.
    """
    if "PYFEAT_PYTHON" not in os.environ:
        print(
            f"{target}: PYFEAT_PYTHON, the Python of py-feat's environment, is not set: run `make {target}`",
            file=sys.stderr,
        )
        return 1
    try:
        result = measure()
    except (ServerError, LoadError, PyFeatError) as error:
        print(f"{target}: {error}", file=sys.stderr)
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    write_page(result, folder)
    print((folder / f"{name}.md").read_text())
    return 0
