"""Programs that this process starts: each leads a process group of its own, inherits nothing, and ends when we do.

`preexec_fn` isn't used: it forks this process, threads and all, which stops the event loop for 10 ms and may deadlock;
without it the child is made by vfork, within 1 ms.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from server.runtime.signals import STOPPING

_REAP_SECONDS: Final = 1.0


class ProcessGroup:
    """A program and whatever it starts. The terminal's Ctrl-C doesn't reach it; our death, however it comes, kills it.

    It is given one end of a pipe whose other end is ours alone. When that one is closed, which also SIGKILL does to us,
    Linux itself kills the group (`F_SETSIG`): no thread of the program need run for it, as it must where the program
    only reads the pipe, and no thread of ours need live on, as with `PR_SET_PDEATHSIG`.

    Attributes:
        pid: the number of the program, and of its group.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], *, passed: int, output: int) -> None:
        """Start it with a descriptor that it may use. SIGINT, SIGTERM and SIGHUP are blocked: it unblocks them itself.

        Args:
            command: the program and its arguments; the number of its end of the pipe is added as the last one.
            environment: all of it.
            passed: the descriptor; it keeps its number.
            output: the descriptor that becomes its standard output and standard error.

        Raises:
            OSError: it can't be started.
        """
        theirs, self._lifeline = os.pipe()
        try:
            with _signals_blocked():
                self._process = subprocess.Popen(
                    [*command, str(theirs)],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=[passed, theirs],
                    start_new_session=True,
                )
            self.pid = self._process.pid
            _kill_group_at_hangup(theirs, self.pid)
        except BaseException:
            os.close(self._lifeline)
            raise
        finally:
            os.close(theirs)

    def has_ended(self) -> bool:
        """Return whether the program has ended. Its number stays taken until `reap`."""
        if self._process.returncode is not None:
            return True
        if not hasattr(os, "waitid"):  # macOS, until Python 3.13
            return self._process.poll() is not None
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # SIGCHLD is ignored, so the kernel has reaped it
            return True

    def kill(self) -> None:
        """Kill the program and whatever it has started in its group."""
        if self._process.returncode is None:  # else its number may be somebody else's
            with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: nobody is left but a zombie
                os.killpg(self.pid, signal.SIGKILL)

    def reap(self) -> int | None:
        """Kill what is left of the group and return the exit code, minus the signal's number if one ended it.

        Blocks for a moment unless the program has ended; None if it can't be killed, because the kernel holds it.
        """
        self.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_REAP_SECONDS)
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        return self._process.returncode

    def resident_bytes(self) -> int:
        """Return the memory that the program itself has in use; 0 where the system has no /proc."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_bytes().split()[1])
        except (OSError, IndexError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Have what is started within the block be deaf for what we are told, until it handles it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kill_group_at_hangup(descriptor: int, group: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # some sandboxes have no such signals: then the program reads the pipe
            fcntl.fcntl(descriptor, fcntl.F_SETOWN, -group)
            fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_ASYNC)
