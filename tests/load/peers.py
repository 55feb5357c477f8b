"""Our server beside the bare handler and Nchan, same generator, interleaved: `python -m tests.load.peers`.

Each round starts each server anew, has it hold so many polls on one task, and changes that task a few times. What is
printed is the median of all rounds. Nchan (an nginx module in C) comes from Debian: it is installed if this is root.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from server.commands.loadtest import command
from server.commands.loadtest.control import Control
from server.commands.loadtest.figures import KINDS, Figures
from server.commands.loadtest.measures import Gauge
from server.commands.loadtest.options import Options
from server.commands.loadtest.report import LiveDisplay
from server.commands.loadtest.targets import LongPollServer, Target
from server.commands.loadtest.workloads import Workload
from tests.load.dialects import BareServer, Nchan, PublishedTasks
from tests.support.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
NCHAN_MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
NCHAN_PACKAGES = ("nginx-light", "libnginx-mod-nchan")
NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log; worker_rlimit_nofile 20000;
load_module {module};
events {{ worker_connections 19900; }}
http {{
  access_log off; keepalive_timeout 300; keepalive_requests 1000000000; nchan_shared_memory_size 128M;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location ~ ^/sub/(.+)$ {{
      nchan_subscriber longpoll; nchan_channel_id $1; nchan_subscriber_timeout 30; nchan_subscriber_first_message newest;
    }}
    location ~ ^/pub/(.+)$ {{
      nchan_publisher; nchan_channel_id $1; nchan_message_buffer_length 1; nchan_message_timeout 1h;
    }}
  }}
}}
"""
SHOWN = ("held", "kilobytes_per_held", "idle_cpu_percent", "cpu_us_per_wake", "first_ms", "median_ms", "last_ms")
CARRIED = ("clients", "tasks", "pattern", "single", "rounds", "connect_rate", "processes", "idle")
SHOWN += ("wakes_per_second",)
SHOWN += ("cpu_us_per_repoll", "repolls_per_second", "tester_cpu_seconds", "server_cpu_seconds", "errors", "lost")


class Peer(NamedTuple):
    """A server that runs: how to speak to it, its tasks, its process."""

    target: Target
    stage: Workload
    process_id: int


Start = Callable[[Options], contextlib.AbstractContextManager[Peer]]


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="longpoll-run-", dir="/tmp"))
    path.chmod(0o711)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def ours(options: Options, *, park: bool = True, loop: str = "auto") -> Iterator[Peer]:
    port = free_port()
    settings = {
        "SERVER__PORT": port,
        "SERVER__EVENT_LOOP": loop,
        "GENERATION__WORKERS": 0,
        "POLLING__PARK": park,
        "POLLING__MAX_HELD_PER_USER": options.clients,
        "POLLING__MAX_HELD": max(options.clients, 18_000),
        "LIMITS__ENABLED": "false",
        "LOGGING__FORMAT": "json",
    }
    with folder() as path:
        environment = {**os.environ, **{f"LONGPOLL_{name}": str(value) for name, value in settings.items()}}
        environment["PYTHONPATH"] = str(ROOT)
        dsn = f"host={path}/.data/sockets port=5432 user=postgres dbname=postgres"
        stage = command.SqlStage(
            dsn, tasks=options.tasks, clients=options.clients, polls_per_user=options.clients, secret=None
        )
        with running([sys.executable, "-m", "server"], port, path, environment) as process:
            yield Peer(LongPollServer("127.0.0.1", port, wait_seconds=30), stage, process.pid)


@contextlib.contextmanager
def bare(options: Options, *arguments: str, module: str = "tests.load.bare") -> Iterator[Peer]:
    port = free_port()
    program = [sys.executable, "-m", module, str(port), *arguments]
    with running(program, port, ROOT) as process, contextlib.closing(Control("127.0.0.1", port)) as control:
        stage = PublishedTasks(control, "/wake?task=", tasks=options.tasks, path_of_all="/wake")
        yield Peer(BareServer("127.0.0.1", port), stage, process.pid)


