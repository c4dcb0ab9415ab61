"""`make gpu-check`: checks and measurements on a machine with a GPU, with or without a package registry.

Without a registry, run `pack` on a machine with a registry: it writes the missing wheels in pieces.
`--wheels DIR` installs them on the GPU machine. Results are written after every step.
"""

import argparse
import contextlib
import ctypes
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

from benchmarks.gpu.page import all_goals_reached, page, summary
from benchmarks.gpu.wheels import PROJECT, WheelsError, environment, install, library_path, pack

WORK = PROJECT / "build" / "gpu"
"""Install folder of `--wheels`."""

RESULTS = {"cuda": PROJECT / "benchmarks" / "results", "cpu": PROJECT / "build" / "gpu-dry-run"}
"""Device -> output folder."""

QUICK = {"versions": 60, "providers": 60, "parity": 120, "serving": 120, "pool": 150}
"""Step -> time limit, seconds; the steps that find the most serious errors."""

FULL = QUICK | {
    "borders": 60,
    "peer": 90,
    "shares": 60,
    "speed": 240,
    "speed_cuda": 120,
    "handover": 210,
    "memory": 90,
}

PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None)

STOP_SECONDS = 20
"""Time for a step that exceeds its time limit to stop its server."""


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
            python = install(arguments.wheels, WORK)
            os.execve(python, _command(python, arguments), environment(WORK))
    except (WheelsError, OSError) as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 1
    return _check(arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="install the pieces of this folder")
    parser.add_argument(
        "--quick", action="store_true", help="only the steps that find the most serious errors, 2 minutes"
    )
    parser.add_argument("--steps", help="only these steps, separated by commas", metavar="NAMES")
    parser.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="cpu: a dry run of every step with tiny counts (default: %(default)s)",
    )
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="output folder; keeps steps of earlier runs on the same GPU (default: benchmarks/results, "
        "for a dry run build/gpu-dry-run)",
    )
    packing = parser.add_subparsers(dest="command").add_parser("pack", help="write the wheels in pieces")
    packing.add_argument(
        "--into", type=Path, required=True, metavar="DIR", help="output folder, empty or new"
    )
    packing.add_argument(
        "--piece-megabytes", type=float, default=60, help="size limit of a piece (default: 60)"
    )
    arguments = parser.parse_args()
    arguments.results = arguments.results or RESULTS[arguments.device]
    return arguments


def _command(python: Path, arguments: argparse.Namespace) -> list[str]:
    command = [str(python), "-m", "benchmarks.gpu", "--device", arguments.device]
    command += ["--results", str(arguments.results)]
    command += ["--quick"] * arguments.quick
    return command + (["--steps", arguments.steps] if arguments.steps else [])


def _check(arguments: argparse.Namespace) -> int:
    # `pack` and `--wheels` run before these packages are installed.
    import torch

    from benchmarks.gpu.rows import build_repository

    if arguments.device == "cuda" and not torch.cuda.is_available():
        print(
            f"gpu-check: torch {torch.__version__} finds no GPU, nothing was written; dry run: --device cpu",
            file=sys.stderr,
        )
        return 1
    time_limits = QUICK if arguments.quick else FULL
    names = arguments.steps.split(",") if arguments.steps else list(time_limits)
    unknown = ", ".join(sorted(set(names) - set(time_limits)))
    if unknown:
        print(f"gpu-check: unknown step {unknown}; the steps are {', '.join(time_limits)}", file=sys.stderr)
        return 1
    size = "tiny" if arguments.device == "cpu" else "quick" if arguments.quick else "full"
    gpu = torch.cuda.get_device_name(0) if arguments.device == "cuda" else None
    result = {"gpu": gpu, "steps": _earlier_steps(arguments.results, gpu)}
    if arguments.device == "cpu":
        print("dry run on the CPU: tiny counts, meaningless times", flush=True)
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        repository = build_repository(Path(folder) / "model_repository")
        for name in names:
            print(f"{name} ...", flush=True)
            options = [name, arguments.device, size, str(repository)]
            result["steps"][name] = _run(options, time_limits[name], Path(folder))
            _write(result, arguments.results)
    print(summary(result))
    return 0 if all_goals_reached(result) else 1


def _earlier_steps(folder: Path, gpu: str | None) -> dict[str, Any]:
    """Return the steps that an earlier run on the same GPU wrote."""
    file = folder / "gpu.json"
    earlier = json.loads(file.read_text()) if file.exists() else {"gpu": None}
    return earlier["steps"] if gpu and earlier["gpu"] == gpu else {}


def _run(options: list[str], seconds: float, folder: Path) -> dict[str, Any]:
    """Run a step in a separate process group; return its state, its rows and the reason of a failure."""
    rows, errors = folder / f"{options[0]}.json", folder / f"{options[0]}.stderr"
    command = [sys.executable, "-m", "benchmarks.gpu.step", *options, str(rows)]
    variables = os.environ | {"LD_LIBRARY_PATH": library_path()}
    start = time.monotonic()
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            command,
            stderr=stderr,
            cwd=PROJECT,
            env=variables,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        try:
            state = "failed" if process.wait(seconds) else "done"
        except subprocess.TimeoutExpired:
            state = "timed out"
            process.send_signal(signal.SIGINT)  # the step stops its server
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    stderr_lines = errors.read_text(errors="replace").strip().splitlines()
    if state != "done":
        print("\n".join(stderr_lines[-12:]), flush=True)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "size": options[2],
        "state": state,
        "seconds": round(time.monotonic() - start),
        "error": stderr_lines[-1] if stderr_lines and state == "failed" else "",
        "rows": json.loads(rows.read_text()) if rows.exists() else [],
    }


def _end_with_parent() -> None:
    """Make the kernel send SIGTERM to the step when this process dies; the server ends with the step."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _write(result: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(result, indent=2) + "\n")
    (folder / "gpu.md").write_text(page(result))


if __name__ == "__main__":
    sys.exit(main())
