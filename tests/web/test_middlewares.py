"""What every request passes: who may change things, how often, what goes wrong, what is logged, what is in every reply."""

from __future__ import annotations

import html
import json
import logging
import re
import time
from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
import structlog
from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, HttpProcessingError
from aiohttp.test_utils import TestClient
from yarl import URL

from server.storage.embedded.cluster import EmbeddedPostgres
from server.telemetry import logs
from server.web import keys
from tests.support.facts import until
from tests.support.outage import outage
from tests.support.people import Enter, Person, Start
from tests.support.postgres import Sql
from tests.support.raw_http import connect_to, request

PAGE = {"Accept": "text/html"}
Lines = list[MutableMapping[str, Any]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """All log lines of a test. Ask for it last: starting a server sets up the log."""
    with structlog.testing.capture_logs() as captured:
        yield captured


# Other sites ---------------------------------------------------------------------------------------------------------


async def test_only_our_own_pages_may_change_something(alice: Person, sql: Sql) -> None:
    own = str(alice.http.make_url("/")).rstrip("/")
    for headers in ({"Origin": own}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}, {}):
        async with alice.http.post("/api/generate", json={"prompt": "x"}, headers=headers) as reply:
            assert reply.status == 202, headers
    evil = (
        {"Origin": "https://evil.example"}, {"Origin": "http://127.0.0.1:1"}, {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site", "Origin": own},
    )  # fmt: skip
    for headers in evil:
        for method, url in (
            ("POST", "/api/generate"), ("DELETE", "/api/generate/tasks/x"), ("POST", "/api/auth/login"),
            ("POST", "/api/auth/logout"), ("POST", "/nowhere"),
        ):  # fmt: skip
            async with alice.http.request(method, url, json={"prompt": "x"}, headers=headers) as reply:
                assert (reply.status, (await reply.json())["code"]) == (403, "cross_origin")
                assert not [name for name in reply.headers if name.startswith("Access-Control")]
        async with alice.http.get("/api/generate/tasks", headers=headers) as reply:
            assert reply.status == 200  # reading changes nothing, and another site can't see the reply
    assert sql("SELECT count(*) FROM public.image_generations") == [(4,)]


async def test_behind_a_trusted_proxy_the_origin_is_what_browsers_see(start: Start) -> None:
    client = await start(server={"trusted_proxies": ("127.0.0.1",)})
    said = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "pictures.example.org"}
    for origin, status in (("https://pictures.example.org", 204), (str(client.make_url("/")), 403)):
        async with client.post("/api/auth/logout", headers={**said, "Origin": origin}) as reply:
            assert reply.status == status
    nobody = await start()
    async with nobody.post("/api/auth/logout", headers={**said, "Origin": "https://pictures.example.org"}) as reply:
        assert reply.status == 403


async def refusal(client: TestClient[web.Request, web.Application], **headers: str) -> str:
    """Log in by the form of a page that isn't taken for one of ours; returns what the person reads."""
    account = {"email": "a@example.org", "password": "correct horse"}
    async with client.post("/api/auth/login", data=account, headers={**PAGE, **headers}) as reply:
        assert (reply.status, reply.content_type) == (403, "text/html")
        return await reply.text()


async def test_a_person_is_told_why_a_login_is_refused_and_what_to_do(start: Start) -> None:
    """A proxy that puts a Host of its own looks like another site, and a name of the network isn't the public one."""
    client = await start()
    own = str(client.make_url("/")).rstrip("/")
    text = html.unescape(await refusal(client, Origin="http://pictures.lan"))
    assert f"This one is of http://pictures.lan, but the request reached the server as {own}." in text
    assert "server.public_url" in text
    assert "pass the Host header on" in text
    assert "<script>" not in await refusal(client, Origin="http://<script>x</script>" + "x" * 5000)
    assert "a page of another site did it (null)" in await refusal(client, **{"Sec-Fetch-Site": "cross-site"})
    public = await start(server={"public_url": "https://pictures.example.org"})
    text = await refusal(public, Origin="http://pictures.lan")
    assert "this one is of http://pictures.lan. Open https://pictures.example.org instead." in text


