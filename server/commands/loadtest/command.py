"""`python -m server loadtest URL`: prepares the stage, runs the pattern, tells, and cleans up."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence

from server.commands.loadtest import options as given_options
from server.commands.loadtest import patterns, report
from server.commands.loadtest.by_http import HttpStage
from server.commands.loadtest.by_sql import SqlStage
from server.commands.loadtest.control import Control
from server.commands.loadtest.figures import Earlier, Figures
from server.commands.loadtest.measures import Gauge
from server.commands.loadtest.messages import Part, Plan
from server.commands.loadtest.options import Options
from server.commands.loadtest.processes import Generators
from server.commands.loadtest.run import Display, Run, RunContext
from server.commands.loadtest.targets import LongPollServer, Target
from server.commands.loadtest.workloads import Task, Workload
from server.errors import LoadTestError


def run(given: argparse.Namespace) -> int:
    """Run a load test as given on the command line; returns the exit code: 1 if a wake was lost or anything failed.

    Raises:
        LoadTestError: it can't be run.
    """
    options = given_options.read(given)
    earlier = Earlier.read(options.compare) if options.compare else None
    console = report.console()
    with report.LiveDisplay(console) as display:
        figures = measure(options, display)
    figures.command = ["python", "-m", "server", *sys.argv[1:]]
    report.show(console, figures, earlier)
    if options.json:
        figures.write(options.json)
    if options.report:
        report.write_page(options.report, figures, earlier)
    return 0 if figures.passed else 1


def measure(options: Options, display: Display) -> Figures:
    """Load this project's server; returns the figures.

    Raises:
        LoadTestError: it can't be done.
    """
    target = LongPollServer(
        options.host, options.port, wait_seconds=options.wait, as_pages=options.pages, holds=options.holds
    )
    server, control = Gauge(options.pids), Control(options.host, options.port)
    with contextlib.closing(control):
        if "longpoll_held_connections" not in control.metrics() and control.request("GET", "/healthz").status != 200:
            raise LoadTestError(f"{options.url} is not this project's server: it has no /healthz")
        return carry_out(options, target, _stage(options, control), server, control.metrics, display)


def carry_out(
    options: Options,
    target: Target,
    stage: Workload,
    server: Gauge,
    statistics: Callable[[], Mapping[str, float]],
    display: Display,
) -> Figures:
    """Load any kind of server; returns the figures. `statistics` gives the server's own figures, if it has some.

    Raises:
        LoadTestError: it can't be done.
    """
    with stage, Generators(_plan(options, target, stage.tasks)) as generators:
        return patterns.carry_out(Run(options, RunContext(stage, generators, server, statistics, display)))


def _plan(options: Options, target: Target, tasks: Sequence[Task]) -> list[Plan]:
    """Deal the clients out to the processes, and the tasks to the clients: each in turn."""
    sources = given_options.source_addresses(options.host, options.clients)
    parts = [Part(number, *_task_of(tasks, number), sources[number]) for number in range(options.clients)]
    interval = 0.0 if options.holds else options.interval
    return [Plan(target, parts[first :: options.processes], interval) for first in range(options.processes)]


def _task_of(tasks: Sequence[Task], number: int) -> tuple[str, int, str]:
    task = tasks[number % len(tasks)]
    return task.task_id, task.version, task.secret


def _stage(options: Options, control: Control) -> Workload:
    if options.dsn is not None:
        return SqlStage(
            options.dsn,
            tasks=options.tasks,
            clients=options.clients,
            polls_per_user=options.polls_per_user,
            secret=options.token,
        )
    return HttpStage(control, tasks=options.tasks, secret=options.token, account=options.account)
