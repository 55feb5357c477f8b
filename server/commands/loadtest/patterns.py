"""How tasks are changed while they are polled."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping

from server.commands.loadtest.figures import Figures
from server.commands.loadtest.run import Costs, Run

_STATEMENTS = "longpoll_database_statements"
_REPAIRS = "longpoll_missed_notify_repairs_total"
_HELD_BEFORE = "longpoll_poll_hold_seconds_count"
_USED_MEMORY = "The server has held polls before, whose memory is used again: start it anew to measure memory."


def carry_out(run: Run) -> Figures:
    """Do all of a run; returns its figures.

    Raises:
        LoadTestError: it can't be done.
    """
    said, before = run.statistics(), run.costs()
    if run.options.holds:
        run.hold_everybody()
        _PATTERNS[run.options.pattern](run)
    else:
        _poll(run)
    figures = run.finish(run.costs().since(before))
    run.note(repaired=_growth(said, run.statistics(), _REPAIRS))
    if said.get(_HELD_BEFORE) and "kilobytes_per_held" in figures.values:
        figures.remarks.append(_USED_MEMORY)
    _remark(figures, grace_ms=run.options.grace * 1000, processes=len(run.options.pids))
    return figures


def _one(run: Run) -> None:
    _change_at_a_rate(run, "changing one at a time")
    run.let_arrive(run.options.grace)


def _storm(run: Run) -> None:
    options, stage = run.options, run.stage
    for number in range(1, options.rounds + 1):
        ending = number == options.rounds
        burst = run.burst(
            lambda ending=ending: stage.change_all(singly=options.single, ending=ending),  # type: ignore[misc]
            f"storm {number} of {options.rounds}",
        )
        run.keep_burst(burst)
        if ending or not stage.left:
            return
        run.ask_again()


def _broadcast(run: Run) -> None:
    for number in range(1, run.options.rounds + 1):
        burst = run.burst(
            lambda: [commit for commit in [run.stage.change(0)] if commit is not None],
            f"broadcast {number} of {run.options.rounds}",
        )
        run.keep_burst(burst)
        if not run.stage.left:
            return
        run.ask_again()


def _steady(run: Run) -> None:
    said, before, replies = run.statistics(), run.costs(), run.generators.counts.replies
    _change_at_a_rate(run, "changing and asking again")
    _note_traffic(run, said, before, replies)
    run.let_arrive(run.options.grace)


def _poll(run: Run) -> None:
    """Do as the guide does: ask again and again, at once answered each time."""
    options = run.options
    rate = min(options.connect_rate, options.clients / options.interval)  # spread over the interval
    run.connect_everybody(rate, lambda counts: min(counts.opened, counts.replies), 2 * options.interval + 5)
    counts = run.generators.counts
    run.note(clients=options.clients, tasks=options.tasks, held=min(counts.opened, counts.replies, options.clients))
    said, before, replies = run.statistics(), run.costs(), run.generators.counts.replies
    _change_at_a_rate(run, "polling")
    _note_traffic(run, said, before, replies)
    run.let_arrive(options.grace + options.interval)


_PATTERNS: Mapping[str, Callable[[Run], None]] = {
    "one": _one,
    "storm": _storm,
    "broadcast": _broadcast,
    "steady": _steady,
}


def _change_at_a_rate(run: Run, name: str) -> None:
    """Change tasks chosen at random for the duration."""
    options = run.options
    began = due = time.monotonic()
    run.display.phase(name, options.duration)
    done = 0
    while run.stage.left and (now := time.monotonic()) - began < options.duration:
        if now < due:
            run.generators.listen(min(due - now, 0.1))
            run.display.show(now - began, run.generators.counts)
            continue
        due += 1 / options.rate
        commit = run.stage.change(random.randrange(options.tasks))
        if commit is not None:
            run.committed([commit])
            done += 1
    run.note(changes_per_second=done / (time.monotonic() - began))


def _note_traffic(run: Run, said: Mapping[str, float], before: Costs, replies: int) -> None:
    spent, count = run.costs().since(before), run.generators.counts.replies - replies
    run.note(
        requests=count,
        replies_per_second=count / spent.at,
        statements=_growth(said, run.statistics(), _STATEMENTS),
        cpu_us_per_reply=run.server_share(spent.server, count),
        cpu_us_per_client_second=run.server_share(spent.server, run.options.clients * spent.at),
    )


def _growth(before: Mapping[str, float], after: Mapping[str, float], name: str) -> float | None:
    return after[name] - before[name] if name in before and name in after else None


def _remark(figures: Figures, *, grace_ms: float, processes: int) -> None:
    """Say what explains the figures, or makes them worth less."""
    values = figures.values
    server, tester = values.get("server_cpu_seconds"), values["tester_cpu_seconds"]
    if server is None:
        figures.remarks.append("Without --pid neither memory nor CPU of the server can be measured.")
    elif tester > server:
        figures.remarks.append(f"This tester took more CPU ({tester:.1f} s) than the server ({server:.1f} s).")
    if values["tester_stop_ms"] > grace_ms / 2:
        figures.remarks.append(
            f"This tester itself stood still for {values['tester_stop_ms']:.0f} ms: late and lost wakes may be its own."
        )
    if values["lost"] and values["late"]:
        figures.remarks.append(
            "Other wakes were late: the server may be starved rather than forgetful. A longer --grace tells the two apart."
        )
    if values["foreign"]:
        figures.remarks.append(
            "Somebody else changes these tasks; if it is a worker, start the server with LONGPOLL_GENERATION__WORKERS=0."
        )
    if processes > 1 and "repaired" in values:
        figures.remarks.append("Statements and repairs are those of one of the server's processes: each has its own.")
    if values.get("repaired"):
        figures.remarks.append("The server says that notifications were missed, and that its sweep repaired it.")
