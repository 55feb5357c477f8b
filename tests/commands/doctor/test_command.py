"""`python -m server doctor` as an operator runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from server.commands.doctor.examination import CHECKS
from tests.commands.doctor.conftest import Examination
from tests.support.processes import server_process

ROOT = Path(__file__).resolve().parents[3]


def run_doctor(folder: Path, *arguments: str, ulimit: str = "", **settings: object) -> Examination:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LONGPOLL_")}
    environment |= {f"LONGPOLL_{name.upper()}": str(value) for name, value in settings.items()}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "server", "doctor", *arguments]
    if ulimit:
        command = ["sh", "-c", f'ulimit {ulimit} && exec "$@"', "sh", *command]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    return Examination(done.stdout, done.returncode)


def test_a_low_limit_of_descriptors_is_told(dsn: str, tmp_path: Path) -> None:
    examination = run_doctor(tmp_path, ulimit="-n 400", database__dsn=dsn, polling__max_held=1000)
    assert (examination.code, examination.named("FAILED")) == (1, ["descriptors"])
    assert examination["descriptors"].endswith(
        "1000 held polls (polling.max_held) need 1110 file descriptors, and 400 are allowed here. to do:   as root, start"
        " the server after `ulimit -Hn 1110` (systemd: LimitNOFILE=1110), or set polling.max_held to 290."
    )


def test_a_limit_that_the_server_raises_by_itself_is_none(dsn: str, tmp_path: Path) -> None:
    examination = run_doctor(tmp_path, ulimit="-S -n 400", database__dsn=dsn, polling__max_held=1000)
    assert examination["descriptors"].startswith("ok")


def test_the_newcomers_own_server_is_examined_while_it_runs(begun_folder: Path) -> None:
    settings = {"polling__max_held": 50, "polling__hold_seconds": 0.5, "polling__jitter_seconds": 0}
    with server_process(begun_folder, **settings) as server:
        examination = run_doctor(begun_folder, "--url", server.url, **settings)
        assert examination.sound, examination.text
        assert examination.sum == f"{len(CHECKS)} ok, 0 skipped, 0 WARNING, 0 FAILED"
        assert "(the embedded Postgres: " in examination["database"]
        assert server.stop() == 0
