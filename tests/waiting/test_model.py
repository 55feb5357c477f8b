"""Board and polls against a model: whatever happens in whatever order, nobody waits for what could be known.

The model knows what is committed, which notifications are under way, and what each client was told. Reads begin and
end, fail, cross with commits; the connection of the listener dies and comes back; triggers are forgotten; clients come
and go. The invariants are the promises.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import hypothesis
import pytest
from hypothesis import strategies
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.errors import DatabaseUnavailable, StorageError
from server.waiting.polling import Answer, Question, Until
from server.waiting.waiters import Reason
from tests.waiting.conftest import LINGER_SECONDS, SWEEP_SECONDS, ClockworkLoop, Scene, State, settle

TASKS = ("a", "b")
HOLD_SECONDS = 30.0
SEEN, UNNAMED, NEWEST = "what I saw", "none", "what another server told me"


@dataclass
class Client:
    """Polls one task, one poll after the other, and remembers what it was told. Some are held without a task."""

    task_id: str
    parks: bool = False
    version: int = 0
    poll: asyncio.Task[Answer[State]] | None = None
    named: int | None = None


class World:
    """One server, its database, and everything that can happen between them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.scene = Scene()
        self.storage, self.board = self.scene.storage, self.scene.board
        self.storage.paused = True
        self.storage.on_barrier = self.deliver_all
        self.clients: list[Client] = []
        self.answered: deque[tuple[Client, asyncio.Task[Answer[State]]]] = deque()
        self.connected = False
        self.healthy = False
        self.under_way: deque[str] = deque()
        self.told = dict.fromkeys(TASKS, 0)
        self.silent_at: dict[str, float] = {}
        self.excuses_for_repairs = 1  # the outage at the start
        self.reads_at_failure = -1
        for task_id in TASKS:
            self.storage.put(task_id)

    def start(self) -> None:
        self.scene.running = self.loop.create_task(self.board.run())

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

    def _notify(self, task_id: str, payload: str, *, silent: bool) -> None:
        if silent:
            self.silent_at[task_id] = self.loop.time()
            self.excuses_for_repairs += 1
        elif self.connected:
            self.under_way.append(payload)

    def deliver(self) -> None:
        if self.under_way:
            self.board.notice(self.under_way.popleft())

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

    # What happens to the listener --------------------------------------------------------------------------------------

    def disconnect(self) -> None:
        self.under_way.clear()
        self.connected = False
        self.excuses_for_repairs += 1
        if self.healthy:
            self.healthy = self.storage.barrier_holds = False
            self.board.lost()

    def connect(self) -> None:
        """LISTEN; from now on notifications are under way, though nothing is proven yet."""
        self.connected = True

    def prove(self) -> None:
        """Our own notification came back, behind all that were under way."""
        if self.connected and not self.healthy:
            self.deliver_all()
            self.healthy = self.storage.barrier_holds = True
            self.silent_at.clear()
            self.board.restored()

    # What clients do ---------------------------------------------------------------------------------------------------

    def ask(
        self, client: Client, naming: str = SEEN, seconds: float = HOLD_SECONDS, until: Until = Until.CHANGE
    ) -> None:
        if client.poll is not None:
            return
        row = self.storage.rows.get(client.task_id)
        newest = row.version if row else client.version
        client.named = {SEEN: client.version, UNNAMED: None, NEWEST: newest}[naming]
        question = Question(client.task_id, "alice", client.named, seconds, until)
        hold = self.scene.park if client.parks else self.scene.polling.answer
        client.poll = self.loop.create_task(hold(question))
        client.poll.add_done_callback(lambda poll: self.answered.append((client, poll)))

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

    def _hear(self, client: Client, answer: Answer[State]) -> None:
        assert answer.held_seconds <= HOLD_SECONDS + 1e-6, "late"
        if answer.snapshot is None:
            assert client.task_id not in self.storage.rows, "it is there"
            return
        assert answer.reason is not Reason.RESET, "no database was restored"
        assert answer.snapshot.version >= self.told[client.task_id], "older than an earlier reply"
        self.told[client.task_id] = answer.snapshot.version
        if answer.reason is Reason.CHANGE and client.named is not None:
            assert answer.snapshot.version > client.named, "nothing has changed"
        client.version = max(client.version, answer.snapshot.version)

    # What must be true when nothing can run any more -----------------------------------------------------------------------

    def check(self) -> None:
        self.collect()
        waiting = [client for client in self.clients if client.poll is not None]
        assert len(self.scene.waiters) <= len(waiting)
        assert len(self.scene.waiters._deadlines) == len(self.scene.waiters)
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
            row = self.storage.rows.get(client.task_id)
            if client.task_id not in self.silent_at:
                assert row is not None, "waits for a deleted task"
                assert not row.terminal, "waits for a task that has ended"
                known = self.board._tasks[client.task_id].snapshot
                assert known == row, "what is known is old, and nothing is under way to renew it"

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
            row = self.storage.rows.get(client.task_id)
            known = self.board._tasks.get(client.task_id)
            assert client.poll is None or (known and known.snapshot == row)
        await self.advance(HOLD_SECONDS)
        self.check()
        assert all(client.poll is None for client in self.clients), "a poll outlived its hold"
        assert len(self.scene.waiters) == 0
        await self.advance(LINGER_SECONDS + SWEEP_SECONDS)
        assert len(self.board) == 0
        assert not self.board._idle
        await self.scene.stop()


