"""One run: everybody connects and is held, a pattern of changes, and what it all cost."""

from __future__ import annotations

import statistics
import time
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from server.commands.loadtest.analysis import Judge, Judgement
from server.commands.loadtest.figures import Figures, percentile
from server.commands.loadtest.measures import Gauge
from server.commands.loadtest.messages import Counts, Record
from server.commands.loadtest.options import Options
from server.commands.loadtest.processes import Generators
from server.commands.loadtest.targets import Reason
from server.commands.loadtest.workloads import Commit, Workload
from server.errors import LoadTestError

# A poll may be answered so much later than asked for before we call it silent.
_LATENESS_SECONDS: Final = 5.0
# After the last connect: a server that answers at once instead of holding has done so by then.
_SETTLE_SECONDS: Final = 0.5
_CHECK_SECONDS: Final = 1.0
_PAUSE_REACHES_SECONDS: Final = 0.05
_SAMPLE_SECONDS: Final = 0.02
_QUIET_SAMPLES: Final = 5
_QUIET_SHARE: Final = 0.1
_HINTS: Final = {
    Reason.DEGRADED: "the server holds no more polls for one user, or at all, and answers at once: start it with"
    " LONGPOLL_POLLING__MAX_HELD_PER_USER={clients} (and LONGPOLL_POLLING__MAX_HELD, if it is less than {clients})",
    Reason.DRAIN: "the server is stopping",
}
_LIMITS_HINT: Final = "the server refuses by its rate limits: start it with LONGPOLL_LIMITS__ENABLED=false"


class Display(Protocol):
    """Shows how far a run has come."""

    def phase(self, name: str, total: float) -> None:
        """Begin a part of the run."""

    def show(self, done: float, counts: Counts) -> None:
        """Tell how far it has come."""


class Costs(NamedTuple):
    """CPU seconds of the server and of the tester, and the time."""

    server: float
    tester: float
    at: float

    def since(self, earlier: Costs) -> Costs:
        """Return what was spent between the two."""
        return Costs(self.server - earlier.server, self.tester - earlier.tester, self.at - earlier.at)


class Burst(NamedTuple):
    """Polls that were all woken at once. Times are in seconds."""

    commits: list[Commit]
    records: list[Record]
    costs: Costs
    woken: int


@dataclass(frozen=True, slots=True)
class RunContext:
    """What a run is made with. `statistics` returns the server's own figures, or none."""

    stage: Workload
    generators: Generators
    server: Gauge
    statistics: Callable[[], Mapping[str, float]]
    display: Display


