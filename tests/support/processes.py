"""The server as a process of its own, started as an operator starts it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

_LISTENING = re.compile(r"^Listening on (https?://\S+)", re.MULTILINE)
_PATIENCE_SECONDS = 60


class ServerProcess:
    """One `python -m server …`; its standard error is kept in `said`."""

    def __init__(self, folder: Path, *arguments: str, python_path: Path | None = None, **settings: object) -> None:
        """Start it in a folder, with settings such as `server__port=0`."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LONGPOLL_")}
        environment |= {f"LONGPOLL_{name.upper()}": str(value) for name, value in settings.items()}
        environment["PYTHONPATH"] = str(python_path or Path(__file__).resolve().parents[2])
        environment.setdefault("LONGPOLL_SERVER__PORT", "0")
        # aiohttp reads the authorities of the Web when it is imported, 0.04 s of each start; a server asks none of them.
        environment.setdefault("SSL_CERT_FILE", os.devnull)
        environment.setdefault("LONGPOLL_POLLING__PARK", str(os.environ.get("LONGPOLL_TEST_PARK") != "no"))
        self.said = ""
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "server", *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def url(self) -> str:
        """Where it listens; waits until it says so."""
        return self.until_said(_LISTENING)[1]

    def until_said(self, pattern: re.Pattern[str]) -> re.Match[str]:
        """Wait until it has said this."""
        with self._changed:
            said = self._changed.wait_for(
                lambda: pattern.search(self.said) or self.process.poll() is not None, _PATIENCE_SECONDS
            )
            found = pattern.search(self.said)
        assert said, f"silent for {_PATIENCE_SECONDS} s:\n{self.said}"
        assert found, f"ended without saying {pattern.pattern!r}:\n{self.said}"
        return found

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send it a signal and wait until it has ended; returns its exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait until it has ended by itself; returns its exit code."""
        code = self.process.wait(_PATIENCE_SECONDS)
        self._reader.join(_PATIENCE_SECONDS)
        return code

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            for line in stream:
                with self._changed:
                    self.said += line
                    self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()


@contextlib.contextmanager
def server_process(folder: Path, *arguments: str, **settings: object) -> Iterator[ServerProcess]:
    """Run a server process for the block, and end it whatever happens."""
    server = ServerProcess(folder, *arguments, **settings)  # type: ignore[arg-type]
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.wait()


def processes_of(folder: Path) -> list[str]:
    """Return the command lines of the processes that run in this folder or name it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = process.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(folder) in command or process.joinpath("cwd").readlink().is_relative_to(folder):
                found.append(command)
        except OSError:
            continue  # it has just ended
    return found


def generators_of(number: int) -> list[int]:
    """Return the processes of generators that this process has started and that are alive."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = process.joinpath("stat").read_text().rpartition(")")[2].split()[:2]
            command = process.joinpath("cmdline").read_bytes()
        except OSError:
            continue  # it has just ended
        if int(parent) == number and state not in "ZX" and b"server.generation.child" in command:
            found.append(int(process.name))
    return found


def parent_of(number: int) -> int:
    """Return the process that has started this one."""
    return int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])


def group_of(number: int) -> list[int]:
    """Return the processes of a group that are alive."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue  # it has just ended
        if int(group) == number and state not in "ZX":
            found.append(int(stat.parent.name))
    return found
