"""What people see: progress while it runs, then a table and a histogram, and a page with plots."""

from __future__ import annotations

import sys
import time
from html import escape
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from server.commands.loadtest import plots
from server.commands.loadtest.figures import KINDS, Earlier, Figures
from server.commands.loadtest.messages import Counts

_BAR_WIDTH: Final = 50
_MUST_BE_ZERO: Final = frozenset({"errors", "without_reason", "repaired", "lost"})
# A frame costs CPU that the server under test may be short of.
_SHOW_EVERY_SECONDS: Final = 0.25


class LiveDisplay:
    """A progress bar for each part of the run, on a terminal; elsewhere a line when a part begins."""

    def __init__(self, console: Console) -> None:
        """Write to this console."""
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description:24}"),
            BarColumn(),
            TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(),
            console=console,
            auto_refresh=False,
            disable=not console.is_terminal,
        )
        self._bar: TaskID | None = None
        self._name = ""
        self._shown_at = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._end_bar()
        self._progress.stop()

    def phase(self, name: str, total: float) -> None:
        """Begin a part of the run."""
        if self._bar is not None and self._name == name:
            return  # the same part goes on
        self._end_bar()
        self._name = name
        if not self._console.is_terminal:
            self._console.print(f"{name} …", highlight=False)
        self._bar = self._progress.add_task(name, total=total, said="")
        self._shown_at = 0.0

    def show(self, done: float, counts: Counts) -> None:
        """Tell how far it has come."""
        now = time.monotonic()
        if self._bar is None or now - self._shown_at < _SHOW_EVERY_SECONDS:
            return
        self._shown_at = now
        said = f"{counts.waiting:,} held, {counts.replies:,} replies"
        said += f", {counts.failures:,} failures" if counts.failures else ""
        self._progress.update(self._bar, completed=done, said=said, refresh=True)

    def _end_bar(self) -> None:
        if self._bar is not None:
            total = self._progress.tasks[self._bar].total if self._progress.tasks else None
            self._progress.update(self._bar, completed=total, refresh=True)
            self._bar = None


def console() -> Console:
    """Return where progress and the table go."""
    return Console(file=sys.stdout)


def show(console: Console, figures: Figures, earlier: Earlier | None) -> None:
    """Write table, histogram and remarks."""
    table = Table(title=f"{figures.pattern} · {figures.url}", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    if earlier is not None:
        table.add_column("to earlier", justify="right")
    for label, value, name in _rows(figures):
        wrong = name in _MUST_BE_ZERO and figures.values[name]
        cells = [label, f"[bold red]{value}[/]" if wrong else value]
        if earlier is not None:
            cells.append(_ratio(earlier, name, figures.values[name]))
        table.add_row(*cells)
    console.print(table)
    _show_histogram(console, figures)
    for line in _remarks(figures):
        console.print(line, highlight=False, markup=False)
    console.print("[green]passed[/]" if figures.passed else "[bold red]failed[/]")


def _rows(figures: Figures) -> list[tuple[str, str, str]]:
    return [
        (kind.label, f"{figures.values[name]:,.{kind.digits}f} {kind.unit}".rstrip(), name)
        for name, kind in KINDS.items()
        if name in figures.values
    ]


def _ratio(earlier: Earlier, name: str, value: float) -> str:
    ratio = earlier.ratio(name, value)
    return "" if ratio is None else f"{ratio:.2f}"


def _show_histogram(console: Console, figures: Figures) -> None:
    found = plots.buckets(figures.wakes_ms, per_decade=5)
    if not found:
        return
    highest = max(bucket.size for bucket in found)
    console.print("Wakes, milliseconds from commit to the reply's last byte", highlight=False)
    for bucket in found:
        bar = "█" * round(bucket.size / highest * _BAR_WIDTH) or ("▏" if bucket.size else "")
        console.print(f"{bucket.low:8.2f} … {bucket.high:<8.2f} {bar} {bucket.size:,}", highlight=False)


def _remarks(figures: Figures) -> list[str]:
    lines = list(figures.remarks)
    values = figures.values
    if values["held"] < values["clients"]:
        lines.append(f"Only {values['held']:,.0f} of {values['clients']:,.0f} polls were held at the same time.")
    if figures.failures:
        listed = ", ".join(f"{what} ({count:,})" for what, count in sorted(figures.failures.items()))
        lines.append(f"Errors: {listed}.")
    return lines


def write_page(path: Path, figures: Figures, earlier: Earlier | None) -> None:
    """Write a page that shows everything, plots included, and needs nothing else."""
    rows = "".join(
        f"<tr><td>{escape(label)}</td><td>{escape(value)}</td>"
        + (f"<td>{_ratio(earlier, name, figures.values[name])}</td>" if earlier else "")
        + "</tr>"
        for label, value, name in _rows(figures)
    )
    verdict = "passed" if figures.passed else "failed"
    remarks = "".join(f"<p>{escape(line)}</p>" for line in _remarks(figures))
    title = escape(f"{figures.pattern} · {figures.url}")
    head = "<th>figure</th><th>value</th>" + ("<th>to earlier</th>" if earlier else "")
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<h1>{title}: {verdict}</h1><p>{escape(figures.date)}, {escape(figures.machine)}</p>"
        f"<pre>{escape(' '.join(figures.command))}</pre>"
        f"<table><tr>{head}</tr>{rows}</table>{remarks}{''.join(_plots(figures))}</html>\n"
    )
    path.write_text(page, encoding="utf-8")


def _plots(figures: Figures) -> list[str]:
    drawn = []
    if figures.wakes_ms:
        drawn.append(plots.histogram("Wakes by how long they took", figures.wakes_ms, "milliseconds"))
        drawn.append(plots.percentiles("Wakes, from the fastest to the slowest", figures.wakes_ms, "milliseconds"))
    for name, values in figures.rounds.items():
        if len(values) > 1:
            drawn.append(plots.bars(f"{KINDS[name].label}, by round", values, KINDS[name].unit))
    return [f"<figure>{plot}</figure>" for plot in drawn]


_STYLE: Final = (
    "body{font:16px/1.5 sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem;color:#333}"
    "table{border-collapse:collapse}td,th{padding:.1rem 1rem .1rem 0;text-align:left}"
    "td+td{text-align:right;font-variant-numeric:tabular-nums}figure{margin:2rem 0}pre{white-space:pre-wrap}"
)
