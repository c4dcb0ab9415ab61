"""`make chaos` and `make soak`: long measurements of the promises of docs/reliability.md, as a table.

`chaos` writes chaos.json and chaos.md; `soak` writes soak.json, soak.md, soak.png and soak_samples.json. The
exit status is 1 if a promise is broken.
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
from tests.reliability.crashes import CrashReport, one_of_two_killed, stub_crash
from tests.reliability.fuzzing import fuzz
from tests.reliability.memory_growth import LEAK_MB
from tests.reliability.overload import FACES, overload
from tests.reliability.results_table import Row, plot_memory, write_table
from tests.reliability.soak import leaking_repository, process_name, soak
from tests.reliability.stopping import stop_under_load
from tests.support.machine import machine

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"

FUZZ_EXAMPLES = 12_000
"""Number of hostile requests. All but the truncated ones are sent twice: over 20,000 in all."""

OVERLOAD_SECONDS = 30.0
ROUNDS = 3

MAX_LATENCY_SECONDS = 2.5
"""Limit of the p99 latency of accepted requests. Full queues hold a second and a half of work."""

MAX_REJECTION_SECONDS = 0.1
"""Limit of the p99 latency of rejections."""

MAX_RECOVERY_SECONDS = 10.0
MAX_RESTART_SECONDS = 30.0

LEAK_RUN_FRACTION = 0.1
"""Duration of the run with the deliberate leak, as a fraction of the soak test's duration."""

LEAK_BYTES = 100_000
"""Deliberate leak in every dynamic batch, bytes."""

SAMPLES = 180
"""Memory samples of each run."""


def main() -> int:
    """Run `chaos` or `soak` and write its results."""
    # SIGTERM raises KeyboardInterrupt, so that the servers stop and remove their files.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    arguments = _arguments()
    try:
        rows = list(
            _chaos(arguments.examples, arguments.rounds)
            if arguments.command == "chaos"
            else _soak(arguments.minutes, arguments.results)
        )
    except ServerError as error:
        print(f"{arguments.command}: {error}", file=sys.stderr)
        return 1
    arguments.results.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine(), "rows": [dataclasses.asdict(row) for row in rows]}
    (arguments.results / f"{arguments.command}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(write_table(arguments.command, result["machine"], rows, arguments.results))
    return 0 if all(row.kept for row in rows) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("command", choices=["chaos", "soak"])
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="duration of the soak test (default: %(default)g)"
    )
    parser.add_argument(
        "--examples",
        type=int,
        default=FUZZ_EXAMPLES,
        help="number of hostile requests (default: %(default)s)",
    )
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help="repetitions of each crash and stop (default: %(default)s)"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="folder of the results")
    return parser.parse_args()


def _chaos(examples: int, rounds: int) -> Iterator[Row]:
    # Overload first: garbage collection of hypothesis' objects would add to the latencies.
    with LocalServer() as server:
        for row in _overload_rows(server):
            yield _print_row(row)
    with LocalServer() as server:
        yield _print_row(_fuzz_row(server, examples))
    for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP):
        crashes = [stub_crash(DEFAULT_REPOSITORY, number) for _ in range(rounds)]
        yield _print_row(_crash_row(f"{number.name} to an align_mask stub process under load", crashes))
    kills = [one_of_two_killed(DEFAULT_REPOSITORY) for _ in range(rounds)]
    yield _print_row(_crash_row("SIGKILL to one of two servers under load, then a restart", kills))
    for model, output in (("ensemble", "HOG"), ("align_mask", "MASKED_FACES")):
        yield _print_row(_stop_row(model, output, rounds))


def _print_row(row: Row) -> Row:
    print(f"{row.promise}: {row.measured}", file=sys.stderr, flush=True)
    return row


def _fuzz_row(server: LocalServer, examples: int) -> Row:
    promise = "hostile requests over gRPC and HTTP are rejected with a reason; valid ones between are right"
    try:
        report = fuzz(server, examples, derandomize=False)
    except AssertionError as failure:
        return Row(promise, str(failure), kept=False)
    statuses = ", ".join(f"{count} {status}" for status, count in sorted(report.statuses.items()))
    measured = f"{report.hostile} hostile ({statuses}), {report.valid} valid; {report.growth_mb:+.0f} MB"
    return Row(promise, measured, kept=report.growth_mb < LEAK_MB)


