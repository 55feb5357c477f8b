"""The LISTEN connection dies, falls silent, or is never told: nobody waits longer for it than a sweep."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest

from server.storage.listener import Listener
from tests.faults.load import kill_listeners, print_figure
from tests.faults.postgres import frozen
from tests.faults.proxy import Proxy, proxy_to
from tests.faults.scene import CLIENTS, TASKS, Scene, followed_tasks
from tests.support.facts import until
from tests.support.people import Enter, Person, Start
from tests.support.postgres import Sql

HOLD_SECONDS = 8.0
HEARTBEAT_SECONDS = 0.25
HEARTBEATS_UNTIL_NOTICED = 2
LISTENING_BACKEND = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN %'"


@pytest.fixture
async def proxy(dsn: str) -> AsyncIterator[Proxy]:
    """Stands between the listener and Postgres; everything else goes its own way."""
    async with proxy_to(dsn) as between:
        yield between


async def begin(
    start: Start,
    enter: Enter,
    *,
    listen_dsn: str = "",
    sweep_seconds: float = 0.5,
    heartbeat_seconds: float = HEARTBEAT_SECONDS,
) -> Person:
    """Start a server whose users may hold many polls; log somebody in."""
    polling = {"hold_seconds": HOLD_SECONDS, "sweep_seconds": sweep_seconds, "max_held_per_user": 2 * CLIENTS}
    database = {"listen_dsn": listen_dsn, "heartbeat_seconds": heartbeat_seconds}
    return await enter(await start(database=database, polling=polling))


@contextlib.contextmanager
def many_descriptors(number: int) -> Iterator[None]:
    """Occupy so many file descriptors, as held connections do."""
    with contextlib.ExitStack() as stack:
        for _ in range(number):
            stack.enter_context(socket.socket())
        yield


async def kill_listener(scene: Scene) -> float:
    """End the backend that listens; returns how long it took until notifications were proven to arrive again."""
    reconnects = scene.person.metric("longpoll_listener_reconnects_total")
    killed_at = time.monotonic()
    assert kill_listeners(scene.dsn) == 1
    await until(lambda: scene.person.metric("longpoll_listener_reconnects_total") > reconnects)
    await until(lambda: scene.listener.healthy)
    return time.monotonic() - killed_at


@pytest.mark.parametrize(
    ("descriptors", "kills", "pause_seconds"),
    [
        pytest.param(0, 3, 0, id="short"),
        pytest.param(1200, 3, 0, id="short, behind 1200 descriptors"),
        pytest.param(0, 15, 2, id="long", marks=pytest.mark.slow),
        pytest.param(1200, 15, 2, id="long, behind 1200 descriptors", marks=pytest.mark.slow),
    ],
)
async def test_a_listener_that_is_killed_again_and_again_loses_nothing(
    start: Start, enter: Enter, dsn: str, descriptors: int, kills: int, pause_seconds: float
) -> None:
    with many_descriptors(descriptors):
        # The connection itself must tell of its death, and what is read again behind it must do: within a hold neither a
        # heartbeat nor a sweep comes to help.
        person = await begin(start, enter, sweep_seconds=60, heartbeat_seconds=60)
        async with followed_tasks(person, dsn, hold_seconds=HOLD_SECONDS) as scene:
            connection = scene.listener._connection
            assert connection is not None
            assert connection.raw.fileno() >= (1024 if descriptors else 0)
            gaps = []
            async with scene.updates():
                for _ in range(kills):
                    await scene.until_told()
                    gaps.append(await kill_listener(scene))
                    await asyncio.sleep(pause_seconds)  # the pace of the kills
                await scene.until_told()
            figures = scene.check()
            assert not scene.oracle.refusals
            gap = round(max(gaps), 3)
            print_figure("listener killed", kills=kills, descriptors=descriptors, worst_gap_s=gap, **figures)


@pytest.mark.parametrize("gaps", [3, pytest.param(100, marks=pytest.mark.slow)])
async def test_what_is_committed_while_nobody_listens_is_told_as_soon_as_somebody_does(
    start: Start, enter: Enter, dsn: str, proxy: Proxy, gaps: int
) -> None:
    """Nothing else changes these tasks, and no sweep comes: only reading again behind LISTEN tells of them."""
    person = await begin(start, enter, listen_dsn=proxy.dsn(dsn), sweep_seconds=60)
    async with followed_tasks(person, dsn, hold_seconds=HOLD_SECONDS) as scene:
        for gap in range(gaps):
            proxy.fail()
            await until(lambda: not scene.listener.healthy)
            scene.change_all(f"status = 'processing', message = 'gap {gap}'")
            proxy.recover()
            await scene.until_held_with(gap + 2)
        scene.change_all("status = 'completed', result = '/picture'")
        await scene.pollers.until_done()
        figures = scene.check()
        assert not scene.oracle.refusals
        assert figures["longest_poll_s"] < HOLD_SECONDS / 2, "told by the end of the hold"
        print_figure("nobody listens", gaps=gaps, **figures)


@dataclass(frozen=True, slots=True)
class Detection:
    """How a silence was noticed: within how many heartbeats, the one that it began in among them, and after how long.

    Heartbeats are what the promise is about, and on a machine that is busy they last longer than they should.
    """

    heartbeats: int
    seconds: float


class Watch:
    """Notes when a listener gives its health up."""

    def __init__(self, listener: Listener) -> None:
        """Begin to watch: the silence begins now."""
        self._first, self._began = listener.beats, time.monotonic()
        self._detected: asyncio.Future[Detection] = asyncio.get_running_loop().create_future()
        self._listener, self._lost = listener, listener._lost
        listener._lost = self._note

    def _note(self) -> None:
        self._listener._lost = self._lost
        heartbeats = self._listener.beats - self._first + 1
        self._detected.set_result(Detection(heartbeats, round(time.monotonic() - self._began, 3)))
        self._lost()

    async def detected(self) -> Detection:
        """Wait until the silence is noticed."""
        async with asyncio.timeout(15):
            return await self._detected


def check_silence(scene: Scene, detection: Detection) -> dict[str, float]:
    """Return the figures of a silence, which must have been noticed in time and covered without any hold's end."""
    figures = scene.check()
    assert not scene.oracle.refusals
    assert detection.heartbeats <= HEARTBEATS_UNTIL_NOTICED
    assert figures["worst_wake_ms"] < 1000 * HOLD_SECONDS / 2, "told by the end of the hold, not by the sweep"
    return {"detection_s": detection.seconds, "detection_heartbeats": detection.heartbeats, **figures}


