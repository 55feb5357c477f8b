"""The embedded Postgres: it starts, is shared, and leaves nothing behind however its owner ends."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType

import psycopg2
import pytest

from server.errors import EmbeddedPostgresError
from server.storage.embedded import binaries, cluster
from server.storage.embedded.cluster import EmbeddedPostgres, Location

ROOT = Path(__file__).resolve().parents[2]
DEBIAN = Path("/usr/lib/postgresql/15/bin")
FAST = MappingProxyType({"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"})
OWNER = """
import sys
from pathlib import Path
from server.storage.embedded.cluster import EmbeddedPostgres
postgres = EmbeddedPostgres(Path(sys.argv[1]), settings={"fsync": "off"})
postgres.start()
print("owner" if postgres.owned else "joiner", flush=True)
sys.stdin.read()
postgres.stop()
"""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to give Postgres to another account")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")


def searchable_folder() -> Path:
    """A new folder that any account may search; pytest's own is closed to the one root runs Postgres as."""
    path = Path(os.path.realpath(tempfile.mkdtemp(prefix="embedded-", dir="/tmp")))
    path.chmod(0o711)
    return path


@pytest.fixture(scope="module")
def made_before() -> Iterator[Path]:
    """A data folder with a cluster that was stopped properly."""
    path = searchable_folder()
    with EmbeddedPostgres(path / "data", settings=FAST):
        pass
    yield path / "data"
    shutil.rmtree(path)


@pytest.fixture
def data_dir(folder: Path, made_before: Path) -> Path:
    """A copy of that data folder, for the tests that aren't about the first start."""
    subprocess.run(["cp", "-pR", str(made_before), str(folder / "data")], check=True)
    return folder / "data"


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder that any account may search, and so may be what the test makes in it.

    Its `system` stands for /var/lib/longpoll, where root's data goes if Postgres can't reach the project.
    """
    umask = os.umask(0o022)
    path = searchable_folder()
    monkeypatch.setattr(binaries, "SYSTEM_FOLDER", path / "system")
    yield path
    shutil.rmtree(path)
    os.umask(umask)


def query(postgres: EmbeddedPostgres, statement: str) -> object:
    connection = psycopg2.connect(postgres.dsn)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            row = cursor.fetchone() if cursor.description else None
            return row[0] if row else None
    finally:
        connection.close()


def eventually(fact: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not fact():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def running(location: Location) -> list[str]:
    """The server processes on this data: each has it as its working directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() == location.data:
                found.append(process.name)
        except OSError:
            continue
    return found


def server_process(postgres: EmbeddedPostgres) -> int:
    return int((postgres.location.data / "postmaster.pid").read_text().splitlines()[0])


def sockets(location: Location) -> list[str]:
    return [path.name for path in location.sockets.iterdir()] if location.sockets.exists() else []


def nothing_left(location: Location) -> bool:
    return not running(location) and not sockets(location)


