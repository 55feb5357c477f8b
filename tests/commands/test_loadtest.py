"""`python -m server loadtest` as a user runs it, against a server process."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from server.__main__ import main
from server.commands.loadtest import options as loadtest_options
from tests.faults.load import add_token
from tests.faults.sites import settings_of
from tests.support import rows
from tests.support.ports import free_port
from tests.support.postgres import Sql
from tests.support.processes import ServerProcess, server_process

ROOT = Path(__file__).resolve().parents[2]
shared_dsn, dsn = rows.shared_dsn, rows.dsn
FEW = ("--clients", "5", "--idle", "0.1", "--duration", "0.3", "--grace", "0.5")
HELD = ("--clients", "200", "--idle", "0.1", "--duration", "0.5", "--grace", "0.5")


@dataclass
class Ran:
    code: int
    said: str
    figures: dict[str, float]


@pytest.fixture(scope="module")
def site(shared_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server without limits, for all tests that only look at it."""
    folder = tmp_path_factory.mktemp("site")
    with server_process(folder, **settings_of(shared_dsn, folder)) as server:
        yield server


@pytest.fixture
def start(dsn: str, tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Start a server with settings of one's own."""
    started: list[ServerProcess] = []

    def begin(**settings: Any) -> ServerProcess:
        started.append(ServerProcess(tmp_path, **settings_of(dsn, tmp_path, **settings)))
        return started[-1]

    yield begin
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
        server.wait()


def program(url: str, *options: object) -> list[str]:
    return [sys.executable, "-m", "server", "loadtest", url, *map(str, options)]


def run(folder: Path, url: str, *options: object) -> Ran:
    """Run a load test to its end."""
    written = folder / "figures.json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    done = subprocess.run(
        [*program(url, *options), "--json", str(written)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    figures = json.loads(written.read_text())["figures"] if written.exists() else {}
    return Ran(done.returncode, done.stdout + done.stderr, figures)


def is_sane(ran: Ran, clients: int = 200) -> bool:
    assert ran.code == 0, ran.said
    assert "passed" in ran.said
    assert ran.figures["held"] == ran.figures["clients"] == clients
    assert {name: ran.figures[name] for name in ("lost", "errors", "without_reason", "repaired", "foreign")} == {
        "lost": 0,
        "errors": 0,
        "without_reason": 0,
        "repaired": 0,
        "foreign": 0,
    }
    assert ran.figures["server_cpu_seconds"] > 0
    assert ran.figures["tester_cpu_seconds"] > 0
    return True


def left_behind(sql: Sql) -> dict[str, int]:
    """Return what a load test might have left in the database."""
    tables = ("public.image_generations", "auth.users", "longpoll.accounts", "longpoll.tokens")
    return {table: count for table in tables if (count := sql(f"SELECT count(*) FROM {table}")[0][0])}


def test_one_at_a_time_tells_how_long_a_wake_takes(site: ServerProcess, dsn: str, tmp_path: Path, sql: Sql) -> None:
    ran = run(tmp_path, site.url, *HELD, "--rate", 50, "--dsn", dsn, "--pid", site.process.pid)
    assert is_sane(ran)
    assert ran.figures["wakes"] == ran.figures["changes"] >= 10
    assert ran.figures["wake_p50_ms"] <= ran.figures["wake_p99_ms"] <= ran.figures["wake_max_ms"]
    assert ran.figures["wake_p50_ms"] < ran.figures["wake_sent_p50_ms"]
    assert not left_behind(sql)


@pytest.mark.parametrize("options", [(), ("--single",), ("--processes", 2)])
def test_a_storm_wakes_everybody_once_in_each_round(
    site: ServerProcess, dsn: str, tmp_path: Path, options: tuple[object, ...]
) -> None:
    storm = ("--pattern", "storm", "--rounds", 2, *options)
    ran = run(tmp_path, site.url, *HELD, *storm, "--dsn", dsn, "--pid", site.process.pid)
    assert is_sane(ran)
    assert ran.figures["wakes"] == ran.figures["changes"] == 400
    # The system counts CPU in hundredths of a second: so few polls may cost none that it can see.
    assert {"cpu_us_per_wake", "cpu_us_per_repoll"} <= ran.figures.keys()


def test_a_broadcast_wakes_everybody_by_one_change(site: ServerProcess, dsn: str, tmp_path: Path) -> None:
    broadcast = ("--pattern", "broadcast", "--rounds", 3)
    ran = run(tmp_path, site.url, *HELD, *broadcast, "--dsn", dsn, "--pid", site.process.pid)
    assert is_sane(ran)
    assert (ran.figures["changes"], ran.figures["wakes"]) == (3, 600)
    assert ran.figures["first_ms"] <= ran.figures["median_ms"] <= ran.figures["last_ms"]


def test_steady_changes_are_all_seen_by_clients_that_ask_again(site: ServerProcess, dsn: str, tmp_path: Path) -> None:
    """Several clients share a task, and holds end by themselves while the changes go on."""
    steady = ("--pattern", "steady", "--tasks", 50, "--rate", 100, "--wait", 1, "--duration", 1)
    ran = run(tmp_path, site.url, *HELD, *steady, "--dsn", dsn, "--pid", site.process.pid)
    assert is_sane(ran)
    assert ran.figures["wakes"] > ran.figures["changes"] > 50
    assert ran.figures["requests"] > ran.figures["wakes"] / 2
    assert "cpu_us_per_reply" in ran.figures


def test_plain_polling_asks_once_in_each_interval(site: ServerProcess, dsn: str, tmp_path: Path) -> None:
    poll = ("--mode", "poll", "--interval", 0.25, "--rate", 100, "--duration", 1)
    ran = run(tmp_path, site.url, *HELD, *poll, "--dsn", dsn, "--pid", site.process.pid)
    assert is_sane(ran)
    assert 200 * 4 * 0.5 < ran.figures["requests"] <= 200 * 5 * 1.5
    assert ran.figures["staleness_mean_ms"] > 0
    assert ran.figures["statements"] > 0
    assert "wake_p50_ms" not in ran.figures


def test_without_the_database_tasks_are_woken_by_cancel(site: ServerProcess, tmp_path: Path, sql: Sql) -> None:
    ran = run(tmp_path, site.url, "--clients", 20, "--idle", 0.1, "--pattern", "storm", "--pid", site.process.pid)
    assert is_sane(ran, clients=20)
    assert ran.figures["wakes"] == 20
    assert not left_behind(sql)


def test_an_account_is_used_again(site: ServerProcess, tmp_path: Path, sql: Sql) -> None:
    for _ in range(2):
        account = ("--email", "load@example.org", "--password", "correct horse")
        assert run(tmp_path, site.url, *FEW, *account).code == 0
    assert left_behind(sql) == {"auth.users": 1, "longpoll.accounts": 1}


def test_a_token_serves_with_and_without_the_database(site: ServerProcess, dsn: str, tmp_path: Path, sql: Sql) -> None:
    token = add_token(sql, rows.add_user(sql))
    for options in ((), ("--dsn", dsn)):
        ran = run(tmp_path, site.url, *FEW, "--token", token, *options)
        assert ran.code == 0, ran.said
    assert left_behind(sql) == {"auth.users": 1, "longpoll.accounts": 1, "longpoll.tokens": 1}


# Servers that don't do what they promise ------------------------------------------------------------------------------


@pytest.fixture
def silent(sql: Sql) -> Iterator[None]:
    """A database that tells nobody of changes."""
    sql("ALTER TABLE public.image_generations DISABLE TRIGGER notify_updated")
    yield
    sql("ALTER TABLE public.image_generations ENABLE TRIGGER notify_updated")


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize(
    "pattern",
    ["one", "storm", pytest.param("broadcast", marks=pytest.mark.slow), pytest.param("steady", marks=pytest.mark.slow)],
)
def test_a_server_that_loses_wakes_fails(
    start: Callable[..., ServerProcess], dsn: str, tmp_path: Path, pattern: str
) -> None:
    url = start(polling__sweep_seconds=300).url
    options = ("--clients", 20, "--idle", 0.1, "--wait", 2, "--duration", 1, "--rounds", 1, "--pattern", pattern)
    ran = run(tmp_path, url, *options, "--dsn", dsn)
    assert ran.code == 1, ran.said
    assert "failed" in ran.said
    assert ran.figures["lost"] > 0
    assert ran.figures["errors"] == 0


@pytest.mark.usefixtures("silent")
def test_a_wake_that_only_the_sweep_repaired_fails_too(
    start: Callable[..., ServerProcess], dsn: str, tmp_path: Path
) -> None:
    url = start(polling__sweep_seconds=0.2).url
    ran = run(tmp_path, url, "--clients", 20, "--idle", 0.1, "--duration", 1, "--dsn", dsn)
    assert ran.code == 1, ran.said
    assert ran.figures["repaired"] > 0
    assert ran.figures["lost"] == 0
    assert "its sweep repaired it" in ran.said


def test_a_server_that_holds_too_few_for_one_user_is_told_by_the_setting(
    start: Callable[..., ServerProcess], dsn: str, tmp_path: Path, sql: Sql
) -> None:
    url = start(polling__max_held_per_user=10).url
    ran = run(tmp_path, url, "--clients", 40, "--idle", 0.1, "--pattern", "broadcast", "--dsn", dsn)
    assert ran.code == 1
    assert "LONGPOLL_POLLING__MAX_HELD_PER_USER=40" in ran.said
    assert "Traceback" not in ran.said
    assert not left_behind(sql)


def test_many_users_hold_what_one_may_not(start: Callable[..., ServerProcess], dsn: str, tmp_path: Path) -> None:
    server = start(polling__max_held_per_user=10, limits__enabled=True)
    options = ("--polls-per-user", 10, "--dsn", dsn, "--pid", server.process.pid)
    assert is_sane(run(tmp_path, server.url, *HELD, *options))


def test_rate_limits_are_told_by_the_setting(start: Callable[..., ServerProcess], dsn: str, tmp_path: Path) -> None:
    url = start(limits__enabled=True, limits__poll="5 per minute", limits__create="5 per minute").url
    for options in ((), ("--pattern", "broadcast", "--dsn", dsn)):
        ran = run(tmp_path, url, "--clients", 10, "--idle", 0.1, "--duration", 1, *options)
        assert ran.code == 1
        assert "LONGPOLL_LIMITS__ENABLED=false" in ran.said
        assert "Traceback" not in ran.said


def test_a_worker_that_changes_the_tasks_is_told(start: Callable[..., ServerProcess], tmp_path: Path) -> None:
    url = start(generation__workers=1, generation__step_seconds=0.3).url
    ran = run(tmp_path, url, "--clients", 5, "--idle", 2, "--pattern", "storm")
    assert ran.figures["foreign"] > 0
    assert "LONGPOLL_GENERATION__WORKERS=0" in ran.said


def test_a_server_that_dies_is_told_in_a_sentence(
    start: Callable[..., ServerProcess], dsn: str, tmp_path: Path, sql: Sql
) -> None:
    server = start()
    with _running(tmp_path, server.url, "--clients", 20, "--idle", 1, "--duration", 1, "--dsn", dsn) as load:
        _until_it_says(load, "holding")
        server.process.kill()
        _, said = load.communicate(timeout=60)
    assert load.returncode == 1
    assert said.startswith("error: nobody answers at http://127.0.0.1:")
    assert not left_behind(sql)


# Before and after -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("http://192.0.2.1:8080",), "192.0.2.1 is not this machine"),
        (("https://127.0.0.1:8080",), "isn't such as http://127.0.0.1:8080"),
        (("http://127.0.0.1:1",), "nobody answers at http://127.0.0.1:1: Connection refused"),
        (("http://127.0.0.1:1", "--clients", "0"), "--clients must be more than 0"),
        (("http://127.0.0.1:1", "--clients", "9000000", "--processes", "1"), "don't fit into 1 processes"),
        (("http://127.0.0.1:1", "--pid", "999999999"), "process 999999999"),
        (("http://127.0.0.1:1", "--compare", "nowhere.json"), "nowhere.json can't be compared with"),
        (("http://127.0.0.1:1", "--email", "a@example.org"), "--email and --password belong together"),
        (("http://127.0.0.1:1", "--tasks", "9", "--clients", "3"), "--tasks can't be more than --clients"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(
    options: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["loadtest", *options]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert sentence in said


def test_a_server_elsewhere_may_be_loaded_by_its_owner() -> None:
    parser = argparse.ArgumentParser()
    loadtest_options.add_arguments(parser)
    elsewhere = parser.parse_args(["http://192.0.2.1:8080", "--i-own-this-server"])
    assert loadtest_options.read(elsewhere).host == "192.0.2.1"


def test_a_database_that_is_not_there_is_told_in_a_sentence(site: ServerProcess, tmp_path: Path) -> None:
    ran = run(tmp_path, site.url, "--dsn", f"host=127.0.0.1 port={free_port()} dbname=none")
    assert ran.code == 1
    assert ran.said.startswith("error: the database of --dsn: ")
    assert "Traceback" not in ran.said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupting_leaves_nothing_behind(
    site: ServerProcess, dsn: str, tmp_path: Path, sql: Sql, number: signal.Signals
) -> None:
    with _running(tmp_path, site.url, "--clients", 50, "--idle", 60, "--dsn", dsn) as load:
        _until_it_says(load, "holding")
        assert left_behind(sql)["public.image_generations"] == 50
        os.killpg(load.pid, number)  # as a terminal does: the generator processes too
        _, said = load.communicate(timeout=60)
    assert load.returncode == 128 + number
    assert "Traceback" not in said
    assert not left_behind(sql)


def test_two_runs_are_compared_figure_by_figure(site: ServerProcess, dsn: str, tmp_path: Path) -> None:
    broadcast = ("--clients", 20, "--idle", 0.1, "--pattern", "broadcast", "--rounds", 2, "--dsn", dsn)
    assert run(tmp_path, site.url, *broadcast).code == 0
    earlier = tmp_path / "earlier.json"
    (tmp_path / "figures.json").rename(earlier)
    ran = run(tmp_path, site.url, *broadcast, "--compare", earlier, "--report", tmp_path / "report.html")
    assert ran.code == 0, ran.said
    assert "to earlier" in ran.said
    assert "1.00" in next(line for line in ran.said.splitlines() if "Polls held" in line)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") >= 3
    assert "Wakes by how long they took" in page


class _running:  # noqa: N801 - reads as a word before `as`
    """A load test in a process group of its own, ended whatever happens."""

    def __init__(self, folder: Path, url: str, *options: object) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        self._load = subprocess.Popen(
            program(url, *options), cwd=folder, env=environment, start_new_session=True, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def __enter__(self) -> subprocess.Popen[str]:
        return self._load

    def __exit__(self, *_error: object) -> None:
        if self._load.poll() is None:
            os.killpg(self._load.pid, signal.SIGKILL)
        self._load.communicate()


def _until_it_says(load: subprocess.Popen[str], word: str) -> None:
    assert load.stdout is not None
    for line in load.stdout:
        if word in line:
            return
    raise AssertionError(f"it ended without saying {word}")
