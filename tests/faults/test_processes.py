"""Processes that stop, are replaced, are killed, or stand still, while clients go on asking."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from server.web import keys
from tests.faults import sites
from tests.faults.bystanders import CLIENTS, bystanders
from tests.faults.load import Channel, Pollers, Updates, add_tasks, print_figure, read_states
from tests.faults.oracle import Oracle
from tests.faults.proxy import proxy_to
from tests.faults.sites import (
    Account,
    Address,
    channels,
    holds,
    listening,
    poll_target,
    processes,
    read_metrics,
    settings_of,
)
from tests.support.facts import Stopwatch, until
from tests.support.ports import free_port
from tests.support.postgres import Sql
from tests.support.processes import ServerProcess

DRAIN_SECONDS = 0.5
# How long a process may take after its drain.
GONE_SECONDS = 2.0

config, account, open_site = sites.config, sites.account, sites.open_site


@pytest.mark.parametrize("crowd", [600, pytest.param(2000, marks=pytest.mark.slow)])
async def test_a_process_that_stops_answers_everybody_first(
    account: Account, sql: Sql, dsn: str, tmp_path: Path, crowd: int
) -> None:
    """While tasks change. As long as it does, it says that it isn't ready, and whoever comes then is sent elsewhere."""
    task_ids = add_tasks(sql, account.user_id, 20)
    oracle, settings = Oracle(), settings_of(dsn, tmp_path, server__drain_seconds=2)
    with processes() as started:
        started += [ServerProcess(tmp_path, **settings) for _ in range(2)]  # type: ignore[arg-type]
        stopping, staying = [await listening(server) for server in started]
        async with Pollers(oracle, [stopping], token=account.token) as pollers:
            pollers.follow(task_ids, clients=crowd // len(task_ids))
            await until(lambda: holds(stopping, crowd), seconds=60)
            with Updates(oracle, dsn, task_ids, rate=5) as updates:
                await until(lambda: len(oracle.replies) >= crowd // 4, seconds=60)
                told = time.perf_counter()
                started[0].process.send_signal(signal.SIGTERM)
                await until(lambda: _readiness(stopping, 503))
                pollers.turn_to([staying])
                assert await asyncio.to_thread(started[0].wait) == 0
                gone = time.perf_counter() - told
            await until(lambda: holds(staying, crowd), seconds=60)
            updates.end_all()
            await pollers.until_done()
    drained = [reply for reply in oracle.replies if reply.reason == "drain"]
    # Those that were held when it was told: each was answered, by a change or by the drain, and sent elsewhere.
    failed = {kind: count for kind, count in oracle.broken.items() if kind != "crossed"}
    print_figure(
        "a process that stops",
        held=crowd,
        drained=len(drained),
        failed=failed,
        last_drained_ms=round((max(reply.at for reply in drained) - told) * 1000),
        gone_ms=round(gone * 1000),
        **oracle.check(read_states(dsn, task_ids)),
    )
    assert failed == {}
    assert not oracle.refusals
    assert gone < 2 + GONE_SECONDS


async def test_a_process_stops_in_time_before_a_database_that_says_nothing(sql: Sql, dsn: str, tmp_path: Path) -> None:
    """Everybody who is held is told all the same, from what is known; who asks the database is soon refused."""
    async with proxy_to(dsn) as proxy, asyncio.timeout(60):
        settings = settings_of(proxy.dsn(dsn), tmp_path, server__port=free_port(), server__drain_seconds=DRAIN_SECONDS)
        with processes() as started:
            started.append(ServerProcess(tmp_path, **settings))  # type: ignore[arg-type]
            address = await listening(started[0])
            async with bystanders(address, sql, dsn, unharmed=False) as others:
                proxy.pause()
                commits = len(others.oracle.commits)
                await until(lambda: len(others.oracle.commits) > commits + 10)  # which nobody hears of
                async with channels(address, 3) as opened:
                    asking = [
                        asyncio.create_task(channel.get("/api/generate/tasks", others.pollers.headers))
                        for channel in opened
                    ]
                    await read_metrics(address)  # answered behind them, so they have begun
                    async with Stopwatch() as stopping:
                        assert await asyncio.to_thread(started[0].stop) == 0
                    answers = await asyncio.gather(*asking)
                proxy.resume()
                started.append(ServerProcess(tmp_path, **settings))  # type: ignore[arg-type]
                await listening(started[-1])
    print_figure("a stop before a silent database", gone_s=round(stopping.seconds, 2), **others.figures)
    assert {status for status, _ in answers} == {503}
    assert others.oracle.broken["held"] == others.oracle.broken["torn"] == 0
    assert stopping.seconds < DRAIN_SECONDS + GONE_SECONDS


async def _readiness(address: Address, expected: int) -> bool:
    channel = await Channel.open(address)
    try:
        status, _ = await channel.get("/readyz", "")
    finally:
        channel.close()
    return status == expected


class Visitors:
    """Clients that open a connection for each request: they notice any moment in which a port is closed."""

    def __init__(self, address: Address, headers: str, targets: list[str]) -> None:
        self._address = address
        self._headers = headers
        self._targets = itertools.cycle(targets)
        self.statuses: Counter[int] = Counter()
        self.failures: list[str] = []

    async def until_answered(self, visits: int) -> None:
        """Wait until so many visits have been answered from now on."""
        before = self.statuses.total()
        await until(lambda: self.statuses.total() > before + visits, seconds=60)

    @asynccontextmanager
    async def coming(self, count: int) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._come()) for _ in range(count)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _come(self) -> None:
        while True:
            try:
                channel = await Channel.open(self._address)
                try:
                    status, _ = await channel.get(next(self._targets), self._headers)
                finally:
                    channel.close()
                self.statuses[status] += 1
            except (OSError, EOFError) as error:
                self.failures.append(repr(error))
            await asyncio.sleep(0.005)  # two hundred a second each


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.slow)])
async def test_a_rolling_restart_fails_no_request(
    account: Account, sql: Sql, dsn: str, tmp_path: Path, rounds: int
) -> None:
    """Two processes on one port are replaced one after the other while clients ask.

    What counts as a failure: a connection that is refused or reset before its first reply, a reply that breaks off,
    a poll that was held and never answered, any status but 200. What doesn't: a keep-alive connection that the
    server closed between two requests, crossing with the client's next one. No byte of a reply has come, so any
    HTTP client repeats such a GET by itself (RFC 9110, 9.2.2; RFC 9112, 9.3.1); so do these, and it is counted.
    """
    port, gone = free_port(), []
    settings = settings_of(
        dsn, tmp_path, server__port=port, server__reuse_port="true", server__drain_seconds=DRAIN_SECONDS
    )
    (task_id,) = add_tasks(sql, account.user_id, 1)
    address = ("127.0.0.1", port)
    visitors = Visitors(address, account.headers, ["/healthz", poll_target(task_id, 0, "&wait=0")])
    with processes() as started:
        started += [ServerProcess(tmp_path, **settings) for _ in range(2)]  # type: ignore[arg-type]
        for server in list(started):
            await listening(server)
        async with bystanders(address, sql, dsn, rate=100, unharmed=False) as others, visitors.coming(4):
            for server in itertools.islice(_as_they_come(started), 2 * rounds):
                await visitors.until_answered(100)
                told = time.monotonic()
                assert await asyncio.to_thread(server.stop) == 0
                gone.append(time.monotonic() - told)
                started.append(ServerProcess(tmp_path, **settings))  # type: ignore[arg-type]
                await listening(started[-1])
            await visitors.until_answered(100)
    failed = {kind: count for kind, count in others.oracle.broken.items() if kind != "crossed"}
    print_figure(
        "rolling restart",
        restarts=len(gone),
        visits=visitors.statuses.total(),
        visits_failed=len(visitors.failures),
        failed=failed,
        slowest_end_s=round(max(gone), 2),
        **others.figures,
    )
    assert visitors.failures == []
    assert set(visitors.statuses) == {200}
    assert failed == {}
    assert not others.oracle.refusals
    assert max(gone) < DRAIN_SECONDS + GONE_SECONDS


