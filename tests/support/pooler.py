"""PgBouncer between a server and its database, as many hosts put it there."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg2
from psycopg2.extensions import make_dsn, parse_dsn

from tests.support.ports import free_port
from tests.support.programs import program

_PATIENCE_SECONDS = 15
_SETTINGS = """
[databases]
* = host={host} port={port} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
unix_socket_dir =
listen_port = {pooler_port}
auth_type = {auth_type}
auth_file = {users}
pool_mode = {mode}
max_client_conn = {max_clients}
"""


@contextlib.contextmanager
def pooler(dsn: str, mode: str = "transaction", max_clients: int = 1000, *, console: bool = True) -> Iterator[str]:
    """Run PgBouncer in front of a database for the block; gives the DSN that leads through it.

    With its console everybody is an administrator; without, only the login of the DSN gets in, and not to it.
    """
    command = [program("pgbouncer", "pgbouncer"), "--quiet"]
    database = {"host": "127.0.0.1", "port": "5432", "user": "postgres"} | parse_dsn(dsn)
    with tempfile.TemporaryDirectory(prefix="longpoll-pooler-", dir="/tmp") as folder:
        settings = Path(folder, "pgbouncer.ini")
        pooled = make_dsn(dsn, host="127.0.0.1", port=free_port())
        users = Path(folder, "users")
        users.write_text(f'"{database["user"]}" ""\n')
        settings.write_text(
            _SETTINGS.format(
                **database,
                pooler_port=parse_dsn(pooled)["port"],
                mode=mode,
                max_clients=max_clients,
                auth_type="any" if console else "trust",
                users=users,
            )
        )
        if os.geteuid() == 0:  # it refuses to be root
            shutil.chown(folder, "nobody")
            command += ["--user", "nobody"]
        process = subprocess.Popen([*command, settings], stdin=subprocess.DEVNULL)
        try:
            _wait_until_open(pooled, process)
            yield pooled
        finally:
            process.kill()
            process.wait()


def _wait_until_open(dsn: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        assert process.poll() is None, f"pgbouncer ended with {process.returncode}"
        try:
            psycopg2.connect(dsn).close()
        except psycopg2.OperationalError:
            assert time.monotonic() < deadline, "pgbouncer lets nobody in"
            time.sleep(0.01)
        else:
            return
