"""`make gpu-check`: what must be known of a machine with a GPU, in one command that needs no package registry.

`pack` writes the missing wheels in pieces on a machine that has pip and a registry; `--wheels DIR` installs
them on the other. Results are written after every step.
"""

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.page import is_good, page, summary
from benchmarks.gpu.wheels import (
    PROJECT,
    WheelsError,
    environment,
    install,
    installed_python,
    pack,
)

WORK = PROJECT / "build" / "gpu"
"""Where `--wheels` installs."""

RESULTS = PROJECT / "benchmarks" / "results"

QUICK = {"versions": 60, "providers": 90, "parity": 120, "serving": 150, "pool": 150}
"""Step -> seconds that it may take; the gravest faults show here."""

FULL = QUICK | {"borders": 90, "peer": 120, "speed": 300, "shares": 60, "handover": 240, "memory": 150}

END_SECONDS = 20
"""For a step that exceeds its time to stop its server."""


def main() -> int:
    """Run the command; return 0 when every step is done and no check missed its goal."""
    arguments = _arguments()
    try:
        if arguments.command == "pack":
            for piece in pack(arguments.into, arguments.piece_megabytes):
                print(piece, piece.stat().st_size)
            return 0
        if arguments.wheels:
            print(f"installing the wheels of {arguments.wheels} into {WORK}", flush=True)
            install(arguments.wheels, WORK)
    except (WheelsError, OSError) as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 1
    python = installed_python(WORK)
    if python.exists() and Path(sys.executable) != python:
        os.execve(python, _command(python, arguments), environment(WORK))
    return _check(arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--wheels", type=Path, metavar="DIR", help="install the pieces that lie in this folder"
    )
    parser.add_argument("--quick", action="store_true", help="two minutes: the gravest faults")
    parser.add_argument("--steps", help="only these, with commas between them", metavar="NAMES")
    parser.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="cpu: a dry run of every step with tiny counts (default: %(default)s)",
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where to write")
    packing = parser.add_subparsers(dest="command").add_parser("pack", help="write the wheels in pieces")
    packing.add_argument("--into", type=Path, required=True, metavar="DIR", help="an empty or new folder")
    packing.add_argument("--piece-megabytes", type=float, default=60, help="largest piece (default: 60)")
    return parser.parse_args()


def _command(python: Path, arguments: argparse.Namespace) -> list[str]:
    command = [str(python), "-m", "benchmarks.gpu", "--device", arguments.device]
    command += ["--results", str(arguments.results)]
    command += ["--quick"] * arguments.quick
    return command + (["--steps", arguments.steps] if arguments.steps else [])


def _check(arguments: argparse.Namespace) -> int:
    # Late: `pack` and `--wheels` run before these packages are installed.
    import torch

    from benchmarks.gpu.rows import build_repository

    if arguments.device == "cuda" and not torch.cuda.is_available():
        print(
            f"gpu-check: torch {torch.__version__} finds no GPU; nothing was written (--device cpu: a dry run)",
            file=sys.stderr,
        )
        return 1
    limits = QUICK if arguments.quick else FULL
    names = arguments.steps.split(",") if arguments.steps else list(limits)
    unknown = set(names) - set(FULL)
    if unknown:
        print(
            f"gpu-check: no step {', '.join(sorted(unknown))}; there are {', '.join(FULL)}", file=sys.stderr
        )
        return 1
    size = "tiny" if arguments.device == "cpu" else "quick" if arguments.quick else "full"
    result: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "device": arguments.device,
        "gpu": torch.cuda.get_device_name(0) if arguments.device == "cuda" else None,
        "size": size,
        "steps": {},
    }
    if arguments.device == "cpu":
        print("a dry run on the CPU: tiny counts, and times that mean nothing", flush=True)
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        repository = build_repository(Path(folder) / "model_repository")
        for name in names:
            print(f"{name} ...", flush=True)
            options = [name, arguments.device, size, str(repository)]
            result["steps"][name] = _run(options, FULL[name], Path(folder))
            _write(result, arguments.results)
    print(summary(result))
    return 0 if is_good(result) else 1


def _run(options: list[str], seconds: float, folder: Path) -> dict[str, Any]:
    """Run a step in a process group of its own; return its state, its rows and, of a failure, the reason."""
    rows, errors = folder / f"{options[0]}.json", folder / f"{options[0]}.stderr"
    command = [sys.executable, "-m", "benchmarks.gpu.step", *options, str(rows)]
    start = time.monotonic()
    with errors.open("w") as stderr:
        process = subprocess.Popen(command, stderr=stderr, cwd=PROJECT, start_new_session=True)
        try:
            state = "failed" if process.wait(seconds) else "done"
        except subprocess.TimeoutExpired:
            state = "timed out"
            _end(process)
    said = errors.read_text(errors="replace").strip().splitlines()
    if state != "done":
        print("\n".join(said[-12:]), flush=True)
    return {
        "state": state,
        "seconds": time.monotonic() - start,
        "error": said[-1] if said and state == "failed" else "",
        "rows": json.loads(rows.read_text()) if rows.exists() else [],
    }


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Interrupt a step, so that it stops its server, and kill what is left of it."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _write(result: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(result, indent=2) + "\n")
    (folder / "gpu.md").write_text(page(result))


if __name__ == "__main__":
    sys.exit(main())
