"""Notices clients that leave where reading doesn't tell: while nothing is read from them, and after their last word.

A client that sends a FIN has either gone, or says only that it will send no more and waits for its reply. Both look the
same until something is written: the kernel of a client that has gone answers with a reset. So an interim response is
written, which every client of HTTP/1.1 must pass over (RFC 9110, 15.2), and the connection is looked at from outside.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from typing import Final, TypeAlias

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
# The first look writes, the next one sees the reset.
_LOOK_SECONDS: Final = 0.1
_HAS_SENT_ALL: Final = getattr(select, "POLLRDHUP", 0)  # Linux; elsewhere only a reset is seen
_HAS_GONE: Final = select.POLLHUP | select.POLLERR | select.POLLNVAL

Interim: TypeAlias = Callable[[], bytes | None]
"""Returns what may be written before the reply: nothing if that is not the moment, None if this client can't be told."""


class Departures:
    """The connections to be looked at. There are none most of the time, and then there is no timer either."""

    def __init__(self) -> None:
        """Begin with none."""
        self._watched: dict[asyncio.Transport, Interim] = {}
        self._asked: set[asyncio.Transport] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._watched)

    def watch(self, transport: asyncio.Transport, interim: Interim) -> None:
        """Abort this connection when its client has gone, until it is forgotten or closes."""
        self._watched[transport] = interim
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)

    def forget(self, transport: asyncio.Transport) -> None:
        """Look at it no longer: it is read from again, which tells more."""
        self._watched.pop(transport, None)
        self._asked.discard(transport)

    def _look(self) -> None:
        self._timer = None
        for transport in [each for each in self._watched if each.is_closing()]:
            self.forget(transport)
        if not self._watched:
            return
        self._timer = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)
        numbers = {each.get_extra_info("socket").fileno(): each for each in self._watched}
        poller = select.poll()
        for number in numbers:
            poller.register(number, _HAS_SENT_ALL)
        for number, events in poller.poll(0):
            if events & _HAS_GONE:
                numbers[number].abort()
            else:
                self._ask(numbers[number])

    def _ask(self, transport: asyncio.Transport) -> None:
        """Write something, once, that a client which is still there passes over."""
        if transport in self._asked:
            return
        interim = self._watched[transport]()
        if interim is None:
            transport.abort()
        elif interim:
            self._asked.add(transport)
            transport.write(interim)


def is_open(transport: asyncio.Transport | None) -> bool:
    """Whether somebody still listens at the other end, as far as the kernel knows; one who sends no more may have left."""
    if transport is None or transport.is_closing():
        return False
    opened = transport.get_extra_info("socket")
    if opened is None or opened.fileno() < 0:
        return False
    poller = select.poll()
    poller.register(opened.fileno(), _HAS_SENT_ALL)
    return not poller.poll(0)
