"""Told to stop at any moment, a command ends at once, without a traceback, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from server.runtime import signals
from tests.faults.sites import settings_of
from tests.support import rows
from tests.support.facts import until
from tests.support.postgres import Sql, execute
from tests.support.processes import ServerProcess, processes_of, server_process

ROOT = Path(__file__).resolve().parents[2]
shared_dsn, dsn = rows.shared_dsn, rows.dsn
NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FAULTS = re.compile(r"Traceback|Exception ignored|never awaited|never retrieved|^error: ", re.MULTILINE)
PATIENCE_SECONDS = 30


@dataclass
class Ended:
    code: int
    said: str


@dataclass
class Command:
    """A command line in a folder of its own, with its settings, and what must be left as it was."""

    folder: Path
    arguments: Sequence[str]
    settings: dict[str, object] = field(default_factory=dict)
    left: Callable[[], object] = lambda: None

    def begin(self, *, ignored: Sequence[signal.Signals] = ()) -> subprocess.Popen[str]:
        """Start it, as a terminal would: in a process group of its own."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LONGPOLL_")}
        environment |= {f"LONGPOLL_{name.upper()}": str(value) for name, value in self.settings.items()}
        environment |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "LONGPOLL_SERVER__PORT": "0"}
        return subprocess.Popen(
            [sys.executable, "-m", "server", *self.arguments],
            cwd=self.folder, env=environment, start_new_session=True, stdin=subprocess.DEVNULL, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=lambda: _ignore(ignored),  # noqa: PLW1509
        )  # fmt: skip

    def interrupted(self, number: signal.Signals, after_seconds: float) -> Ended:
        """Start it, send its group a signal so long after its first line was run, and wait until all has ended."""
        with running(self.begin()) as process:
            _until_it_listens(process)
            time.sleep(after_seconds)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            said, _ = process.communicate(timeout=PATIENCE_SECONDS)
        _until_it_is_alone(self.folder)
        return Ended(process.returncode, said)


