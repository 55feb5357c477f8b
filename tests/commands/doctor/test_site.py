"""The doctor in front of the site: a proxy that cuts, holds back or is none of ours, and a poll that is held for real."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from server.commands.doctor import site
from server.commands.doctor.examination import CHECKS
from server.commands.doctor.report import Verdict
from server.commands.doctor.site import Reply, judge
from server.storage.migrations import migrate
from tests.commands.doctor.conftest import Examine
from tests.commands.doctor.nginx import nginx
from tests.support.people import Person, Start
from tests.support.postgres import Sql, execute

InFront = Callable[[str], AbstractAsyncContextManager[str]]
SHORT = {"hold_seconds": 0.3}
LONG = {"hold_seconds": 30.0}
SET_UP_WELL = "proxy_set_header Host $http_host; client_max_body_size 12m; "


def url_of(person: Person) -> str:
    return str(person.http.make_url("")).rstrip("/")


@pytest.fixture
def in_front(tmp_path: Path, alice: Person) -> InFront:
    """Put nginx, set up well but for this, before Alice's server: `async with in_front("proxy_read_timeout 1s;") as url`."""
    folder = tmp_path / "nginx"
    folder.mkdir()
    return lambda directives: nginx(folder, alice.http.server.port or 0, SET_UP_WELL + directives)


async def test_a_poll_that_lasts_is_ok(alice: Person, examined: Examine) -> None:
    examination = await examined(url=url_of(alice), polling=SHORT)
    assert examination.sound
    assert "a poll was held for 0." in examination["hold"]
    assert examination.sum == f"{len(CHECKS)} ok, 0 skipped, 0 WARNING, 0 FAILED"


async def test_the_poll_leaves_nothing_but_an_account_that_nobody_can_log_in_to(
    alice: Person, examined: Examine, sql: Sql
) -> None:
    for _ in range(2):
        assert (await examined(url=url_of(alice), polling=SHORT)).sound
    assert sql("SELECT count(*) FROM public.image_generations") == sql("SELECT count(*) FROM longpoll.tokens") == [(0,)]
    assert sql("SELECT email FROM longpoll.accounts ORDER BY email") == [
        ("alice@example.org",),
        ("doctor@longpoll.invalid",),
    ]
    login = {"email": "doctor@longpoll.invalid", "password": "no password"}
    async with alice.http.post("/api/auth/login", json=login) as reply:
        assert reply.status == 401


async def test_workers_leave_the_task_of_the_poll_alone(start: Start, examined: Examine) -> None:
    client = await start(generation={"workers": 2})
    assert (await examined(url=str(client.make_url("")).rstrip("/"), polling=SHORT)).sound


async def test_nginx_that_is_set_up_well_is_ok_and_its_max_fails_are_told(examined: Examine, in_front: InFront) -> None:
    async with in_front("") as url:
        examination = await examined(url=url, polling=SHORT)
    assert examination.sound, examination.text
    assert "through nginx: if that has several servers in an upstream, write max_fails=0" in examination["site"]


async def test_nginx_that_gives_up_before_the_hold_ends_is_told(examined: Examine, in_front: InFront) -> None:
    async with in_front("proxy_read_timeout 1s;") as url:
        said = (await examined(url=url, polling=LONG)).failure("hold")
    assert "a poll of 30 s was answered after 1." in said
    assert "by a proxy, with 504" in said
    assert "wait for 35 s or longer: proxy_read_timeout (nginx), timeout server (HAProxy)" in said


async def test_nginx_that_holds_replies_back_is_told(
    examined: Examine, in_front: InFront, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site, "_LATE_SECONDS", 1.0)
    async with in_front("limit_rate 450;") as url:
        said = (await examined(url=url, polling=SHORT)).failure("hold")
    assert " s after the server had sent it: something in front buffers it" in said


