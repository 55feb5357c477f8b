"""What our triggers cost Postgres: updates a second with them and without, by pgbench. `python -m tests.load.updates`.

pgbench (Debian: postgresql-15) writes into random ones of a thousand tasks of a database of its own, with its commits
waiting for the disk or not, as a worker's progress doesn't. Somebody listens, as a server does. Runs with and without the
triggers follow each other; what is printed is the median of all rounds. HOT: how many of the updates stayed within
their page and touched no index.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import psycopg2
from rich.console import Console
from rich.table import Table

from server.storage.embedded.cluster import EmbeddedPostgres
from server.storage.migrations import migrate
from tests.support.postgres import execute

PGBENCH = shutil.which("pgbench") or "/usr/lib/postgresql/15/bin/pgbench"
TASKS = 1000
SCRIPT = f"""\\set number random(1, {TASKS})
\\set share random(0, 1000)
UPDATE public.image_generations SET progress = :share / 1000.0, message = 'step ' || :share
 WHERE task_id = 'bench-' || :number;
"""
INSERT = f"""WITH owner AS MATERIALIZED (SELECT longpoll.register_account('bench@example.org', 'no hash') AS id)
INSERT INTO public.image_generations (user_id, task_id, prompt, status)
SELECT owner.id, 'bench-' || number, 'a lake', 'processing' FROM owner, generate_series(1, {TASKS}) AS number"""


@contextlib.contextmanager
def listening(dsn: str) -> Iterator[None]:
    """Have somebody listen and take what comes, as the server's listener does."""
    stopping = threading.Event()

    def listen() -> None:
        with contextlib.closing(psycopg2.connect(dsn)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("LISTEN generation_changed")
            while not stopping.wait(0.05):
                connection.poll()
                connection.notifies.clear()

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def updates_per_second(dsn: str, script: Path, *, writers: int, seconds: int, synchronous: bool) -> float:
    parts = psycopg2.extensions.parse_dsn(dsn)
    environment = {**os.environ, "PGOPTIONS": f"-c synchronous_commit={'on' if synchronous else 'off'}"}
    command = [PGBENCH, "--no-vacuum", "--protocol=prepared", f"--client={writers}", f"--jobs={writers}"]
    command += [
        f"--time={seconds}",
        f"--file={script}",
        "-h",
        parts["host"],
        "-p",
        str(parts["port"]),
        "-U",
        parts["user"],
    ]
    done = subprocess.run([*command, parts["dbname"]], env=environment, check=True, capture_output=True, text=True)
    found = re.search(r"tps = ([0-9.]+)", done.stdout)
    assert found, done.stdout
    return float(found[1])


def hot_share(dsn: str) -> float:
    """Return how many of all updates so far stayed within their page."""
    execute(dsn, "SELECT pg_stat_force_next_flush()")
    ((hot, total),) = execute(
        dsn, "SELECT n_tup_hot_upd, n_tup_upd FROM pg_stat_user_tables WHERE relname = 'image_generations'"
    )
    return float(hot / total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=8)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="longpoll-run-", dir="/tmp"))
    folder.chmod(0o711)
    found: dict[tuple[int, bool, bool], list[float]] = defaultdict(list)
    console = Console(width=120)
    try:
        with EmbeddedPostgres(folder) as postgres:
            asyncio.run(migrate(postgres.dsn))
            execute(postgres.dsn, INSERT)
            execute(postgres.dsn, "VACUUM ANALYZE public.image_generations")
            script = folder / "update.sql"
            script.write_text(SCRIPT)
            for number in range(given.rounds):
                for writers in (1, 4):
                    for synchronous in (True, False):
                        for triggers in (True, False):
                            console.print(f"round {number + 1}: {writers=} {synchronous=} {triggers=}")
                            word = "ENABLE" if triggers else "DISABLE"
                            execute(postgres.dsn, f"ALTER TABLE public.image_generations {word} TRIGGER USER")
                            with listening(postgres.dsn):
                                rate = updates_per_second(
                                    postgres.dsn,
                                    script,
                                    writers=writers,
                                    seconds=given.seconds,
                                    synchronous=synchronous,
                                )
                            found[writers, synchronous, triggers].append(rate)
            share = hot_share(postgres.dsn)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    table = Table(title=f"updates a second, medians of {given.rounds} rounds of {given.seconds} s")
    for column in ("writers", "commits", "with triggers", "without", "ratio"):
        table.add_column(column, justify="right")
    for writers in (1, 4):
        for synchronous in (True, False):
            ours, bare = (statistics.median(found[writers, synchronous, triggers]) for triggers in (True, False))
            commits = "wait for the disk" if synchronous else "asynchronous"
            table.add_row(str(writers), commits, f"{ours:,.0f}", f"{bare:,.0f}", f"{ours / bare:.2f}")
    console.print(table)
    console.print(f"HOT: {share:.1%} of the updates")


if __name__ == "__main__":
    main()
