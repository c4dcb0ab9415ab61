"""The page `gpu.md` of a result."""

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
    "borders": "Borders of the HOG's bins",
    "shares": "Time of a batch by part, in process",
    "speed": "Speed through the server",
    "speed_cuda": "Speed with CUDA shared memory",
    "peer": "Beside py-feat's batched path",
    "handover": "Masked faces in GPU memory between align_mask and hog",
    "memory": "Memory",
}

NO_GPU = """\
# On a GPU: not measured

**No GPU has been available so far: nothing below was measured on one.** On a machine with a GPU,
`make gpu-check` checks, measures and writes this page ([how](../README.md#on-a-gpu)). The tables are those of
its dry run, which runs every step with tiny counts on a CPU.

Unmeasured, and waiting for a GPU:

- parity of warp, HOG and POSE on a GPU, and the borders of the HOG's bins with CUDA's atan2;
- whether every ONNX node runs on CUDAExecutionProvider;
- Triton's CUDA pool when it is full, and CUDA shared memory;
- `masked_faces_on_device`, which stays "false" until it is proved;
- speed; the goals are 20 times py-feat at 64 faces, 20,000 faces/s with shared memory, 8,000 with messages;
- memory of each model instance on the GPU;
- NVIDIA's C++ ONNX Runtime backend on a GPU, which the command's server does not have."""


def page(result: Result) -> str:
    """Return the page as Markdown."""
    parts = [
        f"# On a GPU: {result['gpu']}" if result["gpu"] else NO_GPU,
        "## Steps",
        "Each step runs in a process of its own. A step that fails or exceeds its time keeps its rows.",
        _table([_step_row(name, step) for name, step in result["steps"].items()]),
    ]
    for name, step in result["steps"].items():
        parts.append(f"## {TITLES[name]}")
        shown = step["rows"] if result["gpu"] else [row for row in step["rows"] if _is_dry_run_row(name, row)]
        for _, rows in groupby(sorted(shown, key=_kind), key=_kind):
            parts.append(_table([_with_verdict(row) for row in rows]))
        if left_out := len(step["rows"]) - len(shown):
            parts.append(f"Left out: {left_out} rows of speed or memory, which mean nothing in a dry run.")
    return "\n\n".join(parts) + "\n"


def summary(result: Result) -> str:
    """Return the short table that is printed last: the steps, and every check that misses its goal."""
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
    """Tell whether every step is done and no check missed its goal."""
    steps = result["steps"].values()
    return all(step["state"] == "done" for step in steps) and not any(
        row.get("reached") is False for step in steps for row in step["rows"]
    )


def _is_dry_run_row(name: str, row: dict[str, Any]) -> bool:
    """Tell whether a row means something without a GPU."""
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
