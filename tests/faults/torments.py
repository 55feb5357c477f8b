"""What can be done to a town: faults of the database and its connections, of processes, and of clients."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import psycopg2

from tests.faults.load import Pollers, kill_listeners
from tests.faults.sites import LISTENING
from tests.faults.town import LEASE_SECONDS, Town
from tests.support.processes import ServerProcess

_TRIGGER = "ALTER TABLE public.image_generations {} TRIGGER notify_updated"
_FLOOD = "SELECT pg_notify('generation_changed', repeat('x', n % 7999 + 1) || n) FROM generate_series(1, 2000) AS n"


class Torments:
    """Torments a town at random, by two hands at once: one for its database, the other for processes and clients."""

    def __init__(self, town: Town, pollers: Pollers, chance: random.Random) -> None:
        self._town = town
        self._pollers = pollers
        self._chance = chance
        self.done: Counter[str] = Counter()
        self.slowest_stop = 0.0

    async def torment(self, seconds: float) -> None:
        """Go on for so long; what has begun by then is brought to its end."""
        end = time.monotonic() + seconds
        database = (
            self.kill_listeners,
            self.half_open,
            self.cut,
            self.refuse,
            self.crash,
            self.mute_trigger,
            self.flood,
        )
        processes = (self.reset_clients, self.drain_server, self.kill_server, self.kill_worker, self.freeze_worker)
        async with asyncio.TaskGroup() as group:
            for hand in (database, processes):
                group.create_task(self._go_on(hand, end))

    async def _go_on(self, hand: tuple[Callable[[], Awaitable[None]], ...], end: float) -> None:
        while time.monotonic() < end:
            torment = self._chance.choice(hand)
            await torment()
            self.done[torment.__name__] += 1
            await self._rest(0.2, 1.5)
            self._town.replace_dead()

    async def _rest(self, least: float, most: float) -> None:
        await asyncio.sleep(self._chance.uniform(least, most))

    # The database --------------------------------------------------------------------------------------------------------

    async def kill_listeners(self) -> None:
        """Terminate the backends that listen."""
        with contextlib.suppress(psycopg2.Error):
            kill_listeners(self._town.dsn)

    async def half_open(self) -> None:
        """Forward nothing for a while, and say nothing about it."""
        self._town.proxy.pause()
        await self._rest(0.5, 4)
        self._town.proxy.resume()

    async def cut(self) -> None:
        """Reset every connection to the database."""
        self._town.proxy.cut()

    async def refuse(self) -> None:
        """Be a database that isn't there for a while."""
        self._town.proxy.fail()
        await self._rest(0.5, 3)
        self._town.proxy.recover()

    async def crash(self) -> None:
        """End Postgres the hard way, and start it again after a while."""
        await self._town.postgres.crash()
        await self._rest(0, 2)
        await self._town.postgres.come_back()

    async def mute_trigger(self) -> None:
        """Have changes notified to nobody for a while."""
        with contextlib.suppress(psycopg2.Error):
            self._town.sql(_TRIGGER.format("DISABLE"))
            await self._rest(0.5, 3)
            self._town.sql(_TRIGGER.format("ENABLE"))

    async def flood(self) -> None:
        """Send thousands of notifications that make no sense."""
        with contextlib.suppress(psycopg2.Error):
            await asyncio.to_thread(self._town.sql, _FLOOD)

    # Processes and clients -----------------------------------------------------------------------------------------------

    async def reset_clients(self) -> None:
        """Have some clients vanish, and come again."""
        self._pollers.reset_some(50, self._chance)

    async def drain_server(self) -> None:
        """Stop one of two servers as its operator would."""
        if server := self._one_of_two():
            began = time.monotonic()
            assert await asyncio.to_thread(server.stop) == 0, server.said[-2000:]
            self.slowest_stop = max(self.slowest_stop, time.monotonic() - began)

    async def kill_server(self) -> None:
        """Kill one of two servers."""
        if server := self._one_of_two():
            server.stop(signal.SIGKILL)

    async def kill_worker(self) -> None:
        """Kill a worker, wherever it is."""
        self._chance.choice(self._town.workers).stop(signal.SIGKILL)

    async def freeze_worker(self) -> None:
        """Have a worker stand still for longer than its lease."""
        worker = self._chance.choice(self._town.workers)
        worker.process.send_signal(signal.SIGSTOP)
        await self._rest(LEASE_SECONDS, 2 * LEASE_SECONDS)
        worker.process.send_signal(signal.SIGCONT)

    def _one_of_two(self) -> ServerProcess | None:
        """Return a server, unless it is the only one that listens."""
        servers = [each for each in self._town.servers if each.process.poll() is None and LISTENING.search(each.said)]
        return self._chance.choice(servers) if len(servers) == 2 else None
