"""Whatever an operator has set for the login, the database or the environment: the server works the same."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterator

import pytest
from psycopg2.extensions import make_dsn

from server.commands.loadtest.by_sql import SqlStage
from server.errors import ConfigurationError
from server.storage.database import Database
from server.web import keys
from tests.support.facts import until
from tests.support.people import Enter, Person, Start
from tests.support.postgres import Sql, execute

PROMPT = "ein Käfer über dem 湖, 🌊\\n'quoted'"
ENVIRONMENT = {
    "PGCLIENTENCODING": "LATIN1",
    "PGDATESTYLE": "German",
    "PGTZ": "Asia/Kathmandu",
    "PGOPTIONS": "-c search_path=nowhere -c bytea_output=escape -c extra_float_digits=0",
    "PGUSER": "nobody_of_that_name",
    "PGDATABASE": "nothing_of_that_name",
}


@pytest.fixture
def login(dsn: str) -> Iterator[str]:
    """The DSN of a plain login that may act as the server's roles."""
    role = f"peculiar_{os.getpid()}"
    execute(dsn, f"CREATE ROLE {role} LOGIN; GRANT longpoll_app, longpoll_service TO {role}")
    yield make_dsn(dsn, user=role)
    execute(dsn, f"DROP ROLE {role}")


async def use(person: Person, sql: Sql) -> None:
    """Create a task, see it change, and find it in the list, with its text and times as they are."""
    before = dt.datetime.now(dt.UTC)
    task_id = await person.create(PROMPT)
    sql("UPDATE public.image_generations SET status = 'failed', error = %s", (PROMPT,))
    data = (await person.status(task_id, version=1))["data"]
    assert (data["status"], data["error"], data["version"]) == ("failed", PROMPT, 2)
    created = dt.datetime.fromisoformat(data["createdAt"])
    assert abs((created - before).total_seconds()) < 60
    assert created.utcoffset() == dt.timedelta(0)
    async with person.http.get("/api/generate/tasks") as reply:
        assert [task["prompt"] for task in (await reply.json())["items"]] == [PROMPT]
    async with person.http.delete(f"/api/generate/tasks/{task_id}") as reply:
        assert reply.status == 204
    async with person.http.post("/api/auth/tokens", json={"name": "script"}) as reply:
        secret = (await reply.json())["token"]
    async with person.http.get("/api/generate/tasks", headers={"Authorization": f"Bearer {secret}"}) as reply:
        assert reply.status == 200


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("datestyle", "'SQL, DMY'"),
        ("intervalstyle", "'sql_standard'"),
        ("timezone", "'Asia/Kathmandu'"),
        ("search_path", "''"),
        ("client_encoding", "'LATIN1'"),
        ("bytea_output", "'escape'"),
        ("standard_conforming_strings", "off"),
        ("extra_float_digits", "0"),
        ("statement_timeout", "300"),
        ("default_transaction_isolation", "'serializable'"),
        ("default_transaction_deferrable", "on"),
        ("row_security", "off"),
        ("role", "'longpoll_service'"),
        ("application_name", "'another'"),
        ("lc_messages", "'C'"),
    ],
)
async def test_whatever_is_set_for_the_login(
    start: Start, enter: Enter, sql: Sql, login: str, setting: str, value: str
) -> None:
    sql(f"ALTER ROLE peculiar_{os.getpid()} SET {setting} = {value}")
    person = await enter(await start(login))
    await use(person, sql)
    assert person.metric("longpoll_listener_reconnects_total") == 0


async def test_whatever_is_set_in_the_environment(
    start: Start, enter: Enter, sql: Sql, login: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    await use(await enter(await start(login)), sql)


def test_the_load_tester_asks_for_its_encoding_too(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    with SqlStage(dsn, tasks=1, clients=1, polls_per_user=1, secret=None) as stage:
        stage._run_query("change_task", message=PROMPT, task_id=stage.tasks[0].task_id)
        assert execute(dsn, "SELECT encode(convert_to(message, 'UTF8'), 'hex') FROM public.image_generations") == [
            (PROMPT.encode().hex(),)
        ]


async def test_statements_are_read_committed_whatever_is_the_default(login: str, sql: Sql) -> None:
    """Under any other level a claim or a cancel that meets another fails instead of waiting for it."""
    sql(f"ALTER ROLE peculiar_{os.getpid()} SET default_transaction_isolation = 'repeatable read'")
    database = Database(login, pool_size=1, timeout=5)
    database._queries["level"] = "SELECT current_setting('transaction_isolation') AS level"
    await database.open()
    await database.check_role()
    for user in (None, "11111111-1111-1111-1111-111111111111"):
        assert await database.fetch_one("level", lambda level: level, user=user) == "read committed"
    await database.close()


async def test_a_login_that_may_only_read_is_told_at_the_start(login: str, sql: Sql) -> None:
    sql(f"ALTER ROLE peculiar_{os.getpid()} SET default_transaction_read_only = on")
    database = Database(login, pool_size=1, timeout=5)
    await database.open()
    with pytest.raises(ConfigurationError, match=r"nothing may be written .* default_transaction_read_only is on"):
        await database.check_role()
    await database.close()


async def test_a_listener_that_says_nothing_is_not_closed_for_it(start: Start, login: str, sql: Sql) -> None:
    sql(f"ALTER ROLE peculiar_{os.getpid()} SET idle_session_timeout = 100")
    app = (await start(login, database={"heartbeat_seconds": 0.2})).server.app  # type: ignore[attr-defined]
    listener = app[keys.LISTENER]
    await until(lambda: listener.beats > 3)
    assert app[keys.METRICS].registry.get_sample_value("longpoll_listener_reconnects_total") == 0


# How Postgres lists us ----------------------------------------------------------------------------------------------


def names(sql: Sql) -> set[str]:
    rows = sql(
        "SELECT application_name FROM pg_stat_activity WHERE datname = current_database()"
        " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    return {name for (name,) in rows}


async def test_connections_are_told_apart_by_name(start: Start, sql: Sql) -> None:
    await start()
    assert names(sql) == {"longpoll-serve", "longpoll-serve-listener"}


async def test_a_name_in_the_dsn_wins(start: Start, sql: Sql, dsn: str) -> None:
    await start(make_dsn(dsn, application_name="pictures"))
    await until(lambda: names(sql) == {"pictures"})
