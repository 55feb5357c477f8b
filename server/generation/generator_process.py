"""One process of a generator, as its worker sees it: started, spoken to, watched, ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from io import FileIO
from typing import Final, Self

import orjson

from server.errors import GeneratorLost, MalformedFrame
from server.generation import frames
from server.generation.frames import Frame, FrameReader, Kind
from server.generation.output import Output
from server.runtime.subprocesses import ProcessGroup

# How long a process may go on with what nobody wants any more, or after it has hung up, until it is killed.
GRACE_SECONDS: Final = 1.0
_WATCH_SECONDS: Final = 0.2
_ENDING_SECONDS: Final = 0.01
_OUTPUT_SECONDS: Final = 0.5
_BUFFER_BYTES: Final = 16_384
# Of the environment a process is given what programs need to run; what else there is may be a secret.
_VARIABLES: Final = frozenset({
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV",
    "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR",
})  # fmt: skip
_PREFIXES: Final = ("LC_", "OMP_", "OPENBLAS_", "MKL_", "CUDA_", "NVIDIA_", "GENERATOR_")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a process makes its generator.

    Attributes:
        target: "module:function", importable with our own search path.
        options: what the function is called with.
    """

    target: str
    options: Mapping[str, object]


class Cause(StrEnum):
    """Why a process has ended. The first one that is known counts."""

    STOPPED = "stopped"  # by us, and not for a fault of its own
    EXITED = "exited"
    SIGNALED = "signaled"
    MEMORY = "memory"
    SILENT = "silent"
    MALFORMED = "malformed"
    HUNG_UP = "hung_up"
    UNCANCELED = "uncanceled"


class GeneratorProcess:
    """A process that makes one picture at a time.

    Attributes:
        cause: why it has ended, or is about to; None while it lives.
        at_work: whether a request hasn't ended.
        used: whether it was given a request.
        ended: set when nothing of it is left.
        code: its exit code, minus the number of the signal that ended it; None before.
    """

    def __init__(
        self, group: ProcessGroup, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, output: FileIO
    ) -> None:
        """Take what `start` has made, and log what comes as output."""
        self._group = group
        self._writer = writer
        self._frames = FrameReader(reader, frames.FROM_PROCESS)
        self._output = asyncio.create_task(Output(group.pid).relay(output), name="generator output")
        self._output.add_done_callback(lambda _task: output.close())  # if it was canceled before it began
        self._noticed = asyncio.Event()
        self.cause: Cause | None = None
        self.at_work = False
        self.used = False
        self.ended = asyncio.Event()
        self.code: int | None = None

    @classmethod
    async def start(cls, recipe: Recipe) -> Self:
        """Start one. It has to be watched (`watch`), and closed (`close`) whatever happens.

        Raises:
            OSError: there is no room for another process, or for its descriptors.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_unix_connection(sock=ours, limit=_BUFFER_BYTES)
            try:  # nothing is awaited from here on: a process without an owner would be nobody's to end
                readable, writable = os.pipe()
                pipe = os.fdopen(readable, "rb", buffering=0)
                try:
                    group = ProcessGroup(
                        _command(recipe, theirs), _environment(), passed=theirs.fileno(), output=writable
                    )
                except BaseException:
                    pipe.close()
                    raise
                finally:
                    os.close(writable)
            except BaseException:
                writer.transport.abort()
                raise
        return cls(group, reader, writer, pipe)

    @property
    def pid(self) -> int:
        """Its number."""
        return self._group.pid

    @property
    def is_alive(self) -> bool:
        """Whether it can be used: it may have ended a moment ago, unnoticed."""
        return self.cause is None and not self._group.has_ended()

    def send(self, frame: Frame) -> None:
        """Send a frame, sooner or later. One that has ended gets nothing, which `read` tells."""
        self._writer.write(frame.to_bytes())

    async def read(self, seconds: float) -> Frame:
        """Return what it says next. One that says nothing for so long, or what can't be understood, is ended.

        Raises:
            GeneratorLost: it has ended.
        """
        try:
            async with asyncio.timeout(seconds):
                return await self._frames.read()
        except TimeoutError:
            self.end(Cause.SILENT)
        except MalformedFrame:
            self.end(Cause.MALFORMED)
        except (asyncio.IncompleteReadError, OSError):  # it has ended, mostly, and its exit code tells more
            self._noticed.set()
            asyncio.get_running_loop().call_later(GRACE_SECONDS, self.end, Cause.HUNG_UP)
        await self.ended.wait()
        raise GeneratorLost("The generator stopped unexpectedly")

    def end(self, cause: Cause) -> None:
        """Kill it, and all that it has started."""
        if not self.ended.is_set():
            self.cause = self.cause or cause
            self._group.kill()
            self._noticed.set()

    async def settle(self) -> bool:
        """Have it stop what it is making; returns whether it did, or was ended for not doing so within the grace."""
        self.send(Frame(Kind.CANCEL, b""))
        try:
            async with asyncio.timeout(GRACE_SECONDS):
                while (await self._frames.read()).kind not in frames.ENDS:
                    pass
        except (TimeoutError, asyncio.IncompleteReadError, OSError, MalformedFrame):
            if self.cause is None:  # else `close` gives it the grace
                self.end(Cause.UNCANCELED)
            return False
        self.at_work = False
        return True

    async def watch(self, memory_bytes: int) -> None:
        """Wait until it has ended; end it if it uses more memory than this, 0 being any amount."""
        while not self._group.has_ended():
            if memory_bytes and self._group.resident_bytes() > memory_bytes:
                self.end(Cause.MEMORY)
            await self._rest()
        await self._bury()

    async def close(self) -> None:
        """End it, if it hasn't ended: it has the grace to do so by itself."""
        self.cause = self.cause or Cause.STOPPED
        self._writer.close()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GRACE_SECONDS):
                    await self._wait()
            self._group.kill()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GRACE_SECONDS):
                    await self._wait()
        finally:  # whoever cancels us twice shall leave nothing behind either
            await self._bury()

    async def _wait(self) -> None:
        while not self._group.has_ended():
            await asyncio.sleep(_ENDING_SECONDS)

    async def _rest(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_WATCH_SECONDS):
                await self._noticed.wait()
        if self._noticed.is_set():
            await asyncio.sleep(_ENDING_SECONDS)

    async def _bury(self) -> None:
        """Leave nothing of it: what it has started, its entry in the process table, our ends of its pipes."""
        if self.ended.is_set():
            return
        self.code = self._group.reap()
        self.cause = self.cause or (Cause.SIGNALED if (self.code or 0) < 0 else Cause.EXITED)
        self.ended.set()
        self._writer.transport.abort()
        await asyncio.wait([self._output], timeout=_OUTPUT_SECONDS)  # its last words
        self._output.cancel()


def _command(recipe: Recipe, link: socket.socket) -> list[str]:
    options = orjson.dumps(recipe.options).decode()
    child = ["-m", "server.generation.child", str(link.fileno()), recipe.target, options]
    return [sys.executable, "-u", "-P", "-X", "faulthandler", *child]


def _environment() -> dict[str, str]:
    """Return what a process is given of our environment: nothing that may be a secret."""
    given = {name: value for name, value in os.environ.items() if name in _VARIABLES or name.startswith(_PREFIXES)}
    return {**given, "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path)}  # noqa: PTH100 - "" is here
