"""The board: what is read when, what is known, and what repairs a notification that never came."""

from __future__ import annotations

import asyncio

import pytest

from server.waiting.waiters import Reason
from tests.unit.waiting.conftest import LINGER_SECONDS, SWEEP_SECONDS, Scene, playing, settle


def reads(scene: Scene) -> list[list[str]]:
    return [read.task_ids for read in scene.storage.reads]


# Reading -----------------------------------------------------------------------------------------------------------


async def test_a_task_is_watched_before_it_is_read(scene: Scene) -> None:
    """What is notified while the first read is under way asks for a second one, and that answers."""
    scene.storage.paused = True
    poll = scene.ask(version=1)
    await settle()
    scene.change(version=2)
    await settle()
    for _ in range(2):
        scene.storage.pending[0].finish()
        await settle()
    assert (await poll).snapshot == scene.storage.rows["t"]


async def test_five_thousand_polls_of_one_task_share_one_read(scene: Scene) -> None:
    polls = [scene.ask(version=1) for _ in range(5000)]
    await settle()
    assert reads(scene) == [["t"]]
    scene.change(version=2)
    await settle()
    assert len(reads(scene)) == 2
    assert {poll.result().reason for poll in polls} == {Reason.CHANGE}


@pytest.mark.usefixtures("path")
async def test_tasks_noticed_in_one_turn_share_reads_of_the_batch_size() -> None:
    async with playing(Scene(batch_size=300)) as scene:
        polls = []
        for number in range(1000):
            scene.storage.put(f"t{number}")
            polls.append(scene.ask(f"t{number}", 1))
        await settle()
        assert [len(read) for read in reads(scene)] == [300, 300, 300, 100]
        scene.storage.reads.clear()
        for number in range(1000):
            scene.storage.put(f"t{number}", 2)
        scene.board.on_notification(",".join(f"t{number}:2" for number in range(1000)))
        await asyncio.gather(*polls)
        assert [len(read) for read in reads(scene)] == [300, 300, 300, 100]


@pytest.mark.usefixtures("path")
async def test_a_full_batch_still_takes_a_task_that_is_in_it() -> None:
    async with playing(Scene(batch_size=1)) as scene:
        scene.storage.put("t")
        polls = [scene.ask("t", 0), scene.ask("u", 0), scene.ask("u", 0)]
        await asyncio.gather(*polls)
        assert reads(scene) == [["t"], ["u"]]


async def test_a_change_during_the_read_is_read_again_and_the_newest_is_told(scene: Scene) -> None:
    poll = await scene.hold(version=1)
    scene.storage.paused = True
    scene.change(version=2)
    await settle()
    scene.change(version=3)
    await settle()
    assert len(scene.storage.pending) == 1, "one read at a time"
    scene.storage.pending[0].finish()
    await settle()
    first = await poll
    assert first.snapshot is not None
    assert first.snapshot.version == 2
    second = scene.ask(version=2)
    await settle()
    assert not second.done(), "what we know is stale already"
    for _ in range(2):
        scene.storage.pending[0].finish()
        await settle()
    answer = await second
    assert answer.snapshot is not None
    assert answer.snapshot.version == 3


async def test_a_poll_during_the_read_of_a_change_is_not_answered_with_what_was_before(scene: Scene) -> None:
    """We have been told of version 2: an instant question must not be told of version 1 any more."""
    held = await scene.hold(version=1)
    scene.storage.paused = True
    scene.change(version=2)
    await settle()
    instant = scene.ask(seconds=0)
    informed = scene.ask(version=2, seconds=0)  # it was told by another server
    await settle()
    while scene.storage.pending:
        scene.storage.pending[0].finish()
        await settle()
    for poll in (held, instant, informed):
        answer = await poll
        assert answer.snapshot is not None
        assert answer.snapshot.version == 2
        assert answer.reason is not Reason.RESET


@pytest.mark.parametrize("payload", ["t:1", "t:0", "u:7", "u:-", "unwatched:1,t:1"])
async def test_a_notification_of_nothing_new_costs_no_read(scene: Scene, payload: str) -> None:
    poll = await scene.hold(version=1)
    scene.board.on_notification(payload)
    await settle()
    assert len(reads(scene)) == 1
    assert not poll.done()
    poll.cancel()
    await settle()


