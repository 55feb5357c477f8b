"""The doctor: what is broken is told in one line with what to do, the rest isn't blamed, and the exit code says which."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from psycopg2.extensions import make_dsn

from server import doctor
from server.config import Config
from server.doctor import Deployment, Report, Site, Verdict, examine
from server.storage.embedded import EmbeddedPostgres
from server.storage.migrations import read_migrations
from tests.conftest import Person, Sql, Start, execute, until
from tests.pooler import pooler
from tests.processes import server_process
from tests.programs import program

ROOT = Path(__file__).resolve().parent.parent
NOWHERE = "host=127.0.0.1 port=1 dbname=none"


@pytest.fixture
def config(config: Config) -> Config:
    """Few enough held polls for any machine's limit of descriptors."""
    return config.replace(polling={"max_held": 50})


class Examination:
    """What the doctor said, line by line, and its exit code."""

    def __init__(self, code: int, text: str) -> None:
        self.code, self.text = code, text
        *lines, self.sum = text.splitlines()
        self.lines = {line[9:25].strip(): line for line in lines}

    def __getitem__(self, name: str) -> str:
        return self.lines[name]

    @property
    def wrong(self) -> dict[str, str]:
        """The lines of what failed, or was warned of."""
        return {name: line for name, line in self.lines.items() if line.startswith(("failed", "warning"))}


async def examined(dsn: str, config: Config, site: Site | None = None) -> Examination:
    report = Report(stream := io.StringIO())
    await examine(report, Deployment(config, dsn), site)
    return Examination(report.close(), stream.getvalue())


def failure(examination: Examination, name: str) -> str:
    """Return the line of the one check that failed."""
    assert examination.code == 1
    assert list(examination.wrong) == [name], examination.text
    assert examination[name].startswith("failed")
    assert " To do: " in examination[name]
    return examination[name]


def concern(examination: Examination, name: str) -> str:
    """Return the line of the one check that warned."""
    assert examination.code == 0
    assert list(examination.wrong) == [name], examination.text
    assert examination[name].startswith("warning")
    assert " To do: " in examination[name]
    return examination[name]


# --- the report


async def test_a_sound_deployment_is_all_ok(dsn: str, config: Config) -> None:
    examination = await examined(dsn, config)
    assert examination.code == 0
    assert list(examination.lines) == [
        *("database", "listen", "migrations", "roles", "row security", "triggers", "clock", "queue", "connections"),
        *("descriptors", "pictures", "site"),
    ]
    assert {line.split()[0] for name, line in examination.lines.items() if name != "site"} == {"ok"}
    assert examination["site"].startswith("skipped")
    assert examination.sum == "11 ok, 0 warning, 0 failed, 1 skipped"


