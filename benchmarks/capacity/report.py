"""The simulation's page and picture, made from its JSON alone."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import SubFigure

from benchmarks.capacity.fit import WINDOW_SECONDS
from benchmarks.capacity.shipped import PENDING, RATIO

Result = dict[str, Any]

COLOURS = ("tab:gray", "tab:orange", "tab:blue")
LOAD_COLOUR = "black"

HOURS = (0, 4, 8, 12, 16, 20, 24)

GIGABYTE = 1e9

OUTCOMES = (
    "pod-hours",
    "tries refused",
    "requests that waited for 1 s or more of refusals",
    "lost",
    "p50 ms",
    "p99 ms",
    "s with p99 > 1 s",
    "s with refusals",
    "most pods",
)
"""The columns of `_outcome`."""

CHOICES = {"one": "one pod each, at random", "subset": "ten pods each, in turn", "all": "all pods, in turn"}


def write_report(result: Result, folder: Path) -> None:
    """Write `autoscaling.md` and `autoscaling.png` into the folder."""
    (folder / "autoscaling.md").write_text(_page(result))
    _plot(result, folder / "autoscaling.png")


def _page(result: Result) -> str:
    measured, pod = result["measured"], result["pod"]
    return (
        "\n\n".join(
            [
                "# The autoscaler over a day, simulated",
                f"Made by `python -m benchmarks.capacity --seed {result['seed']}` from service times "
                f"measured on {measured['date']} ({measured['machine']}; {measured['server']}; "
                f"{measured['load']}). Nothing here was measured on a cluster.",
                "![A day of three fleets](autoscaling.png)",
                *_pod_section(result),
                "## The day",
                f"A pod's worth is {pod['worth']:.0f} faces/s, its highest load with a p99 up to half a "
                f"second; it can answer {pod['capacity']:.0f}. The load is a lab's: a tenth of the peak at "
                f"night, two humps of {result['load']['peak_pods']} pods' worth, ten minutes of twice the "
                "load at 12:30, and at 22:00 from one second to the next the peak for 90 minutes, a queue "
                f"of video. At its highest it is {result['load']['peak']:.0f} faces/s, on average "
                f"{result['load']['mean']:.0f}.",
                "In steps of a second each pod replays a random second of the event simulation at its "
                "load, with requests of 8 faces at random moments; the random numbers are the same for "
                f"every fleet. A new pod is ready after {_starts(result)[0]} s, or {_starts(result)[-1]} s "
                "where a node has to come first, and gets its share over a minute, as clients look up the "
                "pods when their connections end. What is refused is tried again once a second for a minute, "
                "then lost. Prometheus scrapes and the autoscaler looks every 15 s, at what is one scrape "
                "old; the ratio is waiting over computing in the last minute, the waiting requests are the "
                "mean of the minute's scrapes. The autoscaler is the algorithm of the Kubernetes "
                "documentation, in [hpa.py](../autoscaling/hpa.py), with the bounds, targets and behaviour "
                "of the [shipped manifest](../../deploy/k8s/fleet/autoscaler.yaml).",
                *_policy_section(result),
                *_grid_section(result),
                *_size_section(result),
                *_growth_section(result),
                "## What it does not model",
                "\n".join(
                    [
                        "- Clients and pods that differ, requests that differ in size, pods that die, "
                        "updates.",
                        "- Closed loops: a client with few requests in flight slows down where the "
                        "simulated ones try again. A fleet that is too small for hours looks worse here "
                        "than it would be, and the share of tries refused counts every further try of a "
                        "request.",
                        "- The work of refusing: `make chaos` found none, at three times what a server can "
                        "do.",
                        "- What a second leaves for the next but for refused requests; the tail of times "
                        "near a pod's limit is the fitted model's.",
                        "- GPUs and other processors, whose service times are others.",
                        "- A pod with its cores to itself: the client that sent the measured load used the "
                        "same two, and without it a pod answers more.",
                    ]
                ),
            ]
        )
        + "\n"
    )


def _pod_section(result: Result) -> list[str]:
    limits, costs, factors = result["limits"], result["costs"], result["factors"]
    rows = [
        [row["faces"], row["offered"]]
        + [
            f"{row['measured'][name]:{form}} / {row['simulated'][name]:{form}}"
            for name, form in (("answered", ".0f"), ("ratio", ".2f"), ("pending", ".1f"), ("p99_ms", ".0f"))
        ]
        for row in result["comparison"]
    ]
    off = "; ".join(
        f"{faces} face{'s' * (faces != '1')} {worst['answered']:.2f}, {worst['ratio']:.2f}, "
        f"{worst['pending']:.2f} and {worst['p99_ms']:.2f}"
        for faces, worst in factors.items()
    )
    return [
        "## One pod",
        f"align_mask is a queue of {limits['queue_requests']} requests before {limits['instances']} "
        f"instances that take all that waits, up to {limits['batch_faces']} faces; the later steps are a "
        f"queue before {limits['later_instances']} instances of hog. All that is at work shares "
        f"{limits['cores']} cores evenly. The limits are read from the models' configurations.",
        f"Fitted: a batch of align_mask costs {costs['batch']:.2f} ms and {costs['face']:.3f} ms a face, "
        f"all else {costs['later_request']:.2f} ms a request and {costs['later_face']:.3f} ms a face, "
        f"{costs['handover']:.2f} ms go by until an idle instance has a request and {costs['other']:.1f} ms "
        f"without work; the work spreads by {costs['spread']:.1f} of its mean. The spread and the sum of "
        "the later work were fitted to the rows of 8 faces, its split to the others. Measured / simulated, "
        "where offered is what was asked for and the simulation was sent what came:",
        _table(
            [
                "faces a request",
                "offered faces/s",
                "answered faces/s",
                "queue / compute",
                "waiting",
                "p99 ms",
            ],
            rows,
        ),
        f"The factors by which the worst row is off, in the order of the columns: {off} (waiting requests "
        "compared after adding one, for a tenth of a request for none is no error).",
        "Measured and not fitted, for the real pod's limit there is hog's queue, which the simulated one has "
        "not: with one face a request the ratio stays small where requests are refused.",
        _table(
            [
                "faces a request",
                "offered faces/s",
                "answered",
                "queue / compute",
                "waiting",
                "refused a second",
            ],
            [
                [
                    *(row[name] for name in ("faces", "offered", "answered", "ratio", "pending")),
                    round(row["refused_counted"] / 2 / WINDOW_SECONDS),
                ]
                for row in result["measured"]["beyond"]
            ],
        ),
    ]


def _policy_section(result: Result) -> list[str]:
    sections = ["## The fleets"]
    for start in _starts(result):
        rows = [
            [row["name"], *_outcome(row), row["turns"]]
            for row in result["fleets"]
            if row["start_seconds"] == start and row["name"] != "grid"
        ]
        sections += [
            f"A new pod is ready after {start} s:",
            _table(
                ["fleet", *OUTCOMES, "turns"],
                rows,
            ),
        ]
    targets = result["autoscaler"]["targets"]
    return [
        *sections,
        f"Shipped is a ratio of {targets[RATIO]:g} and {targets[PENDING]:g} waiting requests. Times are "
        "those in the service, of what was accepted. Turns count how often a fleet went from growing to "
        "shrinking or back: with the day's four rises and falls a steady one has seven. A fleet that "
        "follows the load refuses where it doubles at midday, and most of all at 22:00, when the least "
        "number of pods gets the peak, and every request is tried again once a second until pods have come.",
    ]


def _grid_section(result: Result) -> list[str]:
    starts = _starts(result)
    grid = [row for row in result["fleets"] if row["name"] == "grid"]
    keys = list(dict.fromkeys((row["targets"][RATIO], row["targets"][PENDING]) for row in grid))
    by_key = {(row["targets"][RATIO], row["targets"][PENDING], row["start_seconds"]): row for row in grid}
    head = ["ratio", "waiting"]
    for start in starts:
        head += [f"{name}, {start} s" for name in ("pod-hours", "lost", "p99 ms", "s with refusals", "turns")]
    rows = []
    for key in keys:
        rows.append([f"{value:g}" for value in key])
        for start in starts:
            row = by_key[(*key, start)]
            rows[-1] += [
                f"{row['pod_hours']:.0f}",
                f"{row['lost_share']:.2%}",
                f"{row['p99_ms']:.0f}",
                row["refusing_seconds"],
                row["turns"],
            ]
    pod = result["pod"]
    knee = max(
        ratio for ratio, offered in zip(pod["ratio"], pod["offered"], strict=True) if offered <= pod["worth"]
    )
    return [
        "## Targets",
        "The shipped autoscaler with other targets, where a new pod is ready after "
        f"{' s and '.join(map(str, starts))} s:",
        _table(head, rows),
        "The autoscaler takes a metric to be in proportion to the load. The ratio is that up to about 0.2. "
        f"At a pod's worth it is {knee:.2f}, and a little more load takes it to 1 and more at once. A fleet "
        "with a target beyond that knee asks for far too many pods when it is at its limit, and then, with "
        "room to spare, for too few: it shrinks until it is at its limit again, and so on through the day. "
        "These are the turns. A target below the knee is held by a fleet that still answers in time.",
        "How many requests wait decides nothing here where the ratio's target is below the knee. It is "
        "there for requests of one face, whose ratio stays small at a pod's limit, as measured above.",
    ]


def _size_section(result: Result) -> list[str]:
    sizes = result["sizes"]
    tried = {(row["targets"][RATIO], row["targets"][PENDING], row["start_seconds"]) for row in sizes}
    same = [
        {"faces": result["faces"], "worth": result["pod"]["worth"]} | row
        for row in result["fleets"]
        if row["name"] == "grid"
        and (row["targets"][RATIO], row["targets"][PENDING], row["start_seconds"]) in tried
    ]
    rows = [
        [row["faces"], f"{row['worth']:.0f}", f"{row['targets'][RATIO]:g}", *_outcome(row), row["turns"]]
        for row in sorted([*sizes, *same], key=lambda row: (row["faces"], row["targets"][RATIO]))
    ]
    return [
        "## Requests of other sizes",
        f"The same day in pods' worth, with {sizes[0]['targets'][PENDING]:g} waiting requests as the second "
        f"target; a new pod is ready after {sizes[0]['start_seconds']} s. The more faces a request has, the "
        "lower is the ratio at which a pod's limit begins; the fewer, the earlier a pod is asked for. "
        "Requests of one face at more than a pod's worth are outside of what the model was fitted to: "
        "their p99 there is the model's alone (20,000 ms is the end of the histogram).",
        _table(["faces a request", "a pod's worth, faces/s", "ratio", *OUTCOMES, "turns"], rows),
    ]


def _growth_section(result: Result) -> list[str]:
    assumed = result["growth_assumptions"]
    rows = [
        [row["pods"], row["clients"]]
        + [f"{row['imbalance'][name]:.2f}" for name in CHOICES]
        + [row["connections_per_pod"]["subset"], row["connections_per_pod"]["all"]]
        + [
            _short(row["reconnects_per_second"][name][age])
            for name in ("subset", "all")
            for age in ("30", "300")
        ]
        + [
            f"{row['series']:,}",
            _short(row["samples_per_second"]),
            _short(row["bytes_per_day"] / GIGABYTE),
        ]
        for row in result["growth"]
    ]
    shares = "; ".join(
        f"with connections of {share['age']:g} s half of it after {share['half']:g} s and all after "
        f"{share['all']:g} s"
        for share in result["shares"]
    )
    return [
        "## From one pod to a thousand",
        f"Clients are {assumed['clients_per_pod']} a pod, each with one channel and the same load. "
        "Imbalance is the load of the busiest pod over the mean: where each client has one pod at random, "
        f"takes {assumed['subset']} pods in turn, or all of them. Connections and reconnects are those of "
        f"{assumed['subset']} pods in turn and of all, the latter for connections of 30 s and of 300 s. "
        f"Prometheus: {assumed['series_per_pod']} series a pod every {assumed['scrape_seconds']} s at "
        f"{assumed['bytes_per_sample']} bytes a sample.",
        _table(
            [
                "pods",
                "clients",
                "imbalance, one",
                "ten",
                "all",
                "connections a pod, ten",
                "all",
                "reconnects/s, ten, 30 s",
                "300 s",
                "all, 30 s",
                "300 s",
                "series",
                "samples/s",
                "GB a day",
            ],
            rows,
        ),
        f"A new pod carries its share once the clients have looked up the pods again: {shares}.",
    ]


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _outcome(row: Result) -> list[object]:
    return [
        f"{row['pod_hours']:.0f}",
        f"{row['refused_share']:.1%}",
        f"{row['waited_share']:.2%}",
        f"{row['lost_share']:.2%}",
        f"{row['p50_ms']:.0f}",
        f"{row['p99_ms']:.0f}",
        row["slow_seconds"],
        row["refusing_seconds"],
        row["highest"],
    ]


def _starts(result: Result) -> list[int]:
    return sorted({row["start_seconds"] for row in result["fleets"]})


def _table(head: list[str], rows: list[list[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _plot(result: Result, path: Path) -> None:
    figure = plt.figure(figsize=(14, 16), layout="constrained")
    day, growth = figure.subfigures(2, 1, height_ratios=(4.4, 1.2))
    _plot_day(day, result)
    _plot_growth(growth, result)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _plot_day(figure: SubFigure, result: Result) -> None:
    starts = _starts(result)
    panels = figure.subplots(4, len(starts), sharex=True, sharey="row")
    hours = [minute / 60 for minute in range(len(result["offered"]))]
    for column, start in enumerate(starts):
        answered, replicas, refused, p99 = panels[:, column]
        answered.set_title(f"a new pod is ready after {start} s")
        answered.plot(hours, result["offered"], color=LOAD_COLOUR, linewidth=2, label="offered")
        drawn = [row for row in result["fleets"] if "by_minute" in row and row["start_seconds"] == start]
        for row, colour in zip(drawn, COLOURS, strict=True):
            minutes = row["by_minute"]
            for axes, name, scale in (
                (answered, "answered", 1),
                (replicas, "replicas", 1),
                (refused, "refused_share", 100),
                (p99, "p99_ms", 1e-3),
            ):
                values = [scale * value for value in minutes[name]]
                axes.plot(
                    hours,
                    values,
                    color=colour,
                    linewidth=1,
                    label=row["name"],
                    zorder=2 + (row["name"] == "shipped"),
                )
        p99.axhline(1, color=LOAD_COLOUR, linewidth=0.8, linestyle=":")
        p99.set(yscale="log", xlabel="hour of the day", xticks=HOURS, xlim=(0, 24))
        p99.yaxis.set_major_formatter("{x:g}")
        for axes in panels[:, column]:
            axes.grid(alpha=0.3)
    for axes, label in zip(
        panels[:, 0],
        ("faces/s, answered", "pods wanted", "% of tries refused", "p99 of the accepted, s"),
        strict=True,
    ):
        axes.set_ylabel(label)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))


def _plot_growth(figure: SubFigure, result: Result) -> None:
    imbalance, reconnects = figure.subplots(1, 2)
    rows = result["growth"]
    pods = [row["pods"] for row in rows]
    for name, label in CHOICES.items():
        imbalance.plot(pods, [row["imbalance"][name] for row in rows], "o-", label=label)
    imbalance.set(
        title="load of the busiest pod", ylabel="over the mean", xlabel="pods", xscale="log", ylim=(0, None)
    )
    for name, style in (("all", "o-"), ("subset", "s--")):
        for age in ("30", "300"):
            values = [row["reconnects_per_second"][name][age] for row in rows]
            reconnects.plot(pods, values, style, label=f"{CHOICES[name]}, {age} s")
    reconnects.set(
        title="reconnects of the fleet", ylabel="a second", xlabel="pods", xscale="log", yscale="log"
    )
    for axes in (imbalance, reconnects):
        axes.set_xticks(pods, pods)
        axes.xaxis.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
