"""Whatever a generator does to its process, its task is told of it, the next one is made, and nothing is left behind."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import structlog

from server.config import Config
from server.errors import GenerationError, GeneratorLost
from server.generation.generator import GenerationRequest, Picture, Step, hold_to_contract
from server.generation.generator_process import Recipe
from server.generation.isolated import IsolatedGenerator
from server.telemetry import logs
from server.telemetry.metrics import Metrics
from tests.support.facts import Stopwatch, until
from tests.support.generators import picture
from tests.support.processes import group_of

MAKE = "tests.support.generators:make"


def wish(prompt: str) -> GenerationRequest:
    return GenerationRequest("task", "basic", prompt, 2**63 - 1, (8, 8), b"\x89PNG\0 reference")


async def make(generator: IsolatedGenerator, prompt: str) -> list[Step | Picture]:
    return [piece async for piece in hold_to_contract(generator.generate(wish(prompt)))]


def deaths(generator: IsolatedGenerator) -> dict[str, int]:
    """Why processes have ended, and how many."""
    (family,) = generator._metrics.generator_deaths.collect()
    return {sample.labels["cause"]: int(sample.value) for sample in family.samples if sample.name.endswith("_total")}


def pid_of(generator: IsolatedGenerator) -> int:
    assert generator._process is not None
    return generator._process.pid


Hire = Callable[..., Awaitable[IsolatedGenerator]]


@pytest.fixture
async def hire(config: Config) -> AsyncIterator[Hire]:
    """Start a generator in a process of its own: `await hire(silent_seconds=1.0)`."""
    tasks: list[asyncio.Task[None]] = []

    async def begin(target: str = MAKE, *, ready: bool = True, **settings: object) -> IsolatedGenerator:
        generation = config.replace(generation=settings).generation
        generator = IsolatedGenerator("test", Recipe(target, {}), generation, Metrics())
        tasks.append(asyncio.create_task(generator.run()))
        begin.tasks[generator] = tasks[-1]  # type: ignore[attr-defined]
        if ready:
            await generator.ready()
        return generator

    begin.tasks = {}  # type: ignore[attr-defined]
    yield begin
    for task in tasks:
        await fire(task)


async def fire(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_a_picture_is_made_in_another_process_which_is_used_again(hire: Hire) -> None:
    generator = await hire()
    first, second = await make(generator, "a lake"), await make(generator, "a lake")
    assert first == second
    assert first[-1] == Picture(picture())
    assert isinstance(first[0], Step)
    assert int(first[0].message) == pid_of(generator) != os.getpid()
    assert not deaths(generator)


CRASHES = [
    ("exit:7", "exited"),
    ("exit:0", "exited"),
    ("kill", "signaled"),
    ("segfault", "signaled"),
    ("fork_and_exit:600", "exited"),
]


@pytest.mark.parametrize(("prompt", "cause"), CRASHES)
async def test_a_process_that_dies_costs_its_task_an_attempt_and_the_next_is_made(
    hire: Hire, prompt: str, cause: str
) -> None:
    generator = await hire()
    before = pid_of(generator)
    with pytest.raises(GeneratorLost, match=r"^The generator stopped unexpectedly$") as caught:
        await make(generator, prompt)
    assert caught.value.retryable
    await until(lambda: not group_of(before))
    assert (await make(generator, "a lake"))[-1] == Picture(picture())
    assert deaths(generator) == {cause: 1}
    assert pid_of(generator) != before


async def test_a_segfault_is_told_with_its_place(hire: Hire) -> None:
    with structlog.testing.capture_logs() as said:
        generator = await hire()
        with pytest.raises(GeneratorLost):
            await make(generator, "segfault")
        await until(lambda: deaths(generator))
    (death,) = [line for line in said if line["event"] == logs.GENERATOR_DIED]
    assert (death["signal"], death["at_work"], death["cause"]) == ("SIGSEGV", True, "signaled")
    assert any("generators.py" in line["line"] for line in said if line["event"] == logs.GENERATOR_WROTE)


@pytest.mark.parametrize(
    "sent",
    [
        "63 00000000",  # a kind that there is not
        "01 00000000",  # one of the worker's own
        "04 7fffffff",  # a step of two gigabytes
        "05 ffffffff",  # a picture of four
        "04 00000002 5b5d",  # a step that says nothing
        "04 00000002 ffff",  # or what is no text
        "04 00000014 5b302e352c2261222c22620000636465666768225d",  # or what Postgres refuses
        "04 00000007 " + b"[[[[[[[".hex(),
        "06 00000002 5b5d",  # an error that is none
        "03 00000000",  # ready a second time
        "08 00000000",  # canceled, as nobody has asked
    ],
)
async def test_what_no_generator_would_say_ends_its_process(hire: Hire, sent: str) -> None:
    generator = await hire()
    with pytest.raises(GeneratorLost, match="stopped unexpectedly"):
        await make(generator, f"send:{sent}")
    assert (await make(generator, "a lake"))[-1] == Picture(picture())
    assert deaths(generator) == {"malformed": 1}


async def test_a_process_that_hangs_up_and_lives_on_is_ended(hire: Hire) -> None:
    generator = await hire()
    before = pid_of(generator)
    with pytest.raises(GeneratorLost):
        await make(generator, "hang_up")
    await until(lambda: not group_of(before))
    await until(lambda: deaths(generator) == {"hung_up": 1})


async def test_too_much_memory_is_told_as_such(hire: Hire) -> None:
    generator = await hire(memory_mb=150)
    with pytest.raises(GeneratorLost, match=r"^The generator used more than 150 MB of memory$"):
        await make(generator, "eat:400")
    await until(lambda: deaths(generator) == {"memory": 1})
    assert (await make(generator, "a lake"))[-1] == Picture(picture())


async def test_silence_is_told_as_such(hire: Hire) -> None:
    generator = await hire(silent_seconds=0.5)
    with pytest.raises(GeneratorLost, match=r"^The generator said nothing for 0\.5 seconds$"):
        await make(generator, "block:600")
    await until(lambda: deaths(generator) == {"silent": 1})


async def test_what_is_printed_is_logged_and_disturbs_nothing(hire: Hire) -> None:
    with structlog.testing.capture_logs() as said:
        generator = await hire()
        assert (await make(generator, "write"))[-1] == Picture(picture())
        await until(lambda: any("from a program" in line.get("line", "") for line in said))
    written = [line["line"] for line in said if line["event"] == logs.GENERATOR_WROTE]
    assert max(len(line) for line in written) == 2000
    assert len(written) < 5
    assert not deaths(generator)


async def test_an_unforeseen_error_is_logged_with_its_trace_and_the_process_lives_on(hire: Hire) -> None:
    generator = await hire()
    before = pid_of(generator)
    with (
        structlog.testing.capture_logs() as said,
        pytest.raises(GenerationError, match=r"^The generator failed unexpectedly$") as caught,
    ):
        await make(generator, "raise")
    assert caught.value.retryable
    (crash,) = [line for line in said if line["event"] == logs.GENERATOR_CRASHED]
    assert "ZeroDivisionError: by a generator" in crash["trace"]
    assert (await make(generator, "a lake"))[0] == Step(0.0, "beginning", str(before))


async def test_a_refusal_comes_through_bounded_and_fit_to_be_stored(hire: Hire) -> None:
    generator = await hire()
    with pytest.raises(GenerationError, match=r"^This is not \? allowed") as caught:
        await make(generator, "refuse")
    assert not caught.value.retryable
    assert len(str(caught.value)) < 2001
    assert not deaths(generator)


async def test_a_flood_of_steps_leaves_the_loop_to_others(hire: Hire) -> None:
    """Each step is taken in its time; the process waits meanwhile."""
    generator, turns, steps = await hire(), 0, 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    beside = asyncio.create_task(others())
    async with contextlib.aclosing(generator.generate(wish("flood:1000000"))) as pieces:
        async for _ in pieces:
            steps += 1
            if steps == 60:
                break
    beside.cancel()
    assert turns > 20 * steps


async def test_a_cancel_ends_the_work_and_keeps_the_process(hire: Hire, tmp_path: Path) -> None:
    generator, freed = await hire(), tmp_path / "freed"
    before = pid_of(generator)
    await cancel_at_half(generator, f"say_good_bye:{freed}")
    assert (await make(generator, "a lake"))[0] == Step(0.0, "beginning", str(before))
    assert freed.read_text() == "freed"
    assert not deaths(generator)


async def test_a_cancel_that_is_not_heeded_ends_the_process(hire: Hire) -> None:
    generator = await hire()
    before = pid_of(generator)
    async with Stopwatch() as watch:
        await cancel_at_half(generator, "fork_and_block:600")
    assert watch.seconds < 0.5  # nobody waits for it
    assert (await make(generator, "a lake"))[-1] == Picture(picture())
    await until(lambda: not group_of(before))
    assert deaths(generator) == {"uncanceled": 1}


async def test_a_cancel_right_behind_a_request_keeps_the_process(hire: Hire) -> None:
    """A request so large that the cancel comes in one read with its end."""
    generator = await hire()
    before, request = pid_of(generator), dataclasses.replace(wish("rest:600"), reference=bytes(8_000_000))
    for _ in range(10):
        reading = asyncio.create_task(anext(generator.generate(request)))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await generator.ready()
    assert pid_of(generator) == before
    assert not deaths(generator)


async def cancel_at_half(generator: IsolatedGenerator, prompt: str) -> None:
    """Cancel whoever reads the pieces, as the generator is at work."""
    half = asyncio.Event()

    async def read() -> None:
        async with contextlib.aclosing(generator.generate(wish(prompt))) as pieces:
            async for piece in pieces:
                if isinstance(piece, Step) and piece.progress == 0.5:
                    half.set()

    reading = asyncio.create_task(read())
    await half.wait()
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


@pytest.mark.parametrize("prompt", ["", "rest:600", "fork_and_block:600", "hold_the_lock"])
async def test_nothing_is_left_when_it_is_told_to_stop(hire: Hire, prompt: str) -> None:
    generator = await hire()
    before = pid_of(generator)
    if prompt:
        await cancel_at_half(generator, prompt)
    await fire(hire.tasks[generator])  # type: ignore[attr-defined]
    await until(lambda: not group_of(before))
    assert not deaths(generator)  # it was told to


async def test_where_the_kernel_kills_nobody_what_was_started_ends_too(
    hire: Hire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the process that started it, and with one that is ended."""
    monkeypatch.setattr("server.runtime.subprocesses._kill_group_at_hangup", lambda *_: None)
    generator = await hire()
    before = pid_of(generator)
    with pytest.raises(GeneratorLost):
        await make(generator, "fork_and_exit:600")
    await until(lambda: not group_of(before))
    await generator.ready()
    before = pid_of(generator)
    await cancel_at_half(generator, "fork_and_block:600")
    await until(lambda: not group_of(before))