@contextlib.contextmanager
def running(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """End a process group whatever happens."""
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout
        process.stdout.close()  # not read to its end: who survives the process may hold it


def _ignore(numbers: Sequence[signal.Signals]) -> None:
    for each in NUMBERS:
        signal.signal(each, signal.SIG_IGN if each in numbers else signal.SIG_DFL)


def _until_it_listens(process: subprocess.Popen[str]) -> None:
    """Wait until it handles SIGTERM: of an interpreter that is just starting no program can make a good end."""
    while process.poll() is None and not _is_handled(process, signal.SIGTERM):
        time.sleep(0.001)


def _until_it_is_alone(folder: Path) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while (left := processes_of(folder)) or any(path.is_socket() for path in folder.rglob("*")):
        assert time.monotonic() < end, left
        time.sleep(0.01)


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder that any user can reach."""
    path = Path(tempfile.mkdtemp(prefix="longpoll-run-", dir="/tmp"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def site(shared_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server for those commands that need one."""
    folder = tmp_path_factory.mktemp("site")
    with server_process(folder, **settings_of(shared_dsn, folder)) as server:
        yield server


@pytest.fixture
def command(request: pytest.FixtureRequest, folder: Path) -> Command:
    return COMMANDS[request.param](request, folder)


def _serve(_request: pytest.FixtureRequest, folder: Path) -> Command:
    return Command(folder, ["serve"], {"generation__step_seconds": 0})


def _serve_with_asyncio(_request: pytest.FixtureRequest, folder: Path) -> Command:
    return Command(folder, ["serve"], {"server__event_loop": "asyncio"})


def _processes(request: pytest.FixtureRequest, folder: Path) -> Command:
    settings = {"database__dsn": request.getfixturevalue("dsn"), "generation__workers": 0}
    return Command(folder, ["serve", "--processes", "2"], settings)


def _worker(request: pytest.FixtureRequest, folder: Path) -> Command:
    dsn, images = request.getfixturevalue("dsn"), folder / ".data" / "images"
    images.mkdir(parents=True)  # as a server leaves it; without one, a worker doesn't start
    images.joinpath("database-id").write_text(execute(dsn, "SELECT id::text FROM longpoll.identity")[0][0])
    return Command(folder, ["worker"], {"database__dsn": dsn})


def _migrate(_request: pytest.FixtureRequest, folder: Path) -> Command:
    return Command(folder, ["migrate"])


def _doctor(request: pytest.FixtureRequest, folder: Path) -> Command:
    site, dsn = request.getfixturevalue("site"), request.getfixturevalue("dsn")
    return Command(folder, ["doctor", "--url", site.url], {"database__dsn": dsn}, _tasks_and_tokens(request))


def _loadtest(request: pytest.FixtureRequest, folder: Path) -> Command:
    site, dsn = request.getfixturevalue("site"), request.getfixturevalue("dsn")
    options = ["--clients", "50", "--idle", "60", "--processes", "2", "--dsn", dsn]
    return Command(folder, ["loadtest", site.url, *options], left=_tasks_and_tokens(request))


def _tasks_and_tokens(request: pytest.FixtureRequest) -> Callable[[], object]:
    sql: Sql = request.getfixturevalue("sql")
    tables = ("public.image_generations", "longpoll.tokens")
    return lambda: [table for table in tables if sql(f"SELECT count(*) FROM {table}") != [(0,)]] or None


COMMANDS: dict[str, Callable[[pytest.FixtureRequest, Path], Command]] = {
    "serve": _serve,
    "serve with asyncio": _serve_with_asyncio,
    "serve --processes": _processes,
    "worker": _worker,
    "migrate": _migrate,
    "doctor": _doctor,
    "loadtest": _loadtest,
}
# How long each takes until nothing new happens in it: the last signals meet it at its work, or at its end.
SECONDS = {"serve": 4.0, "serve with asyncio": 4.0, "serve --processes": 4.0, "doctor": 3.0}
# The others' moments are met by the long form.
OFTEN = ["serve", "serve --processes", "doctor", "loadtest"]


def _sweep(command: Command, name: str, moments: int) -> None:
    for moment in range(moments):
        after = SECONDS.get(name, 2.5) * (moment + random.random()) / moments
        number = random.choice(NUMBERS)
        ended = command.interrupted(number, after)
        assert ended.code in {0, 128 + number}, (number, after, ended)
        assert not FAULTS.search(ended.said), (number, after, ended.said)
        assert command.left() is None, (number, after, ended.said)


@pytest.mark.parametrize(("command", "name"), [(name, name) for name in OFTEN], indirect=["command"], ids=OFTEN)
def test_a_signal_at_any_moment_ends_it(command: Command, name: str) -> None:
    _sweep(command, name, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "name"), [(name, name) for name in COMMANDS], indirect=["command"], ids=COMMANDS)
def test_a_signal_at_a_hundred_moments_ends_it(command: Command, name: str) -> None:
    _sweep(command, name, 100)


async def test_an_interrupt_amid_a_picture_gives_it_back_and_leaves_nothing(folder: Path, dsn: str, sql: Sql) -> None:
    """Though its generator heeds nothing."""
    settings = {"database__dsn": dsn, "generation__generator": "tests.support.generators:make"}
    task_id = rows.add_task(sql, rows.add_user(sql), prompt="hold_the_lock")
    with running(Command(folder, ["serve"], settings).begin()) as process:
        await until(lambda: rows.read_task(sql, task_id, "stage") == ("painting",))
        os.killpg(process.pid, signal.SIGINT)
        said, _ = await asyncio.to_thread(process.communicate, timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert not FAULTS.search(said)
    assert rows.read_task(sql, task_id, "status::text, attempt, given_back") == ("pending", 1, 1)
    await asyncio.to_thread(_until_it_is_alone, folder)


# What a process inherits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "word", "code"),
    [("loadtest", "holding", 130), ("doctor", "database", 130), ("worker", "worker(s) running", 0)],
    indirect=["command"],
)
def test_an_interrupt_that_was_inherited_as_ignored_is_heeded(command: Command, word: str, code: int) -> None:
    """As a script's `command &` inherits it, and all that a test run in the background starts."""
    with running(command.begin(ignored=NUMBERS)) as process:
        _until_it_says(process, word)
        os.killpg(process.pid, signal.SIGINT)
        said, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == code
    assert not FAULTS.search(said)
    assert command.left() is None