async def test_a_server_that_is_gone_behind_nginx_is_told(examined: Examine, tmp_path: Path) -> None:
    async with nginx(tmp_path, 1, "") as url:
        said = (await examined(url=url)).failure("site")
    assert f"{url}/healthz answers 502, not as this server does" in said


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "nonsense", "ftp://example.org", "http://["])
async def test_a_site_that_cannot_be_reached_is_one_failure(examined: Examine, url: str) -> None:
    examination = await examined(url=url)
    assert f"{url} can't be reached: " in examination.failure("site")
    assert examination["hold"].startswith("skipped")


async def test_a_site_on_another_database_is_told(
    empty_dsn: str, alice: Person, examined: Examine, tmp_path: Path
) -> None:
    await migrate(empty_dsn)
    elsewhere = {"data_dir": str(tmp_path / "elsewhere")}
    said = (await examined(empty_dsn, url=url_of(alice), database=elsewhere)).failure("hold")
    assert "doesn't know a token that was made in this database just now" in said
    assert execute(empty_dsn, "SELECT count(*) FROM longpoll.tokens") == [(0,)]


class Relay:
    """Passes bytes on to a server, but cuts each connection, or swallows the poll."""

    def __init__(self, port: int, *, cut_after: float | None = None, swallow: bytes | None = None) -> None:
        self.port, self.cut_after, self.swallow = port, cut_after, swallow
        self.polls = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.port)
        ways = [self._enqueue_for_publishing(reader, up_writer), self._enqueue_for_publishing(up_reader, writer)]
        tasks = [asyncio.create_task(way) for way in ways]
        await asyncio.wait(tasks, timeout=self.cut_after, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        up_writer.close()
        writer.close()

    async def _enqueue_for_publishing(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            self.polls += data.startswith(b"GET /api/generate/status")
            if self.swallow is None or not data.startswith(self.swallow):
                writer.write(data)


@contextlib.asynccontextmanager
async def running(relay: Relay) -> AsyncIterator[str]:
    async with await asyncio.start_server(relay.serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_poll_that_is_cut_is_told_and_not_asked_again(alice: Person, examined: Examine) -> None:
    relay = Relay(alice.http.server.port or 0, cut_after=0.5)
    async with running(relay) as url:
        said = (await examined(url=url, polling=LONG)).failure("hold")
    assert "a poll of 30 s ended after 0." in said
    assert "the connection was cut" in said
    assert relay.polls == 1


async def test_a_poll_that_is_never_answered_is_told(
    alice: Person, examined: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site, "_PATIENCE_SECONDS", 0.2)
    async with running(Relay(alice.http.server.port or 0, swallow=b"GET /api/generate/status")) as url:
        said = (await examined(url=url, polling=SHORT)).failure("hold")
    assert "nobody answered" in said


@pytest.mark.parametrize(
    ("reply", "verdict", "text"),
    [
        (Reply(200, b'{"poll": {"reason": "timeout", "waitedMs": 29500}}', 29.6), Verdict.OK, "held for 29.6 s"),
        (Reply(200, b'{"poll": {"reason": "timeout", "waitedMs": 9500}}', 30), Verdict.FAILED, "arrived 20.5 s after"),
        (Reply(200, b'{"poll": {"reason": "degraded", "waitedMs": 0}}', 0), Verdict.WARNING, "0.0 s (degraded)"),
        (Reply(503, b'{"code": "unavailable", "title": "No"}', 2), Verdict.FAILED, "by the server with 503: No"),
        (Reply(502, b"<h1>Gateway</h1>", 20), Verdict.FAILED, "after 20.0 s by a proxy, with 502"),
        (Reply(200, b"[]", 20), Verdict.FAILED, "by a proxy, with 200"),
    ],
)
def test_the_reply_to_a_held_poll_is_judged(reply: Reply, verdict: Verdict, text: str) -> None:
    found = judge(reply, 30)
    assert found.verdict is verdict
    assert text in found.sentence
