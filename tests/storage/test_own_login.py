"""Whom the server logs in as: never a superuser of its own making, and with no right to create anything."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg2.extensions import make_dsn

from server.storage.embedded.cluster import EmbeddedPostgres
from server.storage.migrations import migrate, read_migrations
from tests.commands.test_serve import local_session, register
from tests.support.facts import until
from tests.support.ports import free_port
from tests.support.postgres import Sql, execute
from tests.support.processes import ServerProcess, server_process

ROOT = Path(__file__).resolve().parents[2]
WORKING = re.compile(r"^1 worker\(s\) running", re.MULTILINE)
PORT = re.compile(r"^2 processes on port (\d+)", re.MULTILINE)
# A connection has no user yet while it is being let in.
LOGINS = (
    "SELECT DISTINCT usename::text, application_name FROM pg_stat_activity"
    " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND usename IS NOT NULL"
)


@pytest.fixture
def folder(begun_folder: Path) -> Path:
    """A checkout in which a Postgres has been made already: who made it isn't what is tried here."""
    return begun_folder


def superuser(folder: Path) -> str:
    """The DSN that docs/operating.md gives to the load tester."""
    return f"host={folder}/.data/sockets user=postgres dbname=postgres"


async def make_a_picture(url: str) -> None:
    async with local_session() as session:
        await register(session, url)
        body, headers = {"prompt": "a lake"}, {"Prefer": "wait=30"}
        async with session.post(f"{url}/api/generate", json=body, headers=headers) as reply:
            assert (await reply.json())["data"]["status"] == "completed"


# With the embedded Postgres ------------------------------------------------------------------------------------------


async def test_the_embedded_postgres_is_served_by_a_plain_login(folder: Path) -> None:
    with server_process(folder, generation__step_seconds=0) as server:
        await make_a_picture(server.url)
        admin = superuser(folder)
        assert set(execute(admin, LOGINS)) == {
            ("longpoll_login", "longpoll-serve"),
            ("longpoll_login", "longpoll-serve-listener"),
        }
        rights = (
            "SELECT rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolinherit FROM pg_roles WHERE rolname = %s"
        )
        assert execute(admin, rights, ("longpoll_login",)) == [(False,) * 5]
        plain = make_dsn(admin, user="longpoll_login")
        for forbidden in ("SET ROLE postgres", "CREATE TABLE public.mine ()", "TABLE longpoll.accounts"):
            with pytest.raises(Exception, match="permission denied"):
                execute(plain, forbidden)
        assert server.stop() == 0


async def test_data_of_an_earlier_version_is_given_the_login(folder: Path) -> None:
    """The superuser made and migrated it, and also served it."""
    with EmbeddedPostgres(folder / ".data") as before:
        await migrate(before.dsn, migrations=[each for each in read_migrations() if each.name < "0004"])
        execute(before.dsn, "SELECT longpoll.register_account('old@example.org', '')")
    doctor = await asyncio.to_thread(run, folder, "doctor")
    assert "database      ok" in doctor
    assert "roles         ok" not in doctor, "it changes nothing but that there is a login"
    with server_process(folder, generation__step_seconds=0) as server:
        await make_a_picture(server.url)
        assert execute(superuser(folder), "SELECT count(*) FROM longpoll.accounts") == [(2,)]
        assert ("longpoll_login", "longpoll-serve") in execute(superuser(folder), LOGINS)
        assert server.stop() == 0
    assert "0 FAILED" in await asyncio.to_thread(run, folder, "doctor", polling__max_held=50)


async def test_a_worker_beside_it_joins_as_the_same_login(folder: Path) -> None:
    with server_process(folder, generation__workers=0) as server:
        url = server.url
        with server_process(folder, "worker", generation__step_seconds=0) as worker:
            await asyncio.to_thread(worker.until_said, WORKING)
            await make_a_picture(url)
            assert {login for login, _ in execute(superuser(folder), LOGINS)} == {"longpoll_login"}
            assert ("longpoll_login", "longpoll-worker-listener") in execute(superuser(folder), LOGINS)
            assert worker.stop() == 0
        assert server.stop() == 0


