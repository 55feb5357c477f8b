"""What a generator's process prints: log lines of ours, bounded whatever it prints."""

from __future__ import annotations

import asyncio
from io import FileIO
from typing import Final

from server.telemetry import logs

_LONGEST_LINE: Final = 2000
_CHUNK_BYTES: Final = 16_384
# Between two reads. A process that prints more waits for us, and takes no more of our time than this.
_REST_SECONDS: Final = 0.05
_LINES_A_SECOND: Final = 20


class Output:
    """Reads one end of a pipe, and logs each line as `generator.wrote`; of a flood a few lines a second."""

    def __init__(self, pid: int) -> None:
        """`pid`: the process that prints, for the log."""
        self._pid = pid
        self._rest = b""
        self._overlong = False
        self._second = -1
        self._written = 0
        self._dropped = 0

    async def relay(self, pipe: FileIO) -> None:
        """Log what comes until everybody has closed the other end, and close this one."""
        reader = asyncio.StreamReader(limit=_CHUNK_BYTES)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        try:
            while chunk := await reader.read(_CHUNK_BYTES):
                self._take(chunk, int(loop.time()))
                await asyncio.sleep(_REST_SECONDS)
        finally:
            transport.close()
            if self._rest:
                self._log(self._rest)

    def _take(self, chunk: bytes, second: int) -> None:
        if second != self._second:
            self._second, self._written = second, 0
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if lines and self._overlong:  # the rest of a line whose beginning was logged
            self._overlong = False
            del lines[0]
        # Thousands of lines fit into a chunk: the loop must not look at each of them.
        told = list(filter(bytes.strip, lines))
        room = max(_LINES_A_SECOND - self._written, 0)
        for line in told[:room]:
            self._log(line)
        self._dropped += len(told[room:])
        if len(self._rest) > _LONGEST_LINE:
            if not self._overlong:
                self._log(self._rest)
            self._rest, self._overlong = b"", True

    def _log(self, line: bytes) -> None:
        text = line.decode(errors="replace").strip()
        if not text:
            return
        if self._written >= _LINES_A_SECOND:
            self._dropped += 1
            return
        self._written += 1
        dropped, self._dropped = self._dropped, 0
        more = {"dropped_lines": dropped} if dropped else {}
        logs.log.info(logs.GENERATOR_WROTE, pid=self._pid, line=text[:_LONGEST_LINE], **more)
