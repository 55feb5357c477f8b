"""Who is at the other end: what proxies say is believed only if they are trusted."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from server.web.proxy_headers import ProxyHeaders


def request_from(peer: str, *headers: tuple[str, str], method: str = "POST") -> web.Request:
    """Return a request as it comes in by a connection from this peer."""
    given = CIMultiDict([("Host", "pictures.example.org"), *headers])
    request = make_mocked_request(method, "/", headers=given)
    return request.clone(remote=peer)


def forwarded(*values: str) -> list[tuple[str, str]]:
    return [("X-Forwarded-For", value) for value in values]


@pytest.mark.parametrize(
    ("peer", "headers", "address"),
    [
        ("203.0.113.9", [], "203.0.113.9"),
        # Not trusted: whatever it says is its own invention.
        ("203.0.113.9", forwarded("198.51.100.1"), "203.0.113.9"),
        # Trusted: the last address that isn't a trusted proxy itself; further left stands what the client claims.
        ("127.0.0.1", forwarded("198.51.100.1"), "198.51.100.1"),
        ("127.0.0.1", forwarded("1.1.1.1, 198.51.100.1"), "198.51.100.1"),
        ("127.0.0.1", forwarded("1.1.1.1, 198.51.100.1, 10.1.2.3"), "198.51.100.1"),
        ("127.0.0.1", forwarded("127.0.0.1, 198.51.100.1,, 10.1.2.3 "), "198.51.100.1"),
        ("10.1.2.3", forwarded("2001:db8::1"), "2001:db8::1"),
        # Some proxies add a line of their own behind the client's.
        ("127.0.0.1", forwarded("1.1.1.1", "198.51.100.1"), "198.51.100.1"),
        ("127.0.0.1", forwarded("1.1.1.1, 2.2.2.2", "198.51.100.1", "10.1.2.3"), "198.51.100.1"),
        # Nothing usable: the peer.
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", forwarded(""), "127.0.0.1"),
        ("127.0.0.1", forwarded("10.1.1.1, 10.2.2.2"), "127.0.0.1"),
        # An IPv4 peer as a socket sees it that listens on ::
        ("::ffff:127.0.0.1", forwarded("198.51.100.1"), "198.51.100.1"),
        ("::ffff:203.0.113.9", forwarded("198.51.100.1"), "203.0.113.9"),
        ("127.0.0.1", forwarded("::ffff:198.51.100.1"), "198.51.100.1"),
        # Some proxies add the port.
        ("127.0.0.1", forwarded("198.51.100.1:4711"), "198.51.100.1"),
        ("127.0.0.1", forwarded("[2001:db8::1]:4711"), "2001:db8::1"),
        ("127.0.0.1", forwarded("[2001:db8::1]"), "2001:db8::1"),
        ("127.0.0.1", forwarded("198.51.100.1:80, 10.1.2.3:4711"), "198.51.100.1"),
        ("127.0.0.1", forwarded("fe80::1%eth0"), "fe80::1"),
        # What a proxy adds is no address: all who come through it are one client, whatever stands further left.
        ("127.0.0.1", forwarded("198.51.100.1, unknown"), "127.0.0.1"),
        ("127.0.0.1", forwarded("198.51.100.1, unknown, 10.1.2.3"), "127.0.0.1"),
        # A unix socket has none, and is there for a proxy.
        ("", [], "unix"),
        ("", forwarded("198.51.100.1"), "198.51.100.1"),
    ],
)
def test_the_address_of_a_client(peer: str, headers: list[tuple[str, str]], address: str) -> None:
    clients = ProxyHeaders(["127.0.0.1", "10.0.0.0/8"], "")
    assert clients.address(request_from(peer, *headers)) == address


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("::1", "::/64"),
    ],
)
def test_a_client_is_a_whole_network_of_ipv6(address: str, network: str) -> None:
    """Whoever has one address of it has all 2 to the 64."""
    clients = ProxyHeaders(["127.0.0.1"], "")
    assert clients.network(request_from(address)) == network
    assert clients.network(request_from("127.0.0.1", *forwarded(f"[{address}]:80"))) == network


GARBAGE = [
    "", " ", ",", ",,,", "unknown", "_hidden", "[", "]", "[]", "[]:", ":", "::", ":::", "[::1", "1.2.3", "1.2.3.4.5", "256.1.1.1",
    "1.2.3.4:", "1.2.3.4:x", "[1.2.3.4]:80", "[::1]x", "::1%", "%", "\u0661.2.3.4", "\x00", "1" * 5000, "a" * 8000, '"1.2.3.4"',
    "for=1.2.3.4", "https", "http://", "//", "https,", ", https", "javascript:", "a:99999", "a:-1", "[::1]:99999", "\u2100.example",
]  # fmt: skip


@pytest.mark.parametrize("garbage", GARBAGE)
def test_whatever_stands_in_these_headers_nothing_is_raised(garbage: str) -> None:
    for name in ("X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Origin", "Host"):
        headers = [(name, garbage), *([] if name == "Origin" else [("Origin", HERE)])]
        given = CIMultiDict([("Host", "pictures.example.org"), *headers])
        request = make_mocked_request("POST", "/", headers=given).clone(remote="127.0.0.1")
        for clients in (
            ProxyHeaders(["127.0.0.1"], ""),
            ProxyHeaders([], ""),
            ProxyHeaders(["127.0.0.1"], "https://a.example"),
        ):
            assert len(clients.network(request)) < 50
            assert clients.is_same_origin(request) in {True, False}
        assert isinstance(ProxyHeaders(["127.0.0.1"], "").network(request.clone(remote=garbage)), str)


def test_nobody_is_trusted_unless_named() -> None:
    clients = ProxyHeaders([], "")
    assert clients.address(request_from("127.0.0.1", *forwarded("198.51.100.1"))) == "127.0.0.1"


HERE = "http://pictures.example.org"


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),  # no browser sent this
        ({"Origin": HERE}, True),
        ({"Origin": f"{HERE}:80"}, True),
        ({"Origin": "HTTP://Pictures.Example.ORG"}, True),
        ({"Origin": "https://pictures.example.org"}, False),
        ({"Origin": f"{HERE}:8080"}, False),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "http://pictures.example.org.evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": ""}, False),
        ({"Origin": f"{HERE}:99999999"}, False),
        ({"Origin": f"{HERE}:abc", "Host": "pictures.example.org:abc"}, False),
        ({"Origin": "null", "Host": ""}, False),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),  # typed, or from a bookmark
        ({"Sec-Fetch-Site": "same-site", "Origin": HERE}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": ""}, False),
    ],
)
def test_which_pages_may_change_something(headers: dict[str, str], allowed: bool) -> None:  # noqa: FBT001
    for method in ("POST", "DELETE", "PUT", "PATCH"):
        given = {"Host": "pictures.example.org", **headers}
        request = make_mocked_request(method, "/", headers=given).clone(remote="203.0.113.9")
        assert ProxyHeaders([], "").is_same_origin(request) is allowed
    for method in ("GET", "HEAD", "OPTIONS"):
        request = make_mocked_request(method, "/", headers={"Sec-Fetch-Site": "cross-site"})
        assert ProxyHeaders([], "").is_same_origin(request)


def test_behind_a_trusted_proxy_the_sites_origin_is_what_the_proxy_says() -> None:
    said = [("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "www.example.org")]
    clients = ProxyHeaders(["127.0.0.1"], "")

    def is_same(peer: str, origin: str, *headers: tuple[str, str]) -> bool:
        return clients.is_same_origin(request_from(peer, ("Origin", origin), *headers))

    assert is_same("127.0.0.1", "https://www.example.org", *said)
    assert not is_same("127.0.0.1", "http://www.example.org", *said)
    assert is_same("127.0.0.1", "https://pictures.example.org", said[0])
    assert not is_same("203.0.113.9", "https://www.example.org", *said)
    assert is_same("203.0.113.9", HERE, *said)


@pytest.mark.parametrize("proto", ["https,http", "https, http", " HTTPS ,http", "https"])
def test_of_a_chain_of_proxies_the_first_has_seen_the_browser(proto: str) -> None:
    """Whether they append to one line or add lines of their own."""
    clients = ProxyHeaders(["127.0.0.1"], "")
    origin = ("Origin", "https://www.example.org")
    said = [("X-Forwarded-Proto", proto), ("X-Forwarded-Host", "www.example.org, inner.example")]
    assert clients.is_same_origin(request_from("127.0.0.1", origin, *said))
    lines = [("X-Forwarded-Proto", part) for part in proto.split(",")]
    assert clients.is_same_origin(request_from("127.0.0.1", origin, *lines, said[1]))
    assert not clients.is_same_origin(request_from("127.0.0.1", origin, ("X-Forwarded-Proto", "http,https"), said[1]))


def test_a_public_url_is_the_only_origin() -> None:
    clients: Any = ProxyHeaders(["127.0.0.1"], "https://pictures.example.org/")
    assert clients.is_same_origin(request_from("203.0.113.9", ("Origin", "https://pictures.example.org")))
    assert clients.is_same_origin(request_from("203.0.113.9", ("Origin", "https://pictures.example.org:443")))
    assert not clients.is_same_origin(request_from("203.0.113.9", ("Origin", HERE)))
    said = ("X-Forwarded-Host", "evil.example")
    assert not clients.is_same_origin(request_from("127.0.0.1", ("Origin", "https://evil.example"), said))
