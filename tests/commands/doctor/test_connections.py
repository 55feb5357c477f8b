"""The doctor at the number of connections, and at databases that can't be used at all."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from psycopg2.extensions import make_dsn

from tests.commands.doctor.conftest import Examine
from tests.support.pooler import pooler
from tests.support.postgres import Sql, execute

ROLE = f"limited_{os.getpid()}"


@pytest.fixture
def login(dsn: str) -> Iterator[str]:
    """The DSN of a plain login that may act as the server's roles: a superuser is bound by no limit."""
    execute(dsn, f"CREATE ROLE {ROLE} LOGIN; GRANT longpoll_app, longpoll_service TO {ROLE}")
    yield make_dsn(dsn, user=ROLE)
    execute(dsn, f"DROP ROLE {ROLE}")


async def test_what_the_server_allows_is_told(examined: Examine, sql: Sql) -> None:
    (most,) = sql("SELECT current_setting('max_connections')::integer - 3")[0]
    said = (await examined())["connections"]
    assert said == (
        f"ok       Postgres (max_connections, less what is reserved) allows {most} connections,"
        f" and each process wants up to 10: enough for {most // 10}."
    )
    assert "wants up to 6" in (await examined(database={"pool_size": 4}))["connections"]


async def test_a_server_with_too_few_is_a_concern(examined: Examine) -> None:
    assert "make room in max_connections" in (await examined(database={"pool_size": 900})).concern("connections")


async def test_a_limit_of_the_login_is_a_concern(login: str, sql: Sql, examined: Examine) -> None:
    sql(f"ALTER ROLE {ROLE} CONNECTION LIMIT 6")
    said = (await examined(login)).concern("connections")
    assert f"the login {ROLE} (CONNECTION LIMIT) allows 6 connections, and each process wants up to 10" in said
    assert f"make room by ALTER ROLE {ROLE} CONNECTION LIMIT …, for 10 " in said
    assert "or set database.pool_size to 4" in said
    assert (await examined(login, database={"pool_size": 4})).sound


async def test_a_limit_of_the_database_is_a_concern(login: str, sql: Sql, examined: Examine) -> None:
    (name,) = sql("SELECT current_database()")[0]
    sql(f"ALTER DATABASE {name} CONNECTION LIMIT 5")
    said = (await examined(login)).concern("connections")
    assert f"the database {name} (CONNECTION LIMIT) allows 5" in said


async def test_a_limit_that_leaves_no_room_to_listen_is_a_failure(login: str, sql: Sql, examined: Examine) -> None:
    sql(f"ALTER ROLE {ROLE} CONNECTION LIMIT 1")
    examination = await examined(login)
    assert examination["connections"].startswith("FAILED")
    assert "one for LISTEN and one for everything else are the fewest" in examination["connections"]


async def test_a_pooler_with_room_for_few_is_a_concern(dsn: str, examined: Examine) -> None:
    with pooler(dsn, max_clients=7) as pooled:
        said = (await examined(pooled, database={"listen_dsn": dsn})).concern("connections")
    assert "PgBouncer (max_client_conn) allows 7 connections" in said


async def test_a_pooler_that_does_not_tell_is_named(login: str, examined: Examine) -> None:
    with pooler(login, console=False) as pooled:
        said = (await examined(pooled, database={"listen_dsn": login}))["connections"]
    assert "a pooler stands in between, whose own limit can't be seen from here" in said


async def test_a_login_that_may_only_read_is_told(login: str, sql: Sql, examined: Examine) -> None:
    sql(f"ALTER ROLE {ROLE} SET default_transaction_read_only = on")
    said = (await examined(login, database={"dsn": login})).failure("database")
    assert "nothing may be written through database.dsn: default_transaction_read_only is on" in said


async def test_a_database_of_another_encoding_is_told(dsn: str, sql: Sql, examined: Examine) -> None:
    name = f"ascii_{os.getpid()}"
    provider = "LOCALE_PROVIDER libc" if int(sql("SHOW server_version_num")[0][0]) >= 170000 else ""
    sql(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' {provider} LC_COLLATE 'C' LC_CTYPE 'C'")
    try:
        said = (await examined(make_dsn(dsn, dbname=name))).failure("database")
    finally:
        sql(f"DROP DATABASE {name}")
    assert f"the database {name} has the encoding SQL_ASCII, and must have UTF8" in said
