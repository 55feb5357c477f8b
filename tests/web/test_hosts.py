"""The names by which a server may be called: its own, and such as no stranger can own."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from server import config
from server.config import Config
from server.errors import BadRequest, ConfigurationError, Misdirected
from server.web.hosts import Hosts
from tests.support.people import Person, Start
from tests.support.raw_http import connect_to

PAGE = {"Accept": "text/html"}
OURS = {"public_url": "https://Pictures.example.org:8443/", "allowed_hosts": ("nas.example.org", "bücher.example")}


def verdict(name: str, path: str = "/tasks", **server: Any) -> type[Exception] | None:
    hosts = Hosts.of(Config().replace(server=server).server)
    try:
        hosts.check(make_mocked_request("GET", path, headers={"Host": name}))
    except (BadRequest, Misdirected) as error:
        return type(error)
    return None


@pytest.mark.parametrize(
    "host",
    [
        "pictures.example.org", "PICTURES.example.org:1", "pictures.example.org.", "nas.example.org", "xn--bcher-kva.example",
        "localhost", "localhost:8080", "shop.localhost", "nas", "my_service:80", "nas.local", "web.default.svc.cluster.local",
        "box.lan", "host.docker.internal", "nas.home.arpa", socket.gethostname(),
        "127.0.0.1", "127.0.0.1:8080", "192.168.1.7:80", "[::1]", "[fe80::1]:8080", "203.0.113.9",
        "",  # HTTP/1.0
    ],
)  # fmt: skip
def test_a_name_that_is_ours_or_nobodys(host: str) -> None:
    assert verdict(host, **OURS) is None


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8080", "pictures.example.org.evil.example", "localhost.evil.example", "127.0.0.1.nip.io",
        "evil.example.", "notpictures.example.org", "www.pictures.example.org", "1.2.3", "[1.2.3.4]x.example",
    ],
)  # fmt: skip
def test_a_name_that_somebody_else_may_own(host: str) -> None:
    assert verdict(host, **OURS) in {Misdirected, BadRequest}
    assert verdict(host) in {Misdirected, BadRequest}
    assert verdict("pictures.example.org") is Misdirected  # without a public_url, a stranger's as well


@pytest.mark.parametrize(
    "host",
    ["a:99999", "foo:bar", "a b", "a/b", "a@b", "a:1:2", "::1", "[::1", "a\x7f", "é.example", "?", "a" * 256, ":80"],
)
def test_what_is_no_host(host: str) -> None:
    assert verdict(host) is BadRequest


def test_load_balancers_ask_for_the_health_by_any_name() -> None:
    for path in ("/healthz", "/readyz"):
        assert verdict("evil.example", path) is None
    assert verdict("evil.example", "/metrics") is Misdirected


def test_an_operator_may_allow_any_name() -> None:
    assert verdict("evil.example", allowed_hosts=("*",)) is None
    assert verdict("a:99999", allowed_hosts=("*",)) is BadRequest


def test_the_name_that_is_listened_on() -> None:
    assert verdict("pictures.example.org", host="pictures.example.org") is None


def test_a_name_with_a_port_is_no_setting() -> None:
    with pytest.raises(ConfigurationError, match="without a port"):
        config.load(None, {"LONGPOLL_SERVER__ALLOWED_HOSTS": "nas.example.org:8080"})


@pytest.mark.parametrize(
    "url", ["http://", "https://a:99999", "http://[::1", "ftp://a", "pictures.example.org", "http://a:0"]
)
def test_a_site_that_is_none_is_no_setting(url: str) -> None:
    with pytest.raises(ConfigurationError, match="public_url"):
        config.load(None, {"LONGPOLL_SERVER__PUBLIC_URL": url})


async def test_a_page_of_another_site_reaches_nothing(alice: Person) -> None:
    """It has the victim's browser, but no name of ours."""
    task_id = await alice.create()
    before = alice.app
    for method, url in (
        ("GET", "/"),
        ("GET", "/metrics"),
        ("POST", "/api/auth/login"),
        ("GET", f"/tasks/{task_id}"),
        ("GET", "/x"),
    ):
        for headers in ({}, PAGE):
            async with alice.http.request(method, url, headers={"Host": "evil.example", **headers}) as reply:
                assert (reply.status, reply.headers["Cache-Control"]) == (421, "private, no-store")
                assert "server.allowed_hosts" in await reply.text()
    assert before is alice.app


async def test_a_host_that_is_none_is_a_clear_400_everywhere(start: Start) -> None:
    """Also where the site's own address is shown."""
    client = await start()
    person = Person(client, None)  # type: ignore[arg-type]
    for host in ("a:99999", "foo:bar", "a/b", "[", "\x80"):
        for url in ("/docs", "/login", "/openapi.json", "/", "/nowhere", "/static/style.css"):
            async with connect_to(person) as connection:
                await connection.send(f"GET {url} HTTP/1.1\r\nHost: {host}\r\nAccept: text/html\r\n\r\n")
                reply = await connection.reply()
                assert reply.status == 400, (host, url)
                assert b"Host must be a name or an address" in reply.body
    for head in ("GET /docs HTTP/1.1\r\nHost:\r\n\r\n", "GET /docs HTTP/1.0\r\n\r\n"):
        async with connect_to(person) as connection:
            await connection.send(head)
            assert (await connection.reply()).status == 200
    assert person.metric("longpoll_request_crashes_total") == 0
