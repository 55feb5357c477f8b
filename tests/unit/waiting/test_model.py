"""Board and polls against a model: whatever happens in whatever order, nobody waits for what could be known."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import hypothesis
import pytest
from hypothesis import strategies
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.waiting.answers import Until
from tests.unit.waiting.conftest import ClockworkLoop, settle
from tests.unit.waiting.world import HOLD_SECONDS, NEWEST, SEEN, TASKS, UNNAMED, World, some_clients

# A thousand worlds, each with a seed -------------------------------------------------------------------------------------


def happenings(world: World, chance: random.Random) -> list[tuple[int, Callable[[], object]]]:
    """What may happen next, and how often."""

    def task() -> str:
        return chance.choice(TASKS)

    def ask() -> None:
        naming, until = chance.choice((SEEN, SEEN, UNNAMED, NEWEST)), chance.choice((Until.CHANGE, *Until))
        world.ask(chance.choice(world.clients), naming, chance.choice((0.0, HOLD_SECONDS, HOLD_SECONDS)), until)

    return [
        (12, ask),
        (5, lambda: world.commit(task())),
        (1, lambda: world.commit(task(), status=chance.choice(("processing", "completed")))),
        (1, lambda: world.commit(task(), silent=True)),
        (1, lambda: world.delete(task()) if chance.random() < 0.3 else None),
        (1, lambda: world.restore(chance.randint(0, 2)) if chance.random() < 0.2 else None),
        (1, lambda: world.drain() if chance.random() < 0.2 else None),
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
    world.start()
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


WORLDS = [*((part, 100) for part in range(10)), pytest.param(1, 10_000, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("part", "worlds"), WORLDS)
def test_no_order_of_events_lets_anybody_wait_for_what_could_be_known(part: int, worlds: int) -> None:
    for seed in range(part * worlds, (part + 1) * worlds):
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
        self.world.start()
        self.runner.run(settle())

    tasks = strategies.sampled_from(TASKS)
    clients = strategies.integers(0, len(some_clients()) - 1)

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

    @rule(back=strategies.integers(0, 2))
    def restore(self, back: int) -> None:
        self.world.restore(back)

    @rule()
    def drain(self) -> None:
        async def drain() -> None:
            self.world.drain()

        self.runner.run(drain())

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