@pytest.mark.parametrize(
    ("prompt", "by_kernel"),
    [
        pytest.param("hold_the_lock", True, marks=pytest.mark.skipif(sys.platform != "linux", reason="by Linux alone")),
        ("fork_and_block:600", False),
    ],
)
async def test_a_process_ends_with_ours(
    hire: Hire, monkeypatch: pytest.MonkeyPatch, prompt: str, *, by_kernel: bool
) -> None:
    """Whatever it is at, by the kernel; where that kills nobody, by a thread of its own."""
    if not by_kernel:
        monkeypatch.setattr("server.runtime.subprocesses._kill_group_at_hangup", lambda *_: None)
    generator = await hire()
    before = pid_of(generator)
    await cancel_at_half(generator, prompt)
    assert generator._process is not None
    group = generator._process._group
    monkeypatch.setattr(group, "kill", lambda: None)
    os.close(group._lifeline)  # as the kernel does for who is killed
    group._lifeline = -1
    await until(lambda: not group_of(before))


async def test_who_cancels_twice_leaves_nothing_either(hire: Hire) -> None:
    generator = await hire()
    before, task = pid_of(generator), hire.tasks[generator]  # type: ignore[attr-defined]
    await cancel_at_half(generator, "block:600")
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await until(lambda: not group_of(before))


