"""`python -m server token worker` as an operator runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.storage.sessions import digest
from tests.support.postgres import Sql

ROOT = Path(__file__).resolve().parents[2]


def run(folder: Path, dsn: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LONGPOLL_")}
    environment |= {"PYTHONPATH": str(ROOT), "LONGPOLL_DATABASE__DSN": dsn, "LONGPOLL_LOGGING__LEVEL": "error"}
    command = [sys.executable, "-m", "server", "token", "worker", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_a_token_is_made_listed_and_revoked(tmp_path: Path, dsn: str, sql: Sql) -> None:
    made = run(tmp_path, dsn, "make", "gpu 1", "--tags", "basic", "--concurrency", "4", "--days", "30")
    secret = made.stdout.strip()
    assert (made.returncode, secret[:4]) == (0, "lpw_"), made.stderr
    kept = "name, tags, concurrency, expires_at - now() BETWEEN interval '29 days' AND interval '30 days'"
    assert sql(f"SELECT {kept} FROM longpoll.worker_tokens WHERE secret_hash = %s", (digest(secret),)) == [
        ("gpu 1", ["basic"], 4, True)
    ]
    token_id = sql("SELECT id::text FROM longpoll.worker_tokens")[0][0]
    listed = run(tmp_path, dsn, "list")
    assert listed.stdout.startswith(f"{token_id}  gpu 1  basic  4 tasks at a time, ends ")
    assert listed.stdout.endswith(", never used\n")
    assert secret not in listed.stdout + listed.stderr
    revoked = run(tmp_path, dsn, "revoke", token_id)
    assert (revoked.returncode, revoked.stdout) == (0, f"revoked {token_id} (gpu 1)\n")
    assert sql("SELECT count(*) FROM longpoll.worker_tokens") == [(0,)]
    again = run(tmp_path, dsn, "revoke", token_id)
    assert (again.returncode, again.stderr) == (
        1,
        f"error: there is no worker's token {token_id!r}; `token worker list` shows all\n",
    )
    assert run(tmp_path, dsn, "list").stdout == "there are none\n"


def test_by_default_it_may_do_all_one_at_a_time_for_a_year(tmp_path: Path, dsn: str, sql: Sql) -> None:
    assert run(tmp_path, dsn, "make", "gpu").returncode == 0
    assert run(tmp_path, dsn, "make", "lasting", "--days", "0").returncode == 0
    kept = "name, tags, concurrency, expires_at > now() + interval '364 days'"
    assert sql(f"SELECT {kept} FROM longpoll.worker_tokens ORDER BY name") == [
        ("gpu", ["advanced", "basic"], 1, True),
        ("lasting", ["advanced", "basic"], 1, None),
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["make", "x", "--tags", "basic,video"], "unknown: 'video'; known are: basic, advanced"),
        (["make", "x", "--tags", ""], "unknown: ''"),
        (["make", "x", "--concurrency", "0"], "a whole number from 1 to 1000"),
        (["make", "x", "--concurrency", "1001"], "a whole number from 1 to 1000"),
        (["make", "x", "--days", "-1"], "a whole number from 0 to 3650"),
        (["make", "x", "--days", "1.5"], "a whole number from 0 to 3650"),
        (["make", ""], "1 to 100 printable characters"),
        (["make", "x" * 101], "1 to 100 printable characters"),
        (["make", "a\nb"], "1 to 100 printable characters"),
        ([], "the following arguments are required: action"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_would(tmp_path: Path, arguments: list[str], said: str) -> None:
    refused = run(tmp_path, "", *arguments)
    assert refused.returncode == 2
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr


def test_an_id_that_cannot_be_is_refused_like_an_unknown_one(tmp_path: Path, dsn: str) -> None:
    refused = run(tmp_path, dsn, "revoke", "'; --")
    assert (refused.returncode, "there is no worker's token" in refused.stderr) == (1, True)
