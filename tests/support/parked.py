"""Polls whose connection is parked, and how to see that they are."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from server.config import Config
from server.protocol.aiohttp_handler import PollHandler, PollServer
from server.waiting.parked_polls import ParkedPoll
from server.web import keys
from tests.support.facts import until
from tests.support.people import Person
from tests.support.postgres import Sql
from tests.support.raw_http import Connection, Reply, status_request

PROCESSING = "UPDATE public.image_generations SET status = 'processing', message = 'note ' || version"


@pytest.fixture
def config(config: Config) -> Config:
    """Park, whatever else the tests are run with."""
    return config.replace(polling={"park": True})


def server_of(person: Person) -> PollServer:
    server = person.http.server.runner.server  # type: ignore[attr-defined]
    assert isinstance(server, PollServer)
    return server


def kinds_held(person: Person) -> list[type]:
    return sorted((type(hold) for hold in person.app[keys.WAITERS]), key=str)


async def is_parked(person: Person) -> None:
    await until(lambda: kinds_held(person) == [ParkedPoll])


def handlers_alive() -> int:
    return sum(isinstance(each, PollHandler) for each in gc.get_objects())


async def follow(person: Person, connection: Connection, task_id: str, version: int, **query: Any) -> None:
    await connection.send(status_request(person, task_id, version=version, **query))
    await is_parked(person)


async def changed(connection: Connection, sql: Sql) -> Reply:
    sql(PROCESSING)
    return await connection.reply()
