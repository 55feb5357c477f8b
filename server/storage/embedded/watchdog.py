"""Starts the embedded Postgres again when it has ended while a command needs it.

One process owns it, others on the same data folder have joined it. It ends when its owner stops, or when somebody kills
it. The first process that notices starts it again, on the same data and the same socket, and is its owner from then on;
the pool and the listener reconnect by themselves, as after any restart of a database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from server.storage.embedded.cluster import EmbeddedPostgres, Postmaster
from server.telemetry import logs

T = TypeVar("T")

_LOOK_SECONDS: Final = 0.5
_AFTER_FAILURE_SECONDS: Final = 5.0


async def keeping_it_running(embedded: EmbeddedPostgres | None, main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, and the Postgres beside it; None if the Postgres is none of ours."""
    watching = asyncio.create_task(_watch(embedded)) if embedded else None
    try:
        return await main
    finally:
        if watching:
            watching.cancel()


async def _watch(embedded: EmbeddedPostgres) -> None:
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        if _is_running(embedded):
            continue
        try:
            # It ends with the thread that starts it, which must be the main one: so the event loop waits for it.
            embedded.start()
        except Exception as error:  # noqa: BLE001 - whatever it was, nobody but us will try again
            logs.log.error(logs.POSTGRES_FAILED, error=str(error))
            await asyncio.sleep(_AFTER_FAILURE_SECONDS)
        else:
            logs.log.warning(logs.POSTGRES_RESTARTED, ours=embedded.owned)


def _is_running(embedded: EmbeddedPostgres) -> bool:
    postmaster = Postmaster.read(embedded.location.data)
    return postmaster is not None and postmaster.runs_on(embedded.location.data)
