"""The lines of replies: written like all others, but many at once."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.config import Config
from server.telemetry import logs


@pytest.fixture
def restored() -> Iterator[None]:
    """Set logging up again as it was by default."""
    yield
    logs.configure(Config().logging)


@pytest.mark.parametrize(("level", "lines"), [("info", 2), ("warning", 0)])
@pytest.mark.usefixtures("restored")
def test_replies_are_logged_at_the_level_of_information(level: str, lines: int) -> None:
    stream = io.TextIOWrapper(io.BytesIO())
    logs.configure(Config().replace(logging={"level": level, "format": "json"}).logging, stream)
    logs.log_replies([{"status": 200, "event": logs.POLL_FINISHED}, {"status": 404, "event": logs.REQUEST_FINISHED}])
    logs.log_replies([])
    assert isinstance(stream.buffer, io.BytesIO)
    written = [json.loads(line) for line in stream.buffer.getvalue().splitlines()]
    assert len(written) == lines
    assert all(set(line) == {"status", "event", "level", "timestamp"} for line in written)


@pytest.mark.usefixtures("restored")
def test_a_line_that_is_not_utf_8_is_written_all_the_same() -> None:
    """Half a surrogate pair, as aiohttp makes of a URL."""
    stream = io.TextIOWrapper(io.BytesIO())
    logs.configure(Config().replace(logging={"format": "json"}).logging, stream)
    logs.log_replies([{"path": path, "event": logs.REQUEST_FINISHED} for path in ("/a", "/\udcff", "/b")])
    assert isinstance(stream.buffer, io.BytesIO)
    written = [json.loads(line)["path"] for line in stream.buffer.getvalue().splitlines()]
    assert written == ["/a", "/\udcff", "/b"]


@pytest.mark.parametrize("format_", ["json", "console"])
@pytest.mark.usefixtures("restored")
def test_a_full_disk_ends_nothing_and_is_counted(format_: str) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        logs.configure(Config().replace(logging={"format": format_}).logging, full)
        logs.log.warning(logs.QUERY_FAILED, query="x")
        logs.log_replies([{"status": 200, "event": logs.POLL_FINISHED}])
        assert logs.lost_writes() >= 2
        logs.configure(Config().logging)
        with contextlib.suppress(OSError):
            full.close()


@pytest.mark.usefixtures("restored")
def test_a_stream_that_was_closed_ends_nothing() -> None:
    stream = io.TextIOWrapper(io.BytesIO())
    logs.configure(Config().replace(logging={"format": "json"}).logging, stream)
    stream.buffer.close()
    logs.log.warning(logs.QUERY_FAILED, query="x")
    assert logs.lost_writes() >= 1


@pytest.mark.parametrize("style", ["console", "json"])
@pytest.mark.usefixtures("restored")
def test_a_trace_shows_no_values(style: str) -> None:
    """structlog's own way to show one on a terminal tells what every variable held."""

    def log_in(password: str) -> None:
        raise RuntimeError("no such table") if password else AssertionError

    stream = io.TextIOWrapper(io.BytesIO())
    logs.configure(Config().replace(logging={"format": style}).logging, stream)
    try:
        log_in("hunter2"[::-1])
    except RuntimeError as error:
        logs.log.error(logs.REQUEST_CRASHED, exc_info=error)
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    written = stream.buffer.getvalue().decode()
    assert "no such table" in written
    assert "hunter2"[::-1] not in written
