"""Holds: ended by anybody, for any reason, without ever swallowing a real cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from server.waiting.waiters import Hold, Reason, Waiters
from tests.unit.waiting.conftest import settle

Client = tuple[str, str, str]


@pytest.fixture
async def waiters() -> AsyncIterator[Waiters]:
    """A registry which must be empty when the test is over."""
    waiters = Waiters(max_held=100, max_held_per_user=3, chance=lambda: 0.5)
    yield waiters
    assert len(waiters) == 0
    assert waiters.users == 0
    assert not waiters._by_client
    assert len(waiters._deadlines) == 0


class Poll:
    """Somebody who holds until an Event is set, in a task of its own."""

    def __init__(
        self, waiters: Waiters, user: str = "alice", client: Client | None = None, seconds: float = 30.0
    ) -> None:
        self.event = asyncio.Event()
        self.hold: Hold = waiters.hold(user, client, seconds)
        self.cancelling: int | None = None
        self.ended_at = 0.0
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> Reason | None:
        task = asyncio.current_task()
        assert task is not None
        try:
            with self.hold:
                await self.event.wait()
        finally:
            self.cancelling = task.cancelling()
            self.ended_at = asyncio.get_running_loop().time()
        await asyncio.sleep(0)  # a cancellation left behind would strike here
        return self.hold.reason


async def test_a_hold_ends_when_its_time_is_over(waiters: Waiters) -> None:
    begun = asyncio.get_running_loop().time()
    poll = Poll(waiters, seconds=30)
    assert await poll.task is Reason.TIMEOUT
    assert 29.9 - 1e-6 <= poll.ended_at - begun <= 30
    assert poll.cancelling == 0


async def test_a_hold_can_be_ended_from_outside_for_a_reason(waiters: Waiters) -> None:
    poll = Poll(waiters)
    await settle()
    poll.hold.finish(Reason.DEGRADED)
    poll.hold.finish(Reason.DRAIN)  # the first reason stands
    assert await poll.task is Reason.DEGRADED
    assert poll.cancelling == 0


async def test_a_hold_that_is_not_ended_has_no_reason(waiters: Waiters) -> None:
    poll = Poll(waiters)
    await settle()
    assert len(waiters) == 1
    poll.event.set()
    assert await poll.task is None


async def test_ending_a_hold_that_is_over_or_has_not_begun_does_nothing(waiters: Waiters) -> None:
    poll = Poll(waiters)
    poll.hold.finish(Reason.DRAIN)
    await settle()
    poll.event.set()
    assert await poll.task is None
    poll.hold.finish(Reason.DRAIN)
    assert poll.hold.reason is None


@pytest.mark.parametrize("event_first", [True, False])
async def test_ending_in_the_tick_of_the_event_leaves_no_cancellation(waiters: Waiters, *, event_first: bool) -> None:
    """The Event was set, its task has not run yet, and now the deadline comes: or the other way round."""
    poll = Poll(waiters)
    await settle()
    for act in (poll.event.set, poll.hold.expire) if event_first else (poll.hold.expire, poll.event.set):
        act()
    assert await poll.task is Reason.TIMEOUT
    assert poll.cancelling == 0
    assert not poll.task.cancelled()


async def test_a_client_that_leaves_cancels_the_poll(waiters: Waiters) -> None:
    poll = Poll(waiters)
    await settle()
    poll.task.cancel()
    await settle()
    assert poll.task.cancelled()
    assert poll.hold.reason is None


@pytest.mark.parametrize("client_first", [True, False])
async def test_a_client_that_leaves_as_its_hold_ends_still_cancels(waiters: Waiters, *, client_first: bool) -> None:
    poll = Poll(waiters)
    await settle()
    for act in (poll.task.cancel, poll.hold.expire) if client_first else (poll.hold.expire, poll.task.cancel):
        act()
    await settle()
    assert poll.task.cancelled()
    assert poll.cancelling == 1, "ours is taken back, the other one is not"


async def test_all_three_in_one_tick_cancel(waiters: Waiters) -> None:
    poll = Poll(waiters)
    await settle()
    poll.event.set()
    poll.hold.expire()
    poll.task.cancel()
    await settle()
    assert poll.task.cancelled()


async def test_an_error_inside_a_hold_that_was_ended_comes_out(waiters: Waiters) -> None:
    async def fail() -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            with waiters.hold("alice", None, 30) as hold:
                hold.finish(Reason.DRAIN)
                raise ValueError("a bug")
        finally:
            assert task.cancelling() == 0

    with pytest.raises(ValueError, match="a bug"):
        await asyncio.create_task(fail())


@pytest.mark.parametrize(("hold_seconds", "timeout", "outcome"), [(5, 10, "held"), (10, 5, "timed out")])
async def test_a_hold_inside_a_timeout(waiters: Waiters, hold_seconds: float, timeout: float, outcome: str) -> None:
    async def poll() -> str:
        try:
            async with asyncio.timeout(timeout):
                with waiters.hold("alice", None, hold_seconds):
                    await asyncio.Event().wait()
                return "held"
        except TimeoutError:
            return "timed out"

    assert await asyncio.create_task(poll()) == outcome


async def test_a_hold_around_a_timeout(waiters: Waiters) -> None:
    async def poll() -> tuple[str, Reason | None]:
        inner = ""
        with waiters.hold("alice", None, 5) as hold:
            try:
                async with asyncio.timeout(2):
                    await asyncio.Event().wait()
            except TimeoutError:
                inner = "timed out"
            await asyncio.Event().wait()
        return inner, hold.reason

    assert await asyncio.create_task(poll()) == ("timed out", Reason.TIMEOUT)


async def test_a_hold_and_a_timeout_that_end_in_one_tick(waiters: Waiters) -> None:
    """Whoever stands outside decides, and nothing is left of either cancellation."""

    async def poll() -> str:
        task = asyncio.current_task()
        assert task is not None
        try:
            async with asyncio.timeout(None) as timeout:
                with waiters.hold("alice", None, 30) as hold:
                    loop = asyncio.get_running_loop()
                    loop.call_soon(hold.expire)
                    timeout.reschedule(loop.time())
                    await asyncio.Event().wait()
        except TimeoutError:
            assert task.cancelling() == 0
            await asyncio.sleep(0)
            return "timed out"
        return "held"

    assert await asyncio.create_task(poll()) == "timed out"


async def test_cancellations_from_before_the_hold_are_none_of_its_business(waiters: Waiters) -> None:
    async def poll() -> int:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            with waiters.hold("alice", None, 1):
                await asyncio.Event().wait()
        return task.cancelling()

    assert await asyncio.create_task(poll()) == 1


async def test_the_same_client_asking_again_ends_its_older_poll(waiters: Waiters) -> None:
    first = Poll(waiters, client=("alice", "t", "page"))
    await settle()
    second = Poll(waiters, client=("alice", "t", "page"))
    assert await first.task is Reason.SUPERSEDED
    assert len(waiters) == 1
    third = Poll(waiters, client=("alice", "t", "page"))
    assert await second.task is Reason.SUPERSEDED
    third.event.set()
    await third.task


async def test_another_page_task_or_user_is_another_client(waiters: Waiters) -> None:
    clients: list[tuple[str, Client | None]] = [
        ("alice", ("alice", "t", "page")),
        ("alice", ("alice", "t", "other")),
        ("alice", ("alice", "u", "page")),
        ("bob", ("bob", "t", "page")),
        ("bob", None),
        ("bob", None),
    ]
    polls = [Poll(waiters, user, client) for user, client in clients]
    await settle()
    assert len(waiters) == 6
    for poll in polls:
        poll.event.set()
    assert await asyncio.gather(*(poll.task for poll in polls)) == [None] * 6


async def test_one_poll_too_many_ends_the_users_oldest(waiters: Waiters) -> None:
    polls = [Poll(waiters) for _ in range(3)]
    stranger = Poll(waiters, "bob")
    await settle()
    more = [Poll(waiters), Poll(waiters)]
    assert await polls[0].task is Reason.DEGRADED
    assert await polls[1].task is Reason.DEGRADED
    assert len(waiters) == 4, "the user's three and the stranger's one"
    for poll in (polls[2], *more, stranger):
        poll.event.set()
        assert await poll.task is None


async def test_who_is_leaving_anyway_does_not_count_against_the_cap(waiters: Waiters) -> None:
    """A client at its cap that asks again takes the place of its own older poll, and of nobody else's."""
    oldest, middle = Poll(waiters), Poll(waiters)
    mine = Poll(waiters, client=("alice", "t", "page"))
    await settle()
    again = Poll(waiters, client=("alice", "t", "page"))
    await settle()
    assert mine.hold.reason is Reason.SUPERSEDED
    assert oldest.hold.reason is None
    for poll in (oldest, middle, again):
        poll.event.set()
        await poll.task


async def test_draining_ends_every_hold_within_its_time(waiters: Waiters) -> None:
    begun = asyncio.get_running_loop().time()
    polls = [Poll(waiters, f"user {number}") for number in range(20)]
    await settle()
    waiters.drain(4)
    assert waiters.draining
    assert await asyncio.gather(*(poll.task for poll in polls)) == [Reason.DRAIN] * 20
    assert {poll.ended_at - begun for poll in polls} == {2.0}, "the test's chance is always a half"


async def test_a_hold_that_ends_while_draining_is_not_ended_again(waiters: Waiters) -> None:
    poll = Poll(waiters)
    await settle()
    waiters.drain(4)
    poll.event.set()
    assert await poll.task is None
    await asyncio.sleep(5)
    assert poll.hold.reason is None


async def test_full_means_as_many_as_the_process_may_hold() -> None:
    waiters = Waiters(max_held=2, max_held_per_user=10)
    polls = [Poll(waiters), Poll(waiters, "bob")]
    assert not waiters.full
    await settle()
    assert waiters.full
    polls[0].event.set()
    await polls[0].task
    assert not waiters.full
    polls[1].event.set()
    await polls[1].task