@contextlib.contextmanager
def nchan(options: Options) -> Iterator[Peer]:
    port = free_port()
    with folder() as path:
        configuration = path / "nginx.conf"
        configuration.write_text(NGINX.format(folder=path, module=NCHAN_MODULE, port=port))
        program = ["nginx", "-c", str(configuration), "-p", str(path)]
        with running(program, port, path) as process, contextlib.closing(Control("127.0.0.1", port)) as control:
            yield Peer(Nchan("127.0.0.1", port), PublishedTasks(control, "/pub/", tasks=options.tasks), process.pid)


@contextlib.contextmanager
def running(
    program: list[str], port: int, path: Path, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in a folder for the block, from the moment when it listens. It logs to a file, as programs do."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(program, cwd=path, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            while not listens(port):
                assert process.poll() is None, f"{program[0]} has ended"
                time.sleep(0.05)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def listens(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def install_nchan() -> bool:
    """Install Nchan from Debian where it is missing; returns whether it is there."""
    if not (NCHAN_MODULE.is_file() and shutil.which("nginx")) and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "update", "-qq"], check=False)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *NCHAN_PACKAGES], check=False)
    return NCHAN_MODULE.is_file() and shutil.which("nginx") is not None


def measure(start: Start, options: Options, display: LiveDisplay) -> Figures:
    with start(options) as peer:
        options = Options(
            peer.target.host,
            peer.target.port,
            **{name: getattr(options, name) for name in CARRIED},
            grace=10.0,
        )
        return command.carry_out(options, peer.target, peer.stage, Gauge([peer.process_id]), dict, display)


def compare(peers: dict[str, Start], options: Options, rounds: int) -> dict[str, dict[str, float]]:
    """Measure each in turn, again and again; returns the medians."""
    gathered: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in peers}
    console = Console(stderr=True)
    for number in range(1, rounds + 1):
        for name, start in peers.items():
            console.print(f"round {number} of {rounds}: {name}", highlight=False)
            with LiveDisplay(Console(stderr=True, quiet=not console.is_terminal)) as display:
                for figure, value in measure(start, options, display).values.items():
                    gathered[name][figure].append(value)
    return {
        name: {figure: statistics.median(values) for figure, values in figures.items()}
        for name, figures in gathered.items()
    }


def show(medians: dict[str, dict[str, float]], title: str) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("figure")
    for name in medians:
        table.add_column(name, justify="right")
    for figure in SHOWN:
        kind = KINDS[figure]
        cells = (medians[name].get(figure) for name in medians)
        written = ("" if value is None else f"{value:,.{kind.digits}f}" for value in cells)
        table.add_row(f"{kind.label} ({kind.unit})" if kind.unit else kind.label, *written)
    Console(width=160).print(table)


def main() -> None:
    """Compare; with names, only these."""
    known: dict[str, Start] = {
        "ours": ours,
        "ours, by coroutines": lambda options: ours(options, park=False),
        "ours, asyncio": lambda options: ours(options, loop="asyncio"),
        "ours, by coroutines, asyncio": lambda options: ours(options, park=False, loop="asyncio"),
        "bare": bare,
        "bare, tame": lambda options: bare(options, "--tame"),
        "least": lambda options: bare(options, module="tests.load.least"),
        "least, uvloop": lambda options: bare(options, "--loop=uvloop", module="tests.load.least"),
        "Nchan": nchan,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(known)}; all by default")
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bursts", type=int, default=5, help="changes in each round")
    parser.add_argument("--connect-rate", type=float, default=2500.0)
    parser.add_argument("--storm", action="store_true", help="as many tasks as polls, changed all at once")
    parser.add_argument("--single", action="store_true", help="with --storm: one statement for each task")
    given = parser.parse_args()
    peers = {name: known[name] for name in given.names or known}
    if "Nchan" in peers and not install_nchan():
        print(f"Nchan is left out: {' and '.join(NCHAN_PACKAGES)} are not installed", file=sys.stderr)
        del peers["Nchan"]
    options = Options(
        "127.0.0.1",
        0,
        given.clients,
        tasks=given.clients if given.storm else 1,
        pattern="storm" if given.storm else "broadcast",
        single=given.single,
        rounds=given.bursts,
        connect_rate=given.connect_rate,
        processes=1,
        idle=2.0,
    )
    medians = compare(peers, options, given.rounds)
    show(
        medians,
        f"{given.clients:,} polls held on {options.tasks:,} task{'s' if given.storm else ''},"
        f" medians of {given.rounds} rounds of {given.bursts} changes",
    )


if __name__ == "__main__":
    main()
