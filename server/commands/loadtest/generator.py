"""A generator process: many clients on one selector, told by the conductor what to do, keeping every reply in an array.

No event loop and no library: what a poll costs here is a system call or two and a few microseconds, for the tester
must not be what it measures. Times are `time.monotonic()`, one clock for all processes of a machine.
"""

from __future__ import annotations

import gc
import heapq
import itertools
import sys
import time
from array import array
from collections import Counter, deque
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from selectors import EVENT_READ, DefaultSelector, SelectorKey
from typing import Final

from server.commands.loadtest.connections import Client
from server.commands.loadtest.messages import FINAL, Batch, Counts, Order, Plan
from server.commands.loadtest.targets import Answer
from server.runtime.file_limit import raise_limit

# What follows a failure, lest a server that refuses is asked as fast as we can.
_FAILURE_PAUSE_SECONDS: Final = 0.5
_TELL_EVERY_SECONDS: Final = 0.1
# So many connects before the sockets are looked at again.
_BURST: Final = 50


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
        self._over = False
        self._longest_stop = 0.0

    def run(self) -> None:
        """Do as told until the link is closed."""
        self._selector.register(self._link, EVENT_READ)
        try:
            while not self._over:
                patience, began = self._patience(), time.monotonic()
                ready = self._selector.select(patience)
                if ready:
                    began, patience = time.monotonic(), 0.0
                self._turn(ready)
                self._longest_stop = max(self._longest_stop, time.monotonic() - began - patience)
        finally:
            for client in self._clients:
                client.close()
            self._selector.close()
            self._link.close()

    def _turn(self, ready: list[tuple[SelectorKey, int]]) -> None:
        for key, events in ready:
            if key.data is None:
                self._obey()
            else:
                key.data.ready(events)
        self._open_some()
        self._ask_who_is_due()
        self._tell()

    # What clients tell ---------------------------------------------------------------------------------------------

    def watch(self, client: Client, events: int) -> None:
        """Call `client.ready` at these events."""
        if client.fileno() in self._selector.get_map():
            self._selector.modify(client, events, client)
        else:
            self._selector.register(client, events, client)

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
        self._kept.records.extend((client.index, client.asked_version, client.version, reason, client.sent, arrived))
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
        try:
            order, value = self._link.recv()
        except (EOFError, OSError):
            self._over = True
            return
        if order == Order.OPEN:
            self._opening.rate, self._opening.began, self._opening.done = value, time.monotonic(), 0
        elif order == Order.COLLECT:
            self._say(self._harvest())
        else:
            self._going_on = order == Order.GO_ON
            if order != Order.PAUSE:
                idle, self._idle = self._idle, []
                for client in idle:
                    client.ask()
        self._tell_at = 0.0

    def _harvest(self) -> Batch:
        kept, self._kept = self._kept, _Kept()
        pending = array("d")
        for each in self._clients:
            if each.waiting:
                pending.extend((each.index, each.asked_version, each.sent))
        return Batch(kept.records, pending, kept.failures, kept.connected_at, self._longest_stop)

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
            self._say(counts)
            self._told = counts
        self._tell_at = now + _TELL_EVERY_SECONDS

    def _say(self, message: Counts | Batch) -> None:
        try:
            self._link.send(message)
        except OSError:
            self._over = True  # the conductor has hung up


def main(descriptor: int) -> None:
    """Run a generator process, whose link to the conductor is this descriptor.

    It was started with signals ignored: they are for the conductor, which hangs up when all is cleaned.
    """
    raise_limit()
    link = Connection(descriptor)
    try:
        plan = link.recv()
    except (EOFError, OSError):
        return  # the conductor was interrupted before it could say what to do
    gc.disable()  # nothing here makes cycles, and a collection would stop the clock
    Generator(plan, link).run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