@pytest.mark.parametrize(
    ("payload", "malformed"),
    [
        ("", 1),
        ("t", 1),
        ("t:", 1),
        ("t:x", 1),
        ("t:-1", 1),
        ("t:1.5", 1),
        ("t:²", 1),
        ("t:" + "9" * 5000, 1),
        ("t:1:2", 1),
        (",,,", 4),
        ("\x00\ud800:🦀,:,\n", 3),
    ],
)
async def test_malformed_payloads_are_counted_and_harm_nobody(scene: Scene, payload: str, malformed: int) -> None:
    poll = await scene.hold(version=1)
    scene.board.on_notification(payload)
    assert scene.metric("longpoll_malformed_notifications_total") == malformed
    scene.storage.put(version=2)
    scene.board.on_notification(f"{payload},t:2")
    assert (await poll).reason is Reason.CHANGE


async def test_an_unknown_task_leaves_no_memory(scene: Scene) -> None:
    answers = await asyncio.gather(*(scene.ask(f"unknown{number}", 0) for number in range(100)))
    assert {answer.snapshot for answer in answers} == {None}
    assert len(scene.board) == 0
    assert not scene.board._idle


async def test_a_poll_that_left_before_its_read_ended_leaves_no_memory(scene: Scene) -> None:
    scene.storage.paused = True
    poll = scene.ask(version=1)
    await settle()
    poll.cancel()
    await settle()
    scene.storage.pending[0].finish()
    await settle()
    assert len(scene.board) == 0


# Remembering -------------------------------------------------------------------------------------------------------


async def test_the_next_poll_of_a_task_costs_no_read(scene: Scene) -> None:
    await scene.ask(version=0)
    for _ in range(5):
        await asyncio.sleep(LINGER_SECONDS / 2)
        await scene.ask(version=0)
    assert len(reads(scene)) == 1
    await asyncio.sleep(LINGER_SECONDS + 2 * SWEEP_SECONDS)
    assert len(scene.board) == 0
    await scene.ask(version=0)
    assert len(reads(scene)) == 2


@pytest.mark.usefixtures("path")
async def test_nothing_lingers_when_that_is_turned_off() -> None:
    async with playing(Scene(linger_seconds=0)) as scene:
        scene.storage.put()
        await scene.ask(version=0)
        assert len(scene.board) == 0


async def test_a_change_nobody_waits_for_is_read_when_somebody_asks(scene: Scene) -> None:
    await scene.ask(version=1, seconds=0)
    scene.change(version=2)
    await settle()
    assert len(reads(scene)) == 1
    answer = await scene.ask(version=1)
    assert answer.reason is Reason.IMMEDIATE
    assert answer.snapshot == scene.storage.rows["t"]
    assert len(reads(scene)) == 2


async def test_a_task_in_doubt_is_read_again(scene: Scene) -> None:
    poll = await scene.hold(version=1)
    scene.board.invalidate("unwatched")
    scene.storage.put(version=2)
    scene.board.invalidate("t")
    assert (await poll).reason is Reason.CHANGE
    assert scene.repairs == 0


# The listener ------------------------------------------------------------------------------------------------------


async def test_without_a_listener_nothing_is_fresh(scene: Scene) -> None:
    await scene.ask(version=0)
    scene.board.on_listener_lost()
    scene.storage.put(version=2)
    answer = await scene.ask(version=1)
    assert answer.snapshot == scene.storage.rows["t"]
    assert answer.reason is Reason.IMMEDIATE, "it was read for this poll, not a second later"
    assert len(reads(scene)) == 2


async def test_without_a_listener_what_is_waited_for_is_read_every_second(scene: Scene) -> None:
    scene.storage.put("u")
    await scene.ask("u", 0)  # known, but nobody waits for it
    poll = await scene.hold(version=1)
    scene.board.on_listener_lost()
    scene.storage.reads.clear()
    await asyncio.sleep(3.5)
    assert reads(scene) == [["t"]] * 3
    scene.storage.put(version=2)
    await asyncio.sleep(1)
    assert (await poll).reason is Reason.CHANGE
    assert scene.repairs == 1


