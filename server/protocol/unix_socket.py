"""A socket with a name in the file system, for a proxy on the same machine."""

from __future__ import annotations

import contextlib
import errno
import socket
from pathlib import Path
from typing import Final

_FOR_ALL: Final = 0o666  # who may connect is a matter of the folder


class UnixSocket:
    """The file, while we listen there."""

    def __init__(self, path: str) -> None:
        """Take note of the path."""
        self._path = Path(path)
        self._inode: int | None = None

    def open(self) -> socket.socket:
        """Return a socket that is bound to the path. What a dead process has left there gives way.

        Raises:
            OSError: the path can't be used, is something else, or somebody listens there.
        """
        self._make_way()
        made = socket.socket(socket.AF_UNIX)
        try:
            made.bind(str(self._path))
            self._path.chmod(_FOR_ALL)
            self._inode = self._path.stat().st_ino
        except OSError:
            made.close()
            raise
        return made

    def remove(self) -> None:
        """Remove the file, unless it is another process's by now."""
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()

    def _make_way(self) -> None:
        if not self._path.is_socket():
            return  # if it is anything else, binding to it says so
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            try:
                probe.connect(str(self._path))
            except ConnectionRefusedError:
                self._path.unlink()
            else:
                raise OSError(errno.EADDRINUSE, "another process listens there")
