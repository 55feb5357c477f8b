"""Two hundred polls of somebody else, and updates that flow: whatever happens to others, these must not notice."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence

from tests.faults.load import Pollers, Updates, add_tasks, add_token, read_states
from tests.faults.oracle import Oracle
from tests.faults.sites import Address
from tests.support.facts import until
from tests.support.postgres import Sql
from tests.support.rows import add_user

TASKS = 20
CLIENTS_OF_A_TASK = 10
CLIENTS = TASKS * CLIENTS_OF_A_TASK
RATE = 50.0
_numbers = itertools.count(1)


class Bystanders:
    """Who they are, what they were told, and the oracle's figures when it is over."""

    def __init__(self, user_id: str, task_ids: Sequence[str], oracle: Oracle, pollers: Pollers) -> None:
        self.user_id = user_id
        self.task_ids = task_ids
        self.oracle = oracle
        self.pollers = pollers
        self.figures: dict[str, float] = {}

    async def until_told(self, replies: int = CLIENTS) -> None:
        """Wait until so many polls of theirs have been answered from now on."""
        before = len(self.oracle.replies)
        await until(lambda: len(self.oracle.replies) >= before + replies, seconds=60)


@contextlib.asynccontextmanager
async def bystanders(
    addresses: Address | Sequence[Address],
    sql: Sql,
    dsn: str,
    *,
    rate: float = RATE,
    hold_seconds: float = 30.0,
    unharmed: bool = True,
) -> AsyncIterator[Bystanders]:
    """Have them poll during the block, and let the oracle judge behind it.

    `unharmed`: none of their connections may break, and no request be refused, since nothing was done to them.
    """
    places = [addresses] if isinstance(addresses, tuple) and isinstance(addresses[0], str) else list(addresses)
    user_id = add_user(sql, f"bystander{next(_numbers)}")
    oracle, task_ids = Oracle(hold_seconds=hold_seconds), add_tasks(sql, user_id, TASKS)
    async with Pollers(oracle, places, token=add_token(sql, user_id)) as pollers:  # type: ignore[arg-type]
        others = Bystanders(user_id, task_ids, oracle, pollers)
        pollers.follow(task_ids, clients=CLIENTS_OF_A_TASK)
        with Updates(oracle, dsn, task_ids, rate=rate) as updates:
            await others.until_told(CLIENTS // 2)
            yield others
            await others.until_told()
        await asyncio.to_thread(updates.end_all)
        await pollers.until_done()
    others.figures = oracle.check(read_states(dsn, task_ids))
    if unharmed:
        assert not oracle.broken
        assert not oracle.refusals
