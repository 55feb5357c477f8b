"""Of the processes of one group, one runs the workers; when it ends, another one does."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.generation.turn import Turn

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import asyncio, sys
from server.generation.turn import Turn
asyncio.run(Turn(sys.argv[1], group=int(sys.argv[2])).come())
print("it has come", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, whose turn it is in the group 7."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), "7"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout
        assert "turn.taken" in process.stdout.readline()
        yield process
        process.kill()


async def test_it_comes_when_the_holder_ends(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    turn = Turn(str(tmp_path), group=7)
    assert not turn._try()
    waiting = asyncio.create_task(turn.come())
    holder.kill()
    await asyncio.wait_for(waiting, 15)


async def test_another_group_has_a_turn_of_its_own(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    assert holder.poll() is None
    await asyncio.wait_for(Turn(str(tmp_path), group=8).come(), 15)


async def test_a_turn_that_has_come_stays(tmp_path: Path) -> None:
    turn = Turn(str(tmp_path), group=9)
    for _ in range(3):  # as many workers as one process has
        await turn.come()