def _as_they_come(started: list[ServerProcess]) -> Iterator[ServerProcess]:
    """Yield the processes in the order of their start, the newer ones too."""
    for number in itertools.count():
        yield started[number]


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
async def test_clients_of_a_killed_process_come_back_and_miss_nothing(
    sql: Sql, dsn: str, tmp_path: Path, kills: int
) -> None:
    port = free_port()
    settings = settings_of(dsn, tmp_path, server__port=port)
    address, back = ("127.0.0.1", port), []
    with processes() as started:
        started.append(ServerProcess(tmp_path, **settings))  # type: ignore[arg-type]
        await listening(started[0])
        async with bystanders(address, sql, dsn, unharmed=False) as others:
            for _ in range(kills):
                await others.until_told()
                started[-1].stop(signal.SIGKILL)
                commits = len(others.oracle.commits)
                await until(lambda commits=commits: len(others.oracle.commits) > commits + 10)
                started.append(ServerProcess(tmp_path, **settings))  # type: ignore[arg-type]
                await listening(started[-1])
                began = time.monotonic()
                await until(lambda: _holds_at_least(address, CLIENTS // 2), seconds=60)
                back.append(time.monotonic() - began)
    print_figure("a process that was killed", kills=kills, back_s=round(max(back), 2), **others.figures)
    assert others.oracle.broken["held"] + others.oracle.broken["crossed"] >= kills * CLIENTS // 2
    assert not others.oracle.refusals


async def _holds_at_least(address: Address, count: int) -> bool:
    return (await read_metrics(address))["longpoll_held_connections"] >= count


@pytest.mark.parametrize("stalls", [5, pytest.param(50, marks=pytest.mark.slow)])
async def test_a_loop_that_stands_still_does_not_take_its_listener_for_dead(
    open_site: Any, sql: Sql, dsn: str, stalls: int
) -> None:
    """Twice as long as the heartbeat's pause, at any moment of it."""
    site = await open_site(database={"heartbeat_seconds": 0.25}, polling={"sweep_seconds": 300.0})
    reconnects = site.metric("longpoll_listener_reconnects_total")
    listener = site.app[keys.LISTENER]
    async with bystanders(site.address, sql, dsn) as others:
        for number in range(stalls):
            heard = listener._heard
            await until(lambda heard=heard: listener._heard > heard)
            await asyncio.sleep(0.05 * (number % 5))  # so that each stall meets another part of the beat
            time.sleep(0.5)  # noqa: ASYNC251 - this is the fault
            heard = listener._heard
            await until(lambda heard=heard: listener._heard >= heard + 2)
            assert listener.healthy
    reconnects = int(site.metric("longpoll_listener_reconnects_total") - reconnects)
    print_figure("a loop that stands still", stalls=stalls, stall_ms=500, reconnects=reconnects, **others.figures)
    assert reconnects == 0
    assert site.metric("longpoll_missed_notify_repairs_total") == 0
