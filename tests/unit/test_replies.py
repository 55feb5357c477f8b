"""What a reply to a poll says, whichever way it is made."""

from __future__ import annotations

import datetime as dt
import json

import pytest

from server.protocol.replies import StateReply, describe_poll
from server.storage.tasks import Task
from server.waiting.answers import Answer
from server.waiting.waiters import Reason

NOW = dt.datetime.now(dt.UTC)
COLUMNS = dict.fromkeys(("result", "error", "progress", "stage", "message", "started_at", "finished_at"))


@pytest.mark.parametrize("held", [0.0, 0.0004, 0.0006, 0.0126, 0.01294, 0.01296, 29.9996])
def test_how_long_it_was_held_is_rounded_alike(held: float) -> None:
    """In the two ways of one poll, and in a batch."""
    task = Task(
        task_id="t", user_id="u", status="pending", version=2, attempt=0, created_at=NOW, updated_at=NOW, turn=100,
        type="basic", cancel_requested=False, **COLUMNS,
    )  # fmt: skip
    reply = StateReply(task, Answer(task, Reason.CHANGE, changed=True))
    expected = describe_poll(Reason.CHANGE, changed=True, held_seconds=held, finished=False)
    composed = reply.compose(held)[2]
    assert composed is not None
    assert json.loads(composed)["poll"] == expected
    assert reply.to_bytes(held, "id", b"\r\n").partition(b"\r\n\r\n")[2] == composed
