"""The options of `loadtest`: what they are, and what can't be."""

from __future__ import annotations

import argparse
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from server.errors import LoadTestError
from server.runtime import file_limit

PATTERNS: Final = ("one", "storm", "broadcast", "steady")
_RATES: Final = {"one": 20.0, "steady": 100.0}
_ROUNDS: Final = {"storm": 3, "broadcast": 5}
_LONGEST_WAIT: Final = 30.0
_DESCRIPTORS_BESIDE: Final = 64  # the link, the standard streams, modules that are being read


@dataclass(frozen=True, slots=True)
class Options:
    """What is to be done. Rates are per second, durations in seconds; `tasks` 0 means as many as the pattern takes."""

    host: str
    port: int
    clients: int = 1000
    tasks: int = 0
    pattern: str = "one"
    mode: str = "hold"
    rate: float = 0.0
    connect_rate: float = 2000.0
    duration: float = 10.0
    rounds: int = 0
    interval: float = 1.0
    wait: float = _LONGEST_WAIT
    idle: float = 3.0
    grace: float = 1.0
    single: bool = False
    pages: bool = False
    processes: int = 0
    polls_per_user: int = 32
    dsn: str | None = None
    token: str | None = None
    account: tuple[str, str] | None = None
    pids: tuple[int, ...] = ()
    json: Path | None = None
    compare: Path | None = None
    report: Path | None = None
    url: str = field(default="")

    @property
    def holds(self) -> bool:
        """Whether polls wait."""
        return self.mode == "hold"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to the command's parser."""
    parser.add_argument("url", help="the server, such as http://127.0.0.1:8080")
    parser.add_argument("--clients", type=int, default=1000, help="how many poll (1000)")
    parser.add_argument("--tasks", type=int, default=0, help="how many tasks they share (one each; broadcast: 1)")
    parser.add_argument(
        "--pattern",
        choices=PATTERNS,
        default="one",
        help="one: tasks are changed one at a time. storm: all at once. broadcast: all clients poll the same task."
        " steady: tasks change while everybody asks again after each answer (one)",
    )
    parser.add_argument("--rate", type=float, default=0.0, help="changes a second, for one (20) and steady (100)")
    parser.add_argument("--connect-rate", type=float, default=2000.0, help="connects a second (2000)")
    parser.add_argument("--duration", type=float, default=10.0, help="seconds, for one, steady and --mode poll (10)")
    parser.add_argument("--rounds", type=int, default=0, help="how often, for storm (3) and broadcast (5)")
    parser.add_argument("--single", action="store_true", help="storm: one UPDATE for each task, instead of one for all")
    parser.add_argument(
        "--mode", choices=("hold", "poll"), default="hold", help="poll: ask every --interval, never wait"
    )
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between the polls of --mode poll (1)")
    parser.add_argument("--wait", type=float, default=_LONGEST_WAIT, help="seconds that each poll asks to wait (30)")
    parser.add_argument("--pages", action="store_true", help="name each client (c=), as the page does")
    parser.add_argument("--idle", type=float, default=3.0, help="seconds of holding that are measured first (3)")
    parser.add_argument(
        "--grace", type=float, default=1.0, help="seconds after which a wake counts as late or lost (1)"
    )
    _add_means(parser)


def _add_means(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dsn", help="change tasks by SQL, as the owner of its tables; without it, by cancel")
    parser.add_argument("--token", help="a bearer token; without it an account is made")
    parser.add_argument("--email", help="an account to use, registered if need be")
    parser.add_argument("--password")
    parser.add_argument(
        "--polls-per-user", type=int, default=32, help="with --dsn, users are made for so many each (32)"
    )
    parser.add_argument("--pid", type=int, action="append", default=[], help="a process of the server; may be repeated")
    parser.add_argument(
        "--processes", type=int, default=0, help="generator processes (as few as the file limit allows)"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--compare", type=Path, help="an earlier --json to compare with")
    parser.add_argument("--report", type=Path, help="write a page with table and plots to this file (HTML with SVG)")
    parser.add_argument("--i-own-this-server", action="store_true", help="allow a server that isn't on this machine")


def read(given: argparse.Namespace) -> Options:
    """Check what was given, and fill in what depends on it.

    Raises:
        LoadTestError: it makes no sense, or the server isn't ours to load.
    """
    host, port = _address(given.url, remote=given.i_own_this_server)
    if bool(given.email) != bool(given.password):
        raise LoadTestError("--email and --password belong together")
    for name in ("clients", "connect_rate", "duration", "interval", "wait", "grace", "polls_per_user"):
        if not getattr(given, name) > 0:
            raise LoadTestError(f"--{name.replace('_', '-')} must be more than 0")
    if given.wait > _LONGEST_WAIT:
        raise LoadTestError(f"--wait can't be longer than {_LONGEST_WAIT:g} s: the server would not wait so long")
    tasks = given.tasks or (1 if given.pattern == "broadcast" else given.clients)
    if tasks > given.clients or (given.pattern == "broadcast" and tasks != 1):
        raise LoadTestError("--tasks can't be more than --clients, and a broadcast is of one task")
    return Options(
        host,
        port,
        tasks=tasks,
        rate=given.rate or _RATES.get(given.pattern, 20.0),
        rounds=given.rounds or _ROUNDS.get(given.pattern, 1),
        processes=_processes(given.clients, given.processes),
        account=(given.email, given.password) if given.email else None,
        pids=tuple(given.pid),
        **{name: getattr(given, name) for name in _AS_GIVEN},
    )


_AS_GIVEN: Final = (
    "clients", "pattern", "mode", "connect_rate", "duration", "interval", "wait", "idle", "grace", "single", "pages",
    "polls_per_user", "dsn", "token", "json", "compare", "report", "url",
)  # fmt: skip


def _address(url: str, *, remote: bool) -> tuple[str, int]:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise LoadTestError(f"{url!r} isn't such as http://127.0.0.1:8080; TLS would measure the tester's own")
    try:
        port = parts.port or 80
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:
        raise LoadTestError(f"{parts.hostname} can't be found: {error}") from error
    addresses = [str(each[4][0]) for each in found]
    if not remote and not all(ipaddress.ip_address(address).is_loopback for address in addresses):
        raise LoadTestError(
            f"{parts.hostname} is not this machine: a load test is an attack on whoever hasn't asked for it."
            " If the server is yours, say --i-own-this-server"
        )
    return next((address for address in addresses if ":" not in address), addresses[0]), port


def _processes(clients: int, wanted: int) -> int:
    most = file_limit.raise_limit() - _DESCRIPTORS_BESIDE
    needed = -(-clients // most)
    if wanted and wanted < needed:
        raise LoadTestError(
            f"{clients} clients don't fit into {wanted} processes of {most} descriptors: {needed} would do"
        )
    return wanted or needed


def source_addresses(host: str, clients: int, per_address: int = 10_000) -> Sequence[str | None]:
    """Return one address for each client to come from: a loopback address has ports for about 28,000 connections."""
    if not host.startswith("127."):
        return [None] * clients
    return [f"127.0.0.{1 + number // per_address}" for number in range(clients)]
