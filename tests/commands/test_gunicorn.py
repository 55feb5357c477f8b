"""Behind gunicorn, for those who have it: polls are held, and a client that leaves takes its waiter along."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from tests.faults.load import Channel, add_tasks, add_token
from tests.faults.sites import holds, poll_target
from tests.support.facts import until
from tests.support.ports import free_port
from tests.support.postgres import Sql
from tests.support.processes import generators_of, group_of, parent_of
from tests.support.rows import add_user

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def running(dsn: str, folder: Path, *more: str, **settings: object) -> Iterator[tuple[str, int]]:
    """Run gunicorn for the block; gives its address."""
    address = ("127.0.0.1", free_port())
    options = ["--bind", f"{address[0]}:{address[1]}", "--worker-class", "aiohttp.GunicornWebWorker", *more]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LONGPOLL_")}
    settings = {"database__dsn": dsn, "database__data_dir": folder, **settings}
    environment |= {f"LONGPOLL_{name.upper()}": str(value) for name, value in settings.items()}
    process = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "server.gunicorn:runner", *options], cwd=ROOT, env=environment
    )
    try:
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(30)
    assert code == 0


@pytest.fixture
def gunicorn(dsn: str, tmp_path: Path) -> Iterator[tuple[str, int]]:
    """One worker of gunicorn's; gives its address."""
    with running(dsn, tmp_path, generation__workers=0) as address:
        yield address


async def test_a_poll_is_held_woken_and_forgotten_with_its_client(gunicorn: tuple[str, int], sql: Sql) -> None:
    user_id = add_user(sql)
    headers = f"Authorization: Bearer {add_token(sql, user_id)}\r\n"
    (task_id,) = add_tasks(sql, user_id, 1)
    channel = await until(lambda: _open(gunicorn), seconds=30)
    poll = asyncio.create_task(channel.get(poll_target(task_id), headers))
    await until(lambda: holds(gunicorn, 1))
    sql("UPDATE public.image_generations SET status = 'processing'")
    status, body = await poll
    assert (status, orjson.loads(body)["poll"]["reason"]) == (200, "change")
    poll = asyncio.create_task(channel.get(poll_target(task_id, version=2), headers))
    await until(lambda: holds(gunicorn, 1))
    channel.reset()
    await until(lambda: holds(gunicorn, 0))
    await asyncio.gather(poll, return_exceptions=True)


async def _open(address: tuple[str, int]) -> Channel | None:
    try:
        return await Channel.open(address)
    except OSError:
        return None


KEEP_WHO_CLAIMS = """
CREATE TABLE claims (owner text);
CREATE FUNCTION keep_claim() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
  $$ BEGIN INSERT INTO public.claims VALUES (NEW.lease_owner); RETURN NULL; END $$;
CREATE TRIGGER keep_claim AFTER UPDATE ON public.image_generations FOR EACH ROW
  WHEN (NEW.status = 'processing' AND OLD.status <> 'processing') EXECUTE FUNCTION keep_claim();
"""


async def test_two_workers_of_gunicorns_have_one_painter_and_the_other_follows(
    dsn: str, tmp_path: Path, sql: Sql
) -> None:
    user_id = add_user(sql)
    sql(KEEP_WHO_CLAIMS)
    with running(dsn, tmp_path, "--workers", "2", generation__step_seconds=0):
        await until(lambda: len(_backends(sql)) == 2, seconds=30)
        add_tasks(sql, user_id, 8)
        await until(lambda: _completed(sql) == 8, seconds=60)
        [first] = _who_claimed(sql)
        [generator] = _generators_of_all(parent_of(first))
        assert generators_of(first) == [generator]  # whose turn it isn't needs none
        os.kill(first, signal.SIGKILL)
        await until(lambda: not Path(f"/proc/{first}").exists())  # it may go on for a moment, and claim one more
        await until(lambda: not group_of(generator))
        sql("DELETE FROM claims")
        add_tasks(sql, user_id, 2)
        await until(lambda: _completed(sql) == 10, seconds=60)
        [second] = _who_claimed(sql)
        [generator] = generators_of(second)
    assert second != first
    assert not group_of(generator)


def _generators_of_all(arbiter: int) -> list[int]:
    """Return the generators of all workers of one gunicorn."""
    workers = Path(f"/proc/{arbiter}/task/{arbiter}/children").read_text().split()
    return [generator for worker in workers for generator in generators_of(int(worker))]


def _completed(sql: Sql) -> int:
    return int(sql("SELECT count(*) FROM public.image_generations WHERE status = 'completed'")[0][0])


def _who_claimed(sql: Sql) -> set[int]:
    """Return the processes, whose numbers stand in the names of their workers."""
    return {int(owner.split("-")[-2]) for (owner,) in sql("SELECT DISTINCT owner FROM claims")}


def _backends(sql: Sql) -> list[tuple[str]]:
    """Return the processes that listen: one connection each."""
    return sql(
        "SELECT pid FROM pg_stat_activity WHERE application_name LIKE '%%-listener' AND datname = current_database()"
    )


def test_without_a_database_for_all_its_workers_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gunicorn", "server.gunicorn:runner", "--bind", f"127.0.0.1:{free_port()}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LONGPOLL_")}
    ended = subprocess.run(
        [*command, "--worker-class", "aiohttp.GunicornWebWorker"],
        cwd=tmp_path, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode != 0
    assert re.search("gunicorn's workers need one Postgres for all: set database.dsn", ended.stderr)
