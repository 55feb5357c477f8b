"""The doctor at the roles: the row policies must bind whom the server acts as."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from psycopg2.extensions import make_dsn

from tests.commands.doctor.conftest import Examine
from tests.support.postgres import Sql, execute


@pytest.fixture
def login(dsn: str) -> Iterator[str]:
    """The DSN of a login role that was granted nothing."""
    execute(dsn, "CREATE ROLE stranger LOGIN")
    yield make_dsn(dsn, user="stranger")
    execute(dsn, "DROP OWNED BY stranger; DROP ROLE stranger")


async def test_a_login_without_the_roles_is_told_what_to_do(dsn: str, login: str, examined: Examine) -> None:
    said = (await examined(login, database={"admin_dsn": dsn})).failure("roles")
    assert "stranger can't act as longpoll_app and longpoll_service: permission denied" in said
    assert "run `python -m server migrate` with database.admin_dsn set" in said
    execute(dsn, "GRANT longpoll_app, longpoll_service TO stranger")
    assert (await examined(login, database={"admin_dsn": dsn})).sound


async def test_a_plain_login_is_enough(dsn: str, login: str, examined: Examine) -> None:
    """What was applied may be read by whoever may serve."""
    execute(dsn, "GRANT longpoll_app, longpoll_service TO stranger")
    assert (await examined(login, database={"dsn": login})).sound


async def test_a_superuser_as_the_servers_own_login_is_a_concern(dsn: str, examined: Examine) -> None:
    said = (await examined(dsn, database={"dsn": dsn})).concern("roles")
    assert "logs in as postgres, a superuser or owner" in said
    assert "let database.dsn name a plain login and database.admin_dsn this one" in said


async def test_an_owner_as_the_servers_own_login_is_a_concern(dsn: str, login: str, examined: Examine) -> None:
    execute(dsn, "GRANT longpoll_app, longpoll_service TO stranger")
    execute(dsn, "ALTER TABLE public.image_generations OWNER TO stranger")
    try:
        said = (await examined(login, database={"dsn": login, "admin_dsn": dsn})).concern("roles")
    finally:
        execute(dsn, "ALTER TABLE public.image_generations OWNER TO postgres")
    assert "logs in as stranger, a superuser or owner" in said


async def test_a_role_that_owns_the_table_is_told(examined: Examine, sql: Sql) -> None:
    sql("ALTER TABLE public.image_generations OWNER TO longpoll_service")
    assert "don't bind longpoll_service: it owns the table" in (await examined()).failure("roles")


@pytest.mark.parametrize("right", ["SUPERUSER", "BYPASSRLS"])
async def test_a_role_that_bypasses_row_security_is_told(examined: Examine, sql: Sql, right: str) -> None:
    sql(f"ALTER ROLE longpoll_app {right}")
    try:
        said = (await examined()).failure("roles")
    finally:
        sql(f"ALTER ROLE longpoll_app NO{right}")  # roles belong to the whole cluster
    assert "don't bind longpoll_app: it is a superuser, or bypasses them" in said
