"""The result tables of `make chaos` and `make soak`, and the plot of the soak test."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from tests.reliability.soak import SoakReport, process_name

COLOURS = {"align_mask": "tab:red", "tritonserver": "tab:blue", "hog": "tab:green", "pose_mlp": "tab:purple"}
OTHER = "tab:gray"

HEADROOM = 1.3
"""Height of the plot divided by the highest line; leaves room for the legend."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A promise, its measured figures, and whether it was kept."""

    promise: str
    measured: str
    kept: bool


def write_table(command: str, machine: Mapping[str, object], rows: list[Row], folder: Path) -> str:
    """Write `chaos.md` or `soak.md` and return its text."""
    description = ", ".join(f"{name} {value}" for name, value in machine.items())
    lines = [
        f"# Measured by `make {command}`",
        "",
        description + ". The promises are those of [docs/reliability.md](../../docs/reliability.md).",
        "",
        "| promise | measured | |",
        "| --- | --- | --- |",
        *(f"| {row.promise} | {row.measured} | {'kept' if row.kept else '**broken**'} |" for row in rows),
    ]
    if command == "soak":
        lines += ["", "![Memory of each process over the time](soak.png)"]
    text = "\n".join(lines) + "\n"
    (folder / f"{command}.md").write_text(text)
    return text


def plot_memory(reports: Mapping[str, SoakReport], path: Path) -> None:
    """Plot the memory of each process and of /dev/shm over time, one panel for each report."""
    figure, panels = plt.subplots(1, len(reports), figsize=(11, 4), sharey=True, layout="constrained")
    for axes, (title, report) in zip(panels, reports.items(), strict=True):
        labelled = set()
        for name, samples in report.memory_mb.items():
            label = process_name(name) if process_name(name) not in labelled else None
            labelled.add(process_name(name))
            minutes = [seconds / 60 for seconds in report.seconds]
            axes.plot(minutes, samples, color=COLOURS.get(process_name(name), OTHER), label=label)
        axes.set(xlabel="minutes", title=title)
        axes.grid(alpha=0.3)
    highest = max(max(samples) for report in reports.values() for samples in report.memory_mb.values())
    panels[0].set(ylabel="MB of each process, and of /dev/shm", ylim=(0, HEADROOM * highest))
    panels[0].legend(loc="upper left", ncols=3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
