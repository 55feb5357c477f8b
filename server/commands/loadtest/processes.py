"""The generator processes as the conductor sees them: started, told what to do, waited for, ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Final, Self

from server.commands.loadtest.messages import Batch, Counts, Order, Pending, Plan, Record
from server.errors import LoadTestError
from server.runtime import signals

_LEAVE_SECONDS: Final = 5.0
_HARVEST_SECONDS: Final = 60.0
_NOTHING: Final = Counts(0, 0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Gathered:
    """What all processes have harvested."""

    records: list[Record]
    pending: list[Pending]
    failures: Counter[str]
    connected_at: array[float]
    longest_stop: float


class Generators:
    """All generator processes. A context manager: leaving it ends them and closes every connection."""

    def __init__(self, plans: Sequence[Plan]) -> None:
        """Take note of one plan for each process."""
        self._plans = plans
        self._links: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._counts: list[Counts] = []

    def __enter__(self) -> Self:
        try:
            for plan in self._plans:
                self._start(plan)
            for link in self._links:
                _receive(link)  # the first word: it is ready, and its start is not part of what a run costs
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        for link in self._links:
            link.close()
        for process in self._processes:
            try:
                process.wait(_LEAVE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    @property
    def counts(self) -> Counts:
        """How things stand in all of them together, as last told."""
        return Counts(*(sum(column) for column in zip(*self._counts, strict=True)))

    def open(self, rate: float) -> None:
        """Connect every client, so many a second, and have each ask."""
        for link in self._links:
            _send(link, (Order.OPEN, rate / len(self._links)))

    def ask(self) -> None:
        """Have everybody who is idle ask once."""
        self._order(Order.ASK)

    def go_on(self) -> None:
        """Have everybody who is idle ask, and from now on at once after each answer."""
        self._order(Order.GO_ON)

    def pause(self) -> None:
        """From now on, nobody asks again after an answer."""
        self._order(Order.PAUSE)

    def listen(self, seconds: float) -> None:
        """Hear how things stand, for so many seconds or a little less."""
        for link in wait(self._links, seconds):
            assert isinstance(link, Connection)
            self._take(link, _receive(link))

    def listen_until(self, when: float) -> None:
        """Hear how things stand until this time of the monotonic clock."""
        while (left := when - time.monotonic()) > 0:
            self.listen(left)

    def until(self, condition: Callable[[Counts], bool], seconds: float) -> bool:
        """Wait for a state of affairs; returns whether it came within so many seconds."""
        end = time.monotonic() + seconds
        while not condition(self.counts):
            left = end - time.monotonic()
            if left <= 0:
                return False
            self.listen(min(left, 0.1))
        return True

    def harvest(self) -> Gathered:
        """Take everything that has happened since the last harvest."""
        self._order(Order.COLLECT)
        harvests = [self._await_harvest(link) for link in self._links]
        connected_at = array("d")
        for each in harvests:
            connected_at.extend(each.connected_at)
        return Gathered(
            records=[record for each in harvests for record in each.replies()],
            pending=[pending for each in harvests for pending in each.unanswered()],
            failures=sum((each.failures for each in harvests), Counter()),
            connected_at=connected_at,
            longest_stop=max(each.longest_stop for each in harvests),
        )

    @property
    def process_ids(self) -> list[int]:
        """The processes' numbers, to measure what they cost."""
        return [process.pid for process in self._processes]

    def _start(self, plan: Plan) -> None:
        # An interpreter that imports no more than it needs; a fork would copy our database connection and display.
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = [sys.executable, "-m", "server.commands.loadtest.generator", str(theirs.fileno())]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}
            process = subprocess.Popen(
                arguments, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                preexec_fn=_ignore_signals,  # noqa: PLW1509 - ignored from its first moment on, not from its first line
            )  # fmt: skip
        self._processes.append(process)
        self._links.append(Connection(ours.detach()))
        self._counts.append(_NOTHING)
        _send(self._links[-1], plan)

    def _order(self, order: Order) -> None:
        for link in self._links:
            _send(link, (order, None))

    def _await_harvest(self, link: Connection) -> Batch:
        end = time.monotonic() + _HARVEST_SECONDS
        while link.poll(max(end - time.monotonic(), 0)):
            message = _receive(link)
            if isinstance(message, Batch):
                return message
            self._take(link, message)
        raise LoadTestError("a generator process doesn't answer")

    def _take(self, link: Connection, message: object) -> None:
        assert isinstance(message, Counts)
        self._counts[self._links.index(link)] = message


def _ignore_signals() -> None:
    """Leave signals, which a terminal or a supervisor sends to the whole group, to the conductor, which hangs up."""
    for each in signals.STOPPING:
        signal.signal(each, signal.SIG_IGN)


def _send(link: Connection, message: object) -> None:
    with _noticing_death():
        link.send(message)


def _receive(link: Connection) -> object:
    with _noticing_death():
        message: object = link.recv()
        return message


@contextlib.contextmanager
def _noticing_death() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as error:
        raise LoadTestError("a generator process has ended by an error; its traceback stands above") from error
