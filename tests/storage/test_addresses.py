"""A DSN with several addresses: whichever answers is found, in any order."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import uvloop
from psycopg2.extensions import make_dsn, parse_dsn

from server.commands.certificate import write_certificate
from server.commands.loadtest.by_sql import SqlStage
from server.errors import DatabaseUnavailable, StorageError
from server.storage.database import connected, login_role, run_directly
from tests.faults.postgres import MortalPostgres
from tests.faults.proxy import proxy_to
from tests.support.ports import free_port
from tests.support.postgres import execute
from tests.support.programs import program

T = TypeVar("T")
OnLoop = Callable[[Awaitable[T]], T]


@pytest.fixture(params=["asyncio", "uvloop"])
def on_loop(request: pytest.FixtureRequest) -> Iterator[OnLoop[object]]:
    """Run a coroutine on a loop of either kind."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if request.param == "uvloop" else None) as runner:
        yield runner.run  # type: ignore[misc]


async def ask(dsn: str, timeout: float = 5) -> object:
    async with connected(dsn, timeout, "test") as connection:
        for _ in range(3):  # the socket that was watched last is the one that hears answers
            [(name,)] = await run_directly(connection, "SELECT current_database()", timeout)
        return name


@pytest.fixture
def silent() -> Iterator[int]:
    """A port where connections are accepted, and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def full() -> Iterator[int]:
    """A port that drops whoever knocks, as a machine that is gone does."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield server.getsockname()[1]


# One of many ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hosts", "ports"),
    [
        ("127.0.0.1,{home}", "1,{port}"),
        ("::1,{home}", "1,{port}"),
        ("localhost,{home}", "1,{port}"),
        ("::1,127.0.0.1,/nowhere,{home}", "1,1,{port},{port}"),
        ("{home},127.0.0.1", "{port},1"),
    ],
)
def test_addresses_that_refuse_are_passed_over(on_loop: OnLoop[object], dsn: str, hosts: str, ports: str) -> None:
    """libpq changes its socket for each of them, and most often to one of the same number."""
    parts = parse_dsn(dsn)
    places = {"home": parts["host"], "port": parts["port"]}
    several = make_dsn(dsn, host=hosts.format(**places), port=ports.format(**places))
    assert on_loop(ask(several)) == parts["dbname"]


@pytest.mark.parametrize("order", [("silent", "full"), ("full", "silent")])
def test_addresses_that_say_nothing_are_given_up(
    on_loop: OnLoop[object], dsn: str, silent: int, full: int, order: tuple[str, str]
) -> None:
    """Each when its share of the time is over: what is left is the next one's."""
    ports = [{"silent": silent, "full": full}[each] for each in order]
    parts = parse_dsn(dsn)
    home = f"host=127.0.0.1,127.0.0.1,{parts['host']} port={ports[0]},{ports[1]},{parts['port']}"
    assert on_loop(ask(f"{home} user=postgres dbname={parts['dbname']}", timeout=3)) == parts["dbname"]
    uri = f"postgresql://postgres@127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}/{parts['dbname']}"
    with pytest.raises(DatabaseUnavailable, match=r"no answer within 0\.4 s"):
        on_loop(ask(uri, timeout=0.4))


def test_one_that_breaks_off_is_passed_over(on_loop: OnLoop[object], dsn: str) -> None:
    """As a port does that a proxy keeps open for a server that is gone; libpq alone tries no other host then."""

    async def beside_a_proxy() -> object:
        async with proxy_to(dsn) as proxy:
            proxy.refusing = True
            parts = parse_dsn(dsn)
            return await ask(make_dsn(dsn, host=f"127.0.0.1,{parts['host']}", port=f"{proxy.port},{parts['port']}"))

    assert on_loop(beside_a_proxy()) == parse_dsn(dsn)["dbname"]


def test_of_several_errors_the_first_is_told(on_loop: OnLoop[object], dsn: str) -> None:
    parts = parse_dsn(dsn)
    several = make_dsn(dsn, host=f"{parts['host']},127.0.0.1", port=f"{parts['port']},1", user="nobody_of_that_name")
    with pytest.raises(DatabaseUnavailable, match='role "nobody_of_that_name" does not exist'):
        on_loop(ask(several))


def test_one_that_refuses_is_tried_again_without_one_that_is_silent(
    on_loop: OnLoop[object], dsn: str, silent: int
) -> None:
    parts = parse_dsn(dsn)
    several = make_dsn(dsn, host=f"127.0.0.1,127.0.0.1,{parts['host']}", port=f"1,{silent},{parts['port']}")
    assert on_loop(ask(several, timeout=2)) == parts["dbname"]