# Limits --------------------------------------------------------------------------------------------------------------


async def attempt(client: TestClient[web.Request, web.Application], url: str, **headers: str) -> int:
    """Ask for something that is refused for its body, unless the limit refuses it first; returns the status."""
    async with client.post(url, data=b"", headers={"Content-Type": "application/json", **headers}) as reply:
        text = await reply.text()
        if reply.status == 429:
            assert '"code":"too_many_requests"' in text
            assert 1 <= int(reply.headers["Retry-After"]) <= 76  # a minute, and a quarter more to spread out
        return reply.status


async def test_logins_and_registrations_from_one_address_are_limited(start: Start) -> None:
    client = await start(limits={"enabled": True, "login": "3 per minute", "register": "1 per minute"})
    urls = ("/api/auth/login", "/api/auth/login", "/api/auth/%6cogin", "/api/auth/login", "/api/auth/lo%67in")
    assert [await attempt(client, url) for url in urls] == [400, 400, 400, 429, 429]
    assert [await attempt(client, "/api/auth/register") for _ in range(2)] == [400, 429]
    assert await attempt(client, "/api/auth/logout") == 204


async def test_the_wait_is_spread_out_so_that_not_everybody_comes_back_at_once(start: Start) -> None:
    client = await start(limits={"enabled": True, "login": "1 per hour"})
    await attempt(client, "/api/auth/login")
    waits = set()
    for _ in range(30):
        async with client.post("/api/auth/login") as reply:
            waits.add(int(reply.headers["Retry-After"]))
    assert len(waits) > 5
    assert 1 <= min(waits) <= max(waits) <= 4501  # an hour, and a quarter more


async def test_both_ways_to_create_share_one_limit(start: Start, enter: Enter) -> None:
    alice = await enter(await start(limits={"enabled": True, "create": "2 per minute"}))
    urls = ("/api/generate", "/api/generate_advanced", "/api/generate", "/api/generate_advanced")
    assert [await attempt(alice.http, url) for url in urls] == [400, 400, 429, 429]
    assert await attempt(alice.http, "/api/generate/cancel") == 400


async def test_each_address_behind_a_trusted_proxy_has_a_limit_of_its_own(start: Start) -> None:
    """What a client claims to the left of what the proxy saw changes nothing."""
    client = await start(server={"trusted_proxies": ("127.0.0.1",)}, limits={"enabled": True, "login": "1 per minute"})
    hops = ("198.51.100.1", "198.51.100.2", "198.51.100.1", "6.6.6.6, 198.51.100.1", "198.51.100.2, 127.0.0.1")
    statuses = [await attempt(client, "/api/auth/login", **{"X-Forwarded-For": hop}) for hop in hops]
    assert statuses == [400, 400, 429, 429, 429]


async def test_an_untrusted_peer_cannot_give_itself_another_address(start: Start) -> None:
    client = await start(limits={"enabled": True, "login": "1 per minute"})
    statuses = [await attempt(client, "/api/auth/login", **{"X-Forwarded-For": f"6.6.6.{n}"}) for n in range(3)]
    assert statuses == [400, 429, 429]


# What goes wrong -----------------------------------------------------------------------------------------------------


async def test_an_unknown_url_and_a_wrong_method(alice: Person) -> None:
    async with alice.http.get("/api/nowhere") as reply:
        assert (reply.status, reply.content_type) == (404, "application/problem+json")
        body = await reply.json()
    assert body == {
        "type": "urn:longpoll:problem:not_found", "title": "Not found", "status": 404, "code": "not_found",
        "error": "Not found", "instance": reply.headers["X-Request-Id"],
    }  # fmt: skip
    async with alice.http.put("/api/generate/status") as reply:
        assert (reply.status, (await reply.json())["code"]) == (405, "method_not_allowed")
        assert reply.headers["Allow"] == "GET, HEAD"
    async with alice.http.get("/tasks/a/b/c", headers=PAGE) as reply:
        assert (reply.status, reply.content_type) == (404, "text/html")
    async with alice.http.get("/api/nowhere", headers=PAGE) as reply:
        assert reply.content_type == "application/problem+json"  # for programs, whatever they accept