@pytest.mark.parametrize("silences", [1, pytest.param(20, marks=pytest.mark.slow)])
async def test_a_connection_that_hears_nothing_is_noticed_and_the_sweep_covers(
    start: Start, enter: Enter, dsn: str, proxy: Proxy, silences: int
) -> None:
    person = await begin(start, enter, listen_dsn=proxy.dsn(dsn))
    async with followed_tasks(person, dsn, hold_seconds=HOLD_SECONDS) as scene:
        found = []
        async with scene.updates():
            for _ in range(silences):
                await scene.until_told()
                proxy.pause()
                found.append(await Watch(scene.listener).detected())
                await scene.until_told()
                proxy.resume()
                await until(lambda: scene.listener.healthy)
            await scene.until_told()
        worst = Detection(max(each.heartbeats for each in found), max(each.seconds for each in found))
        print_figure("listener half-open", silences=silences, **check_silence(scene, worst))


async def test_a_listening_backend_that_is_frozen_is_noticed_and_replaced(
    start: Start, enter: Enter, sql: Sql, dsn: str
) -> None:
    person = await begin(start, enter)
    async with followed_tasks(person, dsn, hold_seconds=HOLD_SECONDS) as scene:
        async with scene.updates():
            await scene.until_told()
            [(pid,)] = sql(LISTENING_BACKEND)
            with frozen(pid):
                detection = await Watch(scene.listener).detected()
                await until(lambda: scene.listener.healthy)  # by another connection: the old backend stands still
                await scene.until_told()
        print_figure("listening backend frozen", **check_silence(scene, detection))


@pytest.mark.parametrize("rounds", [2, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize("silent", [False, True], ids=["healthy", "trigger off"])
async def test_the_sweep_repairs_what_no_notification_tells_and_only_that(
    start: Start, enter: Enter, sql: Sql, dsn: str, *, silent: bool, rounds: int
) -> None:
    """The same load twice: with every notification nothing is repaired, with none of them everything is."""
    person = await begin(start, enter)
    if silent:
        sql("ALTER TABLE public.image_generations DISABLE TRIGGER notify_updated")
    async with followed_tasks(person, dsn, hold_seconds=HOLD_SECONDS) as scene:
        async with scene.updates():
            for _ in range(rounds):
                await scene.until_told()
        figures = scene.check()
        assert not scene.oracle.refusals
        assert scene.listener.healthy
        if silent:
            assert scene.repairs >= TASKS  # the end of each task, and what changed before it
        else:
            assert scene.repairs == 0
        print_figure("trigger off" if silent else "no fault", **figures)
