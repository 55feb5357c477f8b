"""Joins what was committed with what was answered: how long each wake took, and which never came."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from server.commands.loadtest.messages import FINAL, Pending, Record
from server.commands.loadtest.targets import Reason
from server.commands.loadtest.workloads import Commit

_WITHOUT_REASON = frozenset({Reason.IMMEDIATE, Reason.CHANGE})


@dataclass(slots=True)
class Judgement:
    """What became of the polls. Times are in seconds.

    wakes: for each poll that was held while its task changed, from the return of COMMIT to the reply's last byte; the
    server may be told before the COMMIT returns to us, so that very quick ones may be a little below zero.
    wakes_from_sent: the same from just before the change was sent. The truth lies between the two.
    staleness: for each change and client, from the return of COMMIT until a reply showed it, or a later one.
    lost: polls that were held, answered as timed out, or answered with an older state, although a change had been
    committed for longer than the grace; and those that were never answered.
    late: polls woken by a change, but only after longer than the grace.
    without_reason: polls that ended although nothing had changed and their time was not over.
    """

    wakes: list[float] = field(default_factory=list)
    wakes_from_sent: list[float] = field(default_factory=list)
    staleness: list[float] = field(default_factory=list)
    reasons: Counter[Reason] = field(default_factory=Counter)
    lost: int = 0
    late: int = 0
    without_reason: int = 0

    def add(self, other: Judgement) -> None:
        """Take in what became of other polls."""
        self.wakes += other.wakes
        self.wakes_from_sent += other.wakes_from_sent
        self.staleness += other.staleness
        self.reasons += other.reasons
        self.lost += other.lost
        self.late += other.late
        self.without_reason += other.without_reason


class Judge:
    """Knows every commit of the run."""

    def __init__(self, *, tasks: int, grace_seconds: float) -> None:
        """Client number `n` polls task number `n % tasks`. A wake may take as long as the grace."""
        self._tasks = tasks
        self._grace = grace_seconds
        self._commits: dict[int, list[Commit]] = defaultdict(list)
        self._versions: dict[int, list[int]] = defaultdict(list)
        self._returned: dict[int, list[float]] = defaultdict(list)

    def committed(self, commits: Iterable[Commit]) -> None:
        """Take note of changes; those of one task in their order."""
        for commit in commits:
            self._commits[commit.task].append(commit)
            self._versions[commit.task].append(commit.version)
            self._returned[commit.task].append(commit.returned)

    def judge(self, records: Sequence[Record]) -> Judgement:
        """Say what became of these polls. Every change that they may have seen must be known."""
        found = Judgement()
        for record in records:
            reason = Reason(record.reason & ~FINAL)
            found.reasons[reason] += 1
            self._judge_reason(record, reason, found)
            self._judge_wake(record, reason, found)
        return found

    def overdue(self, pending: Sequence[Pending], now: float) -> int:
        """Return how many of these polls still wait although a change was committed for longer than the grace."""
        firsts = ((poll, self._first_after(poll.client % self._tasks, poll.asked)) for poll in pending)
        return sum(
            commit is not None and now - max(commit.returned, poll.sent) > self._grace for poll, commit in firsts
        )

    def _judge_reason(self, record: Record, reason: Reason, found: Judgement) -> None:
        unchanged = record.version == record.asked and not record.reason & FINAL
        if (unchanged and reason in _WITHOUT_REASON) or reason in {Reason.RESET, Reason.UNKNOWN}:
            found.without_reason += 1

    def _judge_wake(self, record: Record, reason: Reason, found: Judgement) -> None:
        task = record.client % self._tasks
        newer = self._first_after(task, record.asked)
        if newer is None:
            return  # nothing that this client had not seen was ever committed
        if self._known_before(task, record.arrived - self._grace) > record.version:
            found.lost += 1
            return
        if record.version <= record.asked:
            return
        self._note_staleness(task, record, found)
        if reason is Reason.IMMEDIATE or newer.returned < record.sent:
            return  # it changed while the client was not asking
        took = record.arrived - newer.returned
        found.wakes.append(took)
        found.wakes_from_sent.append(record.arrived - max(newer.sent, record.sent))
        if took > self._grace and reason is Reason.TIMEOUT:
            found.lost += 1
        elif took > self._grace:
            found.late += 1

    def _note_staleness(self, task: int, record: Record, found: Judgement) -> None:
        versions = self._versions[task]
        first, last = bisect_right(versions, record.asked), bisect_right(versions, record.version)
        found.staleness += [max(record.arrived - returned, 0.0) for returned in self._returned[task][first:last]]

    def _first_after(self, task: int, version: int) -> Commit | None:
        place = bisect_right(self._versions[task], version)
        return self._commits[task][place] if place < len(self._commits[task]) else None

    def _known_before(self, task: int, when: float) -> int:
        place = bisect_left(self._returned[task], when)
        return self._versions[task][place - 1] if place else 0