async def test_no_stack_trace_ever_reaches_a_client(
    alice: Person, monkeypatch: pytest.MonkeyPatch, lines: Lines
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a secret detail")

    monkeypatch.setattr(alice.app[keys.TASKS], "list", fail)
    for url, headers in (("/api/generate/tasks", {}), ("/tasks", PAGE)):
        async with alice.http.get(url, headers=headers) as reply:
            text = await reply.text()
            assert reply.status == 500
            assert "Internal server error" in text
            assert reply.headers["X-Request-Id"] in text
            assert not [word for word in ("secret", "Traceback", "RuntimeError", "tasks.py") if word in text]
    crashed = [line for line in lines if line["event"] == logs.REQUEST_CRASHED]
    assert [(line["path"], str(line["exc_info"])) for line in crashed] == [
        ("/api/generate/tasks", "a secret detail"), ("/tasks", "a secret detail"),
    ]  # fmt: skip
    assert alice.metric("longpoll_request_crashes_total") == 2
    assert alice.metric("longpoll_http_requests_total", route="/tasks", method="GET", code="500") == 1


async def test_without_a_database_the_answer_is_a_503_and_not_a_500(
    alice: Person, postgres: EmbeddedPostgres, dsn: str
) -> None:
    """A task that is known is still answered: what was last known of it is better than nothing."""
    task_id = await alice.create()
    await alice.status(task_id, wait=0)

    async def listing() -> int:
        async with alice.http.get("/api/generate/tasks") as reply:
            body = await reply.json()
            if reply.status == 503:
                assert (body["error"], body["code"]) == ("Service unavailable", "unavailable")
                assert 1 <= int(reply.headers["Retry-After"]) <= 4
                assert "terminat" not in str(body)
            return reply.status

    with outage(postgres, dsn):
        assert await listing() == 503
        async with alice.http.post("/api/generate", json={"prompt": "x"}) as reply:
            assert reply.status == 503
        async with alice.http.get("/tasks", headers=PAGE) as reply:
            assert (reply.status, reply.content_type) == (503, "text/html")
        body = await alice.status(task_id, wait=0)
        assert body["data"]["version"] == 1
        async with alice.poll("never-seen", wait=0) as reply:
            assert reply.status == 503

    async def works() -> bool:
        return await listing() == 200

    await until(works)
    assert alice.metric("longpoll_request_crashes_total") == 0


# What is in every reply, and in the log ------------------------------------------------------------------------------


async def test_every_reply_forbids_what_no_page_of_ours_needs(alice: Person) -> None:
    task_id = await alice.create()
    urls = (
        "/", "/login", "/tasks", f"/tasks/{task_id}", "/nowhere", "/healthz", "/readyz", "/metrics",
        f"/api/generate/status?taskId={task_id}&wait=0", "/api/generate/status", "/api/generate/tasks",
        "/static/style.css", "/static/nowhere.js", "/static/../config.toml", "/static/",
    )  # fmt: skip
    for url in urls:
        for headers in ({}, PAGE):
            async with alice.http.get(url, headers=headers, allow_redirects=False) as reply:
                assert reply.status != 500, url
                assert reply.headers["X-Content-Type-Options"] == "nosniff", url
                assert reply.headers["X-Frame-Options"] == "DENY", url
                assert reply.headers["Referrer-Policy"] == "same-origin", url
                assert reply.headers["Cross-Origin-Opener-Policy"] == "same-origin", url
                assert "script-src 'self';" in reply.headers["Content-Security-Policy"], url
                assert len(reply.headers["X-Request-Id"]) == 16, url
                kept = "no-cache" if url.startswith("/static/") and reply.status == 200 else "private, no-store"
                assert reply.headers["Cache-Control"] == kept, url


async def test_browsers_are_told_to_stay_with_https(start: Start) -> None:
    """Polls alone don't say so. Nor does a developer's own machine, where it would hold for everything else."""
    client = await start(server={"public_url": "https://pictures.example.org"})
    for url in ("/login", "/healthz", "/static/style.css", "/nowhere", "/tasks", "/docs", "/api/generate/tasks"):
        async with client.get(url, allow_redirects=False) as reply:
            assert reply.headers["Strict-Transport-Security"] == "max-age=31536000", url
    for host in ("localhost", "localhost:8443", "shop.localhost"):
        async with client.get("/login", headers={"Host": host}) as reply:
            assert "Strict-Transport-Security" not in reply.headers
    plain = await start(server={"public_url": "http://pictures.example.org"})
    async with plain.get("/login") as reply:
        assert "Strict-Transport-Security" not in reply.headers


async def test_a_refusal_for_want_of_a_login_says_how_to_log_in(alice: Person) -> None:
    """Programs and libraries look for it; browsers must not open a window of their own."""
    stranger = {"Cookie": "longpoll=wrong"}
    account = {"email": "nobody@example.org", "password": "wrong horse"}
    for method, url, options in (
        ("GET", "/api/generate/tasks", {"headers": stranger}),
        ("GET", "/api/generate/status?taskId=x", {"headers": stranger}),
        ("GET", "/api/generate/tasks", {"headers": {"Authorization": "Bearer lp_wrong"}}),
        ("POST", "/api/auth/login", {"json": account}),
        ("POST", "/api/auth/login", {"data": account, "headers": PAGE}),
        ("POST", "/api/auth/tokens", {"json": {}, "headers": stranger}),
    ):
        alice.http.session.cookie_jar.clear()
        async with alice.http.request(method, url, **options) as reply:  # type: ignore[arg-type]
            assert (reply.status, reply.headers["WWW-Authenticate"]) == (401, 'Bearer realm="longpoll"'), url
    async with alice.http.get("/healthz") as reply:
        assert "WWW-Authenticate" not in reply.headers


async def test_the_metrics_are_not_for_those_who_come_through_a_proxy(start: Start) -> None:
    client = await start()
    through = (
        {"X-Forwarded-For": "198.51.100.1"}, {"x-forwarded-proto": "https"}, {"Forwarded": "for=198.51.100.1"},
        {"Via": "1.1 proxy"}, {"X-Real-IP": "198.51.100.1"},
    )  # fmt: skip
    for headers in through:
        async with client.get("/metrics", headers=headers) as reply:
            assert (reply.status, (await reply.json())["code"]) == (403, "metrics_refused"), headers
    async with client.get("/metrics") as reply:
        assert reply.status == 200
    open_to_all = await start(server={"metrics_through_proxy": True})
    for headers in through:
        async with open_to_all.get("/metrics", headers=headers) as reply:
            assert reply.status == 200


async def test_the_id_of_a_request_is_the_proxys_if_it_is_trusted(start: Start, enter: Enter, lines: Lines) -> None:
    """One id through all logs. What strangers say stands in no log, and what isn't an id neither."""
    alice = await enter(await start(server={"trusted_proxies": ("127.0.0.1",)}))
    for given in ("1-67891233-abcdef012345678912345678", "Root=1-678:x/y+z@a", "x" * 128):
        for url, headers in (("/healthz", {}), ("/nowhere", {}), ("/nowhere", PAGE), ("/api/generate/status", {})):
            async with alice.http.get(url, headers={"X-Request-Id": given, **headers}) as reply:
                assert reply.headers["X-Request-Id"] == given
                assert url == "/healthz" or given in await reply.text()
    assert [line for line in lines if line.get("request_id") == "x" * 128]
    for given in ("x" * 129, "a b", 'a"b', "<script>", "é", "", "a\tb", "a,b", "a;b"):
        async with alice.http.get("/healthz", headers={"X-Request-Id": given}) as reply:
            assert re.fullmatch("[0-9a-f]{16}", reply.headers["X-Request-Id"]), given
    nobody = await start()
    async with nobody.get("/healthz", headers={"X-Request-Id": "x" * 20}) as reply:
        assert re.fullmatch("[0-9a-f]{16}", reply.headers["X-Request-Id"])


async def test_a_poll_that_comes_again_with_an_id_keeps_it(start: Start, enter: Enter, sql: Sql) -> None:
    alice = await enter(await start(server={"trusted_proxies": ("127.0.0.1",)}))
    task_id = await alice.create()
    async with connect_to(alice) as connection:
        for version in range(1, 4):
            text = request(alice, f"/api/generate/status?taskId={task_id}&version={version}")
            await connection.send(text.removesuffix("\r\n") + "X-Request-Id: same\r\n\r\n")
            await until(lambda: alice.held == 1)
            sql("UPDATE public.image_generations SET progress = %s", (version / 10,))
            assert (await connection.reply()).headers["x-request-id"] == "same"


async def test_a_file_that_is_not_there_is_a_problem_like_any_other(alice: Person) -> None:
    names = (
        "nowhere.js", "..%2Fconfig.toml", "%2Fetc%2Fpasswd", "%00", "pages", "longpoll/nowhere.js", "longpoll/..%2Fstyle.css",
        "longpoll/..%2F..%2Fapp.py", "longpoll/longpoll/api.js", "longpoll/",
    )  # fmt: skip
    for name in names:
        async with alice.http.get(URL(f"/static/{name}", encoded=True)) as reply:
            assert (reply.status, (await reply.json())["code"]) == (404, "not_found")
    assert alice.metric("longpoll_http_requests_total", route="/static/{filename}", method="GET", code="404") >= 1


async def test_files_of_the_site_are_asked_for_again_but_not_sent_again(alice: Person) -> None:
    for url in ("/static/style.css", "/static/longpoll/api.js"):
        async with alice.http.get(url) as reply:
            assert (reply.status, reply.headers["Cache-Control"]) == (200, "no-cache")
            tag = reply.headers["ETag"]
        async with alice.http.get(url, headers={"If-None-Match": tag}) as reply:
            assert reply.status == 304


async def test_each_request_is_one_line_that_tells_what_is_needed_and_no_secret(alice: Person, lines: Lines) -> None:
    password, wrong = "correct horse battery", "wrong horse battery"
    account = {"email": "carol@example.org", "password": password}
    cookies = []
    for url, fields in (("register", {}), ("login", {}), ("login", {"password": wrong})):
        async with alice.http.post(f"/api/auth/{url}", json={**account, **fields}) as reply:
            cookies += [cookie.value for cookie in reply.cookies.values()]
    async with alice.http.post("/api/auth/tokens", json={}) as reply:
        token = (await reply.json())["token"]
    task_id = await alice.create("a prompt that is nobody's business")
    await alice.status(task_id, wait=0)
    async with alice.http.get(
        f"/api/generate/tasks?secret={password}", headers={"Authorization": f"Bearer {token}"}
    ) as reply:
        request_id = reply.headers["X-Request-Id"]
    async with alice.http.get("/healthz") as reply:
        assert reply.status == 200  # asked for every second, and no news
    finished = [line for line in lines if str(line["event"]).endswith(".finished")]
    assert [(line["method"], line["path"], line["status"]) for line in finished] == [
        ("POST", "/api/auth/register", 201), ("POST", "/api/auth/login", 200), ("POST", "/api/auth/login", 401),
        ("POST", "/api/auth/tokens", 201), ("POST", "/api/generate", 202), ("GET", "/api/generate/status", 200),
        ("GET", "/api/generate/tasks", 200),
    ]  # fmt: skip
    *_, polled, listed = finished
    assert polled["event"] == logs.POLL_FINISHED
    assert (polled["task_id"], polled["outcome"]) == (task_id, "immediate")
    assert listed["event"] == logs.REQUEST_FINISHED
    assert set(listed) == {
        "event", "log_level", "request_id", "method", "path", "status", "user_id", "task_id", "outcome", "held_ms",
        "took_ms",
    }  # fmt: skip
    assert (listed["request_id"], listed["user_id"], listed["held_ms"]) == (request_id, polled["user_id"], 0.0)
    said = str(lines)
    assert len(cookies) == 3, "two sessions and the mark of the browser"
    for secret in (password, wrong, token, *cookies, "nobody's business"):
        assert secret not in said


async def test_the_time_that_a_poll_was_held_is_logged_apart_from_the_work(
    start: Start, enter: Enter, lines: Lines
) -> None:
    polling = {"hold_seconds": 0.5, "jitter_seconds": 0.0}
    alice = await enter(await start(polling=polling, logging={"timeout_sample": 1.0}))
    task_id = await alice.create()
    begun = time.perf_counter()
    body = await alice.status(task_id, version=1)
    whole_ms = (time.perf_counter() - begun) * 1000
    (line,) = (line for line in lines if line["event"] == logs.POLL_FINISHED)
    assert line["outcome"] == body["poll"]["reason"] == "timeout"
    assert line["held_ms"] == pytest.approx(body["poll"]["waitedMs"], abs=1)
    assert line["held_ms"] > 250  # a hold may end early, never late
    assert 0 < line["took_ms"] <= whole_ms - line["held_ms"]


async def test_what_is_not_http_is_counted_and_refused(alice: Person, lines: Lines) -> None:
    """Without a trace, and not a line each: strangers could fill the disk."""
    nonsense = (
        "GET / HTTP/9.9\r\n\r\n",
        "HELLO\x00THERE / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        f"GET /{'x' * 20_000} HTTP/1.1\r\nHost: a\r\n\r\n",
    )
    for text in nonsense:
        async with connect_to(alice) as connection:
            await connection.send(text)
            reply = await connection.reply()
            problem = json.loads(reply.body)
            status, code = (414, "uri_too_long") if "xxx" in text else (400, "bad_request")
            assert (reply.status, problem["code"], problem["status"]) == (status, code, status), text[:60]
            assert problem["instance"] == reply.headers["x-request-id"]
            assert reply.headers["content-type"] == "application/problem+json"
            assert reply.headers["cache-control"] == "private, no-store"
            assert "default-src 'none'" in reply.headers["content-security-policy"]
            assert b"Traceback" not in reply.body
            assert b".py" not in reply.body
            assert await connection.is_closed()
    assert alice.metric("longpoll_malformed_requests_total") == len(nonsense)
    malformed = [line for line in lines if line["event"] == logs.REQUEST_MALFORMED]
    assert 1 <= len(malformed) < len(nonsense)
    assert not [line for line in lines if line.get("exc_info")]


@pytest.mark.parametrize("target", ["/healthz", "/nowhere", "/api/generate/status"])
async def test_an_expectation_that_nobody_can_meet_is_refused_like_everything_else(alice: Person, target: str) -> None:
    async with connect_to(alice) as connection:
        await connection.send(f"GET {target} HTTP/1.1\r\nHost: a\r\nExpect: miracles\r\n\r\n")
        reply = await connection.reply()
        assert (reply.status, json.loads(reply.body)["code"]) == (417, "expectation_failed")
        assert reply.headers["content-type"] == "application/problem+json"
        assert json.loads(reply.body)["instance"] == reply.headers["x-request-id"]
        assert (reply.headers["cache-control"], reply.headers["x-frame-options"]) == ("private, no-store", "DENY")
        await connection.send("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await connection.reply()).status == 200
    assert alice.metric("longpoll_malformed_requests_total") == 1


async def test_whoever_sends_a_body_when_it_is_wanted_is_told_so(alice: Person) -> None:
    body = '{"prompt": "a lake"}'
    text = request(alice, "/api/generate", method="POST", body=body)
    async with connect_to(alice) as connection:
        await connection.send(text.removesuffix("\r\n\r\n" + body) + "\r\nExpect: 100-continue\r\n\r\n")
        assert (await connection.reply()).line == "HTTP/1.1 100 Continue"
        await connection.send(body)
        assert (await connection.reply()).status == 202


def complaints(counted: list[str]) -> logs.ProtocolComplaints:
    return logs.ProtocolComplaints(
        (HttpProcessingError,),
        count_malformed=lambda: counted.append("malformed"),
        count_crash=lambda: counted.append("crash"),
    )


def test_malformed_requests_are_one_line_a_second(lines: Lines) -> None:
    counted: list[str] = []
    handler = complaints(counted)
    for moment in (100.0, 100.2, 100.9, 101.0, 101.5, 102.1):
        record = logging.LogRecord("aiohttp.server", logging.ERROR, "", 0, "Error handling request", None, None)
        record.created = moment
        handler.emit(record)
    assert counted == ["malformed"] * 6
    assert [line["event"] for line in lines] == [logs.REQUEST_MALFORMED] * 3


def test_a_failure_of_ours_is_no_malformed_request(lines: Lines) -> None:
    """Each is logged with its trace, however many there are."""
    counted: list[str] = []
    handler = complaints(counted)
    for error in (RuntimeError("ours"), BadHttpMessage("theirs"), ValueError("ours, too")):
        handler.emit(logging.LogRecord("aiohttp.server", logging.ERROR, "", 0, "…", None, (type(error), error, None)))
    assert counted == ["crash", "malformed", "crash"]
    assert [(line["event"], str(line.get("exc_info"))) for line in lines] == [
        (logs.REQUEST_CRASHED, "ours"), (logs.REQUEST_MALFORMED, "None"), (logs.REQUEST_CRASHED, "ours, too"),
    ]  # fmt: skip


async def test_what_malformed_requests_carry_is_not_logged(alice: Person, lines: Lines) -> None:
    """A line that can't be parsed may be somebody's cookie, token or query."""
    secret = "hunter2"
    for text, reason in (
        (f"GET / HTTP/1.1\r\nHost: a\r\nCookie: longpoll={secret}\x01\r\n\r\n", "Invalid header value char"),
        (f"GET / HTTP/1.1\r\nHost: a\r\nAuthorization Bearer {secret}\r\n\r\n", "Invalid header token"),
        (f"GET / HTTP/1.1\r\nHost: a\r\n{secret}: {secret}\r\nX: {secret}\x00\r\n\r\n", "Invalid header value char"),
        (f"GET /?token={secret} HTTP/9.9\r\nHost: a\r\n\r\n", "Invalid HTTP version"),
        (f"GET ?token={secret} HTTP/1.1\r\nHost: a\r\n\r\n", "Unexpected start char in url"),
        (f"GET http://?{secret} HTTP/1.1\r\nHost: a\r\n\r\n", None),
        (f"{secret} / HTTP/1.1\r\nHost: a\r\n\r\n", "Invalid method encountered"),
        (f"GET / HTTP/1.1\r\nHost: a\r\nCookie: longpoll={secret * 6000}\r\n\r\n", None),
        (f"GET / HTTP/1.1\r\nHost: a\r\n{secret * 6000}: x\r\n\r\n", None),
        (f"GET /?{secret * 6000} HTTP/1.1\r\nHost: a\r\n\r\n", None),
        (f"GET / HTTP/1.1\r\nHost: {secret}\r\nHost: {secret}\r\n\r\n", "Duplicate 'Host' header found."),
        (f"GET /?{secret} HTTP/1.1\r\nCookie: longpoll={secret}\r\n\r\n", "Missing 'Host' header in request."),
        (f"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: {secret}\r\n\r\n", "Invalid character in Content-Length"),
    ):
        (handler,) = alice.http.server.runner.server._kwargs["logger"].handlers  # type: ignore[attr-defined]
        handler._logged_at = -1.0  # no matter how fast they come
        before = len(lines)
        async with connect_to(alice) as connection:
            await connection.send(text)
            assert (await connection.reply()).status >= 400
        logged = [line for line in lines[before:] if line["event"] == logs.REQUEST_MALFORMED]
        assert len(logged) == 1, text[:60]
        (line,) = logged
        assert (line["reason"], line["message"]) == (reason, "Error handling request from 127.0.0.1"), text[:60]
    assert secret not in str(lines)