async def test_a_generator_that_cannot_be_made_is_tried_less_and_less_often(hire: Hire) -> None:
    with structlog.testing.capture_logs() as said:
        generator = await hire("tests.support.generators:make_and_die", ready=False)
        await until(lambda: deaths(generator).get("exited", 0) >= 2)
    assert not generator._free.is_set()
    assert not generator.is_running
    assert any("RuntimeError: no model here" in line.get("line", "") for line in said)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_process_that_cannot_be_started_is_tried_again(hire: Hire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    before = descriptors() + 1  # uvloop opens one of its own with its first connection
    generator = await hire(ready=False)
    await until(lambda: deaths(generator).get("unstartable", 0) >= 2)
    await until(lambda: descriptors() <= before)
    monkeypatch.undo()
    assert (await make(generator, "a lake"))[-1] == Picture(picture())


async def test_a_process_that_dies_with_nothing_to_do_costs_nobody_anything(hire: Hire) -> None:
    """Not even who comes before it is noticed."""
    generator = await hire()
    before = pid_of(generator)
    os.kill(before, signal.SIGKILL)
    assert generator._process is not None
    while not generator._process._group.has_ended():  # and the event loop, which would notice, stands still
        pass
    assert (await make(generator, "a lake"))[-1] == Picture(picture())


async def test_signals_for_the_server_leave_its_generator_at_work(hire: Hire) -> None:
    """A supervisor may send them to every process: the task is given back by the worker, in order."""
    generator = await hire()
    pieces = generator.generate(wish("rest:0.3"))
    await anext(pieces)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(pid_of(generator), number)
    assert [piece async for piece in pieces][-1] == Picture(picture())


async def test_a_process_inherits_nothing(hire: Hire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGPOLL_DATABASE__DSN", "password=secret")
    monkeypatch.setenv("PGPASSWORD", "secret")
    monkeypatch.setenv("SOME_TOKEN", "secret")
    monkeypatch.setenv("GENERATOR_TOKEN", "its own")
    secret = tmp_path / "secret"
    with secret.open("w") as file:
        os.set_inheritable(file.fileno(), True)
        generator = await hire()
    await make(generator, f"tell:{tmp_path / 'told'}")
    told = ast.literal_eval((tmp_path / "told").read_text())
    assert "secret" not in repr(told["environment"])
    assert told["environment"]["GENERATOR_TOKEN"] == "its own"
    assert str(secret) not in told["descriptors"]
    assert sum(each.startswith("socket:") for each in told["descriptors"]) == 3  # two are its event loop's
    assert int(told["score"]) == 1000


async def test_what_a_generator_starts_has_nothing_of_its_links_and_heeds_signals(hire: Hire, tmp_path: Path) -> None:
    await make(await hire(), f"start_programs:{tmp_path / 'told'}")
    told = ast.literal_eval((tmp_path / "told").read_text())
    assert "socket:" not in told["descriptors"]
    assert told["code"] == -signal.SIGTERM
