"""The oracle: remembers every commit and every reply, and says whether a promise was broken between them."""

from __future__ import annotations

import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

TERMINAL = frozenset({"completed", "failed", "canceled"})


@dataclass(frozen=True, slots=True)
class Commit:
    """A change that Postgres has confirmed; `at` is when we knew."""

    task_id: str
    version: int
    status: str
    at: float


@dataclass(frozen=True, slots=True)
class Reply:
    """A 200 that a client has read; `asked` is the version that it named, `sent` when it did."""

    client: str
    task_id: str
    asked: int
    version: int
    status: str
    reason: str
    waited_ms: float
    sent: float
    at: float


class Oracle:
    """Remembers every commit and every reply, and knows what must hold between them. Times are of `perf_counter`."""

    def __init__(self, *, hold_seconds: float = 30.0) -> None:
        self.hold_seconds = hold_seconds
        self.commits: list[Commit] = []
        self.replies: list[Reply] = []
        self.followers: dict[str, set[str]] = defaultdict(set)
        self.broken: Counter[str] = Counter()
        self.refusals: Counter[int] = Counter()

    def committed(self, task_id: str, version: int, status: str) -> None:
        """Take note of a change; any thread may."""
        self.commits.append(Commit(task_id, version, status, time.perf_counter()))

    def check(self, states: Mapping[str, tuple[int, str]], *, late_seconds: float = 2.0) -> dict[str, float]:
        """Compare with what the database says now (version and status of each task), and return the figures.

        `late_seconds`: how much longer than its hold a poll may have lasted, for a machine that is busy.
        """
        by_client: dict[tuple[str, str], list[Reply]] = defaultdict(list)
        for reply in self.replies:
            by_client[reply.client, reply.task_id].append(reply)
        violations = [
            *self._stale_ends(by_client, states),
            *(text for replies in by_client.values() for text in _steps_back(replies)),
            *(
                f"{reply.client} was held for {reply.waited_ms:.0f} ms"
                for reply in self.replies
                if reply.waited_ms > 1000 * (self.hold_seconds + late_seconds)
            ),
        ]
        assert not violations, f"{len(violations)} violations, such as: {violations[:5]}"
        wakes = sorted(self.wakes_ms())
        return {
            "commits": len(self.commits),
            "replies": len(self.replies),
            "clients": len(by_client),
            "wakes": len(wakes),
            "median_wake_ms": round(wakes[len(wakes) // 2], 1) if wakes else 0.0,
            "p99_wake_ms": round(wakes[int(len(wakes) * 0.99)], 1) if wakes else 0.0,
            "worst_wake_ms": round(wakes[-1], 1) if wakes else 0.0,
            **{f"broken_{kind}": count for kind, count in sorted(self.broken.items())},
            **{f"refused_{status}": count for status, count in sorted(self.refusals.items())},
        }

    def wakes_ms(self) -> Iterable[float]:
        """How long after each client could have been told it was: from the commit, or from its own question if later."""
        at = {(commit.task_id, commit.version): commit.at for commit in self.commits}
        for reply in self.replies:
            first = at.get((reply.task_id, reply.asked + 1))
            if first is not None and reply.version > reply.asked:
                yield max(reply.at - max(first, reply.sent), 0.0) * 1000

    def _stale_ends(
        self, by_client: Mapping[tuple[str, str], list[Reply]], states: Mapping[str, tuple[int, str]]
    ) -> Iterable[str]:
        for task_id, clients in self.followers.items():
            version, status = states[task_id]
            for client in clients:
                replies = by_client.get((client, task_id))
                seen = (replies[-1].version, replies[-1].status) if replies else None
                if seen != (version, status) and (seen is not None or version > 1):
                    yield f"{client} has last seen {seen} of {task_id}, which is {(version, status)}"


def _steps_back(replies: Sequence[Reply]) -> Iterable[str]:
    for before, after in itertools.pairwise(replies):
        if after.version < before.version and after.reason != "reset":
            yield f"{after.client} saw {after.task_id} go from {before.version} to {after.version} ({after.reason})"
        if before.status in TERMINAL and after.status != before.status:
            yield f"{after.client} saw {after.task_id} go from {before.status} to {after.status}"
