"""What a run of the fault suite has measured stands at the end of its output, one line of JSON for each fault."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

FIGURE = '{"figure": '  # how the lines of `print_figure` begin


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show every figure: pytest shows what a test has printed only if it failed."""
    figures = [line for reports in terminalreporter.stats.values() for each in reports for line in _figures_of(each)]
    if figures:
        terminalreporter.section("figures of the fault suite")
        for line in figures:
            terminalreporter.line(line)


def _figures_of(report: object) -> Iterator[str]:
    if isinstance(report, pytest.TestReport) and report.when == "call":
        yield from (line for line in report.capstdout.splitlines() if line.startswith(FIGURE))