# Ten thousand worlds, each with a seed ---------------------------------------------------------------------------------


def happenings(world: World, chance: random.Random) -> list[tuple[int, Callable[[], object]]]:
    """What may happen next, and how often."""

    def task() -> str:
        return chance.choice(TASKS)

    def ask() -> None:
        naming, until = chance.choice((SEEN, SEEN, UNNAMED, NEWEST)), chance.choice((Until.CHANGE, *Until))
        world.ask(chance.choice(world.clients), naming, chance.choice((0.0, HOLD_SECONDS, HOLD_SECONDS)), until)

    return [
        (8, ask),
        (5, lambda: world.commit(task())),
        (1, lambda: world.commit(task(), status=chance.choice(("processing", "completed")))),
        (1, lambda: world.commit(task(), silent=True)),
        (1, lambda: world.delete(task()) if chance.random() < 0.3 else None),
        (6, world.deliver),
        (6, world.finish_read),
        (1, world.fail_read),
        (2, lambda: world.leave(chance.choice(world.clients))),
        (1, world.disconnect),
        (2, world.connect),
        (2, world.prove),
    ]


async def play(seed: int, steps: int) -> None:
    """Play one world: several things happen within one turn of the loop, or between two."""
    chance = random.Random(seed)
    world = World(asyncio.get_running_loop())
    world.clients = [Client(chance.choice(TASKS), parks) for parks in (False, True, False, True)]
    world.start()
    world.connect()
    world.prove()
    weights, acts = zip(*happenings(world, chance), strict=True)
    for _ in range(steps):
        for act in chance.choices(acts, weights, k=chance.randint(1, 4)):
            act()
        what = chance.random()
        if what < 0.4:
            await settle()
            world.check()
        elif what < 0.9:
            for _ in range(chance.randint(0, 4)):
                await asyncio.sleep(0)
        else:
            await world.advance(chance.choice((0.05, 1.0, 5.2, 29.95, 30.0)))
            world.check()
    await world.finale()


@pytest.mark.parametrize("part", range(10))
def test_no_order_of_events_lets_anybody_wait_for_what_could_be_known(part: int) -> None:
    for seed in range(part * 100, part * 100 + 100):
        with asyncio.Runner(loop_factory=ClockworkLoop) as runner:
            try:
                runner.run(play(seed, steps=20))
            except BaseException as error:
                error.add_note(f"seed {seed}")
                raise


# And those that hypothesis thinks of -----------------------------------------------------------------------------------


class Machine(RuleBasedStateMachine):
    """The same world, driven by hypothesis, which finds the shortest story that breaks a promise."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=ClockworkLoop)
        self.world = World(self.runner.get_loop())
        self.world.clients = [Client(task_id, parks) for task_id in TASKS for parks in (False, True)]
        self.world.start()
        self.world.connect()
        self.world.prove()
        self.runner.run(settle())

    tasks = strategies.sampled_from(TASKS)
    clients = strategies.integers(0, 3)

    @rule(client=clients, naming=strategies.sampled_from([SEEN, UNNAMED, NEWEST]), until=strategies.sampled_from(Until))
    def ask(self, client: int, naming: str, until: Until) -> None:
        self.world.ask(self.world.clients[client], naming, until=until)

    @rule(client=clients)
    def leave(self, client: int) -> None:
        self.world.leave(self.world.clients[client])

    @rule(task=tasks, silent=strategies.booleans())
    def commit(self, task: str, *, silent: bool) -> None:
        self.world.commit(task, silent=silent)

    @rule(task=tasks)
    def complete(self, task: str) -> None:
        self.world.commit(task, status="completed")

    @rule(task=tasks)
    def delete(self, task: str) -> None:
        self.world.delete(task)

    @rule()
    def deliver(self) -> None:
        self.world.deliver()

    @precondition(lambda self: self.world.storage.pending)
    @rule(well=strategies.booleans())
    def end_read(self, *, well: bool) -> None:
        if well:
            self.world.finish_read()
        else:
            self.world.fail_read()

    @rule()
    def disconnect(self) -> None:
        self.world.disconnect()

    @rule()
    def reconnect(self) -> None:
        self.world.connect()

    @rule()
    def prove(self) -> None:
        self.world.prove()

    @rule(seconds=strategies.sampled_from([0.05, 1.0, 5.2, 30.0]))
    def advance(self, seconds: float) -> None:
        self.runner.run(self.world.advance(seconds))

    @invariant()
    def nobody_waits_for_what_could_be_known(self) -> None:
        self.runner.run(settle())
        self.world.check()

    def teardown(self) -> None:
        self.runner.run(self.world.finale())
        self.runner.close()


TestMachine = Machine.TestCase
TestMachine.settings = hypothesis.settings(
    max_examples=80, stateful_step_count=30, deadline=None, database=None, derandomize=True
)
