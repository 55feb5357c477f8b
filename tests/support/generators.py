"""Generators that misbehave, made in processes of their own: `generation.generator = "tests.support.generators:make"`.

What one does, a prompt says: a word, and after a colon what goes with it, such as `block:25`.
"""

from __future__ import annotations

import asyncio
import ctypes
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

from PIL import Image

from server.errors import GenerationError
from server.generation.generator import GenerationRequest, Picture, Step

HALF = Step(0.5, "painting", "Half of it is there.")
Pieces = AsyncGenerator[Step | Picture, None]


def picture() -> bytes:
    """A small PNG."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (20, 80, 200)).save(file, "PNG")
    return file.getvalue()


class Misbehaving:
    """Does what the prompt says, and then makes the picture."""

    name = "misbehaving"

    async def ready(self) -> None:
        """At once."""

    async def generate(self, request: GenerationRequest) -> Pieces:
        word, _, detail = request.prompt.partition(":")
        yield Step(0.0, "beginning", str(os.getpid()))
        if word in WITH_STEPS:
            async for step in WITH_STEPS[word](detail):
                yield step
        elif word in DEEDS:
            yield HALF
            DEEDS[word](detail)
        yield Step(0.9, "finishing", "Nearly there.")
        yield Picture(picture())


def block(seconds: str) -> None:
    time.sleep(float(seconds))


def exit_(code: str) -> None:
    os._exit(int(code))


def exit_once(marker: str) -> None:
    """Only at the first attempt."""
    if not Path(marker).exists():
        Path(marker).touch()
        os._exit(7)


def segfault(_detail: str) -> None:
    ctypes.string_at(0)


def kill(_detail: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def eat(megabytes: str) -> None:
    eaten = [bytearray(os.urandom(1)) * 2**20 for _ in range(int(megabytes))]
    time.sleep(60)
    assert eaten


def write(_detail: str) -> None:
    """To standard output by every way there is, more than a pipe holds."""
    print("garbage " * 20_000)
    os.write(1, b"\x04\x00\x00\x00\x00" * 100)
    os.system("echo from a program")  # noqa: S605


def start_programs(path: str) -> None:
    """Write down which descriptors a program inherits, and stop another one by the signal for it."""
    told = subprocess.run(["ls", "-l", "/proc/self/fd"], close_fds=False, capture_output=True, text=True, check=True)
    stopped = subprocess.Popen(["sleep", "600"])
    stopped.terminate()
    Path(path).write_text(repr({"descriptors": told.stdout, "code": stopped.wait(10)}))


def fork(seconds: str) -> None:
    """Leave a child behind that holds all that we hold, and one in between that ends."""
    for _ in range(3):
        if os.fork() == 0:
            time.sleep(float(seconds))
            os._exit(0)


def fork_and_exit(seconds: str) -> None:
    fork(seconds)
    os._exit(9)


def fork_and_block(seconds: str) -> None:
    fork(seconds)
    time.sleep(float(seconds))


def hold_the_lock(_detail: str) -> None:
    """Compute for ever in C, while no other thread of Python gets to run."""
    sum(range(10**15))


def send(hexadecimal: str) -> None:
    """Write bytes to the worker past everything."""
    os.write(_link(), bytes.fromhex(hexadecimal))
    time.sleep(60)


def hang_up(_detail: str) -> None:
    os.close(_link())
    time.sleep(60)


def _link() -> int:
    return int(sys.argv[1])


def raise_(_detail: str) -> None:
    raise ZeroDivisionError("by a generator")


def refuse(_detail: str) -> None:
    raise GenerationError("This is\0 not \ud800 allowed." + "!" * 5000, retryable=False)


def tell(path: str) -> None:
    """Write down what was inherited: the environment, the descriptors, the limits of signals."""
    links = [file for file in Path("/proc/self/fd").iterdir() if file.exists()]
    descriptors = [str(file.readlink()) for file in links if file.is_symlink()]
    score = Path("/proc/self/oom_score_adj").read_text()
    Path(path).write_text(repr({"environment": dict(os.environ), "descriptors": descriptors, "score": score}))


async def flood(count: str) -> AsyncGenerator[Step, None]:
    for number in range(int(count)):
        yield Step(0.1 + 0.5 * number / int(count), "flooding", f"{number}")


async def rest(seconds: str) -> AsyncGenerator[Step, None]:
    """As a good generator waits: it can be canceled."""
    yield HALF
    await asyncio.sleep(float(seconds))


async def say_good_bye(path: str) -> AsyncGenerator[Step, None]:
    yield HALF
    try:
        await asyncio.sleep(600)
    finally:
        Path(path).write_text("freed")  # noqa: ASYNC240


WITH_STEPS: dict[str, Callable[[str], AsyncGenerator[Step, None]]] = {
    "flood": flood, "rest": rest, "say_good_bye": say_good_bye,
}  # fmt: skip
DEEDS: dict[str, Callable[[str], Any]] = {
    "block": block, "exit": exit_, "exit_once": exit_once, "segfault": segfault, "kill": kill, "eat": eat, "write": write,
    "start_programs": start_programs, "fork": fork, "fork_and_exit": fork_and_exit, "fork_and_block": fork_and_block, "hold_the_lock": hold_the_lock,
    "send": send, "hang_up": hang_up, "raise": raise_, "refuse": refuse, "tell": tell,
}  # fmt: skip


def make() -> Misbehaving:
    """Return one."""
    return Misbehaving()


def make_and_die() -> Misbehaving:
    """Fail before there is one."""
    raise RuntimeError("no model here")
