"""Page of `make bench-au`, from its JSON alone."""

from pathlib import Path

from benchmarks.speed.page import Result, served_table, table, with_results


def write_page(result: Result, folder: Path) -> None:
    """Write `action_units.md` into the folder from the content of `action_units.json`."""
    (folder / "action_units.md").write_text(_page(result))


def _page(result: Result) -> str:
    machine = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    at = result["outputs"][0]
    return (
        "\n\n".join(
            [
                "# Speed of action units compared with py-feat",
                "Written by `make bench-au`. [Action units](../../docs/action_units.md) describes AU.",
                f"**Machine:** {machine}; load generator: {result['load']}.",
                f"**Checkpoint:** {result['checkpoint']} (`benchmarks/speed/au_checkpoints.py`).",
                f"**Method:** {result['rounds']} rounds in process, {result['served_rounds']} through the "
                "server, in alternation with py-feat, as for [HOG](bench.md). **py-feat** is its "
                "`extract_hog_features_batched` and its `detect_au`, with xgboost and scikit-learn.",
                "## Goals",
                table(["measurement", "goal", "measured", "result"], with_results(_goals(result))),
                "## In process, one thread, ms per face",
                table(
                    [
                        "faces",
                        "service",
                        "of it classifiers",
                        "py-feat",
                        "of it classifiers",
                        "py-feat / service",
                        "classifiers alone",
                    ],
                    [
                        [row["faces"]]
                        + [
                            f"{row[name]:.2f}"
                            for name in (
                                "service_ms",
                                "service_classify_ms",
                                "pyfeat_ms",
                                "pyfeat_classify_ms",
                            )
                        ]
                        + [f"{row[name]:.1f}" for name in ("ratio", "classify_ratio")]
                        for row in result["in_process"]
                    ],
                ),
                "## Served: AU alone",
                served_table(result["served"]),
                "The py-feat column measures 50 faces per call in process, two threads.",
                "## Served: one face per request, p50 in ms",
                table(
                    ["service, FP32", "service, UINT8", "py-feat, one thread", "py-feat, two threads"],
                    [
                        [
                            f"{result['one_face'][f'{name}_ms']:.1f}"
                            for name in ("fp32", "uint8", "pyfeat_1", "pyfeat_2")
                        ]
                    ],
                ),
                f"## Served: cost of the outputs ({at['input']}, {at['batch']} faces per request, "
                f"{at['concurrency']} in flight)",
                table(
                    ["outputs", "faces/s", "time relative to AU alone"],
                    [
                        [row["outputs"], f"{row['faces_per_second']:.0f}", f"{row['time_over_au']:.2f}"]
                        for row in result["outputs"]
                    ],
                ),
            ]
        )
        + "\n"
    )


def _goals(result: Result) -> list[tuple[str, str, str, bool]]:
    in_process = {row["faces"]: row["ratio"] for row in result["in_process"]}
    fastest = max(result["served"], key=lambda row: row["faces_per_second"])
    at = f"{fastest['input']}, {fastest['batch']} faces per request, {fastest['concurrency']} in flight"
    return [
        *(
            (
                f"crops to AU in process, {count} face{'s' * (count > 1)}, against py-feat",
                f"≥ {goal}×",
                f"{in_process[count]:.1f}×",
                in_process[count] >= goal,
            )
            for count, goal in ((1, 10), (32, 7))
        ),
        (
            "served on two cores, AU alone",
            "≥ 1200 faces/s",
            f"{fastest['faces_per_second']:.0f} faces/s ({at})",
            fastest["faces_per_second"] >= 1200,
        ),
        (
            "the same, against py-feat in process with two threads",
            "≥ 6×",
            f"{fastest['ratio']:.1f}×",
            fastest["ratio"] >= 6,
        ),
    ]
