"""What counts as a wake, as lost, late, or without reason: decided from commits and replies alone."""

from __future__ import annotations

import pytest

from server.commands.loadtest.analysis import Judge, Judgement
from server.commands.loadtest.messages import FINAL, Pending, Record
from server.commands.loadtest.targets import Reason
from server.commands.loadtest.workloads import Commit


def judged(*events: Commit | Record | Pending, now: float = 100.0, tasks: int = 1) -> Judgement:
    judge = Judge(tasks=tasks, grace_seconds=1.0)
    judge.committed(event for event in events if isinstance(event, Commit))
    records = [event for event in events if isinstance(event, Record)]
    found = judge.judge(records)
    found.lost += judge.overdue([event for event in events if isinstance(event, Pending)], now)
    return found


def commit(version: int, at: float, task: int = 0) -> Commit:
    return Commit(task, version, at - 0.01, at)


def reply(
    asked: int, version: int, sent: float, arrived: float, reason: int = Reason.CHANGE, client: int = 0
) -> Record:
    return Record(client, asked, version, reason, sent, arrived)


def test_a_wake_is_measured_from_the_return_of_its_commit() -> None:
    found = judged(commit(2, 10), reply(1, 2, sent=5, arrived=10.25))
    assert found.wakes == [0.25]
    assert found.wakes_from_sent == [pytest.approx(0.26)]
    assert (found.lost, found.late, found.without_reason) == (0, 0, 0)


def test_a_wake_is_measured_from_the_first_of_several_commits() -> None:
    found = judged(commit(2, 10), commit(3, 10.5), reply(1, 3, sent=5, arrived=10.75))
    assert found.wakes == [0.75]
    assert found.staleness == [0.75, 0.25]


def test_a_reply_may_overtake_the_return_of_the_commit() -> None:
    assert judged(commit(2, 10), reply(1, 2, sent=5, arrived=9.999)).wakes == [pytest.approx(-0.001)]


def test_a_wake_after_the_grace_is_late_but_not_lost() -> None:
    found = judged(commit(2, 10), reply(1, 2, sent=5, arrived=11.5))
    assert (found.late, found.lost, found.wakes) == (1, 0, [1.5])


def test_a_poll_that_timed_out_with_an_old_state_is_lost() -> None:
    assert judged(commit(2, 10), reply(1, 1, sent=5, arrived=35, reason=Reason.TIMEOUT)).lost == 1


def test_a_poll_that_timed_out_before_the_commit_or_just_behind_it_is_not() -> None:
    for arrived in (9, 10.5):
        found = judged(commit(2, 10), reply(1, 1, sent=5, arrived=arrived, reason=Reason.TIMEOUT))
        assert (found.lost, found.without_reason) == (0, 0)


def test_a_change_that_was_found_only_when_the_hold_ended_is_lost() -> None:
    assert judged(commit(2, 10), reply(1, 2, sent=5, arrived=35, reason=Reason.TIMEOUT)).lost == 1


def test_a_wake_by_a_change_that_shows_an_older_state_than_was_long_committed_is_lost() -> None:
    assert judged(commit(2, 10), commit(3, 11), reply(1, 2, sent=5, arrived=13)).lost == 1


def test_a_poll_that_was_never_answered_is_lost() -> None:
    assert judged(commit(2, 10), Pending(0, 1, 5.0), now=12).lost == 1
    assert judged(commit(2, 10), Pending(0, 1, 5.0), now=10.5).lost == 0
    assert judged(commit(2, 10), Pending(0, 2, 11.0)).lost == 0


def test_a_poll_that_asked_late_is_no_wake() -> None:
    """It was not waiting when its task changed."""
    found = judged(commit(2, 10), reply(1, 2, sent=20, arrived=20.1, reason=Reason.IMMEDIATE))
    assert (found.wakes, found.lost, found.late, found.without_reason) == ([], 0, 0, 0)
    assert found.staleness == [pytest.approx(10.1)]


def test_an_answer_without_news_needs_a_reason() -> None:
    for reason in Reason:
        found = judged(reply(1, 1, sent=5, arrived=6, reason=reason))
        expected = reason in {Reason.IMMEDIATE, Reason.CHANGE, Reason.RESET, Reason.UNKNOWN}
        assert found.without_reason == expected, reason


def test_an_ended_task_is_answered_at_once() -> None:
    assert judged(reply(1, 1, sent=5, arrived=5.1, reason=Reason.IMMEDIATE | FINAL)).without_reason == 0


def test_clients_share_tasks_in_turn() -> None:
    found = judged(commit(2, 10, task=1), reply(1, 2, sent=5, arrived=10.5, client=3), tasks=2)
    assert found.wakes == [0.5]
    assert judged(commit(2, 10, task=1), Pending(2, 1, 5.0), tasks=2).lost == 0
