"""JSON, page and picture of `make capacity`; page and picture follow from the JSON alone."""

import json
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
    "seconds with rejections, minutes 0 to 10 after the rise": "{rejecting_following}",
    "minutes 10 to 20": "{rejecting_steady}",
    "requests lost": "{lost:,}",
    "p99, minutes 10 to 20, ms": "{p99_ms:.0f}",
    "pods, minutes 10 to 20": "{fewest_pods} to {most_pods}",
    "pod-minutes": "{pod_minutes:.0f}",
}
PANELS = {"pods": ("pods", 1), "rejected_share": ("rejected attempts, %", 100), "p99_ms": ("p99, s", 1e-3)}

PLOTTED = ("as shipped", "ratio 0.3", "ratio 1 alone", "fixed")
"""Names of the fleets in the picture."""


def write_results(result: dict[str, Any], folder: Path) -> None:
    """Write `capacity.json`, with all figures rounded to four digits, and the page into the folder."""
    text = json.dumps(result, default=lambda value: value.tolist())
    result = json.loads(text, parse_float=lambda digits: float(f"{float(digits):.4g}"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "capacity.json").write_text(json.dumps(result) + "\n")
    write_page(result, folder)


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
    lines += [[template.format(**row) for template in columns.values()] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
