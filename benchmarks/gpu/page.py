"""The page `gpu.md`, from `gpu.json` alone."""

from itertools import groupby
from typing import Any

Result = dict[str, Any]

VERDICTS = {True: "reached", False: "**missed**", None: ""}

TITLES = {
    "versions": "Machine",
    "providers": "Where the ONNX nodes run",
    "parity": "Parity in process",
    "serving": "Through the server",
    "pool": "With a CUDA pool of 1 MB",
    "borders": "Borders of the HOG bins",
    "shares": "Time of a batch by stage, in process",
    "speed": "Speed through the server",
    "speed_cuda": "Speed with CUDA shared memory",
    "peer": "Speed relative to py-feat's batched path",
    "handover": "Masked faces passed from align_mask to hog in GPU memory",
    "memory": "Memory",
}

NO_GPU = """\
# On a GPU: not measured

**No GPU has been available so far; nothing below was measured on a GPU.** `make gpu-check` runs the checks
and measurements on a machine with a GPU and writes this page ([instructions](../README.md#on-a-gpu)). The
tables show its dry run: every step on a CPU, with tiny counts.

Not measured yet:

- parity of warp, HOG and POSE on a GPU, and the borders of the HOG bins with CUDA's atan2;
- whether every ONNX node runs on CUDAExecutionProvider;
- the behavior of Triton's CUDA memory pool when it is full, and CUDA shared memory;
- `masked_faces_on_device`, which stays "false" until a GPU has proved it;
- speed; the goals are 20 times py-feat at 64 faces, 20,000 faces/s with shared memory, 8,000 with messages;
- GPU memory of each model instance;
- NVIDIA's C++ ONNX Runtime backend on a GPU: the server of `make gpu-check` has the Python-based one."""


def page(result: Result) -> str:
    """Return the page as Markdown."""
    parts = [
        f"# On a GPU: {result['gpu']}" if result["gpu"] else NO_GPU,
        "## Steps",
        "Each step runs in a separate process. A step that fails or exceeds its time limit keeps its rows.",
        _table([_step_row(name, step) for name, step in result["steps"].items()]),
    ]
    for name, step in result["steps"].items():
        parts.append(f"## {TITLES[name]}")
        shown = step["rows"] if result["gpu"] else [row for row in step["rows"] if _is_dry_run_row(name, row)]
        for _, rows in groupby(sorted(shown, key=_kind), key=_kind):
            parts.append(_table([_with_verdict(row) for row in rows]))
        if omitted := len(step["rows"]) - len(shown):
            parts.append(f"Omitted: {omitted} rows of speed or memory, which a dry run cannot measure.")
    return "\n\n".join(parts) + "\n"


def summary(result: Result) -> str:
    """Return the steps and the checks that missed their goals as plain text."""
    lines = [
        f"{name:<10} {step['state']:<10} {step['seconds']:>5} s  "
        f"{sum(row.get('reached') is True for row in step['rows'])} reached, "
        f"{sum(row.get('reached') is False for row in step['rows'])} missed  {step['error']}"
        for name, step in result["steps"].items()
    ]
    lines += [
        f"  missed: {row['what']}: {row['measured']} (goal: {row['goal']})"
        for step in result["steps"].values()
        for row in step["rows"]
        if row.get("reached") is False
    ]
    return "\n".join(lines)


def is_good(result: Result) -> bool:
    """Return whether every step is done and no check missed its goal."""
    steps = result["steps"].values()
    return all(step["state"] == "done" for step in steps) and not any(
        row.get("reached") is False for step in steps for row in step["rows"]
    )


def _is_dry_run_row(name: str, row: dict[str, Any]) -> bool:
    """Return whether a row is meaningful without a GPU."""
    return name in ("versions", "borders") or row.get("reached") is not None


def _kind(row: dict[str, Any]) -> list[str]:
    return list(row)


def _step_row(name: str, step: dict[str, Any]) -> dict[str, Any]:
    return {"step": name} | {key: step[key] for key in ("date", "size", "state", "seconds", "error")}


def _with_verdict(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "reached": VERDICTS[row["reached"]]} if "reached" in row else row


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0])] if rows else []
    lines += [["" if value is None else str(value) for value in row.values()] for row in rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
