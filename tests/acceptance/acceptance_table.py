"""The table of `make accept`, built from pytest's reports."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import pytest

RESULTS = {"failed": "FAILED", "error": "FAILED", "passed": "passed", "skipped": "not checked"}
"""Outcome of pytest -> result in the table, the most severe first."""


def table(stats: Mapping[str, Sequence[object]], rows: Iterable[str], row_property: str) -> list[str]:
    """Return the lines of the table.

    Parameters
    ----------
    stats : mapping of str to sequence
        Outcome -> reports, as pytest's terminal reporter keeps them.
    rows : iterable of str
        First column of each row, in order.
    row_property : str
        Name of the user property of a test's report that holds the first column of its row.
    """
    counts: dict[str, Counter[str]] = {row: Counter() for row in rows}
    reasons: dict[str, set[str]] = {row: set() for row in counts}
    for outcome, result in RESULTS.items():
        for report in stats.get(outcome, ()):
            row = dict(getattr(report, "user_properties", ())).get(row_property)
            if row in counts:
                counts[row][result] += 1
                reasons[row] |= _skip_reason(report)
    width = max(map(len, counts), default=0)
    return [f"{'checked':<{width}}  {'result':<11}  cases"] + [
        f"{row:<{width}}  {_result(counts[row]):<11}  {_cases(counts[row])}{_in_parentheses(reasons[row])}"
        for row in counts
    ]


def _result(counts: Counter[str]) -> str:
    """Return the most severe result of a row; a row without results was not reached before the run ended."""
    return next((result for result in RESULTS.values() if counts[result]), "not checked")


def _cases(counts: Counter[str]) -> str:
    """Return the number of tests with the row's result, for example "3 of 5", or "5" for all of 5."""
    count = counts[_result(counts)]
    return str(count) if count == counts.total() else f"{count} of {counts.total()}"


def _in_parentheses(reasons: set[str]) -> str:
    return f" ({'; '.join(sorted(reasons))})" if reasons else ""


def _skip_reason(report: pytest.TestReport) -> set[str]:
    """Return the reason of a skipped test, else an empty set; pytest stores (path, line, reason)."""
    return {report.longrepr[2].removeprefix("Skipped: ")} if report.skipped else set()
