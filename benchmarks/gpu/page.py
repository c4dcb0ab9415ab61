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
    "pool": "Through the server, with a CUDA memory pool of 1 MB",
    "borders": "Borders of the HOG orientation bins",
    "shares": "Time of a batch by stage, in process",
    "speed": "Speed through the server",
    "speed_cuda": "Speed with CUDA shared memory",
    "peer": "Speed relative to py-feat's batched path",
    "handover": "Masked faces passed from align_mask to hog in GPU memory",
    "memory": "GPU memory",
}

NO_GPU = """\
# On a GPU: not measured

**No GPU has been available so far; nothing below was measured on a GPU.** `make gpu-check` runs the checks
and measurements on a machine with a GPU and writes this page ([instructions](../README.md#on-a-gpu)). The
tables show its dry run: every step ran on a CPU, with few faces.

Not measured yet:

- parity of warp, HOG and POSE on a GPU, and the borders of the HOG orientation bins with CUDA's atan2;
- whether every ONNX node runs on CUDAExecutionProvider;
- the behavior of Triton's CUDA memory pool when it is full, and CUDA shared memory;
- `masked_faces_on_device`, which stays "false" until it has been tested on a GPU;
- speed; the goals are 20 times py-feat at 64 faces, 20,000 faces/s with tensors in
  shared memory, 8,000 with tensors in gRPC messages;
- GPU memory of each model instance;
- NVIDIA's C++ ONNX Runtime backend on a GPU: the server of `make gpu-check` has the Python-based one."""


def page(result: Result) -> str:
    """Return `gpu.md` for the content of `gpu.json`."""
    parts = [
        f"# On a GPU: {result['gpu']}" if result["gpu"] else NO_GPU,
        "## Steps",
        "Each step runs in a separate process. A step that fails or exceeds its time limit keeps its rows.",
        _table([_step_row(name, step) for name, step in result["steps"].items()]),
    ]
    for name, step in result["steps"].items():
        parts.append(f"## {TITLES[name]}")
        shown = step["rows"] if result["gpu"] else [row for row in step["rows"] if _is_dry_run_row(name, row)]
        for _, rows in groupby(sorted(shown, key=_columns), key=_columns):
            parts.append(_table([_displayed(row) for row in rows]))
        if omitted := len(step["rows"]) - len(shown):
            parts.append(f"Omitted rows, because a dry run does not measure speed and memory: {omitted}.")
    return "\n\n".join(parts) + "\n"


def summary(result: Result) -> str:
    """Return plain text: one line for each step, then one for each check that missed its goal."""
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


def all_goals_reached(result: Result) -> bool:
    """Return whether every step is done and no check missed its goal."""
    steps = result["steps"].values()
    return all(step["state"] == "done" for step in steps) and not any(
        row.get("reached") is False for step in steps for row in step["rows"]
    )


def _is_dry_run_row(name: str, row: dict[str, Any]) -> bool:
    """Return whether a row is meaningful without a GPU."""
    return name in ("versions", "borders") or row.get("reached") is not None


def _columns(row: dict[str, Any]) -> list[str]:
    return list(row)


def _step_row(name: str, step: dict[str, Any]) -> dict[str, Any]:
    return {"step": name} | {key: step[key] for key in ("date", "size", "state", "seconds", "error")}


def _displayed(row: dict[str, Any]) -> dict[str, Any]:
    """Return the cells of a row by column title; only the rows of checks need a translation."""
    if "what" not in row:
        return row
    return {
        "check": row["what"],
        "measured": row["measured"],
        "goal": row["goal"],
        "result": VERDICTS[row["reached"]],
    }


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0])] if rows else []
    lines += [["" if value is None else str(value) for value in row.values()] for row in rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
