"""A model of one server and its database: what is committed, notified, read, and what each client was told.

Reads begin and end, fail, cross with commits; the connection of the listener dies and comes back; triggers are forgotten;
a database is restored from a backup; clients come and go, ask for one task or for several, hold too many polls or ask
twice; the process stops. The assertions are the promises.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from server.errors import DatabaseUnavailable, StorageError
from server.waiting.answers import Question, Until
from server.waiting.batches import GATHER_SECONDS, BatchAnswer, BatchQuestion
from server.waiting.waiters import Reason
from tests.unit.waiting.conftest import (
    LINGER_SECONDS,
    SWEEP_SECONDS,
    Scene,
    State,
    TimedAnswer,
    answer_by_task,
    answer_parked,
    settle,
)

TASKS = ("a", "b")
HOLD_SECONDS = 30.0
DRAIN_SECONDS = 2.0
SEEN, UNNAMED, NEWEST = "what I saw", "none", "what another server told me"
OWNER, STRANGER = "alice", "bob"
# Fewer than there are clients.
MAX_HELD = 6
MAX_HELD_PER_USER = 5

Told: TypeAlias = TimedAnswer | BatchAnswer[State]


@dataclass(eq=False)
class Client:
    """Polls one task or several, one poll after the other, and remembers what it was told."""

    tasks: tuple[str, ...]
    user: str = OWNER
    page: str | None = None
    parks: bool = False
    number: int = 0  # of its latest poll, among those of its page
    seen: Counter[str] = field(default_factory=Counter)
    poll: asyncio.Task[Told] | None = None
    named: dict[str, int | None] = field(default_factory=dict)
    news_since: float | None = None

    @property
    def key(self) -> tuple[str, str, str] | None:
        """What a newer poll of the same page supersedes."""
        return (self.user, self.tasks[0] if len(self.tasks) == 1 else "", self.page) if self.page else None


def some_clients() -> list[Client]:
    """Return one of each kind: alone, twice on one page (each parked or not), asking for both tasks, and a stranger."""
    both = (False, True)
    alone = [Client((task_id,), parks=parks) for task_id in TASKS for parks in both]
    page = [Client(("a",), page="page", parks=parks) for parks in both]
    return [*alone, *page, Client(TASKS), Client(("a",), user=STRANGER)]


class World:
    """One server, its database, and everything that can happen between them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.scene = Scene(max_held=MAX_HELD, max_held_per_user=MAX_HELD_PER_USER)
        self.storage, self.board = self.scene.storage, self.scene.board
        self.storage.paused = True
        self.storage.on_barrier = self.deliver_all
        self.clients = some_clients()
        self.answered: deque[tuple[Client, asyncio.Task[Told]]] = deque()
        self.connected = False
        self.healthy = False
        self.under_way: deque[str] = deque()
        self.told = dict.fromkeys(TASKS, 0)
        self.restored = False
        self.drained_at: float | None = None
        self.asked: Counter[tuple[str, str, str] | None] = Counter()
        self.silent_at: dict[str, float] = {}
        self.excuses_for_repairs = 1  # the outage at the start
        self.reads_at_failure = -1
        for task_id in TASKS:
            self.storage.put(task_id)

    def start(self) -> None:
        """Begin, with a listener that is proven healthy."""
        self.scene.running = self.loop.create_task(self.board.run())
        self.connect()
        self.prove()

    # What happens in the database ------------------------------------------------------------------------------------

    def commit(self, task_id: str, *, silent: bool = False, status: str = "pending") -> None:
        row = self.storage.rows.get(task_id)
        if row is None or row.terminal:
            return
        self.storage.put(task_id, row.version + 1, status=status)
        self._notify(task_id, f"{task_id}:{row.version + 1}", silent=silent)

    def delete(self, task_id: str) -> None:
        if self.storage.rows.pop(task_id, None):
            self._notify(task_id, f"{task_id}:-", silent=False)

    def restore(self, back: int) -> None:
        """Put a backup in the place of the database, which ends all its connections."""
        self.disconnect()
        while self.storage.pending:
            self.fail_read()
        self.restored = True
        for task_id, row in self.storage.rows.items():
            self.storage.rows[task_id] = replace(row, version=max(row.version - back, 1), status="pending")

    def _notify(self, task_id: str, payload: str, *, silent: bool) -> None:
        if silent:
            self.silent_at[task_id] = self.loop.time()
            self.excuses_for_repairs += 1
        elif self.connected:
            self.under_way.append(payload)

    def deliver(self) -> None:
        if self.under_way:
            self.board.on_notification(self.under_way.popleft())

    def deliver_all(self) -> None:
        while self.under_way:
            self.deliver()

    def finish_read(self) -> None:
        if self.storage.pending:
            self.storage.pending[0].finish()

    def fail_read(self) -> None:
        if self.storage.pending:
            self.reads_at_failure = len(self.storage.reads)
            self.storage.pending[0].fail(DatabaseUnavailable("gone"))

    # What happens to the listener and to the process -------------------------------------------------------------------

    def disconnect(self) -> None:
        self.under_way.clear()
        self.connected = False
        self.excuses_for_repairs += 1
        if self.healthy:
            self.healthy = self.storage.barrier_holds = False
            self.board.on_listener_lost()

    def connect(self) -> None:
        """LISTEN; from now on notifications are under way, though nothing is proven yet."""
        self.connected = True

    def prove(self) -> None:
        """Our own notification came back, behind all that were under way."""
        if self.connected and not self.healthy:
            self.deliver_all()
            self.healthy = self.storage.barrier_holds = True
            self.silent_at.clear()
            self.board.on_listener_restored()

    def drain(self) -> None:
        if self.drained_at is None:
            self.drained_at = self.loop.time()
            self.scene.waiters.drain(DRAIN_SECONDS)

    # What clients do ---------------------------------------------------------------------------------------------------

    def ask(
        self, client: Client, naming: str = SEEN, seconds: float = HOLD_SECONDS, until: Until = Until.CHANGE
    ) -> None:
        if client.poll is not None:
            return
        self.asked[client.key] += 1
        client.number = self.asked[client.key]
        client.news_since = None
        client.named = {task_id: self._name(client, task_id, naming) for task_id in client.tasks}
        client.poll = self.loop.create_task(self._poll(client, seconds, until))
        client.poll.add_done_callback(lambda poll: self.answered.append((client, poll)))

    async def _poll(self, client: Client, seconds: float, until: Until) -> Told:
        if len(client.tasks) == 1:
            (task_id,) = client.tasks
            question = Question(task_id, client.user, client.named[task_id], seconds, until, client.page)
            return await (answer_parked if client.parks else answer_by_task)(self.scene.polling, question)
        versions = {task_id: version or 0 for task_id, version in client.named.items()}
        return await self.scene.batches.answer(BatchQuestion(versions, client.user, seconds, client.page))

    def _name(self, client: Client, task_id: str, naming: str) -> int | None:
        row = self.storage.rows.get(task_id)
        newest = row.version if row else client.seen[task_id]
        unnamed = None if len(client.tasks) == 1 else 0
        return {SEEN: client.seen[task_id], UNNAMED: unnamed, NEWEST: newest}[naming]

    @staticmethod
    def leave(client: Client) -> None:
        if client.poll is not None:
            client.poll.cancel()

    def collect(self) -> None:
        """Hear what the polls that have ended were told, in that order, and hold the server to its promises."""
        while self.answered:
            client, poll = self.answered.popleft()
            client.poll = None
            if poll.cancelled():
                continue
            error = poll.exception()
            if error is not None:
                assert isinstance(error, StorageError)
                assert self.reads_at_failure >= 0, "nothing has failed"
                continue
            self._hear(client, poll.result())

    def _hear(self, client: Client, answer: Told) -> None:
        assert answer.held_seconds <= HOLD_SECONDS + GATHER_SECONDS[1] + 1e-6, "late"
        if isinstance(answer, BatchAnswer):
            snapshots, missing = list(answer.changed), list(answer.not_found)
            assert {each.task_id for each in snapshots}.union(missing, answer.unchanged) == set(client.tasks)
        else:
            snapshots, missing = [answer.snapshot] if answer.snapshot else [], []
            missing = [] if answer.snapshot else list(client.tasks)
        self._judge(client, answer.reason)
        assert client.user == OWNER or not snapshots, "somebody else's task"
        assert client.user == STRANGER or not self.storage.rows.keys() & set(missing), "it is there"
        for snapshot in snapshots:
            self._learn(client, snapshot, answer.reason)

    def _judge(self, client: Client, reason: Reason) -> None:
        assert reason is not Reason.RESET or self.restored, "no database was restored"
        assert reason is not Reason.DRAIN or self.drained_at is not None, "the process doesn't stop"
        newer = client.key and self.asked[client.key] > client.number
        assert reason is not Reason.SUPERSEDED or newer, "nobody has asked since"

    def _learn(self, client: Client, snapshot: State, reason: Reason) -> None:
        task_id, named = snapshot.task_id, client.named[snapshot.task_id]
        if not self.restored:
            assert snapshot.version >= self.told[task_id], "older than an earlier reply"
            if reason is Reason.CHANGE and named is not None:
                assert snapshot.version > named, "nothing has changed"
        self.told[task_id] = snapshot.version
        if named is not None and snapshot.version < named:
            assert reason is Reason.RESET, "a step back, and no word of it"
        client.seen[task_id] = snapshot.version

    # What must be true when nothing can run any more -----------------------------------------------------------------------

    def check(self) -> None:
        self.collect()
        waiting = [client for client in self.clients if client.poll is not None]
        self._check_holds(waiting)
        if self.excuses_for_repairs == 1 and self.healthy:
            assert self.scene.repairs == 0
        may_not_know = (
            not self.healthy
            or self.under_way
            or self.storage.pending
            or self.reads_at_failure == len(self.storage.reads)  # a pause before the next attempt
        )
        if may_not_know:
            return
        now = self.loop.time()
        for task_id in TASKS:
            if now - self.silent_at.get(task_id, now) > SWEEP_SECONDS + 0.1:
                del self.silent_at[task_id]
        for client in waiting:
            if not self.silent_at.keys() & set(client.tasks):
                self._check_waiting(client)

    def _check_holds(self, waiting: list[Client]) -> None:
        waiters = self.scene.waiters
        held = list(waiters)
        assert len(held) <= len(waiting)
        assert len(waiters._deadlines) == len(held) == len(waiters)
        assert len(held) <= MAX_HELD
        assert all(len(of_user) <= MAX_HELD_PER_USER for of_user in waiters._by_user.values())
        keys = [hold.client for hold in held if hold.client]
        assert len(set(keys)) == len(keys) == len(waiters._by_client), "one page holds twice"
        if self.drained_at is not None and self.loop.time() > self.drained_at + DRAIN_SECONDS + GATHER_SECONDS[1]:
            assert not held, "held by a process that stops"

    def _check_waiting(self, client: Client) -> None:
        rows = [self.storage.rows.get(task_id) for task_id in client.tasks]
        for task_id, row in zip(client.tasks, rows, strict=True):
            assert self.board._tasks[task_id].snapshot == row, "what is known is old, and nothing will renew it"
        ended = all(row is None or row.terminal for row in rows)
        if len(client.tasks) == 1:
            assert not ended, "waits for a task that has ended"
            return
        if ended or any(row is None or row.version != client.named[row.task_id] for row in rows):
            client.news_since = client.news_since or self.loop.time()  # it gathers more
            assert self.loop.time() - client.news_since <= GATHER_SECONDS[1], "sits on its news"

    async def advance(self, seconds: float) -> None:
        """Let time pass; reads that begin meanwhile end at once, or no hold would ever see its deadline."""
        self.storage.paused = False
        while self.storage.pending:
            self.finish_read()
            await settle()
        await asyncio.sleep(seconds)
        await settle()
        self.storage.paused = True

    async def finale(self) -> None:
        """Everything heals: whoever waits is told the truth, every hold ends, and nothing is left in memory."""
        self.storage.paused = False
        self.connect()
        self.prove()
        self.deliver_all()
        await self.advance(SWEEP_SECONDS + 1.1)  # a pause after failures, or a sweep
        self.check()
        for client in self.clients:
            for task_id in client.tasks if client.poll else ():
                known = self.board._tasks.get(task_id)
                assert known
                assert known.snapshot == self.storage.rows.get(task_id)
        await self.advance(HOLD_SECONDS)
        self.check()
        assert all(client.poll is None for client in self.clients), "a poll outlived its hold"
        assert len(self.scene.waiters) == 0
        await self.advance(LINGER_SECONDS + SWEEP_SECONDS)
        assert len(self.board) == 0
        assert not self.board._idle
        await self.scene.stop()
