"""A change at the very moment at which holds end: told now or told by the next poll, and nobody is left behind."""

from __future__ import annotations

import asyncio
import random

import pytest
from aiohttp import web

from server import keys
from tests.conftest import Sql, Start, until
from tests.faults.load import Oracle, Pollers, Updates, add_tasks, add_token, print_figure, read_states
from tests.rows import add_user

HOLD_SECONDS = 0.4


async def test_smoke(start: Start, sql: Sql, dsn: str) -> None:
    client = await start(polling={"max_held_per_user": 10000})
    user = add_user(sql)
    token = add_token(sql, user)
    task_ids = add_tasks(sql, user, 20)
    oracle = Oracle()
    async with Pollers(oracle, [(str(client.host), client.port)], token=token) as pollers:
        pollers.follow(task_ids, clients=10)
        with Updates(oracle, dsn, task_ids, rate=100, ending=0.02) as updates:
            await asyncio.sleep(3)
        await asyncio.to_thread(updates.end_all)
        await pollers.until_done()
    print_figure("smoke", **oracle.check(read_states(dsn, task_ids)))
