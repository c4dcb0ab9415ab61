"""`make chaos` and `make soak`: the long versions of what docs/reliability.md promises, as a table.

Writes `results/chaos.json` and `results/chaos.md`, or `results/soak.json`, `.md`, `.png` and the samples that
it was drawn from; ends with 1 when a promise was not kept.
"""

import argparse
import dataclasses
import json
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from deploy.local import LocalServer, ServerError
from deploy.local.server import DEFAULT_REPOSITORY
from tests.reliability.crashes import CrashReport, one_of_two_killed, stop_under_load, stub_crash
from tests.reliability.fuzzing import fuzz
from tests.reliability.overload import FACES, overload
from tests.reliability.report import Row, plot_memory, write_table
from tests.reliability.soak import FLAT_MB, kind, leaking_repository, soak
from tests.support.machine import machine

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"

FUZZ_EXAMPLES = 12_000
"""Two requests each but for those that are damaged on their way: over 20,000."""

OVERLOAD_SECONDS = 30.0
ROUNDS = 3

BOUNDED_SECONDS = 2.5
"""For what overload lets in: both queues full of it are a second and a half of work."""

QUICK_SECONDS = 0.1
"""For a refusal."""

FULL_SPEED_SECONDS = 10.0
BACK_SECONDS = 30.0

CONTROL_SHARE = 0.1
"""Of the soak's time: how long the one that leaks on purpose has to be caught."""

LEAK_BYTES = 100_000
"""Of every dynamic batch, in that one."""

SAMPLES = 180


def main() -> int:
    """Run one of the two."""
    # As Ctrl-C: the servers go in order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    arguments = _arguments()
    try:
        rows = list(
            _chaos(arguments.examples, arguments.rounds)
            if arguments.what == "chaos"
            else _soak(arguments.minutes, arguments.results)
        )
    except ServerError as error:
        print(f"{arguments.what}: {error}", file=sys.stderr)
        return 1
    arguments.results.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine(), "rows": [dataclasses.asdict(row) for row in rows]}
    (arguments.results / f"{arguments.what}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(write_table(arguments.what, result["machine"], rows, arguments.results))
    return 0 if all(row.kept for row in rows) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("what", choices=["chaos", "soak"])
    parser.add_argument("--minutes", type=float, default=30.0, help="of the soak (default: %(default)g)")
    parser.add_argument(
        "--examples", type=int, default=FUZZ_EXAMPLES, help="of hostile requests (default: %(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help="of each crash and stop (default: %(default)s)"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where to write")
    return parser.parse_args()


def _chaos(examples: int, rounds: int) -> Iterator[Row]:
    # First, while this process is young: with what the hostile requests leave in it, its own pauses show.
    with LocalServer() as server:
        for row in _overloaded(server):
            yield _said(row)
    with LocalServer() as server:
        yield _said(_fuzzed(server, examples))
    for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP):
        crashes = [stub_crash(DEFAULT_REPOSITORY, number) for _ in range(rounds)]
        yield _said(_crashed(f"an align_mask stub under load gets {number.name}", crashes))
    kills = [one_of_two_killed(DEFAULT_REPOSITORY) for _ in range(rounds)]
    yield _said(_crashed("one of two servers under load gets SIGKILL and is started again", kills))
    for model, output in (("ensemble", "HOG"), ("align_mask", "MASKED_FACES")):
        yield _said(_stopped(model, output, rounds))


def _said(row: Row) -> Row:
    print(f"{row.promise}: {row.measured}", file=sys.stderr, flush=True)
    return row


def _fuzzed(server: LocalServer, examples: int) -> Row:
    promise = "hostile requests over gRPC and HTTP are refused with a reason; sound ones between are right"
    try:
        report = fuzz(server, examples, derandomize=False)
    except AssertionError as failure:
        return Row(promise, str(failure), kept=False)
    answers = ", ".join(f"{count} {status}" for status, count in sorted(report.answers.items()))
    measured = f"{report.hostile} hostile ({answers}), {report.sound} sound; {report.grown_mb:+.0f} MB"
    return Row(promise, measured, kept=report.grown_mb < FLAT_MB)


