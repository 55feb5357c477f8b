"""What a generator's process prints becomes log lines, few and short, and is looked at no more than that takes."""

from __future__ import annotations

import pytest
import structlog

from server.generation.output import _LINES_A_SECOND, Output
from server.telemetry import logs


def told(chunks: list[bytes], *, seconds: list[int] | None = None) -> list[dict[str, object]]:
    """What is logged of these chunks, which come at these seconds: all at once, unless they are given."""
    output = Output(1)
    with structlog.testing.capture_logs() as said:
        for chunk, second in zip(chunks, seconds or [0] * len(chunks), strict=True):
            output._take(chunk, second)
    assert all(line["event"] == logs.GENERATOR_WROTE for line in said)
    return [dict(line) for line in said]


@pytest.mark.parametrize("flood", [b"\n" * 16_384, b" \n" * 8192, b"a\n" * 8192])
def test_a_flood_is_not_looked_at_line_by_line(flood: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding each line of it took a twelfth of the loop's time."""
    looked, log = 0, Output._log

    def count(output: Output, line: bytes) -> None:
        nonlocal looked
        looked += 1
        log(output, line)

    monkeypatch.setattr(Output, "_log", count)
    told([flood, flood])
    assert looked <= _LINES_A_SECOND


def test_what_was_dropped_is_counted_and_told_with_the_next_line() -> None:
    lines = told([b"a\n\n" * 50, b"b\n" * 3, b"c\n"], seconds=[0, 0, 1])
    assert [line["line"] for line in lines] == ["a"] * _LINES_A_SECOND + ["c"]
    assert lines[-1]["dropped_lines"] == 53 - _LINES_A_SECOND


def test_of_a_line_without_an_end_the_beginning_is_told_once() -> None:
    lines = told([b"x" * 5000, b"y" * 5000, b"z\nnext\n", b"half", b" and half\n"])
    assert [line["line"] for line in lines] == ["x" * 2000, "next", "half and half"]