async def test_a_check_that_breaks_is_a_failure_in_one_line(
    dsn: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks(_deployment: Deployment) -> doctor.Finding:
        raise KeyError("a bug\nin two lines")

    monkeypatch.setitem(doctor._OF_THE_DATABASE, "queue", breaks)
    line = failure(await examined(dsn, config), "queue")
    assert "the check itself broke: KeyError: " in line


async def test_on_a_terminal_the_running_check_is_shown_and_wiped_out() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    async def look() -> doctor.Finding:
        shown.append(stream.getvalue())
        return doctor.ok("all is well")

    stream, shown = Terminal(), list[str]()
    assert await Report(stream).check("clock", look())
    assert shown == ["\r\x1b[K...      clock"]
    assert stream.getvalue() == "\r\x1b[K...      clock\r\x1b[Kok       clock            all is well.\n"


# --- Postgres


async def test_a_postgres_that_is_not_there_is_one_failure(config: Config) -> None:
    examination = await examined(NOWHERE, config.replace(database={"dsn": NOWHERE}))
    assert "database.dsn can't be reached" in failure(examination, "database")
    assert [name for name, line in examination.lines.items() if line.startswith("ok")] == ["descriptors", "pictures"]
    assert examination["listen"] == "skipped  listen           the database can't be reached."


async def test_what_is_malformed_is_not_shown_for_it_may_hold_a_password(config: Config) -> None:
    dsn = "postgres//web:secret@database"
    assert "secret" not in failure(await examined(dsn, config.replace(database={"dsn": dsn})), "database")


@pytest.mark.parametrize("setting", ["admin_dsn", "listen_dsn"])
async def test_the_other_connections_are_tried_too(dsn: str, config: Config, setting: str) -> None:
    examination = await examined(dsn, config.replace(database={setting: NOWHERE}))
    assert examination.code == 1
    assert examination[setting].startswith(f"failed   {setting:16} database.{setting} can't be reached: ")
    assert len(examination.wrong) == 2  # and what needs it: the migrations, or LISTEN
    sound = await examined(dsn, config.replace(database={setting: dsn}))
    assert not sound.wrong
    assert sound[setting].startswith("ok")


async def test_an_old_postgres_is_refused(dsn: str, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "OLDEST_POSTGRES", 990_000)
    examination = await examined(dsn, config)
    assert examination.code == 1
    assert "use Postgres 99 or newer" in failure(examination, "database")


async def test_listening_in_another_database_is_told(dsn: str, postgres: EmbeddedPostgres, config: Config) -> None:
    settings = config.replace(database={"listen_dsn": postgres.dsn, "timeout_seconds": 0.5})
    line = failure(await examined(dsn, settings), "listen")
    assert "we listen in the database postgres, but changes are made in test_" in line
    assert "give database.listen_dsn a direct or session-mode connection" in line


async def test_a_transaction_pooler_is_named(dsn: str, config: Config) -> None:
    with pooler(dsn) as pooled:
        silent = await examined(pooled, config.replace(database={"timeout_seconds": 0.5}))
        direct = await examined(pooled, config.replace(database={"listen_dsn": dsn}))
    assert "a transaction pooler (PgBouncer, Supavisor) stands in between" in failure(silent, "listen")
    assert not direct.wrong


async def test_a_pooler_in_session_mode_does_no_harm(dsn: str, config: Config) -> None:
    with pooler(dsn, "session") as pooled:
        assert not (await examined(pooled, config)).wrong


async def test_an_empty_database_is_told_once(empty_dsn: str, config: Config) -> None:
    examination = await examined(empty_dsn, config)
    assert "run `python -m server migrate`" in failure(examination, "migrations")
    assert all(examination[name].startswith("skipped") for name in ("roles", "row security", "triggers"))


async def test_a_migration_that_was_edited_is_named(dsn: str, config: Config, sql: Sql) -> None:
    name = read_migrations()[0].name
    sql("UPDATE longpoll.migrations SET checksum = 'another' WHERE name = %s", (name,))
    assert f"edited after it was applied: {name}." in failure(await examined(dsn, config), "migrations")


async def test_a_migration_that_is_missing_is_named(dsn: str, config: Config, sql: Sql) -> None:
    name = read_migrations()[-1].name
    sql("DELETE FROM longpoll.migrations WHERE name = %s", (name,))
    assert f"not applied yet: {name}." in failure(await examined(dsn, config), "migrations")


async def test_a_database_of_a_newer_version_is_told(dsn: str, config: Config, sql: Sql) -> None:
    sql("INSERT INTO longpoll.migrations (name, checksum) VALUES ('9999_later.sql', '')")
    assert "9999_later.sql, unknown to this version" in failure(await examined(dsn, config), "migrations")


@pytest.fixture
def login(dsn: str) -> Iterator[str]:
    """The DSN of a login role that was granted nothing."""
    execute(dsn, "CREATE ROLE stranger LOGIN")
    yield make_dsn(dsn, user="stranger")
    execute(dsn, "DROP OWNED BY stranger; DROP ROLE stranger")


async def test_a_login_without_the_roles_is_told_what_to_do(dsn: str, login: str, config: Config) -> None:
    examination = await examined(login, config.replace(database={"admin_dsn": dsn}))
    line = failure(examination, "roles")
    assert "the role longpoll_app can't be taken on: permission denied" in line
    assert "run `python -m server migrate` with database.admin_dsn" in line
    execute(dsn, "GRANT longpoll_app, longpoll_service TO stranger")
    assert not (await examined(login, config.replace(database={"admin_dsn": dsn}))).wrong


async def test_a_login_that_cannot_migrate_needs_another_one_for_it(dsn: str, login: str, config: Config) -> None:
    execute(dsn, "GRANT longpoll_app, longpoll_service TO stranger")
    assert "set database.admin_dsn" in failure(await examined(login, config), "migrations")


async def test_a_role_that_owns_the_table_is_told(dsn: str, config: Config, sql: Sql) -> None:
    sql("ALTER TABLE public.image_generations OWNER TO longpoll_service")
    line = failure(await examined(dsn, config), "roles")
    assert "don't bind longpoll_service: it owns the table" in line


async def test_a_role_that_bypasses_row_security_is_told(dsn: str, config: Config, sql: Sql) -> None:
    sql("ALTER ROLE longpoll_app BYPASSRLS")
    try:
        line = failure(await examined(dsn, config), "roles")
    finally:
        sql("ALTER ROLE longpoll_app NOBYPASSRLS")  # roles belong to the whole cluster
    assert "don't bind longpoll_app: it bypasses row security" in line


@pytest.mark.parametrize("table", ["public.image_generations", "longpoll.accounts", "longpoll.tokens"])
async def test_row_security_that_is_off_is_told(dsn: str, config: Config, sql: Sql, table: str) -> None:
    sql(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
    line = failure(await examined(dsn, config), "row security")
    remedy = f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;"
    assert remedy in line
    sql(remedy)
    assert not (await examined(dsn, config)).wrong


@pytest.mark.parametrize(
    ("table", "trigger"), [("public.image_generations", "notify_updated"), ("longpoll.sessions", "notify_revoked")]
)
async def test_a_trigger_that_is_disabled_is_told(dsn: str, config: Config, sql: Sql, table: str, trigger: str) -> None:
    for way in ("DISABLE", "ENABLE REPLICA"):
        sql(f"ALTER TABLE {table} {way} TRIGGER {trigger}")
        line = failure(await examined(dsn, config), "triggers")
        assert f"these don't fire: {trigger} on {table}." in line
        remedy = f"ALTER TABLE {table} ENABLE TRIGGER {trigger};"
        assert remedy.rstrip(";") in line
        sql(remedy)
        assert not (await examined(dsn, config)).wrong


async def test_a_trigger_that_is_gone_is_told(dsn: str, config: Config, sql: Sql) -> None:
    sql("DROP TRIGGER handle_updated_at ON public.image_generations")
    line = failure(await examined(dsn, config), "triggers")
    assert "create handle_updated_at again as sql/migrations has it" in line


def shadow(sql: Sql, function: str, returns: str, body: str) -> None:
    """Let a function of ours stand before Postgres' own, for every connection to this database from now on."""
    sql("CREATE SCHEMA shadow; GRANT USAGE ON SCHEMA shadow TO PUBLIC")
    sql(f"CREATE FUNCTION shadow.{function}() RETURNS {returns} LANGUAGE sql AS $$ SELECT {body} $$")
    sql(f"ALTER DATABASE {sql('SELECT current_database()')[0][0]} SET search_path = shadow, pg_catalog, public")


@pytest.mark.parametrize(("shift", "word"), [("+", "behind"), ("-", "ahead of")])
async def test_a_clock_that_is_off_is_told(dsn: str, config: Config, sql: Sql, shift: str, word: str) -> None:
    shadow(sql, "clock_timestamp", "timestamptz", f"pg_catalog.clock_timestamp() {shift} interval '1 hour'")
    line = concern(await examined(dsn, config), "clock")
    assert f" ms {word} the database's" in line


@pytest.mark.parametrize(("usage", "told"), [(0.2, concern), (0.6, failure)])
async def test_a_queue_that_fills_is_told(
    dsn: str, config: Config, sql: Sql, usage: float, told: Callable[[Examination, str], str]
) -> None:
    shadow(sql, "pg_notification_queue_usage", "double precision", f"{usage}::double precision")
    assert f"{usage:.0%} of the queue" in told(await examined(dsn, config), "queue")


async def test_too_few_connections_are_told(dsn: str, config: Config, sql: Sql) -> None:
    name = sql("SELECT current_database()")[0][0]
    sql(f"ALTER DATABASE {name} CONNECTION LIMIT 12")
    assert "one process takes 9 of the 12 connections" in concern(await examined(dsn, config), "connections")
    sql(f"ALTER DATABASE {name} CONNECTION LIMIT 8")
    assert "raise max_connections" in failure(await examined(dsn, config), "connections")


# --- the machine


async def test_a_folder_for_pictures_that_cannot_be_used_is_told(dsn: str, config: Config, tmp_path: Path) -> None:
    (tmp_path / "images").write_text("in the way")
    line = failure(await examined(dsn, config), "pictures")
    assert f"pictures can't be kept in {tmp_path}/images: Not a directory" in line


async def test_looking_at_the_folder_for_pictures_leaves_nothing(dsn: str, config: Config, tmp_path: Path) -> None:
    assert not (await examined(dsn, config)).wrong
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - Path.iterdir is a blocking call in ruff's eyes, this isn't  # noqa: ASYNC240 - a folder of this test


@pytest.mark.parametrize(
    ("limit", "remedies"),
    [
        ("-n", ["as root, raise the hard limit of 400 too", "`ulimit -n 1109`", "LimitNOFILE=1109", "max_held to 291"]),
        ("-S -n", [": start the server with `ulimit -n 1109`"]),
    ],
)
def test_a_low_limit_of_descriptors_is_told(dsn: str, tmp_path: Path, limit: str, remedies: list[str]) -> None:
    examination = run_doctor(tmp_path, ulimit=f"{limit} 400", database__dsn=dsn, polling__max_held=1000)
    line = failure(examination, "descriptors")
    assert "1000 held polls need 1109 file descriptors, and 400 are allowed here" in line
    assert all(remedy in line for remedy in remedies)


# --- the command


def run_doctor(folder: Path, *arguments: str, ulimit: str = "", **settings: object) -> Examination:
    """Run the command as an operator does."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LONGPOLL_")}
    environment |= {f"LONGPOLL_{name.upper()}": str(value) for name, value in settings.items()}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "server", "doctor", *arguments]
    if ulimit:
        command = ["sh", "-c", f'ulimit {ulimit} && exec "$@"', "sh", *command]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    return Examination(done.returncode, done.stdout)


def test_a_wrong_setting_is_a_line_of_the_report(tmp_path: Path) -> None:
    examination = run_doctor(tmp_path, server__prt=1)
    assert "unknown key in [server]: 'prt'; did you mean 'port'" in failure(examination, "settings")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short and open enough for an embedded Postgres."""
    path = Path(tempfile.mkdtemp(prefix="longpoll-run-", dir="/tmp"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def test_without_a_dsn_the_embedded_postgres_of_the_running_server_is_looked_at(folder: Path) -> None:
    with server_process(folder, polling__max_held=50) as server:
        examination = run_doctor(folder, "--url", server.url, polling__max_held=50)
        assert not examination.wrong, examination.text
        assert examination["settings"].startswith("ok")
        assert "(the embedded Postgres)" in examination["database"]
        assert examination["hold"].startswith("skipped")
        assert examination.code == server.stop() == 0


# --- what stands in front


@pytest.fixture
async def token(alice: Person) -> str:
    """A bearer token of Alice's, who has a task that nobody works on."""
    await alice.create()
    async with alice.http.post("/api/auth/tokens", json={"name": "doctor"}) as reply:
        return str((await reply.json())["token"])


def url_of(person: Person) -> str:
    return str(person.http.make_url("/"))


def short(config: Config) -> Config:
    """The same settings with a hold that a test can wait for."""
    return config.replace(polling={"hold_seconds": 0.3, "jitter_seconds": 0.0})


async def test_a_poll_that_lasts_is_ok(dsn: str, config: Config, alice: Person, token: str) -> None:
    examination = await examined(dsn, short(config), Site(url_of(alice), token))
    assert not examination.wrong, examination.text
    assert "a poll was held for " in examination["hold"]
    assert examination.sum == "15 ok, 0 warning, 0 failed, 0 skipped"


async def test_without_a_token_or_a_task_nothing_can_be_held(dsn: str, config: Config, alice: Person) -> None:
    examination = await examined(dsn, config, Site(url_of(alice)))
    assert examination["hold"].startswith("skipped")
    assert examination.code == 0
    async with alice.http.post("/api/auth/tokens", json={}) as reply:
        site = Site(url_of(alice), (await reply.json())["token"])
    assert "has no unfinished task" in (await examined(dsn, config, site))["hold"]


async def test_a_token_that_is_none_is_told(dsn: str, config: Config, alice: Person) -> None:
    line = failure(await examined(dsn, config, Site(url_of(alice), "nonsense")), "hold")
    assert "the list of tasks answers 401" in line


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "nonsense", "ftp://example.org", "http://[", ""])
async def test_a_site_that_cannot_be_reached_is_one_failure(dsn: str, config: Config, url: str) -> None:
    examination = await examined(dsn, config, Site(url, "token"))
    assert "--url" in failure(examination, "site")
    assert all(examination[name].startswith("skipped") for name in ("headers", "keep-alive", "hold"))


async def test_a_site_of_somebody_else_is_told(dsn: str, config: Config, start: Start) -> None:
    site = str((await start()).make_url("/static"))
    assert "/static/healthz answers 404, not as this server does" in failure(
        await examined(dsn, config, Site(site)), "site"
    )


class Relay:
    """A proxy on loopback that passes bytes on; it can cut each connection after a while, or go silent at a poll."""

    def __init__(self, port: int, *, cut_after: float | None = None, swallow: bytes | None = None) -> None:
        self.port, self.cut_after, self.swallow = port, cut_after, swallow
        self.connections = 0
        self.polls = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            async with asyncio.timeout(self.cut_after):
                await asyncio.wait(
                    [
                        asyncio.create_task(self._pass_on(reader, up_writer)),
                        asyncio.create_task(self._pass_on(up_reader, writer)),
                    ],
                    return_when=asyncio.FIRST_COMPLETED,
                )
        except TimeoutError:
            pass
        finally:
            up_writer.close()
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            self.polls += data.startswith(b"GET /api/generate/status")
            if self.swallow is None or not data.startswith(self.swallow):
                writer.write(data)


@asynccontextmanager
async def running(relay: Relay) -> AsyncIterator[str]:
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_poll_that_is_cut_is_told_and_not_asked_again(
    dsn: str, config: Config, alice: Person, token: str
) -> None:
    relay = Relay(alice.http.server.port or 0, cut_after=1.0)
    async with running(relay) as url:
        line = failure(await examined(dsn, config, Site(url, token)), "hold")
    assert "the connection was cut after 1." in line
    assert "of a hold of 30 s" in line
    assert "wait for 35 s or more: proxy_read_timeout (nginx), timeout server (HAProxy)" in line
    assert relay.polls == 1


async def test_a_poll_that_is_never_answered_is_told(
    dsn: str, config: Config, alice: Person, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_PATIENCE_SECONDS", 0.2)
    async with running(Relay(alice.http.server.port or 0, swallow=b"GET /api/generate/status")) as url:
        line = failure(await examined(dsn, short(config), Site(url, token)), "hold")
    assert "nothing had come after " in line


NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log stderr;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
  uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5; proxy_cache_path {folder}/6 keys_zone=kept:1m;
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://127.0.0.1:{server}; {directives} }}
  }}
}}
"""


@asynccontextmanager
async def nginx(folder: Path, server: int | None, directives: str = "") -> AsyncIterator[str]:
    """Run nginx in front of a server; gives its URL."""
    command = program("nginx", "nginx-light")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = folder / "nginx.conf"
    path.write_text(NGINX.format(folder=folder, port=port, server=server, directives=directives))
    process = await asyncio.create_subprocess_exec(command, "-e", "stderr", "-p", folder, "-c", path)
    try:
        await until(lambda: process.returncode is not None or accepts(port))
        assert process.returncode is None
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def in_front(tmp_path: Path, alice: Person) -> Callable[[str], AbstractAsyncContextManager[str]]:
    """Put nginx before Alice's server: `async with in_front("proxy_read_timeout 1s;") as url`."""
    folder = tmp_path / "nginx"
    folder.mkdir()
    return lambda directives: nginx(folder, alice.http.server.port, directives)


