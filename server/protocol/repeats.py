"""Recognises the same poll asked again: a request that differs from the last one in nothing but its version.

A client that follows a task sends the same bytes over and over, but for a number. Who asks, what for and how long it
waits were read from them once, by aiohttp and our handlers; as long as the rest is the same to the last bit, so is what
they would read.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final

from server.storage.logins import Login
from server.waiting.answers import Question

_END: Final = b"\r\n\r\n"
_LONGEST: Final = 8192
# Nothing percent-encoded, or the same parameter might be there in another spelling.
_POLL: Final = re.compile(
    rb"GET /api/generate/status\?([!$&-*,-~]*&)?version=([0-9]{1,18})(&[!$&-*,-~]*)? HTTP/1\.1\r\n"
)


@dataclass(slots=True)
class RepeatablePoll:
    """What must be known to answer the same poll again: what stands for its bytes, whose it was, what they asked."""

    request: bytes
    login: Login
    question: Question


def parse_repeat(data: bytes) -> tuple[bytes, int] | None:
    """Return what stands for a poll but for its version, and the version; None if it isn't one whole poll of the plain kind.

    Two that are equal differ in nothing else: where the version stood is plain from the rest. Cookies and tokens are
    in the digest, so it is one that nobody can forge: a proxy may send requests of several people over the same
    connection.
    """
    if len(data) > _LONGEST or data.find(_END) != len(data) - len(_END):
        return None
    found = _POLL.match(data)
    if found is None or data.count(b"version=", 0, found.end()) > 1:
        return None
    start, end = found.span(2)
    digest = hashlib.blake2b(data[:start], digest_size=16)
    digest.update(data[end:])
    return digest.digest(), int(found[2])