@pytest.mark.parametrize("command", ["worker"], indirect=True)
def test_under_nohup_a_terminal_that_closes_ends_nothing(command: Command) -> None:
    with running(command.begin(ignored=[signal.SIGHUP])) as process:
        _until_it_says(process, "worker(s) running")
        os.killpg(process.pid, signal.SIGHUP)
        assert not _is_handled(process, signal.SIGHUP)
        os.killpg(process.pid, signal.SIGTERM)
        said, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert "SIGHUP" not in said


@pytest.mark.parametrize("command", ["serve --processes"], indirect=True)
def test_what_a_killed_supervisor_leaves_ends_even_if_signals_were_ignored(command: Command) -> None:
    with running(command.begin(ignored=NUMBERS)) as process:
        _until_it_says(process, "process.started")
        process.kill()
        process.wait()
        _until_it_is_alone(command.folder)


# Where it comes ----------------------------------------------------------------------------------------------------------


class _Finalized:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


def test_an_interrupt_where_python_ignores_exceptions_is_raised_again() -> None:
    """A finalizer stands for the callbacks of fork(), in which the sweep has met it."""
    hook = sys.unraisablehook

    def finalize_and_wait() -> None:
        _Finalized()
        time.sleep(5)

    with pytest.raises(signals.Interrupted, match="SIGTERM"), signals.raising():
        finalize_and_wait()
    assert sys.unraisablehook is hook


# More than one signal ---------------------------------------------------------------------------------------------------


def test_the_same_signal_sent_twice_by_a_wrapper_counts_once() -> None:
    heard: list[signal.Signals] = []
    with signals.handling(heard.append):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert heard == [signal.SIGINT]


def test_a_second_signal_after_a_while_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_SAME_SECONDS", -1.0)
    first: list[signal.Signals] = []
    again: list[signal.Signals] = []
    with signals.handling(first.append, again.append):
        for number in NUMBERS:
            signal.raise_signal(number)
    assert (first, again) == ([signal.SIGINT], [signal.SIGTERM, signal.SIGHUP])


def test_handlers_are_as_before_behind_the_block() -> None:
    before = [signal.getsignal(each) for each in NUMBERS]
    with pytest.raises(signals.Interrupted, match="SIGTERM"), signals.raising():
        signal.raise_signal(signal.SIGTERM)
    assert [signal.getsignal(each) for each in NUMBERS] == before


def test_a_coroutine_is_not_begun_when_a_signal_came_before() -> None:
    begun: list[bool] = []
    cancellation = signals.Cancellation()

    async def main() -> None:
        begun.append(True)

    with cancellation.handling(), asyncio.Runner() as runner:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(signals.Interrupted):
            runner.run(cancellation.run(main))
    assert not begun


async def test_a_cancellation_that_was_swallowed_is_not_lost() -> None:
    """As by wait_for() of Python 3.11, while a server is starting."""

    async def serve() -> bool:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        with signals.told_to_stop(lambda _number: None) as told:
            return told.is_set()

    serving = asyncio.create_task(serve())
    await asyncio.sleep(0)
    serving.cancel()
    assert await serving


def test_a_cancellation_that_was_swallowed_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_CANCEL_AGAIN_SECONDS", 0.01)
    cancellation = signals.Cancellation()

    async def main() -> None:
        signal.raise_signal(signal.SIGTERM)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(5)
        await asyncio.sleep(5)

    with cancellation.handling(), asyncio.Runner() as runner, pytest.raises(signals.Interrupted):
        runner.run(cancellation.run(main))


async def test_a_second_signal_ends_a_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_SAME_SECONDS", -1.0)
    told_by: list[signal.Signals] = []

    async def drain() -> None:
        with signals.told_to_stop(told_by.append) as told:
            signal.raise_signal(signal.SIGHUP)
            await told.wait()
            signal.raise_signal(signal.SIGINT)
            await asyncio.Event().wait()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(drain())
    assert told_by == [signal.SIGHUP]


def _is_handled(process: subprocess.Popen[str], number: signal.Signals) -> bool:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return bool(int(re.findall(r"^SigCgt:\s*(\w+)", status, re.MULTILINE)[0], 16) >> (number - 1) & 1)


def _until_it_says(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    assert any(word in line for line in process.stdout), f"it ended without saying {word}"
