"""What a check found, and how it is told."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TextIO

_NAME_WIDTH: Final = 14
_VERDICT_WIDTH: Final = 9


class Verdict(StrEnum):
    """How a check ended; capitals catch the eye."""

    OK = "ok"
    SKIPPED = "skipped"
    WARNING = "WARNING"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, and what to do about it."""

    verdict: Verdict
    sentence: str
    remedy: str = ""


def ok(sentence: str) -> Finding:
    """Find that all is as it should be."""
    return Finding(Verdict.OK, sentence)


def skipped(sentence: str) -> Finding:
    """Find that there is nothing to look at."""
    return Finding(Verdict.SKIPPED, sentence)


def warning(sentence: str, remedy: str) -> Finding:
    """Find something that works, but not well or not for ever."""
    return Finding(Verdict.WARNING, sentence, remedy)


def failed(sentence: str, remedy: str) -> Finding:
    """Find something that doesn't work."""
    return Finding(Verdict.FAILED, sentence, remedy)


class Report:
    """Writes a line for each check, the name first, so that one sees which of them takes its time."""

    def __init__(self, stream: TextIO) -> None:
        """Write to this stream."""
        self._stream = stream
        self._verdicts: list[Verdict] = []

    def begin(self, name: str) -> None:
        """Write the name of the check that is running now."""
        self._write(f"{name:{_NAME_WIDTH}}")

    def end(self, found: Finding) -> None:
        """Write what it found."""
        self._verdicts.append(found.verdict)
        self._write(f"{found.verdict:{_VERDICT_WIDTH}}{_sentence(found.sentence)}\n")
        if found.remedy:
            self._write(f"{'':{_NAME_WIDTH}}{'to do:':{_VERDICT_WIDTH}}{_sentence(found.remedy)}\n")

    def close(self) -> int:
        """Write the sum of it; returns the exit code: 1 if anything failed, else 0."""
        self._write(", ".join(f"{self._verdicts.count(verdict)} {verdict}" for verdict in Verdict) + "\n")
        return 1 if Verdict.FAILED in self._verdicts else 0

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def _sentence(text: str) -> str:
    """Make one line and one sentence of what may be a message of libpq."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return "; ".join(lines).rstrip(".?!") + "."
