"""The names by which this server may be called: no page of another site may reach it under a name of its own.

DNS rebinding: a page of evil.example is loaded, evil.example then resolves to 127.0.0.1 or to a machine of the local
network, and the page's next request reaches this server as one of the same origin. Its `Host` gives it away. What a
stranger can't own in the public DNS is no danger: addresses, names without a dot, and names under endings that are
never delegated.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import socket
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from server.config import ServerSettings
from server.errors import BadRequest, Misdirected

ANY: Final = "*"
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_.-]{1,255})(?::([0-9]{0,5}))?")
_LARGEST_PORT: Final = 65_535
# RFC 6761, 6762, 8375, ICANN's .internal; .lan and .home are delegated to nobody, and never will be.
_LOCAL_ENDINGS: Final = (".localhost", ".local", ".internal", ".home.arpa", ".lan", ".home", ".test")
# Load balancers ask for these by whatever name; nothing there is anybody's own.
_ASKED_BY_ANY_NAME: Final = frozenset({"/healthz", "/readyz"})


class Hosts:
    """The allowed values of `Host`."""

    def __init__(self, names: Iterable[str]) -> None:
        """`names`: without ports; `*` allows any."""
        self._names = frozenset(_ascii(name) for name in names)
        self._find_fault = functools.lru_cache(maxsize=256)(self._look_at)

    @classmethod
    def of(cls, settings: ServerSettings) -> Hosts:
        """Return the hosts of the settings and of this machine."""
        public = urlsplit(settings.public_url).hostname or ""
        return cls([public, settings.host, socket.gethostname(), *settings.allowed_hosts])

    def check(self, request: web.BaseRequest) -> None:
        """Check that a request is meant for this server.

        Raises:
            BadRequest: its `Host` is no host and port.
            Misdirected: it names another site.
        """
        if request.path in _ASKED_BY_ANY_NAME:
            return
        # None at all: HTTP/1.0, which no browser speaks.
        fault = self._find_fault(request.headers.get("Host", ""))
        if fault is not None:
            kind, detail = fault
            raise kind(detail)

    def _look_at(self, given: str) -> tuple[type[BadRequest | Misdirected], str] | None:
        if not given:
            return None
        found = _HOST.fullmatch(given)
        if found is None or int(found[2] or 0) > _LARGEST_PORT:
            return BadRequest, "Host must be a name or an address, and perhaps a port: pictures.example.org:8080."
        name = found[1].lower().removesuffix(".")
        if self._is_ours(name):
            return None
        return Misdirected, (
            f"This server isn't called {name}. Its operator can say that it is: server.public_url, or"
            " server.allowed_hosts. Its address works, too."
        )

    def _is_ours(self, name: str) -> bool:
        if name in self._names or ANY in self._names or "." not in name or name.endswith(_LOCAL_ENDINGS):
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True


def _ascii(name: str) -> str:
    """Return a name as it stands in a `Host`: in lower case, and encoded if it isn't ASCII."""
    try:
        return name.lower().removesuffix(".").encode("idna").decode()
    except UnicodeError:
        return name.lower()  # no name at all, which no request has
