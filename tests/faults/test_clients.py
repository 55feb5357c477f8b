"""Clients that vanish, dawdle, or ask for everything at once: they cost others nothing and leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import psycopg2
import pytest

from server.web import keys
from tests.faults import sites
from tests.faults.bystanders import bystanders
from tests.faults.load import Channel, add_tasks, print_figure
from tests.faults.sites import (
    Account,
    Site,
    channels,
    holds,
    listening,
    poll_target,
    processes,
    read_metrics,
    settings_of,
)
from tests.support.facts import Stopwatch, until
from tests.support.postgres import Sql
from tests.support.processes import ServerProcess
from tests.support.raw_http import connect

config, account, open_site = sites.config, sites.account, sites.open_site

CROWDS = [600, pytest.param(2000, marks=pytest.mark.slow)]
ABORTS_A_ROUND = 200
# For each client of a crowd, behind three more crowds: 0.6 KB were measured, and a waiter that stays costs 13 KB.
MOST_GROWTH_BYTES = 4_000


def ask_all(crowd: list[Channel], account: Account, task_ids: list[str]) -> list[asyncio.Task[tuple[int, bytes]]]:
    """Have each connection poll one of the tasks."""
    return [
        asyncio.create_task(channel.get(poll_target(task_ids[number % len(task_ids)]), account.headers))
        for number, channel in enumerate(crowd)
    ]


@pytest.mark.parametrize("crowd", CROWDS)
@pytest.mark.parametrize("leave", [Channel.close, Channel.reset], ids=["FIN", "RST"])
async def test_the_waiters_of_clients_that_left_are_gone_within_a_second(
    open_site: Any, account: Account, sql: Sql, dsn: str, crowd: int, leave: Callable[[Channel], None]
) -> None:
    site = await open_site()
    task_ids = add_tasks(sql, account.user_id, 20)
    async with bystanders(site.address, sql, dsn) as others, channels(site.address, crowd) as opened:
        polls = ask_all(opened, account, task_ids)
        await until(lambda: site.held_by(account.user_id) == crowd, seconds=60)
        async with Stopwatch() as leaving:
            for channel in opened:
                leave(channel)
            await until(lambda: site.held_by(account.user_id) == site.watching(task_ids) == 0)
        await asyncio.gather(*polls, return_exceptions=True)
    await until(lambda: site.leaks == 0)
    await until(lambda: site.metric("longpoll_polls_total", outcome="client_gone") == crowd)
    assert leaving.seconds < 1
    gone_ms = round(leaving.seconds * 1000)
    print_figure("clients that left", how=leave.__name__, gone=crowd, all_gone_ms=gone_ms, leaks=0, **others.figures)


@pytest.mark.parametrize("crowd", CROWDS)
async def test_clients_that_fell_silent_are_gone_when_their_hold_ends(
    open_site: Any, account: Account, sql: Sql, dsn: str, crowd: int
) -> None:
    """Nobody can tell that they have gone: they never read the reply, and the hold is the only bound."""
    site = await open_site(polling={"hold_seconds": 3.0})
    task_ids = add_tasks(sql, account.user_id, 20)
    async with (
        bystanders(site.address, sql, dsn, hold_seconds=3.0) as others,
        channels(site.address, crowd) as opened,
    ):
        for number, channel in enumerate(opened):
            target = poll_target(task_ids[number % 20])
            channel._writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\n{account.headers}\r\n".encode())
            channel._writer.transport.pause_reading()
        await until(lambda: site.held_by(account.user_id) == crowd, seconds=60)
        await until(lambda: site.metric("longpoll_polls_total", outcome="timeout") >= crowd)
        await until(lambda: site.held_by(account.user_id) == site.watching(task_ids) == 0)
    await until(lambda: site.leaks == 0)
    print_figure("clients that fell silent", gone=crowd, leaks=0, **others.figures)


def resident_bytes(process: ServerProcess) -> int:
    fields = Path(f"/proc/{process.process.pid}/statm").read_text().split()
    return int(fields[1]) * 4096


@pytest.mark.parametrize("crowd", CROWDS)
async def test_crowds_that_come_and_leave_again_and_again_leave_no_memory_behind(
    account: Account, sql: Sql, dsn: str, tmp_path: Path, crowd: int
) -> None:
    """What the first has taken is taken again by the next, and by nobody else."""
    resident = []
    task_ids = add_tasks(sql, account.user_id, 20)
    with processes() as started:
        server = ServerProcess(tmp_path, **settings_of(dsn, tmp_path))  # type: ignore[arg-type]
        started.append(server)
        address = await listening(server)
        for _ in range(4):
            async with channels(address, crowd) as opened:
                polls = ask_all(opened, account, task_ids)
                await until(lambda: holds(address, crowd), seconds=60)
                held = resident_bytes(server)
                for channel in opened:
                    channel.reset()
                await asyncio.gather(*polls, return_exceptions=True)
            await until(lambda: holds(address, 0))
            resident.append(resident_bytes(server))
        assert await asyncio.to_thread(server.stop) == 0
    megabytes = [round(each / 1e6, 1) for each in resident]
    print_figure("memory after a crowd", gone=crowd, held_mb=round(held / 1e6, 1), after_each_mb=megabytes)
    assert resident[-1] - resident[0] < crowd * MOST_GROWTH_BYTES


@contextlib.contextmanager
def locked_table(dsn: str) -> Iterator[None]:
    """Make every read of tasks wait until the block ends."""
    with closing(psycopg2.connect(dsn)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLE public.image_generations IN ACCESS EXCLUSIVE MODE")
        yield


@pytest.mark.parametrize("rounds", [5, pytest.param(25, marks=pytest.mark.slow)])
async def test_a_thousand_clients_that_leave_within_a_query_cost_no_connection(
    open_site: Any, account: Account, sql: Sql, dsn: str, rounds: int
) -> None:
    """Polls of tasks that nobody has read yet, and lists, which each wait for a query of their own."""
    site = await open_site(database={"heartbeat_seconds": 60.0, "pool_size": 4, "timeout_seconds": 30.0})
    database = site.app[keys.DATABASE]
    async with bystanders(site.address, sql, dsn) as others:
        before: set[int] = set()
        for round_number in range(rounds + 1):
            if round_number == 1:  # the first has filled the pool
                before = _backends(sql)
            await _leave_within_a_query(site, account, sql, dsn)
            await until(lambda: database.busy <= 1)  # the bystanders go on
        opened_since = _backends(sql) - before
    aborts = rounds * ABORTS_A_ROUND
    print_figure("clients that left within a query", aborts=aborts, opened=len(opened_since), **others.figures)
    assert not opened_since
    assert site.metric("longpoll_listener_reconnects_total") == 0
    await until(lambda: site.leaks == 0)


async def _leave_within_a_query(site: Site, account: Account, sql: Sql, dsn: str) -> None:
    database, task_ids = site.app[keys.DATABASE], add_tasks(sql, account.user_id, ABORTS_A_ROUND // 2)
    async with channels(site.address, ABORTS_A_ROUND) as opened:
        with locked_table(dsn):
            targets = [poll_target(task_id) for task_id in task_ids] + ["/api/generate/tasks"] * len(task_ids)
            polls = [
                asyncio.create_task(channel.get(target, account.headers))
                for channel, target in zip(opened, targets, strict=True)
            ]
            await until(lambda: site.watching(task_ids) == len(task_ids) and database.busy > len(task_ids))
            assert await site.app[keys.LISTENER].barrier()  # heartbeats have a connection of their own
            for channel in opened:
                channel.reset()
            await asyncio.gather(*polls, return_exceptions=True)
            await until(lambda: site.watching(task_ids) == 0)


def _backends(sql: Sql) -> set[int]:
    rows = sql(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND backend_type = 'client backend' AND application_name <> 'updates'"
    )
    return {row[0] for row in rows}


async def test_requests_that_drip_or_never_come_hold_nothing_up(
    account: Account, sql: Sql, dsn: str, tmp_path: Path
) -> None:
    """Not the others, and not the process when it is told to stop."""
    (task_id,) = add_tasks(sql, account.user_id, 1)
    with processes() as started:
        settings = settings_of(dsn, tmp_path, server__receive_seconds=1.0, server__drain_seconds=0.2)
        server = ServerProcess(tmp_path, **settings)  # type: ignore[arg-type]
        started.append(server)
        address = await listening(server)
        async with channels(address, 40) as slow, channels(address, 1) as (quick,):
            heads, bodies = slow[:20], slow[20:]
            for channel in bodies:
                channel._writer.write(
                    f"POST /api/generate HTTP/1.1\r\nHost: x\r\n{account.headers}"
                    "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{".encode()
                )
            poll = asyncio.create_task(quick.get(poll_target(task_id), account.headers))
            for letter in "GET /healthz HTTP/1.1\r\nHos":
                for channel in heads:
                    channel._writer.write(letter.encode())
                assert (await read_metrics(address))["longpoll_request_crashes_total"] == 0
            await until(lambda: holds(address, 1))
            sql("UPDATE public.image_generations SET status = 'processing'")
            status, body = await poll
            assert (status, orjson.loads(body)["poll"]["reason"]) == (200, "change")
            for channel in bodies:
                answer = await channel._reader.readuntil(b"\r\n")
                assert answer.startswith(b"HTTP/1.1 4"), answer
            assert await asyncio.to_thread(server.stop) == 0


async def test_pipelined_polls_are_answered_in_order_and_forgotten_together(
    open_site: Any, account: Account, sql: Sql
) -> None:
    site = await open_site()
    task_ids = add_tasks(sql, account.user_id, 10)
    requests = "".join(f"GET {poll_target(each)} HTTP/1.1\r\nHost: x\r\n{account.headers}\r\n" for each in task_ids)
    async with connect(*site.address) as connection:
        await connection.send(requests)
        for task_id in task_ids:
            await until(lambda: site.held == 1)
            sql("UPDATE public.image_generations SET status = 'processing' WHERE task_id = %s", (task_id,))
            answer = orjson.loads((await connection.reply()).body)
            assert (answer["data"]["taskId"], answer["poll"]["reason"]) == (task_id, "change")
    async with connect(*site.address) as connection:
        await connection.send(requests.replace("version=1", "version=2"))
        await until(lambda: site.held == 1)
        connection.abort()
        await until(lambda: site.leaks == 0)
