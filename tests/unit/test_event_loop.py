"""Which event loop runs a process."""

from __future__ import annotations

import asyncio
import importlib.util
import re
from pathlib import Path

import pytest

from server.errors import ConfigurationError
from server.runtime import event_loop
from tests.support.processes import server_process


async def kind_of_loop() -> str:
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]


@pytest.mark.parametrize(("kind", "expected"), [("asyncio", "asyncio"), ("uvloop", "uvloop"), ("auto", "uvloop")])
def test_each_kind_runs_its_loop(kind: str, expected: str) -> None:
    assert event_loop.run(kind_of_loop, kind) == expected


def test_without_uvloop_auto_takes_pythons_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert event_loop.run(kind_of_loop, "auto") == "asyncio"


def test_uvloop_that_is_wanted_and_missing_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigurationError, match=r'pip install "longpoll-task-server\[uvloop\]", or take "asyncio"'):
        event_loop.run(kind_of_loop, "uvloop")


@pytest.mark.parametrize(("setting", "expected"), [({}, "uvloop"), ({"server__event_loop": "asyncio"}, "asyncio")])
def test_a_server_runs_on_the_loop_of_its_settings(
    dsn: str, tmp_path: Path, setting: dict[str, str], expected: str
) -> None:
    with server_process(
        tmp_path, database__dsn=dsn, generation__workers=0, logging__format="json", **setting
    ) as server:
        assert server.until_said(re.compile(r'"event_loop":"(\w+)"'))[1] == expected
        assert server.stop() == 0
