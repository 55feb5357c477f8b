"""Examining a deployment in this process, and reading what was said."""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable

import pytest

from server.commands.doctor.deployment import Deployment
from server.commands.doctor.examination import examine
from server.commands.doctor.report import Report
from server.config import Config


class Examination:
    """What the doctor said, check by check, and its exit code."""

    def __init__(self, text: str, code: int) -> None:
        self.text, self.code = text, code
        *lines, self.sum = text.splitlines()
        self.said: dict[str, str] = {}
        for line in lines:
            name = line[:14].strip() or name  # noqa: F821 - what is to do stands below its check
            self.said[name] = f"{self.said.get(name, '')} {line[14:]}".strip()

    def __getitem__(self, name: str) -> str:
        return self.said[name]

    def named(self, verdict: str) -> list[str]:
        """Return the checks that ended so."""
        return [name for name, said in self.said.items() if said.startswith(verdict)]

    def failure(self, name: str) -> str:
        """Return what was said of the one check that failed; nothing else is blamed."""
        assert (self.code, self.named("FAILED"), self.named("WARNING")) == (1, [name], []), self.text
        assert " to do: " in self[name], self.text
        return self[name]

    def concern(self, name: str) -> str:
        """Return what was said of the one check that warned."""
        assert (self.code, self.named("FAILED"), self.named("WARNING")) == (0, [], [name]), self.text
        assert " to do: " in self[name], self.text
        return self[name]

    @property
    def sound(self) -> bool:
        """Whether nothing failed, and nothing was warned of."""
        return not self.code and not self.named("FAILED") and not self.named("WARNING")


Examine = Callable[..., Awaitable[Examination]]


@pytest.fixture
def config(config: Config) -> Config:
    """Few enough held polls for any machine's limit of descriptors."""
    return config.replace(polling={"max_held": 50})


@pytest.fixture
def examined(dsn: str, config: Config) -> Examine:
    """Examine this test's database: `await examined(url=…, database={"timeout_seconds": 1})`."""

    async def run(use_dsn: str = dsn, url: str = "", **sections: dict[str, object]) -> Examination:
        stream = io.StringIO()
        code = await examine(Deployment(config.replace(**sections), use_dsn, url), Report(stream))
        return Examination(stream.getvalue(), code)

    return run
