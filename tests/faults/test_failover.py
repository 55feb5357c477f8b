"""Another Postgres takes over: a DSN that names both leads to whichever may write, within seconds."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg2.extensions import make_dsn, parse_dsn

from server.storage.embedded.binaries import run
from tests.faults.load import print_figure
from tests.faults.postgres import MortalPostgres, dsn, mortal
from tests.faults.proxy import proxy_to
from tests.support.facts import until
from tests.support.people import Enter, Person, Start
from tests.support.postgres import execute

__all__ = ["dsn", "mortal"]
SECONDS = 15  # until a failover must have been followed: a silent host has a time-out of 2 s, several times over


class Standby(MortalPostgres):
    """A copy of another Postgres, which follows it until it is promoted."""

    def __init__(self, primary: MortalPostgres, data_dir: Path) -> None:
        super().__init__(data_dir, postgres_bin=primary.location.binaries)
        self._account.give(data_dir)
        program = str(primary.location.binaries / "pg_basebackup")
        options = ["--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync"]
        run([program, "-d", primary.dsn, "-D", str(self.location.data), *options], self._account, 60)

    def promote(self) -> None:
        """Let it be the primary from now on."""
        assert execute(self.dsn, "SELECT pg_promote()") == [(True,)]


@pytest.fixture
def standby(mortal: MortalPostgres) -> Iterator[Standby]:
    """A standby of this test's Postgres."""
    folder = Path(tempfile.mkdtemp(prefix="longpoll-tests-", dir="/tmp"))
    folder.chmod(0o711)
    try:
        with Standby(mortal, folder) as copy:
            yield copy
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def is_ready(person: Person) -> bool:
    async with person.http.get("/readyz") as reply:
        return reply.status == 200


async def may_create(person: Person) -> bool:
    async with person.http.post("/api/generate", json={"prompt": "a lake"}) as reply:
        return reply.status == 202


def has_followed(primary: str, standby: str) -> bool:
    count = "SELECT count(*) FROM public.image_generations"
    return execute(primary, count) == execute(standby, count)


@pytest.mark.parametrize("how", ["crashes", "falls silent"])
@pytest.mark.parametrize("first", ["primary", "standby"])
async def test_a_failover_is_followed(
    start: Start, enter: Enter, mortal: MortalPostgres, standby: Standby, how: str, first: str
) -> None:
    """The primary ends, or its machine vanishes; the standby is promoted. A poll that was held meanwhile is woken."""
    async with proxy_to(mortal.dsn) as proxy:
        hosts = [("127.0.0.1", str(proxy.port)), (parse_dsn(standby.dsn)["host"], "5432")]
        if first == "standby":
            hosts.reverse()
        host, port = (",".join(each) for each in zip(*hosts, strict=True))
        several = make_dsn(mortal.dsn, host=host, port=port, target_session_attrs="read-write")
        person = await enter(await start(several, database={"timeout_seconds": 2.0}))
        task_id = await person.create()
        await until(lambda: has_followed(mortal.dsn, standby.dsn))
        poll = asyncio.create_task(person.status(task_id, version=1))
        await until(lambda: person.held)
        if how == "crashes":
            await mortal.crash()
        else:
            proxy.pause()
        begun = time.monotonic()
        await asyncio.to_thread(standby.promote)
        await until(lambda: may_create(person), SECONDS)
        await until(lambda: is_ready(person), SECONDS)
        seconds = time.monotonic() - begun
        execute(standby.dsn, "UPDATE public.image_generations SET status = 'processing' WHERE task_id = %s", (task_id,))
        answer = await poll
        assert (answer["poll"]["reason"], answer["data"]["version"]) == ("change", 2)
        print_figure("failover", primary=how, first=first, followed_s=round(seconds, 2))


async def test_a_primary_that_may_not_write_any_more_is_left(
    start: Start, enter: Enter, mortal: MortalPostgres, standby: Standby
) -> None:
    """As before a planned change of places: its connections stay open, and are of no use."""
    several = make_dsn(
        mortal.dsn,
        host=f"{parse_dsn(mortal.dsn)['host']},{parse_dsn(standby.dsn)['host']}",
        port="5432,5432",
        target_session_attrs="read-write",
    )
    person = await enter(await start(several))
    await person.create()
    await until(lambda: has_followed(mortal.dsn, standby.dsn))
    execute(mortal.dsn, "ALTER SYSTEM SET default_transaction_read_only = on")
    execute(mortal.dsn, "SELECT pg_reload_conf()")
    await asyncio.to_thread(standby.promote)
    await until(lambda: may_create(person), SECONDS)
    await until(lambda: is_ready(person), SECONDS)
    assert execute(standby.dsn, "SELECT count(*) > 1 FROM public.image_generations") == [(True,)]