def _overloaded(server: LocalServer) -> Iterator[Row]:
    report = overload(server, OVERLOAD_SECONDS)
    asked = f"{report.rate:.0f} faces/s asked of a server that does {report.capacity:.0f}, {FACES} a request"
    yield Row(
        "overload, accepted: bounded",
        f"{asked}: {report.accepted_speed:.0f} faces/s answered, p50 {report.accepted_p50:.2f} s, "
        f"p99 {report.accepted_p99:.2f} s; {report.lost} of {report.sent} requests without an answer",
        kept=report.accepted_p99 < BOUNDED_SECONDS and not report.lost,
    )
    yield Row(
        "overload, refused: at once, as UNAVAILABLE",
        f"{report.statuses}, p50 {1e3 * report.refused_p50:.0f} ms, p99 {1e3 * report.refused_p99:.0f} ms",
        kept=report.refused_p99 < QUICK_SECONDS and set(report.statuses) == {"UNAVAILABLE"},
    )
    yield Row(
        "overload, afterwards: full speed again",
        f"after {report.recovery:.1f} s",
        kept=report.recovery < FULL_SPEED_SECONDS,
    )


def _crashed(what: str, reports: list[CrashReport]) -> Row:
    longest = max(report.seconds for report in reports)
    faces, wrong = (sum(getattr(report, name) for report in reports) for name in ("faces", "wrong"))
    return Row(
        f"{what}: back, and no face lost or mixed up",
        f"back after {longest:.1f} s at most in {len(reports)} rounds; {wrong} of {faces} faces wrong",
        kept=longest < BACK_SECONDS and not wrong,
    )


def _stopped(model: str, output: str, rounds: int) -> Row:
    reports = [stop_under_load(DEFAULT_REPOSITORY, model, output) for _ in range(rounds)]
    accepted, under_way, answered, later, silent = (
        sum(getattr(report, name) for report in reports)
        for name in ("accepted", "under_way", "answered", "later", "silent")
    )
    left = [name for report in reports for name in report.left]
    return Row(
        f"SIGTERM under load of {model}: what was accepted is answered, the rest refused, nothing left",
        f"{answered} of {accepted} requests answered, {under_way} of which were under way; {later} later "
        f"ones, {silent} without a word; gone after {max(report.seconds for report in reports):.1f} s at "
        f"most; left: {left or 'nothing'}",
        kept=answered == accepted and under_way > 0 and not silent and not left,
    )


def _soak(minutes: float, results: Path) -> Iterator[Row]:
    seconds = 60 * minutes
    with LocalServer() as server:
        report = soak(server, seconds, seconds / SAMPLES)
    worst = max(report.growth_mb, key=report.growth_mb.get)
    yield Row(
        f"{minutes:g} minutes of mixed load: flat after the warm-up",
        f"{report.faces} faces, {report.wrong} wrong, {len(report.failures)} callers failed; the most: "
        f"{kind(worst)} {report.growth_mb[worst]:+.1f} MB, "
        f"/dev/shm {report.growth_mb['/dev/shm']:+.1f} MB",
        kept=report.growth_mb[worst] < FLAT_MB and not report.wrong and not report.failures,
    )
    with tempfile.TemporaryDirectory() as folder:
        leaking = leaking_repository(DEFAULT_REPOSITORY, Path(folder), LEAK_BYTES)
        with LocalServer(leaking) as server:
            control = soak(server, CONTROL_SHARE * seconds, CONTROL_SHARE * seconds / SAMPLES)
    worst = max(control.growth_mb, key=control.growth_mb.get)
    yield Row(
        f"control: an align_mask that keeps {LEAK_BYTES} bytes of every batch is caught",
        f"{kind(worst)} {control.growth_mb[worst]:+.1f} MB in {CONTROL_SHARE * minutes:g} minutes",
        kept=control.growth_mb[worst] > FLAT_MB and worst.startswith("align_mask"),
    )
    reports = {"served": report, "leaking on purpose": control}
    results.mkdir(parents=True, exist_ok=True)
    samples = {name: dataclasses.asdict(one) for name, one in reports.items()}
    (results / "soak_samples.json").write_text(json.dumps(samples) + "\n")
    plot_memory(reports, results / "soak.png")


if __name__ == "__main__":
    sys.exit(main())
