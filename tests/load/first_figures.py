"""Three figures of one server process: `python -m tests.load.first_figures`.

* a poll held for its whole 30 s: statements that it cost;
* polls woken by an UPDATE of psql: milliseconds from commit to reply, median of 200;
* 2,000 polls held at once and woken by one UPDATE: how many were answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import aiohttp
import psycopg2

from tests.support.processes import server_process

ACCOUNT = {"email": "figures@example.org", "password": "correct horse"}
WAKES = 200
HELD = 2000


async def measure(url: str, dsn: str) -> None:
    """Print each figure as a line of JSON."""
    connector = aiohttp.TCPConnector(limit=0)
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(url, connector=connector, cookie_jar=jar) as session:
        async with session.post("/api/auth/register", json=ACCOUNT) as reply:
            reply.raise_for_status()
        async with session.post("/api/generate", json={"prompt": "a lake"}) as reply:
            task_id = (await reply.json())["taskId"]
        with contextlib.closing(psycopg2.connect(dsn)) as connection:
            connection.autocommit = True
            await _hold(session, task_id)
            await _wake(session, task_id, connection)
            await _hold_many(session, task_id, connection)


async def _hold(session: aiohttp.ClientSession, task_id: str) -> None:
    await _poll(session, task_id, version=1, wait=0)
    before = await _figure(session, "longpoll_database_statements")
    reads = await _figure(session, "longpoll_board_reads_total")
    body = await _poll(session, task_id, version=1)
    print(
        json.dumps(
            {
                "figure": "one poll held to its end",
                "waited_ms": body["poll"]["waitedMs"],
                "reason": body["poll"]["reason"],
                "reads_of_tasks": await _figure(session, "longpoll_board_reads_total") - reads,
                "statements_of_the_process": await _figure(session, "longpoll_database_statements") - before,
            }
        )
    )


async def _wake(session: aiohttp.ClientSession, task_id: str, connection: psycopg2.extensions.connection) -> None:
    milliseconds = []
    version = 1
    for number in range(WAKES):
        poll = asyncio.create_task(_poll(session, task_id, version=version))
        while await _figure(session, "longpoll_held_connections") < 1:
            await asyncio.sleep(0.001)
        committed = await asyncio.to_thread(_update, connection, task_id, number)
        body = await poll
        milliseconds.append((time.perf_counter() - committed) * 1000)
        version = body["data"]["version"]
    print(
        json.dumps(
            {
                "figure": "from the return of COMMIT to the whole reply",
                "wakes": WAKES,
                "median_ms": round(statistics.median(milliseconds), 2),
                "p99_ms": round(statistics.quantiles(milliseconds, n=100)[98], 2),
            }
        )
    )


async def _hold_many(session: aiohttp.ClientSession, task_id: str, connection: psycopg2.extensions.connection) -> None:
    version = (await _poll(session, task_id, version=0))["data"]["version"]
    polls = [asyncio.create_task(_poll(session, task_id, version=version)) for _ in range(HELD)]
    while (held := await _figure(session, "longpoll_held_connections")) < HELD:
        await asyncio.sleep(0.05)
    reads = await _figure(session, "longpoll_board_reads_total")
    committed = await asyncio.to_thread(_update, connection, task_id, -1)
    bodies = await asyncio.gather(*polls)
    print(
        json.dumps(
            {
                "figure": "polls held at once, woken by one commit",
                "held": held,
                "woken": sum(body["poll"]["reason"] == "change" for body in bodies),
                "last_reply_ms": round((time.perf_counter() - committed) * 1000),
                "reads_of_tasks": await _figure(session, "longpoll_board_reads_total") - reads,
            }
        )
    )


def _update(connection: psycopg2.extensions.connection, task_id: str, number: int) -> float:
    with connection.cursor() as cursor:
        statement = "UPDATE public.image_generations SET status = 'processing', message = %s WHERE task_id = %s"
        cursor.execute(statement, (f"number {number}", task_id))
    return time.perf_counter()


async def _poll(session: aiohttp.ClientSession, task_id: str, **query: object) -> dict[str, dict[str, object]]:
    parameters = {"taskId": task_id, **{name: str(value) for name, value in query.items()}}
    async with session.get("/api/generate/status", params=parameters) as reply:
        reply.raise_for_status()
        body: dict[str, dict[str, object]] = await reply.json()
        return body


async def _figure(session: aiohttp.ClientSession, name: str) -> float:
    async with session.get("/metrics") as reply:
        lines = (await reply.text()).splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def main() -> None:
    """Start a server in an empty folder, and measure it."""
    folder = Path(tempfile.mkdtemp(prefix="longpoll-run-", dir="/tmp"))
    folder.chmod(0o711)
    try:
        with server_process(
            folder, generation__workers=0, polling__max_held_per_user=HELD, limits__enabled=False
        ) as server:
            dsn = f"host={folder}/.data/sockets port=5432 user=postgres dbname=postgres"
            asyncio.run(measure(server.url, dsn))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
