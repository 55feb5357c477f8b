"""The process of a generator: `python -m server.generation.child SOCKET TARGET OPTIONS LIFELINE`, started by a worker.

It makes one picture at a time and knows nothing of tasks, leases and the database. It ends when its worker hangs up,
and is killed with all that it has started when the worker's process ends in any other way.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import signal
import socket
import sys
import threading
import traceback
from contextlib import aclosing
from pathlib import Path

import orjson

from server.errors import GenerationError
from server.generation import frames
from server.generation.frames import Frame, FrameReader, Kind
from server.generation.generator import (
    MAX_PICTURE_BYTES,
    GenerationRequest,
    Generator,
    Picture,
    Step,
    hold_to_contract,
)
from server.runtime.signals import STOPPING


def main(arguments: list[str]) -> None:
    """Make the generator that `TARGET` names ("module:function", called with `OPTIONS`), and serve it."""
    link, target, options, lifeline = arguments
    _leave_signals_to_the_worker()
    for descriptor in (int(link), int(lifeline)):
        os.set_inheritable(descriptor, False)
    threading.Thread(target=_end_with_worker, args=(int(lifeline),), daemon=True).start()
    _be_killed_first()
    module, _, name = target.partition(":")
    generator: Generator = getattr(importlib.import_module(module), name)(**orjson.loads(options))
    with socket.socket(fileno=int(link)) as connection:
        asyncio.run(_serve(generator, connection))


def _leave_signals_to_the_worker() -> None:
    """A supervisor may send what stops a server to each of its processes: the worker then gives its task back, and hangs up.

    Handled, not ignored: what the generator starts shall heed signals as usual.
    """
    for each in STOPPING:
        signal.signal(each, lambda _number, _frame: None)
        signal.siginterrupt(each, False)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def _end_with_worker(lifeline: int) -> None:
    """Kill our group when the worker's process has ended; on Linux, the kernel has done it before."""
    os.read(lifeline, 1)  # nothing is ever written
    os.killpg(0, signal.SIGKILL)


def _be_killed_first() -> None:
    """Have Linux choose this process if memory runs out, not one that serves, nor Postgres."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


async def _serve(generator: Generator, connection: socket.socket) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    writer.transport.set_write_buffer_limits(0)  # nothing piles up: the generator rests until a step is taken
    await generator.ready()
    writer.write(Frame(Kind.READY, b"").to_bytes())
    received, work = FrameReader(reader, frames.FROM_WORKER), None
    with contextlib.suppress(asyncio.IncompleteReadError, OSError):  # the worker has hung up
        while True:
            kind, payload = await received.read()
            if kind is Kind.REQUEST:
                work = asyncio.create_task(_answer(generator, frames.read_request(payload), writer))
                await asyncio.sleep(0)  # a task that is canceled before its first step would end without an end
            elif work is not None:
                work.cancel()
    if work is not None:
        work.cancel()
        await asyncio.wait([work])


async def _answer(generator: Generator, request: GenerationRequest, writer: asyncio.StreamWriter) -> None:
    try:
        end = await _make(generator, request, writer)
    except asyncio.CancelledError:
        end = Frame(Kind.CANCELED, b"")
    except GenerationError as error:
        end = frames.failure_frame(error)
    except Exception:  # noqa: BLE001 - told to the worker, who logs it
        end = frames.crash_frame(traceback.format_exc())
    writer.write(end.to_bytes())  # exactly one end: nothing is awaited, so no cancel comes between


async def _make(generator: Generator, request: GenerationRequest, writer: asyncio.StreamWriter) -> Frame:
    """Send the steps; returns the picture."""
    async with aclosing(hold_to_contract(generator.generate(request))) as pieces:
        async for piece in pieces:
            if isinstance(piece, Step):
                writer.write(frames.step_frame(piece).to_bytes())
                await writer.drain()
            else:
                return _picture_frame(piece)
    raise AssertionError("hold_to_contract ends with a picture")


def _picture_frame(picture: Picture) -> Frame:
    if len(picture.content) > MAX_PICTURE_BYTES:
        raise GenerationError(
            f"The generator's picture has {len(picture.content)} bytes; at most {MAX_PICTURE_BYTES} are kept"
        )
    return Frame(Kind.PICTURE, bytes(picture.content))


if __name__ == "__main__":
    main(sys.argv[1:])
