"""Which of several processes with the same settings runs the workers: the one that holds a lock."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
import zlib
from pathlib import Path
from typing import Final

from server.telemetry import logs

_ASK_SECONDS: Final = 0.5
_FILE: Final = "workers.lock"


class Turn:
    """A lock for all processes of one group, kept until the process ends.

    It is one byte of a file that all groups share, at a place given by the machine's name and the number of the group's
    parent process: so no files pile up, and another group, or the same one on another machine, has a turn of its own.
    """

    def __init__(self, data_dir: str, *, group: int) -> None:
        """`group`: the pid of their common parent."""
        self._path = Path(data_dir).absolute() / _FILE
        self._place = zlib.crc32(socket.gethostname().encode()) << 22 | group
        self._descriptor: int | None = None
        self._ours = False

    async def come(self) -> None:
        """Wait for the lock."""
        while not self._ours and not self._try():
            await asyncio.sleep(_ASK_SECONDS)

    def _try(self) -> bool:
        if self._descriptor is None:
            # Never closed: a record lock ends with any descriptor of the file that its process closes.
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._place)
        except OSError as error:
            if error.errno not in {errno.EACCES, errno.EAGAIN}:
                raise
            return False
        self._ours = True
        logs.log.info(logs.TURN_TAKEN, group=self._place & 0x3FFFFF)
        return True
