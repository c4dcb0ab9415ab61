"""Page and picture of `make bench`, from its JSON alone."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator

Result = dict[str, Any]

PYFEAT_COLOURS = {"batched": "tab:orange", "legacy": "tab:red", "scipy_skimage": "tab:orange"}


def write_report(result: Result, folder: Path) -> None:
    """Write `bench.md` and `bench.png` into the folder from the content of `bench.json`."""
    (folder / "bench.md").write_text(_page(result))
    _plot(result, folder / "bench.png")


def _page(result: Result) -> str:
    machine = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    return (
        "\n\n".join(
            [
                "# Speed compared with py-feat",
                "Written by `make bench`. [The benchmarks' README](../README.md) explains the missed goals.",
                f"**Machine:** {machine}; load generator: {result['load']}.",
                f"**Method:** {result['rounds']} rounds in process, {result['served_rounds']} through the "
                "server. Each round measures the service and py-feat in alternation. Times are medians over "
                "rounds. A ratio is the median of the rounds' ratios; when the machine's speed drifts, this "
                "differs from the ratio of the medians.",
                "**py-feat batched** is its `extract_hog_features_batched`, **py-feat legacy** its "
                "`extract_hog_features`.",
                "![The figures of this page as a picture](bench.png)",
                "## Goals",
                table(["measurement", "goal", "measured", "result"], _goals(result)),
                "## In process, one thread: HOG from crops and landmarks, ms per face",
                table(
                    [
                        "faces",
                        "service",
                        "py-feat batched",
                        "py-feat legacy",
                        "batched / service",
                        "legacy / service",
                    ],
                    [
                        [row["faces"]]
                        + [f"{row[name]:.3f}" for name in ("service_ms", "batched_ms", "legacy_ms")]
                        + [f"{row[name]:.1f}" for name in ("batched_ratio", "legacy_ratio")]
                        for row in result["hog"]
                    ],
                ),
                "## Masks alone, µs per face",
                table(
                    ["faces", "service", "scipy + scikit-image", "ratio"],
                    [
                        [
                            row["faces"],
                            f"{1e3 * row['service_ms']:.1f}",
                            f"{1e3 * row['scipy_skimage_ms']:.0f}",
                            f"{row['scipy_skimage_ratio']:.1f}",
                        ]
                        for row in result["masks"]
                    ],
                ),
                "## Time per face by number of faces, in process, one thread",
                table(
                    ["faces", "ms per face", "relative to 5 faces"],
                    [
                        [row["faces"], f"{row['service_ms']:.3f}", f"{row['over_5_faces']:.2f}"]
                        for row in result["growth"]
                    ],
                ),
                "## Served: HOG and pose",
                served_table(result["served"]),
                "The py-feat column measures `extract_hog_features_batched` and `pose_from_landmarks_mlp` in "
                "process, 50 faces per call, two threads.",
            ]
        )
        + "\n"
    )


def _goals(result: Result) -> list[list[object]]:
    hog = {row["faces"]: row["batched_ratio"] for row in result["hog"]}
    masks = {row["faces"]: row for row in result["masks"]}[50]
    served = max(result["served"], key=lambda row: row["ratio"])
    one_face, cpu_cost, memory = result["one_face"], result["cpu_cost"], result["memory"]
    relative_times = [row["over_5_faces"] for row in result["growth"]]
    warmed_up = memory[len(memory) // 4 :]
    memory_growth = {name: warmed_up[-1][name] - warmed_up[0][name] for name in ("resident_mb", "shared_mb")}
    rows = [
        *(
            (
                f"HOG in process, {count} face{'s' * (count > 1)}, against py-feat batched",
                f"≥ {goal}×",
                f"{hog[count]:.1f}×",
                hog[count] >= goal,
            )
            for count, goal in ((50, 10), (5, 8), (1, 6))
        ),
        (
            "masks, 50 faces, against scipy + scikit-image",
            "≥ 25×",
            f"{masks['scipy_skimage_ratio']:.1f}× ({1e3 * masks['service_ms']:.0f} µs per face)",
            masks["scipy_skimage_ratio"] >= 25,
        ),
        (
            "served on two cores, against py-feat in process with two threads",
            "≥ 8×",
            f"{served['ratio']:.1f}× ({served['faces_per_second']:.0f} faces/s: {served['input']}, "
            f"{served['batch']} faces per request, {served['concurrency']} in flight)",
            served["ratio"] >= 8,
        ),
        *(
            (
                f"served, one face, p50 against py-feat with {name}",
                "≤ 0.7×",
                f"{one_face[f'fp32_over_pyfeat_{threads}']:.2f}× FP32, "
                f"{one_face[f'uint8_over_pyfeat_{threads}']:.2f}× UINT8",
                max(one_face[f"fp32_over_pyfeat_{threads}"], one_face[f"uint8_over_pyfeat_{threads}"]) <= 0.7,
            )
            for threads, name in ((2, "two threads"), (1, "one thread"))
        ),
        (
            "CPU time per face, served against in process",
            "≤ 1.5×",
            f"{cpu_cost['ratio']:.2f}× ({cpu_cost['served_cpu_ms']:.2f} ms against "
            f"{cpu_cost['in_process_cpu_ms']:.2f})",
            cpu_cost["ratio"] <= 1.5,
        ),
        (
            "ms per face from 5 to 500 faces, relative to 5",
            "≤ 1.2×",
            f"{min(relative_times):.2f}× to {max(relative_times):.2f}×",
            max(relative_times) <= 1.2,
        ),
        (
            f"growth of server memory in {memory[-1]['seconds'] / 60:.1f} minutes, after the first quarter",
            "bounded",
            f"{memory_growth['resident_mb']:+.0f} MB resident, {memory_growth['shared_mb']:+.0f} MB shared",
            sum(memory_growth.values()) < 50,
        ),
    ]
    return with_results(rows)


def served_table(rows: list[Result]) -> str:
    """Return the table of `served.throughput_rows`."""
    return table(
        [
            "input",
            "faces per request",
            "requests in flight",
            "faces/s",
            "p50, ms",
            "p99, ms",
            "py-feat faces/s",
            "ratio",
        ],
        [
            [row["input"], row["batch"], row["concurrency"]]
            + [f"{row['faces_per_second']:.0f}"]
            + [f"{row[name]:.1f}" for name in ("p50_ms", "p99_ms")]
            + [f"{row['pyfeat_faces_per_second']:.0f}", f"{row['ratio']:.1f}"]
            for row in rows
        ],
    )


def with_results(rows: list[tuple[str, str, str, bool]]) -> list[list[object]]:
    """Return the rows of a table of goals: measurement, goal, measured, reached or missed."""
    return [
        [measurement, goal, measured, "reached" if reached else "**missed**"]
        for measurement, goal, measured, reached in rows
    ]


def table(head: list[str], rows: list[list[object]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _plot(result: Result, path: Path) -> None:
    figure, ((hog, masks), (served, memory)) = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    _plot_times(hog, result["hog"], "HOG in process, one thread")
    _plot_times(masks, result["masks"], "masks alone")
    _plot_served(served, result)
    _plot_memory(memory, result["memory"])
    machine = result["machine"]
    figure.suptitle(f"{machine['processor']}, {machine['cores']} cores, {machine['date']}")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _plot_times(axes: plt.Axes, rows: list[Result], title: str) -> None:
    counts = [row["faces"] for row in rows]
    axes.plot(counts, [row["service_ms"] for row in rows], "o-", color="tab:blue", label="service")
    for name, colour in PYFEAT_COLOURS.items():
        if f"{name}_ms" in rows[0]:
            label = "scipy + scikit-image" if name == "scipy_skimage" else f"py-feat {name}"
            axes.plot(counts, [row[f"{name}_ms"] for row in rows], "o-", color=colour, label=label)
    axes.set(xscale="log", yscale="log", xlabel="faces per call", ylabel="ms per face", title=title)
    axes.set_xticks(counts, counts)
    axes.xaxis.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()


def _plot_served(axes: plt.Axes, result: Result) -> None:
    for offset, (frames_input, colour) in enumerate((("FRAMES", "tab:blue"), ("FRAMES_UINT8", "tab:cyan"))):
        rows = [row for row in result["served"] if row["input"] == frames_input]
        positions = [index + 0.4 * offset for index in range(len(rows))]
        axes.bar(positions, [row["faces_per_second"] for row in rows], 0.4, color=colour, label=frames_input)
    axes.plot(
        [index + 0.2 for index in range(len(rows))],
        [row["pyfeat_faces_per_second"] for row in rows],
        "s",
        color="tab:orange",
        label="py-feat in process, two threads",
    )
    axes.set_xticks(
        [index + 0.2 for index in range(len(rows))], [f"{row['batch']}x{row['concurrency']}" for row in rows]
    )
    axes.set(xlabel="faces per request x requests in flight", ylabel="faces/s", title="served: HOG and pose")
    axes.grid(axis="y", alpha=0.3)
    axes.margins(y=0.4)  # room for the legend above the bars
    axes.legend(loc="upper left")


def _plot_memory(axes: plt.Axes, rows: list[Result]) -> None:
    seconds = [row["seconds"] for row in rows]
    axes.plot(seconds, [row["resident_mb"] for row in rows], "o-", label="resident, all processes")
    axes.plot(seconds, [row["shared_mb"] for row in rows], "o-", label="/dev/shm")
    axes.set(xlabel="seconds of load", ylabel="MB", title="server memory", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