async def test_nginx_that_waits_long_enough_is_ok(dsn: str, config: Config, token: str, in_front: Callable) -> None:
    async with in_front("") as url:
        examination = await examined(dsn, short(config), Site(url, token))
    assert not examination.wrong, examination.text


async def test_nginx_that_gives_up_is_told(dsn: str, config: Config, token: str, in_front: Callable) -> None:
    async with in_front("proxy_read_timeout 1s;") as url:
        line = failure(await examined(dsn, config, Site(url, token)), "hold")
    assert "a proxy answered 504 after 1." in line
    assert "of a hold of 30 s" in line
    assert "proxy_read_timeout" in line


async def test_nginx_that_closes_each_connection_is_told(dsn: str, config: Config, in_front: Callable) -> None:
    async with in_front("keepalive_timeout 0;") as url:
        line = concern(await examined(dsn, config, Site(url)), "keep-alive")
    assert "keepalive_timeout (nginx)" in line


async def test_nginx_that_hides_a_header_is_told(dsn: str, config: Config, token: str, in_front: Callable) -> None:
    async with in_front("proxy_hide_header X-Request-Id;") as url:
        examination = await examined(dsn, config, Site(url))
    assert "X-Request-Id didn't arrive" in concern(examination, "headers")


async def test_nginx_that_hides_the_time_is_told(dsn: str, config: Config, token: str, in_front: Callable) -> None:
    async with in_front("proxy_hide_header Server-Timing;") as url:
        examination = await examined(dsn, short(config), Site(url, token))
    assert "Server-Timing didn't arrive" in concern(examination, "hold")


