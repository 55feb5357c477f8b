"""Parking needs names that aiohttp keeps to itself: which they are, and what happens where one is missing."""

from __future__ import annotations

import aiohttp
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from server.protocol import aiohttp_handler
from server.protocol.aiohttp_handler import missing_names
from server.telemetry import logs
from server.waiting.waiters import TaskHold
from tests.support import parked
from tests.support.facts import until
from tests.support.parked import PROCESSING, kinds_held
from tests.support.people import Enter, Start
from tests.support.postgres import Sql
from tests.support.raw_http import connect_to, status_request

config = parked.config


async def test_this_release_of_aiohttp_has_them() -> None:
    async def handle(_request: web.BaseRequest) -> web.StreamResponse:
        raise NotImplementedError

    missing = missing_names(web.Server(handle))
    assert not missing, f"aiohttp {aiohttp.__version__} has no {missing}: see what took their place before it is pinned"


async def test_without_one_every_poll_is_held_by_its_coroutine(
    start: Start, enter: Enter, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start says so once, and the contract is kept."""
    names = (*aiohttp_handler.PRIVATE_NAMES[web.BaseRequest], "_gone")
    monkeypatch.setitem(aiohttp_handler.PRIVATE_NAMES, web.BaseRequest, names)  # type: ignore[arg-type]
    with capture_logs() as lines:
        alice = await enter(await start())
    warnings = [line for line in lines if line["event"] == logs.PARKING_UNAVAILABLE]
    assert warnings
    assert warnings[0]["missing"] == ["_gone"]
    task_id = await alice.create()
    async with connect_to(alice) as connection:
        for version in (1, 2):
            await connection.send(status_request(alice, task_id, version=version))
            await until(lambda: alice.held == 1)
            assert kinds_held(alice) == [TaskHold]
            sql(PROCESSING if version == 1 else "UPDATE public.image_generations SET stage = 'sky'")
            reply = await connection.reply()
            assert (reply.status, reply.headers["x-task-version"]) == (200, str(version + 1))