async def test_several_processes_on_it_log_in_as_the_same_login(folder: Path) -> None:
    with server_process(folder, "serve", "--processes", "2", generation__step_seconds=0) as server:
        url = f"http://127.0.0.1:{(await asyncio.to_thread(server.until_said, PORT))[1]}"
        await asyncio.to_thread(server.until_said, re.compile(r"(Listening on .*\s[\s\S]*){2}"))
        await make_a_picture(url)
        assert {login for login, _ in execute(superuser(folder), LOGINS)} == {"longpoll_login"}
        assert server.stop() == 0


# With a Postgres that an admin has migrated ---------------------------------------------------------------------------


@pytest.fixture
def plain(empty_dsn: str) -> Iterator[str]:
    """The DSN of a login that an admin has made, on a database that was migrated for it and changes no more by its hand."""
    role = f"plain_{os.getpid()}"
    execute(empty_dsn, f"CREATE ROLE {role} LOGIN")
    said = run(ROOT, "migrate", database__dsn=make_dsn(empty_dsn, user=role), database__admin_dsn=empty_dsn)
    assert "applied 0001_" in said
    yield make_dsn(empty_dsn, user=role)
    execute(empty_dsn, f"DROP ROLE {role}")


def run(folder: Path, *arguments: str, **settings: object) -> str:
    """Run a command to its end; returns what it said on both streams."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LONGPOLL_")}
    environment |= {f"LONGPOLL_{name.upper()}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-m", "server", *arguments]
    done = subprocess.run(
        command,
        check=False,
        cwd=folder,
        env=environment | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    return done.stdout


async def test_a_plain_login_serves_and_works_after_an_admin_has_migrated(plain: str, folder: Path) -> None:
    """Each checks that nothing is missing, and needs no right but to take on the two roles."""
    settings = {"database__dsn": plain, "generation__step_seconds": 0}
    with server_process(folder, generation__workers=0, **settings) as server:
        url = server.url
        with server_process(folder, "worker", **settings) as worker:
            await asyncio.to_thread(worker.until_said, WORKING)
            await make_a_picture(url)
            assert worker.stop() == 0
        assert server.stop() == 0
    said = await asyncio.to_thread(run, folder, "doctor", polling__max_held=50, database__dsn=plain)
    assert "0 FAILED" in said
    assert "nothing to do" in await asyncio.to_thread(run, folder, "migrate", database__dsn=plain)


async def test_a_plain_login_serves_behind_gunicorn(plain: str, tmp_path: Path) -> None:
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LONGPOLL_")}
    environment |= {"LONGPOLL_DATABASE__DSN": plain, "LONGPOLL_DATABASE__DATA_DIR": str(tmp_path)}
    options = ["--bind", f"127.0.0.1:{port}", "--worker-class", "aiohttp.GunicornWebWorker", "-w", "2"]
    command = [sys.executable, "-m", "gunicorn", "server.gunicorn:runner", *options]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env=environment | {"LONGPOLL_GENERATION__STEP_SECONDS": "0"}
    )

    async def ready() -> bool:
        async with local_session() as session:
            try:
                async with session.get(f"http://127.0.0.1:{port}/readyz") as reply:
                    return reply.status == 200
            except OSError:
                return False

    try:
        await until(ready, 60)
        await make_a_picture(f"http://127.0.0.1:{port}")
    finally:
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


async def test_what_a_plain_login_cannot_apply_is_said_in_one_sentence(
    plain: str, folder: Path, empty_dsn: str
) -> None:
    execute(empty_dsn, "DELETE FROM longpoll.migrations WHERE name LIKE '0004%'")
    server = ServerProcess(folder, database__dsn=plain)
    assert await asyncio.to_thread(server.wait) == 1
    (sentence,) = server.said.splitlines()
    assert sentence.startswith("error: 0004_readable_ledger.sql failed and was undone: permission denied")
    assert "run `python -m server migrate` with database.admin_dsn" in sentence


async def test_a_database_of_another_encoding_is_refused_in_one_sentence(folder: Path, sql: Sql, dsn: str) -> None:
    name = f"latin_{os.getpid()}"
    sql(
        f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'"
        + (" LOCALE_PROVIDER libc" if int(sql("SHOW server_version_num")[0][0]) >= 170000 else "")
    )
    try:
        server = ServerProcess(folder, database__dsn=make_dsn(dsn, dbname=name))
        assert await asyncio.to_thread(server.wait) == 1
    finally:
        sql(f"DROP DATABASE {name}")
    assert server.said.startswith(
        f"error: the database {name} has the encoding LATIN1, and must have UTF8: make one by "
    )
    assert server.said.count("\n") == 1