async def test_when_the_listener_is_back_everything_watched_is_read_at_once(scene: Scene) -> None:
    scene.storage.put("u")
    polls = [await scene.hold("t", 1), await scene.hold("u", 1)]
    scene.board.on_listener_lost()
    await settle()
    scene.storage.put("t", 2)
    scene.storage.put("u", 2)
    begun = asyncio.get_running_loop().time()
    scene.board.on_listener_restored()
    await asyncio.gather(*polls)
    assert asyncio.get_running_loop().time() == begun
    assert scene.repairs == 2
    assert len(reads(scene)) == 3


async def test_what_lingered_while_the_listener_was_away_is_stale(scene: Scene) -> None:
    await scene.ask(version=0)
    scene.board.on_listener_lost()
    scene.storage.put(version=2)
    scene.board.on_listener_restored()
    answer = await scene.ask(version=1)
    assert answer.snapshot == scene.storage.rows["t"]


async def test_a_read_that_began_before_the_listener_came_back_proves_nothing(scene: Scene) -> None:
    poll = await scene.hold(version=1)
    scene.storage.paused = True
    scene.board.on_listener_lost()
    await asyncio.sleep(1.5)
    scene.storage.put(version=2)
    scene.board.on_listener_restored()
    for _ in range(2):
        await settle()
        scene.storage.pending[0].finish()
    assert (await poll).reason is Reason.CHANGE


# The sweep ---------------------------------------------------------------------------------------------------------


async def test_the_sweep_finds_what_was_never_notified_and_counts_it(scene: Scene) -> None:
    poll = await scene.hold(version=1)
    scene.storage.put(version=2)
    await asyncio.sleep(SWEEP_SECONDS + 0.1)
    answer = await poll
    assert answer.reason is Reason.CHANGE
    assert answer.held_seconds <= SWEEP_SECONDS
    assert scene.repairs == 1


async def test_the_sweep_finds_a_deletion(scene: Scene) -> None:
    poll = await scene.hold(version=1)
    del scene.storage.rows["t"]
    assert (await poll).deleted
    assert scene.repairs == 1


async def test_a_notification_that_is_only_late_is_no_repair(scene: Scene) -> None:
    poll = await scene.hold(version=1)
    scene.storage.put(version=2)
    scene.storage.on_barrier = lambda: scene.board.on_notification("t:2")
    await asyncio.sleep(SWEEP_SECONDS + 0.1)
    assert (await poll).reason is Reason.CHANGE
    assert scene.repairs == 0


async def test_a_late_notification_whose_read_is_slow_is_no_repair(scene: Scene) -> None:
    """It arrived, its read is under way, and meanwhile the task changes again."""
    poll = await scene.hold(version=1)
    scene.storage.put(version=2)
    scene.storage.paused = True
    scene.storage.on_barrier = lambda: scene.board.on_notification("t:2")
    await asyncio.sleep(SWEEP_SECONDS + 0.1)
    scene.storage.put(version=3)
    await asyncio.sleep(0)
    while scene.storage.pending:
        scene.storage.pending[0].finish()
        await settle()
    await poll
    scene.board.on_notification("t:3")
    await settle()
    assert scene.repairs == 0
    assert [read.found[0].version for read in scene.storage.reads] == [1, 2]


async def test_without_a_barrier_the_sweep_repairs_nothing_yet(scene: Scene) -> None:
    poll = await scene.hold(version=1)
    scene.storage.put(version=2)
    scene.storage.barrier_holds = False
    await asyncio.sleep(SWEEP_SECONDS + 0.1)
    assert not poll.done()
    scene.storage.barrier_holds = True
    await asyncio.sleep(SWEEP_SECONDS)
    assert poll.done()


async def test_the_sweep_finds_a_change_that_nobody_waits_for_at_this_moment(scene: Scene) -> None:
    """Somebody who asks now and then without waiting must not be told the same for ever."""
    await scene.ask(version=1, seconds=0)
    scene.storage.put(version=2)
    await asyncio.sleep(SWEEP_SECONDS + 0.1)
    assert scene.repairs == 1
    assert len(reads(scene)) == 1
    assert (await scene.ask(version=1, seconds=0)).snapshot == scene.storage.rows["t"]
    assert scene.repairs == 1


async def test_the_sweep_asks_for_nothing_that_is_forgotten_or_in_doubt(scene: Scene) -> None:
    await scene.ask(version=1, seconds=0)
    scene.change(version=2)
    await asyncio.sleep(LINGER_SECONDS + 2 * SWEEP_SECONDS)
    assert scene.storage.sweeps == []