def start_owner(data_dir: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", OWNER, str(data_dir)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def release(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_cold_start_answers_only_on_its_socket(folder: Path) -> None:
    """The first start makes the cluster; the only way in is a socket in a closed folder."""
    with EmbeddedPostgres(folder / "data", settings=FAST) as postgres:
        assert postgres.owned
        assert query(postgres, "SELECT current_user::text") == "postgres"
        assert query(postgres, "SHOW listen_addresses") == ""
        assert query(postgres, "SHOW server_encoding") == "UTF8"
        assert query(postgres, "SHOW fsync") == "off"
        assert query(postgres, "SELECT lower('ÄÖ')") == "äö"
        assert (
            query(postgres, "SELECT count(*) FROM pg_hba_file_rules WHERE type <> 'local' AND auth_method <> 'reject'")
            == 0
        )
        assert stat.S_IMODE(postgres.location.sockets.stat().st_mode) == 0o700


def test_fsync_is_on_unless_told_otherwise(data_dir: Path) -> None:
    """Nobody who keeps data in it has to ask for durability."""
    with EmbeddedPostgres(data_dir) as postgres:
        assert query(postgres, "SHOW fsync") == "on"


def test_warm_start_keeps_data(data_dir: Path) -> None:
    """What was committed before stop() is there after the next start, of the same object or another one."""
    first = EmbeddedPostgres(data_dir, settings=FAST)
    with first:
        query(first, "CREATE TABLE kept AS SELECT 42 AS answer")
    with EmbeddedPostgres(data_dir, settings=FAST) as second:
        assert query(second, "SELECT answer FROM kept") == 42
    with first:
        assert query(first, "SELECT answer FROM kept") == 42


def test_stop_leaves_neither_process_nor_socket(data_dir: Path) -> None:
    """After stop() everything is gone, also with a client connected; a second stop() does nothing."""
    postgres = EmbeddedPostgres(data_dir, settings=FAST)
    postgres.start()
    assert sockets(postgres.location)
    client = psycopg2.connect(postgres.dsn)
    postgres.stop()
    client.close()
    assert nothing_left(postgres.location)
    assert not postgres.owned
    postgres.stop()


def test_terminal_signals_pass_the_server_by(data_dir: Path) -> None:
    """Ctrl-C reaches the owner alone, who stops the server when it has no more use for it."""
    with EmbeddedPostgres(data_dir, settings=FAST) as postgres:
        assert os.getsid(server_process(postgres)) != os.getsid(0)


def test_stop_ends_a_server_that_hangs(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that hears neither the fast nor the immediate request is killed, and its socket removed."""
    monkeypatch.setattr(cluster, "STOP_STEPS", ((signal.SIGINT, 0.1), (signal.SIGQUIT, 0.1), (signal.SIGKILL, 5.0)))
    postgres = EmbeddedPostgres(data_dir, settings=FAST)
    postgres.start()
    os.kill(server_process(postgres), signal.SIGSTOP)
    postgres.stop()
    assert not sockets(postgres.location)
    assert eventually(lambda: nothing_left(postgres.location))
    with postgres:
        assert query(postgres, "SELECT 1") == 1


def test_second_start_in_another_process_joins(folder: Path) -> None:
    """Of two processes that start at once one owns the server and the other joins it, without stopping it."""
    processes = [start_owner(folder / "data") for _ in range(2)]
    roles = {said(process): process for process in processes}
    assert set(roles) == {"owner", "joiner"}
    location = EmbeddedPostgres(folder / "data").location
    release(roles["joiner"])
    assert running(location)
    with EmbeddedPostgres(folder / "data") as here:
        assert not here.owned
        assert query(here, "SELECT 1") == 1
    assert running(location)
    release(roles["owner"])
    assert nothing_left(location)


@on_linux
def test_killed_owner_leaves_neither_process_nor_socket(data_dir: Path) -> None:
    """A kill -9 of the owner ends the server cleanly, and the next start finds it free."""
    owner = start_owner(data_dir)
    assert said(owner) == "owner"
    postgres = EmbeddedPostgres(data_dir, settings=FAST)
    assert running(postgres.location)
    owner.kill()
    owner.communicate()
    assert eventually(lambda: nothing_left(postgres.location))
    with postgres:
        assert postgres.owned
        assert query(postgres, "SELECT 1") == 1


@on_linux
def test_start_right_after_a_kill_does_not_join_the_dying_server(data_dir: Path) -> None:
    """The server of a killed owner says for an instant that it is ready; who starts then gets one of their own."""
    owner = start_owner(data_dir)
    assert said(owner) == "owner"
    owner.kill()
    owner.communicate()
    with EmbeddedPostgres(data_dir, settings=FAST) as postgres:
        assert postgres.owned
        assert query(postgres, "SELECT 1") == 1


def test_start_recovers_from_a_killed_server(data_dir: Path) -> None:
    """A server killed with -9 leaves postmaster.pid and the socket; they bar nobody, and the data is there."""
    postgres = EmbeddedPostgres(data_dir, settings={"fsync": "off"})
    postgres.start()
    query(postgres, "CREATE TABLE kept AS SELECT 42 AS answer")
    os.kill(server_process(postgres), signal.SIGKILL)
    with EmbeddedPostgres(data_dir, settings=FAST) as second:
        assert second.owned
        assert query(second, "SELECT answer FROM kept") == 42
    postgres.stop()


@on_linux
def test_reused_process_number_does_not_bar_the_start(data_dir: Path) -> None:
    """After a reboot the number in postmaster.pid may be that of any process of the same account."""
    with EmbeddedPostgres(data_dir, settings=FAST) as postgres:
        location = postgres.location
        left = (location.data / "postmaster.pid").read_text().splitlines()
    account = binaries.Account.for_cluster(location.data)
    stranger = binaries.spawn(["/bin/sh", "-c", "kill -STOP $$"], account, Path("/"), subprocess.DEVNULL)
    try:
        (location.data / "postmaster.pid").write_text("\n".join([str(stranger.pid), *left[1:], ""]))
        account.give(location.data / "postmaster.pid")
        with EmbeddedPostgres(data_dir, settings=FAST) as postgres:
            assert postgres.owned
            assert query(postgres, "SELECT 1") == 1
    finally:
        stranger.kill()
        stranger.wait()


def test_interrupted_initdb_is_swept_away(folder: Path) -> None:
    """Half a cluster never lies where the whole one goes, and doesn't stay."""
    data_dir = folder / "data"
    data_dir.mkdir(mode=0o711)
    (data_dir / "postgres.initdb-half").mkdir()
    (data_dir / "postgres.initdb-half" / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres(data_dir, settings=FAST) as postgres:
        assert query(postgres, "SELECT 1") == 1
    assert list(data_dir.glob("postgres.initdb-*")) == []


def test_folder_with_strange_files_is_left_alone(folder: Path) -> None:
    """What isn't a cluster is neither used nor deleted."""
    data = folder / "data" / "postgres"
    data.mkdir(parents=True)
    (data / "letters.txt").write_text("dear")
    binaries.Account.for_cluster(folder / "none").give(data)
    with pytest.raises(EmbeddedPostgresError, match="neither empty nor a Postgres cluster"):
        EmbeddedPostgres(folder / "data").start()
    assert (data / "letters.txt").read_text() == "dear"


def test_long_or_odd_path_gets_a_socket_elsewhere(folder: Path) -> None:
    """A path that is too long for a socket, or needs quotes in a connection string, does no harm."""
    data_dir = folder / ("long, 'odd' " * 10)
    with EmbeddedPostgres(data_dir, settings=FAST) as postgres:
        location = postgres.location
        assert location.data.parent == data_dir
        assert location.sockets.parent == Path("/tmp")
        assert stat.S_IMODE(location.sockets.lstat().st_mode) == 0o700
        assert query(postgres, "SELECT 1") == 1
    assert not location.sockets.exists()


def test_socket_folder_of_a_stranger_is_refused(folder: Path) -> None:
    """A symbolic link that waits at the socket's place is not followed."""
    postgres = EmbeddedPostgres(folder / ("long" * 30), settings=FAST)
    trap = postgres.location.sockets
    trap.symlink_to(folder)
    try:
        with pytest.raises(EmbeddedPostgresError, match="somebody else's"):
            postgres.start()
    finally:
        trap.unlink()
    assert not running(postgres.location)


def test_data_of_another_version_is_refused(data_dir: Path) -> None:
    """The message names both versions and the ways out."""
    with EmbeddedPostgres(data_dir, settings=FAST) as postgres:
        version = postgres.location.data / "PG_VERSION"
    made_by = version.read_text().strip()
    version.write_text("13\n")
    with pytest.raises(
        EmbeddedPostgresError, match=rf"made by Postgres 13, .* Postgres {made_by}\. Set .*postgres_bin"
    ):
        EmbeddedPostgres(data_dir).start()


def test_folder_without_binaries_is_refused(folder: Path) -> None:
    """The message names the setting and what the folder lacks."""
    with pytest.raises(EmbeddedPostgresError, match=r"no postgres and no initdb in .*database\.postgres_bin"):
        EmbeddedPostgres(folder / "data", postgres_bin=folder).start()
    assert not (folder / "data").exists()


@pytest.mark.parametrize(("program", "message"), [("#!/bin/sh\nexit 3\n", "exit code 3"), ("", "can't be run by")])
def test_broken_binaries_are_named(folder: Path, program: str, message: str) -> None:
    """A program that fails, or isn't one, is named in the message."""
    for name in ("postgres", "initdb"):
        (folder / name).write_text(program)
        (folder / name).chmod(0o755)
    with pytest.raises(EmbeddedPostgresError, match=f"postgres.*{message}"):
        EmbeddedPostgres(folder / "data", postgres_bin=folder).start()


def test_early_end_shows_the_log(data_dir: Path) -> None:
    """A setting that Postgres refuses is told in its own words, and nothing stays running."""
    postgres = EmbeddedPostgres(data_dir, settings={**FAST, "shared_buffers": "nonsense"})
    with pytest.raises(EmbeddedPostgresError, match='invalid value for parameter "shared_buffers": "nonsense"'):
        postgres.start()
    assert not postgres.owned
    assert nothing_left(postgres.location)


def test_server_that_gets_not_ready_is_ended(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the time is up the caller gets an error, and no server that becomes ready later."""
    monkeypatch.setattr(cluster, "START_SECONDS", 0.0)
    postgres = EmbeddedPostgres(data_dir, settings=FAST)
    with pytest.raises(EmbeddedPostgresError, match="isn't ready in time"):
        postgres.start()
    assert not postgres.owned
    assert nothing_left(postgres.location)


def test_own_settings_are_refused() -> None:
    """A setting that would be overridden silently is an error instead."""
    with pytest.raises(EmbeddedPostgresError, match="listen_addresses"):
        EmbeddedPostgres(Path("data"), settings={"listen_addresses": "*"})


def test_start_from_another_thread_is_refused(folder: Path) -> None:
    """The server would end with that thread, at a moment nobody expects."""
    errors: list[str] = []

    def start() -> None:
        try:
            EmbeddedPostgres(folder / "data").start()
        except EmbeddedPostgresError as error:
            errors.append(str(error))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert errors == ["Start the embedded Postgres from the main thread: it ends with its thread"]


def test_large_log_is_put_aside(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log of earlier runs is kept once, so that two of them at most fill the disk."""
    monkeypatch.setattr(cluster, "LOG_BYTES", 10)
    with EmbeddedPostgres(data_dir, settings=FAST) as postgres:
        home = postgres.location.home
    with postgres:
        assert (home / "postgres.log.1").stat().st_size > 10
    assert (home / "postgres.log").read_text().count("ready to accept connections") == 1


@pytest.mark.skipif(not (DEBIAN / "initdb").exists(), reason="Debian's Postgres 15 isn't installed")
def test_debian_binaries(folder: Path) -> None:
    """Any folder of binaries will do, and then the wheel's refuse its data."""
    with EmbeddedPostgres(folder / "data", postgres_bin=DEBIAN, settings=FAST) as postgres:
        assert str(query(postgres, "SHOW server_version")).startswith("15.")
    with pytest.raises(EmbeddedPostgresError, match="made by Postgres 15"):
        EmbeddedPostgres(folder / "data").start()


@as_root
def test_root_gives_the_data_to_nobody_and_opens_no_folder(folder: Path) -> None:
    """Only the cluster and its socket are nobody's; the folders above stay root's and closed to readers."""
    with EmbeddedPostgres(folder / "a" / "data", settings=FAST) as postgres:
        location = postgres.location
        assert location.data.owner() == "nobody"
        assert location.sockets.owner() == "nobody"
    for parent in (folder / "a", folder / "a" / "data"):
        assert parent.owner() == "root"
        assert stat.S_IMODE(parent.stat().st_mode) == 0o711


@as_root
def test_root_runs_the_server_as_the_owner_of_the_data(data_dir: Path) -> None:
    """Data that an ordinary user made is used as that user, so that both can."""
    with EmbeddedPostgres(data_dir, settings=FAST) as postgres:
        location = postgres.location
    for path in (location.data, *location.data.rglob("*")):
        os.chown(path, 12345, 12345)
    with EmbeddedPostgres(data_dir, settings=FAST) as postgres:
        assert postgres.owned
        assert location.sockets.stat().st_uid == 12345


@as_root
def test_root_below_a_closed_folder(folder: Path) -> None:
    """Data and binaries that nobody could reach go where they can; the closed folder stays closed."""
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    package = binaries.wheel_binaries().parents[1]
    inside = closed / "site-packages"
    shutil.copytree(package, inside / package.name, ignore=shutil.ignore_patterns("include", "*.a"))
    shutil.copytree(package.parent / f"{package.name}.libs", inside / f"{package.name}.libs")
    source = inside / package.name / "pginstall" / "bin"
    for _ in range(2):
        with EmbeddedPostgres(closed / "data", postgres_bin=source, settings=FAST) as postgres:
            location = postgres.location
            assert query(postgres, "SELECT 1") == 1
        assert location.data.is_relative_to(folder / "system")
        assert location.binaries.is_relative_to(location.home)
        assert [path.name for path in location.home.glob("binaries-*")] == [location.binaries.parents[2].name]
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    assert nothing_left(location)
    closed.chmod(0o711)
    assert EmbeddedPostgres(closed / "data", postgres_bin=source).location.data == location.data


@as_root
def test_unfinished_copy_of_binaries_is_replaced(folder: Path) -> None:
    """A copy becomes visible only when it is complete, whatever its mode in the original was."""
    source = folder / "closed" / "package" / "pginstall" / "bin"
    source.mkdir(parents=True, mode=0o700)
    for name in ("postgres", "initdb"):
        (source / name).touch(mode=0o700)
    (folder / "closed").chmod(0o700)
    (folder / "binaries-0123.partial").mkdir()
    target = binaries.place_binaries(source, binaries.Account.for_cluster(folder / "none"), folder)
    assert not target.exists()
    binaries.copy_binaries(source, target)
    assert sorted(path.name for path in target.iterdir()) == ["initdb", "postgres"]
    assert stat.S_IMODE((target / "postgres").stat().st_mode) == 0o755
    assert list(folder.glob("*.partial")) == []


@as_root
def test_unusable_system_folder_falls_back_to_the_temporary_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where even root can't write to /var/lib, the data goes to the folder for temporary files."""
    (folder / "file").touch()
    monkeypatch.setattr(binaries, "SYSTEM_FOLDER", folder / "file" / "longpoll")
    (folder / "closed").mkdir(mode=0o700)
    home = EmbeddedPostgres(folder / "closed" / "data").location.home
    assert home.parent == Path(tempfile.gettempdir())


@as_root
def test_root_owned_cluster_is_refused_with_the_remedy(folder: Path) -> None:
    """A cluster restored by root as root's own can't be run by anybody."""
    (folder / "data" / "postgres").mkdir(parents=True)
    with pytest.raises(EmbeddedPostgresError, match="chown -R nobody"):
        EmbeddedPostgres(folder / "data").start()
