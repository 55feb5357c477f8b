"""A generator process: many clients on one selector, told by the conductor what to do, keeping every reply in an array.

No event loop and no library: what a poll costs here is a system call or two and a few microseconds, for the tester
must not be what it measures. Times are `time.monotonic()`, one clock for all processes of a machine.
"""

from __future__ import annotations

import gc
import heapq
import itertools
import resource
import signal
import time
from array import array
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from multiprocessing.connection import Connection
from selectors import EVENT_READ, DefaultSelector
from typing import Final, NamedTuple

from server.loadtest.connections import Client
from server.loadtest.targets import Answer, Target

# What follows a failure, lest a server that refuses is asked as fast as we can.
_FAILURE_PAUSE_SECONDS: Final = 0.5
_TELL_EVERY_SECONDS: Final = 0.1
# So many connects before the sockets are looked at again.
_BURST: Final = 50
DESCRIPTORS_BESIDE: Final = 64
FINAL: Final = 32


class Order(StrEnum):
    """What the conductor may say."""

    OPEN = "open"
    ASK = "ask"
    GO_ON = "go on"
    PAUSE = "pause"
    COLLECT = "collect"


class Part(NamedTuple):
    """One client: its number, the task's id and version, the bearer token's secret, the address to come from."""

    client: int
    task_id: str
    version: int
    secret: str
    source: str | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What one process is to do. `interval`: ask every so many seconds instead of after each answer; 0: hold."""

    target: Target
    parts: Sequence[Part]
    interval: float = 0.0


class Counts(NamedTuple):
    """How things stand in one process. `waiting`: polls that were sent and not answered; `idle`: will ask when told."""

    opened: int
    waiting: int
    idle: int
    final: int
    replies: int
    failures: int


class Record(NamedTuple):
    """One reply. `reason` carries `FINAL` if the task had ended."""

    client: int
    asked: int
    version: int
    reason: int
    sent: float
    arrived: float


class Pending(NamedTuple):
    """A poll without an answer."""

    client: int
    asked: int
    sent: float


@dataclass(frozen=True, slots=True)
class Harvest:
    """Everything that happened in one process since the last harvest, and what it cost so far in CPU seconds."""

    records: array[float]
    pending: list[Pending]
    failures: Counter[str]
    connected_at: array[float]
    cpu_seconds: float

    def replies(self) -> list[Record]:
        """Return the replies, in the order of their arrival."""
        numbers = iter(self.records)
        rows = zip(*[numbers] * len(Record._fields), strict=True)
        return [Record(int(row[0]), int(row[1]), int(row[2]), int(row[3]), row[4], row[5]) for row in rows]


@dataclass(slots=True)
class _Opening:
    clients: deque[Client]
    rate: float = 0.0
    began: float = 0.0
    done: int = 0


@dataclass(slots=True)
class _Kept:
    records: array[float] = field(default_factory=lambda: array("d"))
    failures: Counter[str] = field(default_factory=Counter)
    connected_at: array[float] = field(default_factory=lambda: array("d"))


class Generator:
    """Runs the clients of one process until the conductor hangs up."""

    def __init__(self, plan: Plan, link: Connection) -> None:
        """Make the clients. Nothing is sent before the conductor says so."""
        self.target = plan.target
        self._link = link
        self._interval = plan.interval
        self._selector = DefaultSelector()
        request = plan.target.request
        self._clients = [
            Client(self, part.client, part.version, request(part.task_id, part.secret, part.client), part.source)
            for part in plan.parts
        ]
        self._opening = _Opening(deque(self._clients))
        self._kept = _Kept()
        self._due: list[tuple[float, int, Client]] = []
        self._numbers = itertools.count()
        self._idle: list[Client] = []
        self._going_on = False
        self._opened = self._waiting = self._final = self._replies = self._failures = 0
        self._told: Counts | None = None
        self._tell_at = 0.0

    def run(self) -> None:
        """Do as told until the link is closed."""
        self._selector.register(self._link, EVENT_READ)
        try:
            while True:
                for key, events in self._selector.select(self._patience()):
                    if key.fileobj is self._link:
                        self._obey()
                    else:
                        key.fileobj.ready(events)  # type: ignore[union-attr]
                self._open_some()
                self._ask_who_is_due()
                self._tell()
        except (EOFError, OSError):
            return  # the conductor has hung up

    # What clients tell ---------------------------------------------------------------------------------------------

    def watch(self, client: Client, events: int) -> None:
        """Call `client.ready` at these events."""
        if client.fileno() in self._selector.get_map():
            self._selector.modify(client, events)
        else:
            self._selector.register(client, events)

    def unwatch(self, client: Client) -> None:
        """Call it no more."""
        self._selector.unregister(client)

    def connected(self) -> None:
        """Keep the time of a connection."""
        self._kept.connected_at.append(time.monotonic())

    def asked(self) -> None:
        """Count a poll that is under way."""
        self._waiting += 1

    def answered(self, client: Client, answer: Answer, arrived: float) -> None:
        """Keep the reply, and decide when the client asks next."""
        self._waiting -= 1
        self._replies += 1
        reason = answer.reason | FINAL if answer.final else answer.reason
        self._kept.records.extend((client.index, client.asked_version, answer.version, reason, client.sent, arrived))
        if answer.final:
            self._final += 1
        elif self._interval:
            self._ask_later(client, max(client.sent + self._interval, arrived))
        elif answer.pause_seconds:
            self._ask_later(client, arrived + answer.pause_seconds)
        elif self._going_on:
            client.ask()
        else:
            self._idle.append(client)

    def failed(self, client: Client, what: str) -> None:
        """Count a failure; the client tries again after a pause."""
        self._failures += 1
        self._kept.failures[what] += 1
        if client.waiting:
            self._waiting -= 1
        self._ask_later(client, time.monotonic() + _FAILURE_PAUSE_SECONDS)

    def _ask_later(self, client: Client, when: float) -> None:
        heapq.heappush(self._due, (when, next(self._numbers), client))

    # What the conductor says -----------------------------------------------------------------------------------------

    def _obey(self) -> None:
        order, value = self._link.recv()
        if order == Order.OPEN:
            self._opening.rate, self._opening.began, self._opening.done = value, time.monotonic(), 0
        elif order == Order.COLLECT:
            self._link.send(self._harvest())
        else:
            self._going_on = order == Order.GO_ON
            if order != Order.PAUSE:
                idle, self._idle = self._idle, []
                for client in idle:
                    client.ask()
        self._tell_at = 0.0

    def _harvest(self) -> Harvest:
        kept, self._kept = self._kept, _Kept()
        pending = [Pending(each.index, each.asked_version, each.sent) for each in self._clients if each.waiting]
        return Harvest(kept.records, pending, kept.failures, kept.connected_at, time.process_time())

    # What is due by itself --------------------------------------------------------------------------------------------

    def _patience(self) -> float:
        """Return the seconds for which nothing has to be done but to listen."""
        if self._opening.rate and self._opening.clients:
            return 0.001
        if self._due:
            return min(max(self._due[0][0] - time.monotonic(), 0.0), _TELL_EVERY_SECONDS)
        return _TELL_EVERY_SECONDS

    def _open_some(self) -> None:
        opening = self._opening
        if not opening.rate or not opening.clients:
            return
        due = int((time.monotonic() - opening.began) * opening.rate) + 1 - opening.done
        for _ in range(min(due, _BURST, len(opening.clients))):
            client = opening.clients.popleft()
            opening.done += 1
            self._opened += 1
            if self._interval:  # spread over the interval, as clients that came at random times are
                self._ask_later(client, time.monotonic())
            else:
                client.ask()

    def _ask_who_is_due(self) -> None:
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            heapq.heappop(self._due)[2].ask()

    def _tell(self) -> None:
        """Tell the conductor how things stand: now and then, and at once when the last poll was answered."""
        now = time.monotonic()
        emptied = not self._waiting and self._told is not None and self._told.waiting
        if now < self._tell_at and not emptied:
            return
        counts = Counts(self._opened, self._waiting, len(self._idle), self._final, self._replies, self._failures)
        if counts != self._told:
            self._link.send(counts)
            self._told = counts
        self._tell_at = now + _TELL_EVERY_SECONDS


def main(plan: Plan, link: Connection) -> None:
    """Run a generator process. Ctrl-C is for the conductor, which hangs up when all is cleaned."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise_descriptor_limit()
    gc.disable()  # nothing here makes cycles, and a collection would stop the clock
    Generator(plan, link).run()


def raise_descriptor_limit() -> int:
    """Let this process have as many descriptors as it may; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
