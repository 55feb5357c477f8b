"""The client's address, scheme and origin, behind trusted proxies or without."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import TypeAlias
from urllib.parse import urlsplit

from aiohttp import web

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_MAX_SHOWN = 200
_UNIX = "unix"
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class ProxyHeaders:
    """Reads `X-Forwarded-*`, from trusted proxies only."""

    def __init__(self, trusted_proxies: Sequence[str], public_url: str) -> None:
        """Trust these networks, such as ``10.0.0.0/8`` or ``127.0.0.1``. `public_url` is the site's own origin, or empty."""
        self._trusted = [ipaddress.ip_network(network, strict=False) for network in trusted_proxies]
        self._origin = _origin(public_url)
        self._public_url = public_url

    def address(self, request: web.BaseRequest) -> str:
        """Return the client's address: the peer's, or what the nearest trusted proxy has added."""
        if self.is_proxied(request):
            # From the right: each trusted proxy appended the peer that it saw; further left stands what clients claim.
            # Some proxies append a header line of their own (HAProxy's `option forwardfor`): all lines are one list.
            hops = ",".join(request.headers.getall("X-Forwarded-For", ())).split(",")
            for hop in filter(None, map(str.strip, reversed(hops))):
                address = _parse(hop)
                if address is None:
                    break  # a proxy that says nothing of use: whoever comes through it is one client
                if not self._is_trusted(address):
                    return str(address)
        peer = _parse(request.remote or "")
        return str(peer) if peer is not None else request.remote or _UNIX

    def network(self, request: web.BaseRequest) -> str:
        """Return the client's network, by which requests are limited: of IPv6 the /64, which belongs to one client."""
        address = _parse(self.address(request))
        if not isinstance(address, ipaddress.IPv6Address):
            return self.address(request)
        return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))

    def is_proxied(self, request: web.BaseRequest) -> bool:
        """Whether a request comes from a trusted proxy."""
        # Whoever may open the file of a unix socket is on this machine, and it is there for a proxy.
        peer = _parse(request.remote or "")
        return request.remote == "" or (peer is not None and self._is_trusted(peer))

    def is_same_origin(self, request: web.BaseRequest) -> bool:
        """Whether a request that changes something comes from a page of ours, or from no page at all."""
        if request.method in _SAFE_METHODS:
            return True
        site = request.headers.get("Sec-Fetch-Site")
        if site is not None:
            return site in {"same-origin", "none"}
        origin = request.headers.get("Origin")
        if origin is None:
            return True  # not a browser: nobody else's cookies are at stake
        theirs = _origin(origin)
        return bool(theirs) and theirs == (self._origin or self._origin_of(request))

    def explain_refusal(self, request: web.BaseRequest) -> str:
        """Say why a request isn't taken for one of our own pages', and what would be right."""
        origin = request.headers.get("Origin", "null")[:_MAX_SHOWN]
        if request.headers.get("Sec-Fetch-Site") is not None:
            return f"Only this site's own pages may change something; your browser says that a page of another site did it ({origin})."
        if self._public_url:
            return (
                f"Only pages of {self._public_url}, where this site is to be found (server.public_url), may change something;"
                f" this one is of {origin}. Open {self._public_url} instead."
            )
        return (
            f"Only this site's own pages may change something. This one is of {origin}, but the request reached the server as"
            f" {self._reached(request)[:_MAX_SHOWN]}. If that is one and the same site, its operator sets server.public_url"
            " to the address that people open, or has the proxy in front pass the Host header on."
        )

    def _origin_of(self, request: web.BaseRequest) -> str:
        return _origin(self._reached(request))

    def _reached(self, request: web.BaseRequest) -> str:
        """Return how this site is called, as far as the request tells."""
        scheme, host = request.scheme, request.host
        if self.is_proxied(request):
            said = _first(request, "X-Forwarded-Proto").lower()
            scheme = said if said in {"http", "https"} else scheme
            host = _first(request, "X-Forwarded-Host") or host
        return f"{scheme}://{host}"

    def _is_trusted(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


def _first(request: web.BaseRequest, name: str) -> str:
    """Return what the outermost proxy has said: each further one has appended its own, which the browser doesn't see."""
    return ",".join(request.headers.getall(name, ())).partition(",")[0].strip()


def _parse(text: str) -> Address | None:
    """Return an address as proxies write it, with a port or without: ``192.0.2.1:80``, ``[2001:db8::1]:80``; None if it is none."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        # How an IPv4 peer looks to a socket that listens on ::; and no scope, which names an interface of this machine.
        return address.ipv4_mapped or ipaddress.IPv6Address(int(address))
    return address


def _origin(url: str) -> str:
    """Return scheme, host and port; empty if the URL has no such thing, as `null` hasn't."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return ""
    if not parts.hostname:
        return ""
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.scheme}://{parts.hostname}:{port or default}"
