"""The life of the process: what it says, how it stops, what it leaves, and that a wheel runs too."""

from __future__ import annotations

import asyncio
import re
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from server import __version__
from server.__main__ import main
from tests.faults.load import add_tasks
from tests.support.facts import until
from tests.support.ports import free_port
from tests.support.postgres import Sql
from tests.support.processes import ServerProcess, processes_of, server_process
from tests.support.rows import add_user

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder, as a newcomer's checkout might be; its path is short and open enough for any user."""
    path = Path(tempfile.mkdtemp(prefix="longpoll-run-", dir="/tmp"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def leftovers(folder: Path) -> list[str]:
    """Whatever a stopped server must not leave: processes and sockets."""
    return processes_of(folder) + [str(path) for path in folder.rglob("*") if path.is_socket()]


async def register(session: aiohttp.ClientSession, url: str) -> None:
    body = {"email": "a@example.org", "password": "correct horse"}
    async with session.post(f"{url}/api/auth/register", json=body) as reply:
        assert reply.status == 201, await reply.text()


def local_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True))


async def test_one_command_runs_everything_and_ctrl_c_leaves_nothing(folder: Path) -> None:
    with server_process(folder, generation__step_seconds=0) as server:
        url = server.url
        server.until_said(re.compile(r"^Stop with Ctrl-C$", re.MULTILINE))
        assert f"Data lies in {folder}/.data/postgres" in server.said
        async with local_session() as session:
            await register(session, url)
            async with session.post(
                f"{url}/api/generate", json={"prompt": "a lake"}, headers={"Prefer": "wait=30"}
            ) as reply:
                assert reply.status == 200, await reply.text()
                result = (await reply.json())["data"]["result"]
            async with session.get(url + result) as reply:
                assert (await reply.read()).startswith(b"\x89PNG")
        assert server.stop(signal.SIGINT) == 0
    await until(lambda: not leftovers(folder))


async def test_a_kill_leaves_nothing_and_the_next_start_goes_on(begun_folder: Path) -> None:
    with server_process(begun_folder, generation__workers=0) as server:
        async with local_session() as session:
            await register(session, server.url)
            async with session.post(f"{server.url}/api/generate", json={"prompt": "a lake"}) as reply:
                assert reply.status == 202
            cookies = {cookie.key: cookie.value for cookie in session.cookie_jar}
        server.stop(signal.SIGKILL)
    await until(lambda: not leftovers(begun_folder))
    with server_process(begun_folder, generation__workers=0) as server:
        async with (
            aiohttp.ClientSession(cookies=cookies, cookie_jar=aiohttp.CookieJar(unsafe=True)) as session,
            session.get(f"{server.url}/api/generate/tasks") as reply,
        ):
            assert [task["prompt"] for task in (await reply.json())["items"]] == ["a lake"]
        assert server.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_a_stop_answers_every_held_poll(tmp_path: Path, dsn: str, number: signal.Signals) -> None:
    settings = {"database__dsn": dsn, "generation__workers": 0, "server__drain_seconds": 0.5}
    with server_process(tmp_path, **settings) as server:
        url = server.url
        async with local_session() as session:
            await register(session, url)
            async with session.post(f"{url}/api/generate", json={"prompt": "a lake"}) as reply:
                task_id = (await reply.json())["taskId"]
            address = f"{url}/api/generate/status?taskId={task_id}&version=1"
            polls = [asyncio.create_task(_answer(session, address)) for _ in range(20)]
            await until(lambda: _held(session, url, 20))
            server.process.send_signal(number)
            answers = await asyncio.gather(*polls)
        assert {(status, poll["reason"]) for status, poll in answers} == {(200, "drain")}
        assert all(0 <= poll["retryAfterMs"] <= 2000 for _, poll in answers)
        assert await asyncio.to_thread(server.wait) == 0


async def _answer(session: aiohttp.ClientSession, address: str) -> tuple[int, dict[str, object]]:
    async with session.get(address) as reply:
        return reply.status, (await reply.json())["poll"]


async def _held(session: aiohttp.ClientSession, url: str, count: int) -> bool:
    async with session.get(f"{url}/metrics") as reply:
        return f"longpoll_held_connections {count}.0" in await reply.text()


def test_a_wrong_setting_stops_the_start_with_one_sentence(folder: Path) -> None:
    server = ServerProcess(folder, polling__hold_second=5)
    assert server.wait() == 1
    assert server.said == "error: unknown key in [polling]: 'hold_second'; did you mean 'hold_seconds'?\n"


def test_a_port_that_is_taken_stops_the_start_with_one_sentence(begun_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = ServerProcess(begun_folder, server__port=port)
        assert server.wait() == 1
    assert f"error: can't listen on 127.0.0.1:{port}" in server.said
    assert "Traceback" not in server.said
    assert not leftovers(begun_folder)


def test_a_database_that_is_not_there_stops_the_start_with_one_sentence(folder: Path) -> None:
    server = ServerProcess(folder, database__dsn="host=127.0.0.1 port=1 dbname=none")
    assert server.wait() == 1
    assert server.said.startswith("error: ")
    assert "Traceback" not in server.said


def test_a_migration_that_was_edited_stops_the_start_with_one_sentence(tmp_path: Path, dsn: str, sql: Sql) -> None:
    name = sql("UPDATE longpoll.migrations SET checksum = 'another' WHERE name LIKE '0001%%' RETURNING name")[0][0]
    server = ServerProcess(tmp_path, database__dsn=dsn)
    assert server.wait() == 1
    assert server.said.startswith(f"error: {name} was edited after it had been applied to this database; undo the edit")
    assert "Traceback" not in server.said


def test_a_server_may_open_as_many_files_as_the_hard_limit_allows(tmp_path: Path, dsn: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))  # which children inherit
    try:
        with server_process(tmp_path, database__dsn=dsn, generation__workers=0) as server:
            assert server.url
            assert resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, str]:
    """The settings that `certificate` prints for what it has made."""
    command = [sys.executable, "-m", "server", "certificate"]
    env = {"PYTHONPATH": str(ROOT)}
    made = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    lines = [line.removeprefix("LONGPOLL_").partition("=") for line in made.stdout.splitlines()]
    return {name.lower(): value for name, _, value in lines}