async def test_nginx_that_changes_who_may_keep_a_reply_is_told(dsn: str, config: Config, in_front: Callable) -> None:
    async with in_front("proxy_hide_header Cache-Control; add_header Cache-Control public;") as url:
        line = failure(await examined(dsn, config, Site(url)), "headers")
    assert "Cache-Control is public, and not private, no-store" in line


async def test_nginx_that_keeps_replies_is_told(dsn: str, config: Config, in_front: Callable) -> None:
    async with in_front("proxy_cache kept; proxy_ignore_headers Cache-Control; proxy_cache_valid 1m;") as url:
        line = failure(await examined(dsn, config, Site(url)), "headers")
    assert "two requests got the very same reply: a cache stands in between" in line


def reply(body: str, seconds: float = 30.0, status: int = 200, **headers: str) -> doctor._Reply:
    sent = {"X-Request-Id": "1", "Server-Timing": "hold", "Cache-Control": "private, no-store"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    return doctor._Reply(status, sent, body.encode(), seconds)


@pytest.mark.parametrize(
    ("answer", "verdict", "text"),
    [
        (reply('{"poll": {"reason": "timeout", "waitedMs": 29500}}'), Verdict.OK, "held for 30.0 s"),
        (reply('{"poll": {"reason": "timeout", "waitedMs": 9500}}'), Verdict.WARNING, "20.5 s after it was sent"),
        (reply('{"poll": {"reason": "change", "waitedMs": 4000}}', 4), Verdict.WARNING, "(change), so no longer wait"),
        (reply("<h1>Gateway</h1>", 20, 502), Verdict.FAILED, "a proxy answered 502 after 20.0 s"),
        (reply("[]", 20), Verdict.FAILED, "a proxy answered 200"),
        (
            reply('{"status": 503}', 20, 503, Content_Type="application/problem+json"),
            Verdict.FAILED,
            "the server answered 503",
        ),
    ],
)
def test_the_reply_to_a_held_poll_is_judged(answer: doctor._Reply, verdict: Verdict, text: str) -> None:
    finding = doctor.judge_hold(answer, 30)
    assert finding.verdict is verdict
    assert text in finding.sentence