def test_a_name_with_two_addresses_may_have_its_server_at_the_second(on_loop: OnLoop[object], dsn: str) -> None:
    """As `localhost` has: ::1 comes first, and the server listens on 127.0.0.1 only."""
    addresses = [each[4][0] for each in socket.getaddrinfo("localhost", 1, type=socket.SOCK_STREAM)]
    if len(addresses) < 2:
        pytest.skip(f"localhost is {addresses} here")

    async def through_a_proxy() -> object:
        async with proxy_to(dsn) as proxy:
            return await ask(make_dsn(dsn, host="localhost", port=proxy.port))

    assert on_loop(through_a_proxy()) == parse_dsn(dsn)["dbname"]


def descriptors() -> set[str]:
    return {each.name for each in Path("/proc/self/fd").iterdir()}


def test_a_caller_that_leaves_while_connecting_leaves_nothing(on_loop: OnLoop[object], silent: int) -> None:
    async def leave() -> None:
        await asyncio.sleep(0.01)  # uvloop opens what it needs for itself
        before = descriptors()
        attempt = asyncio.create_task(ask(f"host=127.0.0.1,127.0.0.1 port=1,{silent} user=x"))
        await asyncio.sleep(0.05)
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt
        assert descriptors() == before

    on_loop(leave())


# Malformed ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("malformed", "said"),
    [
        ("postgres//web:secret@db", "a DSN is malformed: write "),
        ("postgresql://web:%se%cret@db", "a DSN is malformed: write "),
        ("host=a hots=b password=secret", r'malformed \(connection option "hots" is unknown\)'),
        ("postgresql://web:secret@db?sslmod=x", r'malformed \(query parameter: "sslmod" is unknown\)'),
        ("password=secret \udcff", "in UTF-8"),
    ],
)
def test_a_malformed_dsn_is_told_without_its_password(on_loop: OnLoop[object], malformed: str, said: str) -> None:
    async def load() -> None:
        with SqlStage(malformed, tasks=1, clients=1, polls_per_user=1, secret=None):
            raise AssertionError("it can't be used")

    for use in (ask(malformed), load()):
        with pytest.raises(StorageError, match=said) as caught:
            on_loop(use)
        assert "secret" not in str(caught.value)
    with pytest.raises(StorageError, match=said):
        login_role(malformed)


# TLS and not ------------------------------------------------------------------------------------------------------------


class TlsPostgres(MortalPostgres):
    """A Postgres on TCP that speaks TLS. It lets `postgres` in without TLS, and nobody else without a password."""

    def __init__(self, data_dir: Path, binaries: Path) -> None:
        super().__init__(data_dir, postgres_bin=binaries)
        self._port = free_port()
        certificate, key = write_certificate(data_dir, ["localhost"])
        for file in (certificate, key):
            self._account.give(Path(file))
        self._settings |= {"ssl": "on", "ssl_cert_file": str(certificate), "ssl_key_file": str(key)}

    def tcp(self, **parts: object) -> str:
        return make_dsn(self.dsn, host="127.0.0.1", port=self._port, **parts)

    @property
    def dsn(self) -> str:
        return make_dsn(super().dsn, port=self._port)

    def _command(self) -> list[str]:
        rules = [
            "hostnossl all postgres 127.0.0.1/32 trust",
            "hostssl all postgres 127.0.0.1/32 reject",
            "host all all 127.0.0.1/32 scram-sha-256",
            "local all all trust\n",
        ]
        (self.location.data / "pg_hba.conf").write_text("\n".join(rules))
        return [*super()._command(), "-c", "listen_addresses=127.0.0.1", "-c", f"port={self._port}"]


@pytest.fixture(scope="module")
def tls() -> Iterator[TlsPostgres]:
    binaries = Path(program("/usr/lib/postgresql/15/bin/postgres", "postgresql-15")).parent
    folder = Path(tempfile.mkdtemp(prefix="longpoll-tests-", dir="/tmp"))
    folder.chmod(0o711)
    try:
        with TlsPostgres(folder, binaries) as postgres:
            execute(postgres.dsn, "CREATE ROLE somebody LOGIN PASSWORD 'right'")
            yield postgres
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_wrong_password_is_told_at_once(on_loop: OnLoop[object], tls: TlsPostgres) -> None:
    """With sslmode=prefer libpq tries once more without TLS, on another socket."""
    for mode in ("prefer", "require", "disable"):
        with pytest.raises(DatabaseUnavailable, match="password authentication failed"):
            on_loop(ask(tls.tcp(user="somebody", password="wrong", sslmode=mode)))


def test_a_login_that_only_works_without_tls(on_loop: OnLoop[object], tls: TlsPostgres) -> None:
    assert on_loop(ask(tls.tcp(sslmode="prefer"))) == "postgres"
    assert on_loop(ask(tls.tcp(user="somebody", password="right", sslmode="require"))) == "postgres"
