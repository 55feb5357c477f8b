"""What SIGINT, SIGTERM and SIGHUP do to a command, from its first line to its last.

A handler is always installed; from phase to phase it is only replaced by another, so that no signal meets a gap:

    modules are being imported        the process exits at once: there is nothing to clean up
    a command runs                    `Interrupted` is raised in the main thread, and again where Python ignores it
    a command's coroutine runs        its task is canceled, and then `Interrupted` raised
    a server or a worker is running   an Event is set: drain, stop, exit code 0

SIGINT and SIGTERM are handled even if they were inherited as ignored: a shell without job control starts every
`command &` with SIGINT ignored, and Python then installs no handler of its own. An ignored SIGHUP stays ignored, for
that is what `nohup` is for.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final, TypeVar

T = TypeVar("T")

STOPPING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A wrapper (make, npm, uv) passes on the Ctrl-C that the terminal has sent to its whole group: twice is once then.
_SAME_SECONDS: Final = 0.5
_AGAIN_SECONDS: Final = 0.01
# Time enough for what is cleaned up in a `finally`.
_CANCEL_AGAIN_SECONDS: Final = 3.0


class Interrupted(KeyboardInterrupt):
    """Raised in the main thread when one of the signals arrives."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


def exit_at_once() -> None:
    """Exit at once on a signal, with 128 plus its number, as shells do.

    To be called before anything is begun that would have to be cleaned up. Python's own handler would print a traceback
    for SIGINT, and the process 1 of a container has no default action for SIGTERM.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    for each in _handled():
        signal.signal(each, lambda number, _frame: os._exit(128 + number))


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Raise `Interrupted` in the main thread on a signal, while the block runs."""
    with _raised_again_if_ignored(), handling(_raise):
        yield


@contextlib.contextmanager
def _raised_again_if_ignored() -> Iterator[None]:
    """Raise an `Interrupted` once more if it came where Python ignores exceptions: in a finalizer, in a callback of fork()."""
    ignored: list[Interrupted] = []
    report = sys.unraisablehook

    def note(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, Interrupted):
            ignored.append(unraisable.exc_value)
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)  # an exception of this very hook would be ignored, too
        else:
            report(unraisable)

    sys.unraisablehook = note
    before = signal.signal(signal.SIGALRM, lambda _number, _frame: _raise(ignored[-1].number))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        sys.unraisablehook = report


@contextlib.contextmanager
def handling(
    first: Callable[[signal.Signals], object], again: Callable[[signal.Signals], object] | None = None
) -> Iterator[None]:
    """Call `first` for the first signal while the block runs, and `again` for later ones; without it, `first` too.

    Both are called in the main thread between two bytecodes, wherever it is.
    """
    first_at: float | None = None

    def handle(number: int, _frame: object) -> None:
        nonlocal first_at
        earlier, now = first_at, time.monotonic()
        if earlier is None:
            first_at = now
            first(signal.Signals(number))
        elif now - earlier > _SAME_SECONDS:
            (again or first)(signal.Signals(number))

    before = {each: signal.signal(each, handle) for each in _handled()}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextlib.contextmanager
def told_to_stop(tell: Callable[[signal.Signals], object]) -> Iterator[asyncio.Event]:
    """Give an Event that is set when the process is told to stop while the block runs, after `tell` was called.

    A second signal cancels the task that runs the block. To be entered before the process says that it is running:
    whoever reads that may end it at once.
    """
    loop, told, task = asyncio.get_running_loop(), asyncio.Event(), asyncio.current_task()
    assert task is not None, "within a coroutine"

    def stop(number: signal.Signals) -> None:
        tell(number)
        told.set()

    if is_canceled():
        told.set()
    with handling(
        lambda number: loop.call_soon_threadsafe(stop, number), lambda _number: loop.call_soon_threadsafe(task.cancel)
    ):
        yield told


def is_canceled() -> bool:
    """Whether the current task was canceled, which wait_for() may have swallowed (until Python 3.12)."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Cancellation:
    """Cancels a coroutine on a signal, even before it has started."""

    def __init__(self) -> None:
        self._number: signal.Signals | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None

    @contextlib.contextmanager
    def handling(self) -> Iterator[None]:
        """Handle signals while the block runs; the second one raises `Interrupted` wherever the main thread is."""
        with handling(self._cancel, _raise):
            yield

    async def run(self, begin: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run the coroutine that `begin` returns to its end; it isn't even made if a signal has come before.

        Raises:
            Interrupted: it was canceled because of a signal.
        """
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        if self._number is not None:
            raise Interrupted(self._number)
        try:
            return await begin()
        except asyncio.CancelledError:
            if self._number is None:
                raise
            raise Interrupted(self._number) from None

    def _cancel(self, number: signal.Signals) -> None:
        self._number = number
        if self._loop is not None and self._task is not None and not self._task.done():
            self._loop.call_soon_threadsafe(self._cancel_until_done, self._loop, self._task)

    def _cancel_until_done(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
        # Until Python 3.12, wait_for() swallows a cancellation that comes as its future is done, and aiopg waits by it.
        if not task.done():
            task.cancel()
            loop.call_later(_CANCEL_AGAIN_SECONDS, self._cancel_until_done, loop, task)


def _handled() -> list[signal.Signals]:
    return [each for each in STOPPING if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN]


def _raise(number: signal.Signals) -> None:
    raise Interrupted(number)
