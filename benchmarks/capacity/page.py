"""Page and picture of the simulation, from its JSON alone."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

TEMPLATE = Path(__file__).parent / "page.md"
POD_COLUMNS = {
    "faces per request": "{faces}",
    "offered faces/s": "{offered}",
    "completed faces/s": "{answered:.0f} / {simulated[answered]:.0f}",
    "queue / compute": "{ratio:.2f} / {simulated[ratio]:.2f}",
    "pending": "{pending:.1f} / {simulated[pending]:.1f}",
    "p99, ms": "{p99_ms:.0f} / {simulated[p99_ms]:.0f}",
}
FLEET_COLUMNS = {
    "targets": "{name}",
    "s with rejections, 10 min after the rise": "{rejecting_following}",
    "then, 10 min": "{rejecting_steady}",
    "requests lost": "{lost:,}",
    "p99, ms, last 10 min": "{p99_ms:.0f}",
    "pods, last 10 min": "{fewest_pods} to {most_pods}",
    "pod-minutes": "{pod_minutes:.0f}",
}
PANELS = {"pods": ("pods", 1), "rejected_share": ("rejected attempts, %", 100), "p99_ms": ("p99, s", 1e-3)}


def write_page(result: dict[str, Any], folder: Path) -> None:
    """Write `capacity.md` and `capacity.png` into the folder."""
    groups = {(row["faces"], row["start_seconds"]): [] for row in result["fleets"]}
    for row in result["fleets"]:
        groups[row["faces"], row["start_seconds"]].append(row)
    fleets = "\n\n".join(
        f"{faces} faces per request, a new pod is ready after {start} s:\n\n{_table(FLEET_COLUMNS, rows)}"
        for (faces, start), rows in groups.items()
    )
    text = TEMPLATE.read_text().format(
        **result | {"rows": _table(POD_COLUMNS, result["rows"]), "fleets": fleets}
    )
    (folder / "capacity.md").write_text(text)
    figure, panels = plt.subplots(len(PANELS), sharex=True, figsize=(9, 8), layout="constrained")
    for row in (row for row in result["fleets"] if "series" in row):
        minutes = [second / 60 for second in row["series"]["second"]]
        for axes, (name, (label, scale)) in zip(panels, PANELS.items(), strict=True):
            axes.plot(minutes, [scale * value for value in row["series"][name]], label=row["name"])
            axes.set_ylabel(label)
            axes.grid(alpha=0.3)
    panels[-1].set(yscale="log", xlabel="minutes")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    figure.savefig(folder / "capacity.png", dpi=100)
    plt.close(figure)


def _table(columns: dict[str, str], rows: list[dict[str, Any]]) -> str:
    lines = [list(columns), ["---"] * len(columns)]
    lines += [[cell.format(**row) for cell in columns.values()] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
