"""Which event loop runs a process: asyncio's own, or uvloop, which is written in C and is an extra to be installed."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from server.errors import ConfigurationError
from server.runtime.signals import Cancellation

T = TypeVar("T")

ASYNCIO: Final = "asyncio"
UVLOOP: Final = "uvloop"


def run(begin: Callable[[], Coroutine[Any, Any, T]], kind: str) -> T:
    """Run what `begin` returns on a loop of that kind, and return its result.

    `kind`: one of what `server.event_loop` may be; `auto` is uvloop where it is installed.

    Raises:
        ConfigurationError: uvloop is wanted and isn't there.
        Interrupted: the process was told to stop; the coroutine was canceled and has ended.
    """
    factory = _factory(kind)
    cancellation = Cancellation()
    with cancellation.handling(), asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(cancellation.run(begin))


def _factory(kind: str) -> Any:
    installed = importlib.util.find_spec(UVLOOP) is not None
    if kind == ASYNCIO or (kind == "auto" and not installed):
        return asyncio.new_event_loop
    if not installed:
        raise ConfigurationError(
            'server.event_loop is "uvloop", which is not installed: pip install "longpoll-task-server[uvloop]",'
            ' or take "asyncio"'
        )
    import uvloop  # noqa: PLC0415 - an extra: it may not be there

    return uvloop.new_event_loop
