"""Looks a deployment over: one line for each thing that has to be right, in plain words.

Nothing is changed, but for one empty file that is gone before its check ends. What a check needs and another one has
found missing is skipped, so that one fault is told once.
"""

from __future__ import annotations

import asyncio
import os
import resource
import secrets
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Self, TextIO, TypeVar

import aiohttp
import orjson

from server import resources
from server.config import Config
from server.errors import DatabaseUnavailable, ServerError, StorageError
from server.storage.database import Connection, Role, connected, read_queries, run_directly, translated_errors
from server.storage.images import FileImages
from server.storage.migrations import read_migrations

T = TypeVar("T")

OLDEST_POSTGRES: Final = 150_000
_DESCRIPTORS_BESIDE: Final = 100  # files, pictures, the logs, clients that are just being answered
_CLOCK_SECONDS: Final = 1.0
_QUEUE_WARNS, _QUEUE_FAILS = 0.1, 0.5
_SITE_SECONDS: Final = 10.0
_PATIENCE_SECONDS: Final = 15.0
_LATE_SECONDS: Final = 2.0
_PRIVATE: Final = "private, no-store"
_MIGRATE: Final = "run `python -m server migrate`"
_QUERIES: Final = read_queries(resources.read_text("sql", "queries.sql"))


class Verdict(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, and what to do about it."""

    verdict: Verdict
    sentence: str
    remedy: str = ""


def ok(sentence: str) -> Finding:
    """Find that all is as it should be."""
    return Finding(Verdict.OK, sentence)


def warning(sentence: str, remedy: str) -> Finding:
    """Find something that works, but not for ever, or not well."""
    return Finding(Verdict.WARNING, sentence, remedy)


def failed(sentence: str, remedy: str) -> Finding:
    """Find something that doesn't work."""
    return Finding(Verdict.FAILED, sentence, remedy)


def skipped(sentence: str) -> Finding:
    """Find that there is nothing to look at."""
    return Finding(Verdict.SKIPPED, sentence)


class _Ended(Exception):
    """Ends a check from within, with this finding."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.sentence)
        self.finding = finding


class Report:
    """Writes a line for each check as soon as it has ended, and knows how the whole ended."""

    def __init__(self, stream: TextIO) -> None:
        """Write to this stream; on a terminal the check that is running is shown, too."""
        self._stream = stream
        self._counts = dict.fromkeys(Verdict, 0)

    @property
    def exit_code(self) -> int:
        """0 if nothing failed, else 1."""
        return 1 if self._counts[Verdict.FAILED] else 0

    async def check(self, name: str, finding: Awaitable[Finding]) -> bool:
        """Run a check and write its line, whatever happens in it; returns whether it didn't fail."""
        if self._stream.isatty():
            self._write(f"...      {name}")
        try:
            found = await finding
        except _Ended as error:
            found = error.finding
        except ServerError as error:
            found = failed(f"it couldn't be looked at: {error}", "mend what this says, and run this again")
        except Exception as error:  # noqa: BLE001 - a doctor who faints helps nobody
            found = failed(f"the check itself broke: {type(error).__name__}: {error}", "report this as a bug")
        self.add(name, found)
        return found.verdict is not Verdict.FAILED

    def add(self, name: str, found: Finding) -> None:
        """Write the line of a check that has ended."""
        self._counts[found.verdict] += 1
        sentences = [found.sentence, f"To do: {found.remedy}"] if found.remedy else [found.sentence]
        text = " ".join(_in_one_line(sentence) for sentence in sentences)
        self._write(f"{found.verdict:8} {name:16} {text}\n")

    def close(self) -> int:
        """Write the sum of it; returns the exit code."""
        self._write(", ".join(f"{count} {verdict}" for verdict, count in self._counts.items()) + "\n")
        return self.exit_code

    def _write(self, text: str) -> None:
        # Back to the start of the line, and what stood there wiped out (ECMA-48, EL).
        self._stream.write(f"\r\x1b[K{text}" if self._stream.isatty() else text)
        self._stream.flush()


def _in_one_line(text: str) -> str:
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return "; ".join(lines).rstrip(".?!") + "."


@dataclass(frozen=True, slots=True)
class Site:
    """What stands in front, as clients see it. The token is a user's; without it no poll can be held."""

    url: str
    token: str | None = None


@dataclass(frozen=True, slots=True)
class _Server:
    """A row of `describe_server`."""

    version: str
    version_number: int
    clock: float
    queue_usage: float
    connections: int
    process: int
    database: str
    has_ledger: bool
    has_tasks: bool


@dataclass(frozen=True, slots=True)
class Deployment:
    """The settings, and the Postgres they lead to."""

    config: Config
    dsn: str

    @property
    def listen_dsn(self) -> str:
        """Where LISTEN goes."""
        return self.config.database.listen_dsn or self.dsn

    @property
    def timeout(self) -> float:
        """How long, in seconds, Postgres may think."""
        return self.config.database.timeout_seconds

    async def ask(
        self, query: str, into: Callable[..., T], *, dsn: str | None = None, role: Role | None = None
    ) -> list[T]:
        """Run a named statement on a connection of its own; `into` gets each row's columns in their order."""
        async with connected(dsn or self.dsn, self.timeout) as connection:
            return await self.ask_on(connection, query, into, role=role)

    async def ask_on(
        self, connection: Connection, query: str, into: Callable[..., T], *, role: Role | None = None
    ) -> list[T]:
        """Run a named statement on this connection, as this role."""
        # LOCAL, for behind a pooler the connection is somebody else's next.
        prefix = f"SET LOCAL ROLE {role};" if role else ""
        return [into(*row) for row in await run_directly(connection, prefix + _QUERIES[query], self.timeout)]

    async def describe(self) -> _Server:
        """Ask Postgres about itself."""
        [server] = await self.ask("describe_server", _Server)
        return server

    async def require_schema(self) -> None:
        """End the check if there is no schema to look at."""
        if not (await self.describe()).has_tasks:
            raise _Ended(skipped("the database has no schema yet"))


async def examine(report: Report, deployment: Deployment, site: Site | None = None) -> None:
    """Run every check, each after those that it stands on. No DSN: nothing of the database is looked at."""
    # What a dying connection complains of beside a check is what the check itself finds.
    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
    reachable = False
    if deployment.dsn:
        where = "database.dsn" if deployment.config.database.dsn else "the embedded Postgres"
        reachable = await report.check("database", check_reachable(deployment, where, deployment.dsn))
    for name in ("admin_dsn", "listen_dsn"):
        if dsn := getattr(deployment.config.database, name):
            await report.check(name, check_reachable(deployment, f"database.{name}", dsn))
    for name, check in _OF_THE_DATABASE.items():
        await report.check(name, check(deployment) if reachable else _skip("the database can't be reached"))
    await report.check("descriptors", check_descriptors(deployment))
    await report.check("pictures", check_pictures(deployment))
    await _examine_site(report, deployment, site)


async def _examine_site(report: Report, deployment: Deployment, site: Site | None) -> None:
    if site is None:
        report.add("site", skipped("what stands in front is looked at with --url"))
        return
    answers = await report.check("site", check_site(site))
    checks = {"headers": check_headers, "keep-alive": check_keep_alive}
    for name, check in checks.items():
        await report.check(name, check(site) if answers else _skip("the site doesn't answer"))
    hold = check_hold(site, deployment.config.polling.hold_seconds) if answers else _skip("the site doesn't answer")
    await report.check("hold", hold)


async def _skip(why: str) -> Finding:
    return skipped(why)


# Postgres ------------------------------------------------------------------------------------------------------------


async def check_reachable(deployment: Deployment, setting: str, dsn: str) -> Finding:
    """Connect, and ask for the version."""
    try:
        async with connected(dsn, deployment.timeout) as connection:
            [server] = await deployment.ask_on(connection, "describe_server", _Server)
    except DatabaseUnavailable as error:
        return failed(
            f"{setting} can't be reached: {error}", "see that Postgres runs there and lets this login in, or correct it"
        )
    except StorageError:  # what was said of a malformed one may hold its password
        return failed(f"{setting} can't be used", 'write it as "host=… dbname=… user=…" or "postgresql://…"')
    if server.version_number < OLDEST_POSTGRES:
        return failed(
            f"Postgres {server.version} answers ({setting})", f"use Postgres {OLDEST_POSTGRES // 10_000} or newer"
        )
    return ok(f"Postgres {server.version} answers ({setting})")


async def check_listening(deployment: Deployment) -> Finding:
    """Send a notification the way changes come, and wait for it the way the server does."""
    channel, timeout = f"longpoll_doctor_{secrets.token_hex(8)}", deployment.timeout
    async with connected(deployment.listen_dsn, timeout) as ear, connected(deployment.dsn, timeout) as mouth:
        await run_directly(ear, f"LISTEN {channel}", timeout)
        sent_at = time.perf_counter()
        await run_directly(mouth, f"NOTIFY {channel}", timeout)
        if await _hears(ear, timeout):
            return ok(f"a notification came back after {(time.perf_counter() - sent_at) * 1000:.1f} ms")
        return failed(
            f"no notification came back within {timeout:g} s; {await _explain_silence(deployment, ear, mouth)}",
            "give database.listen_dsn a direct or session-mode connection to the database of database.dsn",
        )


async def _hears(ear: Connection, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            with translated_errors():
                await ear.notifies.get()
    except TimeoutError:
        return False
    return True


async def _explain_silence(deployment: Deployment, ear: Connection, mouth: Connection) -> str:
    """Tell a pooler by what it can't hide: which process serves whom."""
    async with connected(deployment.listen_dsn, deployment.timeout) as other:
        asked = [await deployment.ask_on(connection, "describe_server", _Server) for connection in (ear, other, mouth)]
        told = await ear.get_backend_pid()
    [[first], [second], [sender]] = asked
    if first.process == second.process:
        return (
            f"two connections of ours were both served by process {first.process}: a transaction pooler (PgBouncer,"
            " Supavisor) stands in between, and drops LISTEN"
        )
    if told != first.process:
        return f"we were told that process {told} serves us, but process {first.process} does: a pooler is in between"
    if first.database != sender.database:
        return f"we listen in the database {first.database}, but changes are made in {sender.database}"
    return "no sign of a pooler was seen, so these may be two servers"


async def check_migrations(deployment: Deployment) -> Finding:
    """Compare what was applied with what this version brings."""
    if not (await deployment.describe()).has_ledger:
        return failed("the database has no schema yet", f"{_MIGRATE}, or start the server, which does it")
    try:
        rows = await deployment.ask("applied_migrations", _pair, dsn=deployment.config.database.admin_dsn or None)
    except DatabaseUnavailable:
        raise
    except StorageError as error:
        return failed(
            f"who migrates can't read what was applied: {error}", "set database.admin_dsn to the role that migrates"
        )
    return compare_migrations({migration.name: migration.checksum for migration in read_migrations()}, dict(rows))


def _pair(name: str, checksum: str) -> tuple[str, str]:
    return name, checksum


def compare_migrations(wanted: dict[str, str], applied: dict[str, str]) -> Finding:
    """Compare the checksums of this version's migrations, by name, with those that were recorded."""
    if unknown := sorted(applied.keys() - wanted.keys()):
        return failed(f"the database has had {', '.join(unknown)}, unknown to this version", "run the newer version")
    if edited := sorted(name for name in applied if applied[name] != wanted[name]):
        return failed(
            f"edited after it was applied: {', '.join(edited)}", "undo the edit; a change goes into a new migration"
        )
    if missing := sorted(wanted.keys() - applied.keys()):
        return failed(f"not applied yet: {', '.join(missing)}", f"{_MIGRATE}, or start the server, which does it")
    return ok(f"all {len(wanted)} are applied, and none was edited since")


async def check_roles(deployment: Deployment) -> Finding:
    """Take on both roles, and see that the row policies bind them."""
    await deployment.require_schema()
    for role in Role:
        try:
            [(unbound, owner)] = await deployment.ask("describe_role", _bonds, role=role)
        except DatabaseUnavailable:
            raise
        except StorageError as error:
            return failed(
                f"the role {role} can't be taken on: {error}",
                f"{_MIGRATE} with database.admin_dsn, which makes the roles and grants them to the login of database.dsn",
            )
        if unbound or owner:
            why = "it bypasses row security" if unbound else "it owns the table, or is a member of who does"
            return failed(f"the row policies don't bind {role}: {why}", "take that away from it, and run this again")
    return ok(f"{' and '.join(Role)} can be taken on, and the row policies bind both")


def _bonds(_name: str, unbound: bool, owner: bool) -> tuple[bool, bool]:  # noqa: FBT001 - the columns of a row
    return unbound, owner


async def check_row_security(deployment: Deployment) -> Finding:
    """See that row security is on, and that there is a policy for everything that is done."""
    await deployment.require_schema()
    if off := await deployment.ask("tables_without_row_security", _pair):
        tables, remedies = zip(*off, strict=True)
        return failed(f"row security is off on {', '.join(tables)}", f"as its owner, run {' '.join(remedies)}")
    if missing := await deployment.ask("actions_without_policy", str):
        return failed(f"no policy allows {', '.join(missing)}", "put back the policies as sql/migrations has them")
    return ok("row security is on, and there is a policy for everything that the server does")


async def check_triggers(deployment: Deployment) -> Finding:
    """See that a change raises the version and wakes those who wait."""
    await deployment.require_schema()
    if silent := await deployment.ask("silent_triggers", _pair):
        triggers, remedies = zip(*silent, strict=True)
        return failed(f"these don't fire: {', '.join(triggers)}", f"as the table's owner, {' '.join(remedies)}")
    return ok("all are there and enabled, so each change is notified")


async def check_clock(deployment: Deployment) -> Finding:
    """Compare our clock with the database's; half the way there and back counts as the moment of the answer."""
    async with connected(deployment.dsn, deployment.timeout) as connection:
        before = time.time()
        [server] = await deployment.ask_on(connection, "describe_server", _Server)
        offset = (before + time.time()) / 2 - server.clock
    sentence = f"ours is {abs(offset) * 1000:.0f} ms {'ahead of' if offset > 0 else 'behind'} the database's"
    if abs(offset) > _CLOCK_SECONDS:
        return warning(sentence, "let both machines keep time by NTP: wake-up latencies are measured between the two")
    return ok(sentence)


async def check_queue(deployment: Deployment) -> Finding:
    """See how full Postgres' queue of notifications is: when it is full, every change of a task fails."""
    usage = (await deployment.describe()).queue_usage
    sentence = f"{usage:.0%} of the queue of notifications is used"
    remedy = "find the session that listens inside a long transaction (pg_stat_activity, xact_start), and end it"
    if usage > _QUEUE_FAILS:
        return failed(sentence, remedy)
    return warning(sentence, remedy) if usage > _QUEUE_WARNS else ok(sentence)


async def check_connections(deployment: Deployment) -> Finding:
    """See how many processes find a place in max_connections."""
    available, pool_size = (await deployment.describe()).connections, deployment.config.database.pool_size
    needed = pool_size + 1  # the one that listens
    sentence = f"one process takes {needed} of the {available} connections that Postgres has for this login"
    remedy = "raise max_connections in Postgres, or lower database.pool_size"
    if needed > available:
        return failed(sentence, remedy)
    if 2 * needed > available:
        return warning(f"{sentence}, so there is no room for a second one", remedy)
    return ok(f"{sentence}, so at most {available // needed} processes find room")


_OF_THE_DATABASE: Final[dict[str, Callable[[Deployment], Coroutine[Any, Any, Finding]]]] = {
    "listen": check_listening,
    "migrations": check_migrations,
    "roles": check_roles,
    "row security": check_row_security,
    "triggers": check_triggers,
    "clock": check_clock,
    "queue": check_queue,
    "connections": check_connections,
}


# This machine --------------------------------------------------------------------------------------------------------


async def check_descriptors(deployment: Deployment) -> Finding:
    """Compare the limit of file descriptors with the polls that may be held: each is a connection."""
    soft, hard = (
        sys.maxsize if limit == resource.RLIM_INFINITY else limit
        for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    held, beside = deployment.config.polling.max_held, deployment.config.database.pool_size + 1 + _DESCRIPTORS_BESIDE
    needed = held + beside
    allowed = "any number of" if soft == sys.maxsize else f"{soft}"
    sentence = f"{held} held polls need {needed} file descriptors, and {allowed} are allowed here"
    if needed <= soft:
        return ok(sentence)
    first = f"as root, raise the hard limit of {hard} too; " if needed > hard else ""
    instead = f", or set polling.max_held to {soft - beside}" if soft > beside else ""
    return failed(sentence, f"{first}start the server with `ulimit -n {needed}` or LimitNOFILE={needed}{instead}")


async def check_pictures(deployment: Deployment) -> Finding:
    """Write a nameless file where pictures go, or where their folder will be made, and see into the folders there."""
    folder = FileImages.below(deployment.config.database.data_dir).folder
    remedy = "give the folder to the user that runs the server, or set database.data_dir to another"
    try:
        place = next(path for path in (folder, *folder.parents) if path.exists())
        # Not by FileImages.put: a folder that root makes here would shut the server out.
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"\0")
        foreign = [path for path in _subfolders(folder) if not os.access(path, os.W_OK | os.X_OK)]
    except OSError as error:
        return failed(f"pictures can't be kept in {folder}: {error.strerror or error}", remedy)
    if foreign:
        return failed(f"{len(foreign)} folders in {folder} can't be written, {foreign[0]} for one", remedy)
    return ok(f"pictures can be kept in {folder}")


def _subfolders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


# What stands in front --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float

    def json(self) -> dict[str, Any]:
        """Return the object in the body, or an empty one: a page of somebody else's is no reason to faint."""
        try:
            value = orjson.loads(self.body)
        except orjson.JSONDecodeError:
            return {}
        return value if isinstance(value, dict) else {}


class _Client:
    """Asks the site, over one connection if it is let, and counts how often it had to open one."""

    def __init__(self, site: Site) -> None:
        self._url = site.url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {site.token}"} if site.token else {}
        self.opened = 0

    async def __aenter__(self) -> Self:
        tracing = aiohttp.TraceConfig()
        tracing.on_connection_create_end.append(self._count)
        self._session = aiohttp.ClientSession(trace_configs=[tracing], middlewares=[_ask_once])
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._session.close()

    async def get(self, path: str, *, seconds: float = _SITE_SECONDS, **query: str) -> _Reply:
        """Ask for this path; ends the check if nobody answers within the time."""
        begun, timeout = time.perf_counter(), aiohttp.ClientTimeout(total=seconds)
        try:
            async with self._session.get(
                self._url + path, params=query, headers=self._headers, timeout=timeout, allow_redirects=False
            ) as reply:
                body = await reply.read()
                return _Reply(reply.status, reply.headers, body, time.perf_counter() - begun)
        except aiohttp.ClientConnectorError as error:
            raise _Ended(
                failed(f"{self._url} can't be reached: {error}", "correct --url, or what it leads to")
            ) from error
        except (TimeoutError, aiohttp.ClientPayloadError) as error:
            raise _NoReply(time.perf_counter() - begun, silent=isinstance(error, TimeoutError)) from error
        except (aiohttp.ClientError, ValueError) as error:
            raise _Ended(failed(f"{self._url} can't be asked: {error!r}", "correct --url")) from error

    async def _count(self, *_event: object) -> None:
        self.opened += 1


class _NoReply(_Ended):
    """The connection was cut before the reply was complete, or stayed silent for too long."""

    def __init__(self, seconds: float, *, silent: bool) -> None:
        self.what = (
            f"nothing had come after {seconds:.1f} s" if silent else f"the connection was cut after {seconds:.1f} s"
        )
        super().__init__(failed(self.what, "see what the proxy logs, and whether the server behind it runs"))


async def _ask_once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Keep aiohttp from asking a second time by itself when a connection is cut (RFC 9112, 9.3.1): the cut is what we look for."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise aiohttp.ClientPayloadError(str(error)) from error


async def check_site(site: Site) -> Finding:
    """Ask for /healthz."""
    async with _Client(site) as client:
        reply = await client.get("/healthz")
    if reply.status == 200 and reply.json().get("status") == "ok":
        return ok(f"{site.url} answers")
    where = f" to {reply.headers['Location']}" if "Location" in reply.headers else ""
    return failed(
        f"{site.url}/healthz answers {reply.status}{where}, not as this server does",
        "give --url as browsers see it, and see that the proxy passes everything on",
    )


async def check_headers(site: Site) -> Finding:
    """Ask twice, and see whether a cache had its hands in it."""
    async with _Client(site) as client:
        replies = [await client.get("/healthz") for _ in range(2)]
    numbers = {reply.headers.get("X-Request-Id") for reply in replies}
    if None not in numbers and len(numbers) == 1:
        return failed("two requests got the very same reply: a cache stands in between", "switch it off for this site")
    return _judge_headers(replies[0], {"X-Request-Id"}) or ok("X-Request-Id and Cache-Control arrive as they were sent")


def _judge_headers(reply: _Reply, expected: set[str]) -> Finding | None:
    if (control := reply.headers.get("Cache-Control", "missing")) != _PRIVATE:
        return failed(
            f"Cache-Control is {control}, and not {_PRIVATE}: a cache may show one user what is another's",
            "let the proxy pass Cache-Control on as it is (nginx: no `expires`, no `proxy_hide_header`)",
        )
    if missing := sorted(expected - {name for name in expected if name in reply.headers}):
        return warning(f"{' and '.join(missing)} didn't arrive: a cache or a filter stands in between", "let them pass")
    return None


async def check_keep_alive(site: Site) -> Finding:
    """See whether a second request finds the connection of the first one open."""
    async with _Client(site) as client:
        await client.get("/healthz")
        await client.get("/healthz")
        if client.opened == 1:
            return ok("a connection is kept open for the next request")
    return warning(
        "each request needs a connection of its own, and each poll pays for opening it",
        "keep connections open: keepalive_timeout (nginx), no `option httpclose` (HAProxy)",
    )


async def check_hold(site: Site, hold_seconds: float) -> Finding:
    """Hold a real poll for as long as the server holds one, and see what comes of it."""
    if site.token is None:
        return skipped("whether a poll may last is tried with --token: a user's, who has an unfinished task")
    async with _Client(site) as client:
        task_id = await _find_unfinished(client)
        try:
            reply = await client.get(
                "/api/generate/status",
                seconds=hold_seconds + _PATIENCE_SECONDS,
                taskId=task_id,
                until="terminal",  # progress must not end it
                wait=f"{hold_seconds:g}",
            )
        except _NoReply as error:
            return failed(f"{error.what} of a hold of {hold_seconds:g} s", _longer(hold_seconds))
        return judge_hold(reply, hold_seconds)


async def _find_unfinished(client: _Client) -> str:
    reply = await client.get("/api/generate/tasks", limit="100")
    if reply.status != 200:
        raise _Ended(
            failed(
                f"the list of tasks answers {reply.status}", "make a token by POST /api/auth/tokens, and give that one"
            )
        )
    for task in reply.json().get("items", []):
        if task["status"] in {"pending", "processing"}:
            return str(task["taskId"])
    raise _Ended(
        skipped("this user has no unfinished task to wait for: create one while no worker runs, and try again")
    )


def judge_hold(reply: _Reply, hold_seconds: float) -> Finding:
    """Say what the reply to a poll that was to be held for so long tells about the way it came."""
    took = f"after {reply.seconds:.1f} s of a hold of {hold_seconds:g} s"
    poll = reply.json().get("poll")
    if not isinstance(poll, dict):
        ours = "problem+json" in reply.headers.get("Content-Type", "")
        who, remedy = ("the server", "see its log") if ours else ("a proxy", _longer(hold_seconds))
        return failed(f"{who} answered {reply.status} {took}", remedy)
    if changed := _judge_headers(reply, {"X-Request-Id", "Server-Timing"}):
        return changed
    late = reply.seconds - float(poll["waitedMs"]) / 1000
    if late > _LATE_SECONDS:
        return warning(f"the answer came {late:.1f} s after it was sent", "switch off buffering in the proxy")
    if poll["reason"] != "timeout":
        return warning(
            f"the poll ended {took} ({poll['reason']}), so no longer wait was tried", "try again with a task that waits"
        )
    return ok(f"a poll was held for {reply.seconds:.1f} s and answered")


def _longer(hold_seconds: float) -> str:
    return (
        f"let whatever stands in front wait for {hold_seconds + 5:g} s or more: proxy_read_timeout (nginx), timeout server"
        " (HAProxy), the idle timeout (load balancers), or lower polling.hold_seconds"
    )