class Run:
    """A run in progress; patterns drive it and read what it gathers."""

    def __init__(self, options: Options, means: RunContext) -> None:
        """Begin; nothing is connected yet."""
        self.options = options
        self.stage = means.stage
        self.generators = means.generators
        self.server = means.server
        self.statistics = means.statistics
        self.figures = Figures(options.url, options.pattern if options.holds else "poll")
        self.judge = Judge(tasks=options.tasks, grace_seconds=options.grace)
        self.found = Judgement()
        self.changes = 0
        self.overdue = 0
        self.display = means.display
        self._tester = Gauge(self.generators.process_ids)
        self.failures: Counter[str] = Counter()
        self._connected_at = array("d")
        self._took = array("d")

    # Cost ----------------------------------------------------------------------------------------------------------

    def costs(self) -> Costs:
        """Return what was spent so far."""
        tester = self._tester.cpu_seconds() + time.process_time()
        return Costs(self.server.cpu_seconds(), tester, time.monotonic())

    def note(self, **values: float | None) -> None:
        """Add figures; None means that it couldn't be measured."""
        self.figures.values.update({name: value for name, value in values.items() if value is not None})

    def server_share(self, cpu_seconds: float, count: float) -> float | None:
        """Return microseconds of server CPU for each of so many, if the server's processes are known."""
        return cpu_seconds * 1e6 / count if self.server and count else None

    # Everybody comes -------------------------------------------------------------------------------------------------

    def connect_everybody(self, rate: float, done: Callable[[Counts], float], seconds: float) -> None:
        """Connect all clients, so many a second, and wait until all of them are `done`; the others are told of later.

        Raises:
            LoadTestError: the server refuses, or not one of them came so far.
        """
        self.generators.open(rate)
        end = time.monotonic() + self.options.clients / rate + seconds
        reached = False
        while not reached and time.monotonic() < end:
            reached = self.watch("connecting", _CHECK_SECONDS, self.options.clients, done)
            self.gather(must_hold=self.options.holds)
        self.generators.listen_until(time.monotonic() + _SETTLE_SECONDS)
        self.gather(must_hold=self.options.holds)
        if not done(self.generators.counts):
            raise LoadTestError(f"not one poll came through: {_listed(self.failures) or 'nobody answers'}")

    def hold_everybody(self) -> None:
        """Connect all clients and see them held; measures what that takes.

        Raises:
            LoadTestError: the server doesn't hold them.
        """
        options, before = self.options, self.server.kilobytes()
        self.generators.go_on()
        patience = options.wait + _LATENESS_SECONDS
        self.connect_everybody(options.connect_rate, lambda counts: counts.waiting, patience)
        idle = self._idle()
        held, kilobytes = self.generators.counts.waiting, self.server.kilobytes()
        self.note(
            clients=options.clients,
            tasks=options.tasks,
            held=held,
            connects_per_second=_rate(self._connected_at),
            kilobytes_per_held=(kilobytes - before) / held if self.server and held else None,
            idle_cpu_percent=100 * idle.server / idle.at if self.server and idle.at else None,
        )

    def _idle(self) -> Costs:
        before = self.costs()
        self.watch("holding", self.options.idle, None)
        return self.costs().since(before)

    def watch(
        self,
        name: str,
        seconds: float,
        total: float | None,
        done: Callable[[Counts], float] | None = None,
    ) -> bool:
        """Wait until so many are done, or (no total) for the time; shows it. Returns whether it came to that."""
        began, goal = time.monotonic(), seconds if total is None else total
        self.display.phase(name, goal)
        while (left := began + seconds - time.monotonic()) > 0:
            self.generators.listen(min(left, 0.1))
            counts = self.generators.counts
            progress = time.monotonic() - began if done is None else done(counts)
            self.display.show(progress, counts)
            if done is not None and progress >= goal:
                return True
        return done is None

    # What was heard ----------------------------------------------------------------------------------------------------

    def gather(self, *, must_hold: bool = False) -> list[Record]:
        """Take what has happened, and judge it; returns the replies.

        Raises:
            LoadTestError: the server refuses to do what is to be measured.
        """
        gathered = self.generators.harvest()
        found = self.judge.judge(gathered.records)
        self.found.add(found)
        self.overdue = self.judge.overdue(gathered.pending, time.monotonic())
        self.failures += gathered.failures
        self._connected_at.extend(gathered.connected_at)
        self.note(tester_stop_ms=gathered.longest_stop * 1000)
        if not self.options.holds:
            self._took.extend(record.arrived - record.sent for record in gathered.records)
        if self.failures["HTTP 429"]:
            raise LoadTestError(_LIMITS_HINT)
        for reason, hint in _HINTS.items():
            if must_hold and found.reasons[reason]:
                raise LoadTestError(hint.format(clients=self.options.clients))
        return gathered.records

    def committed(self, commits: Sequence[Commit]) -> None:
        """Take note of changes."""
        self.changes += len(commits)
        self.judge.committed(commits)

    def let_arrive(self, seconds: float) -> None:
        """Give the last wakes so much time; whoever is overdue then has until its hold must have ended."""
        self.generators.listen_until(time.monotonic() + seconds)
        self.gather()
        end = time.monotonic() + self.options.wait + _LATENESS_SECONDS
        while self.overdue and time.monotonic() < end:
            self.watch("waiting for the overdue", _CHECK_SECONDS, None)
            self.gather()

    # All at once ---------------------------------------------------------------------------------------------------------

    def burst(self, change: Callable[[], list[Commit]], name: str) -> Burst:
        """Change what everybody waits for, and wait for all replies; nobody asks again."""
        everybody = self.generators.counts.waiting
        self.generators.pause()
        self.generators.listen_until(time.monotonic() + _PAUSE_REACHES_SECONDS)
        self.gather()
        before = self.costs()
        commits = change()
        self.committed(commits)
        patience = self.options.wait + _LATENESS_SECONDS
        self.watch(name, patience, everybody, lambda counts: everybody - counts.waiting)
        # What the server does behind its replies, such as writing its log, is part of what they cost.
        costs = (self._until_quiet() if self.server else self.costs()).since(before)
        records = self.gather()
        woken = sum(record.version > record.asked for record in records)
        return Burst(commits, records, costs, woken)

    def ask_again(self) -> None:
        """Have all who were answered ask again, at once; measures how fast the server takes them in."""
        asking, before = self.generators.counts.idle, self.costs()
        self.generators.go_on()
        self.watch("asking again", _LATENESS_SECONDS, self.options.clients, lambda counts: counts.waiting)
        if not self.server or not asking:
            self.generators.listen_until(time.monotonic() + _SETTLE_SECONDS)
            return
        after = self._until_quiet().since(before)
        self._keep("repolls_per_second", asking / after.at)
        self._keep("cpu_us_per_repoll", after.server * 1e6 / asking)

    def _until_quiet(self) -> Costs:
        """Wait until the server has nothing to do; returns what was spent until its last work."""
        last_busy = earlier = self.costs()
        quiet, end = 0, time.monotonic() + _LATENESS_SECONDS
        while quiet < _QUIET_SAMPLES and time.monotonic() < end:
            self.generators.listen_until(time.monotonic() + _SAMPLE_SECONDS)
            now = self.costs()
            spent = now.since(earlier)
            quiet = quiet + 1 if spent.server < _QUIET_SHARE * spent.at else 0
            if not quiet:
                last_busy = now
            earlier = now
        return last_busy

    # Rounds ----------------------------------------------------------------------------------------------------------

    def keep_burst(self, burst: Burst) -> None:
        """Keep the figures of one of several rounds; the median of all becomes the figure."""
        if not burst.woken:
            return
        committed = {commit.task: commit.returned for commit in burst.commits}
        delays = [
            record.arrived - committed[record.client % self.options.tasks]
            for record in burst.records
            if record.version > record.asked and record.client % self.options.tasks in committed
        ]
        last = max(record.arrived for record in burst.records)
        self._keep("first_ms", min(delays) * 1000)
        self._keep("median_ms", percentile(delays, 50) * 1000)
        self._keep("last_ms", max(delays) * 1000)
        self._keep("wakes_per_second", burst.woken / max(last - min(committed.values()), 1e-6))
        if self.server:
            self._keep("cpu_us_per_wake", burst.costs.server * 1e6 / burst.woken)

    def _keep(self, name: str, value: float) -> None:
        self.rounds.setdefault(name, []).append(value)
        self.note(**{name: statistics.median(self.rounds[name])})

    @property
    def rounds(self) -> dict[str, list[float]]:
        """What each round has measured."""
        return self.figures.rounds

    # The end ---------------------------------------------------------------------------------------------------------

    def finish(self, spent: Costs) -> Figures:
        """Judge what is left, and return all figures."""
        self.gather()
        found, figures = self.found, self.figures
        figures.wakes_ms = [seconds * 1000 for seconds in found.wakes]
        figures.failures = dict(self.failures)
        figures.reasons = {reason.name.lower(): count for reason, count in found.reasons.items()}
        if found.wakes and self.options.holds:
            sent = percentile(found.wakes_from_sent, 50) * 1000
            self.note(wakes=len(found.wakes), wake_sent_p50_ms=sent, wake_max_ms=max(figures.wakes_ms))
            for share in (50, 90, 99):
                self.note(**{f"wake_p{share}_ms": percentile(figures.wakes_ms, share)})
        if self._took:
            self.note(reply_p50_ms=percentile(self._took, 50) * 1000, reply_p99_ms=percentile(self._took, 99) * 1000)
        if found.staleness:
            self.note(staleness_mean_ms=statistics.fmean(found.staleness) * 1000)
        self.note(
            changes=self.changes,
            server_cpu_seconds=spent.server if self.server else None,
            tester_cpu_seconds=spent.tester,
            errors=sum(self.failures.values()),
            without_reason=found.without_reason if self.options.holds else 0,
            late=found.late,
            foreign=self.stage.foreign_changes(),
            lost=found.lost + self.overdue,
        )
        return figures


def _rate(times: array[float]) -> float | None:
    span = max(times) - min(times) if times else 0.0
    return (len(times) - 1) / span if span else None


def _listed(failures: Mapping[str, int]) -> str:
    return ", ".join(f"{what} ({count:,})" for what, count in sorted(failures.items()))