async def test_the_certificate_that_a_command_makes_serves_https(
    tmp_path: Path, dsn: str, pair: dict[str, str]
) -> None:
    trust = ssl.create_default_context(cafile=tmp_path / pair["server__tls_certificate"])
    with server_process(tmp_path, database__dsn=dsn, generation__workers=0, **pair) as server:
        assert server.url.startswith("https://127.0.0.1:")
        async with aiohttp.ClientSession() as session, session.get(f"{server.url}/readyz", ssl=trust) as reply:
            assert reply.status == 200
        assert server.stop() == 0


async def test_workers_of_another_process_do_the_work(begun_folder: Path) -> None:
    """`worker` joins the Postgres that `serve` has started."""
    with server_process(begun_folder, generation__workers=0) as server:
        async with local_session() as session:
            await register(session, server.url)
            async with session.post(f"{server.url}/api/generate", json={"prompt": "a lake"}) as reply:
                task_id = (await reply.json())["taskId"]
            address = f"{server.url}/api/generate/status?taskId={task_id}&until=terminal"
            with server_process(begun_folder, "worker", generation__step_seconds=0) as worker:
                async with session.get(address) as reply:
                    assert (await reply.json())["data"]["status"] == "completed"
                assert worker.stop() == 0
            async with session.get(f"{server.url}/api/generate/tasks/{task_id}/image") as reply:
                assert reply.status == 200
        assert server.stop() == 0


async def test_a_worker_apart_tells_its_figures_on_a_port_of_its_own(tmp_path: Path, dsn: str, sql: Sql) -> None:
    add_tasks(sql, add_user(sql), 1)
    port = free_port()
    shared = {"database__dsn": dsn, "database__data_dir": tmp_path}
    with server_process(tmp_path, generation__workers=0, **shared) as server:
        assert server.url  # whose folder it is
    settings = {**shared, "generation__metrics_port": port}
    with server_process(tmp_path, "worker", generation__step_seconds=0, **settings) as worker:
        said = await asyncio.to_thread(worker.until_said, re.compile(r"metrics on (\S+)/metrics; stop with Ctrl-C"))
        async with local_session() as session:
            await until(lambda: _tells(session, said[1], 'processing_seconds_count{outcome="completed"} 1.0'))
            async with session.get(f"{said[1]}/healthz") as reply:
                assert reply.status == 200
            async with session.get(f"{said[1]}/api/generate/tasks") as reply:
                assert reply.status == 404
        with server_process(tmp_path, "worker", **settings) as other:
            assert await asyncio.to_thread(other.wait) == 1
        assert f"error: can't listen on 127.0.0.1:{port} (generation.metrics_port)" in other.said
        assert await asyncio.to_thread(worker.stop) == 0


async def _tells(session: aiohttp.ClientSession, url: str, figure: str) -> bool:
    async with session.get(f"{url}/metrics") as reply:
        return figure in await reply.text()


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"longpoll-task-server {__version__}\n"


_IMPORT = """import sys
from server import __main__
__main__._import(__main__._parser().parse_args(sys.argv[1:]))
print(*sys.modules)"""


@pytest.mark.parametrize("command", ["loadtest http://127.0.0.1:1", "serve --processes 2", "migrate", "certificate"])
def test_a_command_that_does_not_serve_imports_no_server(command: str) -> None:
    """It takes half a second to import, and 40 MB to keep."""
    program = [sys.executable, "-c", _IMPORT, *command.split()]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"server.app", "server.web", "aiohttp_session", "numpy"} & set(done.stdout.split())


def test_who_does_not_paint_imports_no_numpy() -> None:
    program = [sys.executable, "-c", _IMPORT, "serve"]
    modules = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert "server.app" in modules
    assert "numpy" not in modules


@pytest.fixture
def wheel_site(folder: Path) -> Path:
    """A folder into which the project was installed from its wheel, as `pip install` would."""
    wheels, site = folder / "wheels", folder / "site"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(ROOT)], check=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    return site


async def test_a_wheel_that_is_installed_elsewhere_runs_too(folder: Path, wheel_site: Path) -> None:
    with server_process(folder, python_path=wheel_site, generation__workers=0) as server:
        async with local_session() as session:
            await register(session, server.url)
            async with session.get(f"{server.url}/") as reply:
                assert reply.status == 200
                assert "<form" in await reply.text()
            for path in ("longpoll.js", "longpoll/follow.js"):
                async with session.get(f"{server.url}/static/{path}") as reply:
                    assert reply.status == 200
        assert server.stop() == 0