def _overload_rows(server: LocalServer) -> Iterator[Row]:
    report = overload(server, OVERLOAD_SECONDS)
    load = f"{report.rate:.0f} faces/s requested, capacity {report.capacity:.0f}, {FACES} faces per request"
    yield Row(
        "overload: bounded latency of accepted requests",
        f"{load}: {report.throughput:.0f} faces/s computed, p50 {report.accepted_p50:.2f} s, "
        f"p99 {report.accepted_p99:.2f} s; {report.lost} of {report.sent} requests without a response",
        kept=report.accepted_p99 < MAX_LATENCY_SECONDS and not report.lost,
    )
    yield Row(
        "overload: the other requests are rejected at once with UNAVAILABLE",
        f"{report.statuses}, p50 {1e3 * report.rejected_p50:.0f} ms, p99 {1e3 * report.rejected_p99:.0f} ms",
        kept=report.rejected_p99 < MAX_REJECTION_SECONDS and set(report.statuses) == {"UNAVAILABLE"},
    )
    yield Row(
        "overload: full throughput afterwards",
        f"after {report.recovery:.1f} s",
        kept=report.recovery < MAX_RECOVERY_SECONDS,
    )


def _crash_row(event: str, reports: list[CrashReport]) -> Row:
    longest = max(report.seconds for report in reports)
    faces, wrong = (sum(getattr(report, name) for report in reports) for name in ("faces", "wrong"))
    return Row(
        f"{event}: the server restarts, and every face gets its own outputs",
        f"ready after {longest:.1f} s at most in {len(reports)} rounds; {wrong} of {faces} faces wrong",
        kept=longest < MAX_RESTART_SECONDS and not wrong,
    )


def _stop_row(model: str, output: str, rounds: int) -> Row:
    reports = [stop_under_load(DEFAULT_REPOSITORY, model, output) for _ in range(rounds)]
    accepted, in_flight, succeeded, later, without_response = (
        sum(getattr(report, name) for report in reports)
        for name in ("accepted", "in_flight", "succeeded", "later", "without_response")
    )
    remains = [name for report in reports for name in report.remains]
    return Row(
        f"stop under load of {model}: accepted requests succeed, later ones are rejected, nothing remains",
        f"{succeeded} of {accepted} accepted requests succeeded, {in_flight} of which were in flight; "
        f"{later} later ones; {without_response} without a response; stopped after "
        f"{max(report.seconds for report in reports):.1f} s at most; remains: {remains or 'nothing'}",
        kept=succeeded == accepted and in_flight > 0 and not without_response and not remains,
    )


def _soak(minutes: float, results: Path) -> Iterator[Row]:
    seconds = 60 * minutes
    with LocalServer() as server:
        report = soak(server, seconds, seconds / SAMPLES)
    largest = max(report.growth_mb, key=report.growth_mb.get)
    yield Row(
        f"{minutes:g} minutes of mixed load: memory does not grow after the warm-up",
        f"{report.faces} faces, {report.wrong} wrong, {len(report.failures)} callers failed; largest growth: "
        f"{process_name(largest)} {report.growth_mb[largest]:+.1f} MB, "
        f"/dev/shm {report.growth_mb['/dev/shm']:+.1f} MB",
        kept=report.growth_mb[largest] < LEAK_MB and not report.wrong and not report.failures,
    )
    with tempfile.TemporaryDirectory() as folder:
        leaking = leaking_repository(DEFAULT_REPOSITORY, Path(folder), LEAK_BYTES)
        with LocalServer(leaking) as server:
            leak_report = soak(server, LEAK_RUN_FRACTION * seconds, LEAK_RUN_FRACTION * seconds / SAMPLES)
    largest = max(leak_report.growth_mb, key=leak_report.growth_mb.get)
    yield Row(
        f"a deliberate leak of {LEAK_BYTES} bytes per batch in align_mask is detected",
        f"{process_name(largest)} {leak_report.growth_mb[largest]:+.1f} MB "
        f"in {LEAK_RUN_FRACTION * minutes:g} minutes",
        kept=leak_report.growth_mb[largest] > LEAK_MB and largest.startswith("align_mask"),
    )
    reports = {"server": report, "server with a deliberate leak": leak_report}
    results.mkdir(parents=True, exist_ok=True)
    samples = {name: dataclasses.asdict(report) for name, report in reports.items()}
    (results / "soak_samples.json").write_text(json.dumps(samples) + "\n")
    plot_memory(reports, results / "soak.png")


if __name__ == "__main__":
    sys.exit(main())
