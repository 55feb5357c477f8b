"""How often passwords may be guessed wrong for one account, from however many addresses.

A limit by address alone is none for somebody who has many. A limit by account alone lets a stranger lock its owner out.
So wrong passwords are counted by account, but apart for those who come from where its owner has been before:

* from a network from which somebody has logged in to this account: counted for this network by itself;
* with the mark that the browser got when it was logged in to this account: counted together;
* everybody else: counted together.

Strangers who use up what is left to strangers leave the owner's own network and browsers alone. Everything is in memory
and bounded; what doesn't fit any more is forgotten, the oldest first. An account that doesn't exist is treated alike.
"""

from __future__ import annotations

import hashlib
import time
from typing import Any, Final

import limits

from server import config
from server.web.rate_limits import refusal

_MOST_COUNTED: Final = 100_000
_MOST_KNOWN: Final = 100_000
_WHY: Final = (
    "Too many wrong passwords for this account. Log in from a browser or a network where you have been logged in before,"
    " or later."
)


class Guesses:
    """Counts wrong passwords."""

    def __init__(self, settings: config.LimitSettings) -> None:
        """Read the rule, such as "10 per hour".

        Raises:
            ValueError: it can't be read.
        """
        self._enabled = settings.enabled
        self._rule = limits.parse(settings.guesses)
        self._counts: dict[bytes, tuple[int, float]] = {}
        self._known: dict[bytes, None] = {}

    def bucket(self, account: str, network: str, *, marked: bool) -> bytes:
        """Return the bucket in which a guess is counted. `marked`: the browser has been logged in to this account before."""
        by_network = _digest(account, network)
        if by_network in self._known:
            return by_network
        return _digest(account, "marked" if marked else "")

    def begin(self, bucket: bytes) -> None:
        """Count a guess, before it is known to be wrong: many that are made at once must not all be let through.

        Raises:
            TooManyRequests: it is one too many.
        """
        if not self._enabled:
            return
        now = time.monotonic()
        count, until = self._counts.get(bucket, (0, 0.0))
        if until <= now:
            self._counts.pop(bucket, None)
            count, until = 0, now + self._rule.get_expiry()
        if count >= self._rule.amount:
            raise refusal(self._rule, until - now, _WHY)
        self._counts[bucket] = (count + 1, until)
        _shrink(self._counts, _MOST_COUNTED)

    def was_right(self, bucket: bytes, account: str, network: str) -> None:
        """Uncount a guess that was right, and remember its network."""
        count, until = self._counts.get(bucket, (0, 0.0))
        if count > 1:
            self._counts[bucket] = (count - 1, until)
        else:
            self._counts.pop(bucket, None)
        self.remember(account, network)

    def remember(self, account: str, network: str) -> None:
        """Remember that this account's owner has used this network."""
        known = _digest(account, network)
        self._known.pop(known, None)
        self._known[known] = None
        _shrink(self._known, _MOST_KNOWN)


def _digest(account: str, where: str) -> bytes:
    """Return a key of a length that nobody can choose."""
    return hashlib.blake2b(f"{account}\n{where}".encode(errors="surrogatepass"), digest_size=16).digest()


def _shrink(table: dict[bytes, Any], most: int) -> None:
    while len(table) > most:
        del table[next(iter(table))]
