"""Ports that are named before anybody listens on them, or listened on again and again."""

from __future__ import annotations

import contextlib
import secrets
import socket

_LOWEST, _HIGHEST = 10_000, 32_767  # above, Linux and others choose a port for each connection that is opened


def free_port() -> int:
    """Return a port that nobody has, and that no connection is given in the meantime.

    One of those could also be given to a client that asks again and again whether somebody listens on it: then it is
    connected with itself.
    """
    while True:
        port = _LOWEST + secrets.randbelow(_HIGHEST - _LOWEST + 1)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
