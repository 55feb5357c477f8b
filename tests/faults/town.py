"""A small town to be tormented: two servers on one port, two workers, a database behind a proxy, and its people.

Whoever dies is started again, as a service manager would. Everything that a test does to the town heals by `heal`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import psycopg2

from tests.faults.load import Pollers, Updates, add_tasks, add_token
from tests.faults.oracle import Oracle
from tests.faults.postgres import MortalPostgres
from tests.faults.proxy import Proxy
from tests.faults.sites import LISTENING, settings_of
from tests.faults.witness import Witness
from tests.support.facts import until
from tests.support.ports import free_port
from tests.support.postgres import execute
from tests.support.processes import ServerProcess
from tests.support.rows import add_user

HOLD_SECONDS = 5.0
LEASE_SECONDS = 2.0
DRAIN_SECONDS = 0.5
CLIENTS = 200
CLIENTS_OF_A_TASK = 5
RATE = 60.0
# Beside those that SQL changes, so many tasks are with the workers or wait for them.
ORDERS = 6
_OPEN_ORDERS = """SELECT count(*) FROM public.image_generations
 WHERE prompt = 'an order' AND status IN ('pending', 'processing')"""
_UNFINISHED = "SELECT task_id FROM public.image_generations WHERE status IN ('pending', 'processing')"


class Town:
    """The processes, the people, and the oracle who hears of all they do."""

    def __init__(self, postgres: MortalPostgres, proxy: Proxy, folder: Path) -> None:
        self.postgres = postgres
        self.proxy = proxy
        self.dsn = postgres.dsn
        self.oracle = Oracle(hold_seconds=HOLD_SECONDS)
        self.witness = Witness(self.dsn)
        self.user_id = add_user(self.sql)
        self.token = add_token(self.sql, self.user_id)
        self.address = ("127.0.0.1", free_port())
        self.servers: list[ServerProcess] = []
        self.workers: list[ServerProcess] = []
        self.task_ids: list[str] = []
        self.creations: Counter[int | str] = Counter()
        self._folder = folder
        self._ended: list[ServerProcess] = []
        self._settings = settings_of(
            proxy.dsn(self.dsn),
            folder,
            server__port=self.address[1],
            server__reuse_port="true",
            server__drain_seconds=DRAIN_SECONDS,
            database__admin_dsn=self.dsn,  # what is tried isn't the migrations
            database__heartbeat_seconds=0.5,
            database__timeout_seconds=3.0,
            polling__hold_seconds=HOLD_SECONDS,
            polling__sweep_seconds=1.0,
        )

    def sql(self, statement: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        """Run plain SQL past the proxy, over a connection of its own."""
        return execute(self.dsn, statement, parameters)

    # Processes ---------------------------------------------------------------------------------------------------------

    def start_server(self) -> ServerProcess:
        """Start a web server, without waiting until it listens."""
        self.servers.append(ServerProcess(self._folder, **self._settings))  # type: ignore[arg-type]
        return self.servers[-1]

    def start_worker(self) -> ServerProcess:
        """Start a worker."""
        more = {
            "generation__workers": 1,
            "generation__step_seconds": 0.1,
            "generation__lease_seconds": LEASE_SECONDS,
            "generation__max_attempts": 100,
        }
        self.workers.append(ServerProcess(self._folder, "worker", **{**self._settings, **more}))  # type: ignore[arg-type]
        return self.workers[-1]

    def replace_dead(self) -> None:
        """Start anew whoever has ended, by a test's hand or because the database was away at its start."""
        for crew, start in ((self.servers, self.start_server), (self.workers, self.start_worker)):
            for process in [each for each in crew if each.process.poll() is not None]:
                crew.remove(process)
                self._ended.append(process)
                start()

    @property
    def listening(self) -> int:
        """How many of the servers that run have come so far as to listen."""
        return sum(LISTENING.search(each.said) is not None for each in self.servers if each.process.poll() is None)

    async def until_it_runs(self) -> None:
        """Wait until both servers listen."""

        def runs() -> bool:
            self.replace_dead()
            return self.listening == 2

        await until(runs, seconds=90)

    async def heal(self) -> None:
        """Make everything whole again, and wait until it is."""
        self.proxy.recover()
        self.proxy.resume()
        self.postgres.start()
        self.sql("ALTER TABLE public.image_generations ENABLE TRIGGER notify_updated")
        await self.until_it_runs()

    async def until_all_ended(self) -> None:
        """Wait until the workers have done what is left."""

        def ended() -> bool:
            self.replace_dead()
            return not self.sql(_UNFINISHED)

        await until(ended, seconds=90)

    def close(self) -> None:
        """End every process, the hard way if it doesn't end by itself."""
        for process in self.servers + self.workers:
            if process.process.poll() is None:
                process.process.kill()
            process.wait()

    def said(self, text: str) -> int:
        """How often any process has said this."""
        return sum(each.said.count(text) for each in self.servers + self.workers + self._ended)

    # People --------------------------------------------------------------------------------------------------------------

    async def live(self, pollers: Pollers, updates: Updates) -> None:
        """See to it, for ever, that enough clients wait: for tasks that SQL changes, and for orders to the workers."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._change_tasks(pollers, updates))
            group.create_task(self._place_orders(pollers))

    async def _change_tasks(self, pollers: Pollers, updates: Updates) -> None:
        while True:
            await asyncio.sleep(0.05)
            missing = CLIENTS - pollers.waiting
            if missing < CLIENTS_OF_A_TASK:
                continue
            with contextlib.suppress(psycopg2.Error):  # the database is away: next time
                count = missing // CLIENTS_OF_A_TASK
                # As if they were with a worker, so that nobody else claims them.
                fresh = add_tasks(self.sql, self.user_id, count, status="processing")
                self._follow(pollers, fresh)
                updates.add(fresh)

    async def _place_orders(self, pollers: Pollers) -> None:
        headers = {"Authorization": f"Bearer {self.token}"}
        async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(15)) as session:
            while True:
                await asyncio.sleep(0.1)
                with contextlib.suppress(psycopg2.Error):
                    [(open_orders,)] = self.sql(_OPEN_ORDERS)
                    if open_orders < ORDERS:
                        self._follow(pollers, [await self._order(session)])

    def _follow(self, pollers: Pollers, task_ids: list[str]) -> None:
        self.task_ids += task_ids
        pollers.follow(task_ids, clients=CLIENTS_OF_A_TASK)

    async def _order(self, session: aiohttp.ClientSession) -> str:
        """Have one more picture made. The key makes it one task, however often the request must be repeated."""
        url, key = f"http://{self.address[0]}:{self.address[1]}/api/generate", secrets.token_hex(8)
        while True:
            try:
                async with session.post(url, json={"prompt": "an order"}, headers={"Idempotency-Key": key}) as reply:
                    self.creations[reply.status] += 1
                    if reply.status == 202:
                        return str((await reply.json())["taskId"])
                    assert reply.status == 503, await reply.text()
            except (aiohttp.ClientError, TimeoutError) as error:
                self.creations[type(error).__name__] += 1
            await asyncio.sleep(random.uniform(0.1, 0.5))
