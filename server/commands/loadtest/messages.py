"""What conductor and generator processes say to each other. A module of its own, for it is pickled on both sides."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from server.commands.loadtest.targets import Target

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
class Batch:
    """Everything that happened in one process since the last harvest.

    `longest_stop`: for so many seconds, since the start, it didn't look at its connections. A reply that came meanwhile
    seems later than it was.
    """

    records: array[float]
    pending: array[float]
    failures: Counter[str]
    connected_at: array[float]
    longest_stop: float

    def replies(self) -> list[Record]:
        """Return the replies, in the order of their arrival."""
        rows = _rows(self.records, len(Record._fields))
        return [Record(int(row[0]), int(row[1]), int(row[2]), int(row[3]), row[4], row[5]) for row in rows]

    def unanswered(self) -> list[Pending]:
        """Return the polls that have no answer yet."""
        return [Pending(int(row[0]), int(row[1]), row[2]) for row in _rows(self.pending, len(Pending._fields))]


def _rows(numbers: array[float], length: int) -> Iterator[tuple[float, ...]]:
    # Arrays, for they cost a few bytes each and are sent as they are; rows of them are needed once, after the run.
    return zip(*[iter(numbers)] * length, strict=True)
