"""The report as a whole: a line for each check, what to do below it, one fault told once, and an exit code."""

from __future__ import annotations

import asyncio
import contextlib
import io

import pytest

from server.commands.doctor.deployment import Deployment
from server.commands.doctor.examination import CHECKS, Check, examine
from server.commands.doctor.report import Finding, Report, failed, ok, warning
from server.config import Config
from tests.commands.doctor.conftest import Examination, Examine


async def examine_with(*checks: Check) -> Examination:
    code = await examine(Deployment(Config(), ""), Report(stream := io.StringIO()), checks)
    return Examination(stream.getvalue(), code)


def check(name: str, found: Finding | Exception, *needs: str) -> Check:
    async def look(_deployment: Deployment) -> Finding:
        if isinstance(found, Exception):
            raise found
        return found

    return Check(name, look, needs)


async def test_a_sound_deployment_without_a_site_is_all_ok(examined: Examine) -> None:
    examination = await examined()
    not_there = ["pictures", "site", "origin", "hold", "upload"]
    assert examination.named("skipped") == not_there
    assert examination.named("ok") == [check.name for check in CHECKS if check.name not in not_there]
    assert examination.sum == f"{len(CHECKS) - len(not_there)} ok, {len(not_there)} skipped, 0 WARNING, 0 FAILED"
    assert examination.code == 0


async def test_what_is_to_do_stands_below_what_was_found() -> None:
    examination = await examine_with(check("clock", failed("it is\n  wrong?\n", "mend it")))
    assert examination.text == (
        "clock         FAILED   it is; wrong.\n"
        "              to do:   mend it.\n"
        "0 ok, 0 skipped, 0 WARNING, 1 FAILED\n"
    )  # fmt: skip


async def test_only_a_failure_is_an_exit_code() -> None:
    assert (await examine_with(check("a", ok("fine")), check("b", warning("hm", "look")))).code == 0
    assert (await examine_with(check("a", failed("no", "yes")), check("b", ok("fine")))).code == 1


async def test_a_check_is_skipped_until_what_it_needs_is_sound() -> None:
    examination = await examine_with(
        check("a", failed("no", "yes")),
        check("b", ok("fine"), "a"),
        check("c", ok("fine"), "b"),
        check("d", ok("fine")),
    )
    assert examination["b"] == "skipped  looked at when this is ok: a."
    assert examination.named("skipped") == ["b", "c"]
    assert examination.named("ok") == ["d"]


async def test_a_check_that_breaks_is_a_failure_and_the_others_go_on() -> None:
    examination = await examine_with(check("a", KeyError("a bug\nin two lines")), check("b", ok("fine")))
    assert "the check itself broke: KeyError: " in examination.failure("a")
    assert examination.named("ok") == ["b"]


async def test_the_name_of_a_check_is_seen_while_it_runs() -> None:
    stream = io.StringIO()

    async def look(_deployment: Deployment) -> Finding:
        assert stream.getvalue().split() == ["hold"]
        return ok("fine")

    assert await examine(Deployment(Config(), ""), Report(stream), [Check("hold", look)]) == 0


async def test_no_check_follows_an_interrupt_that_a_check_has_swallowed() -> None:
    """As aiopg may, by wait_for() of Python 3.11."""

    async def swallow(_deployment: Deployment) -> Finding:
        task = asyncio.current_task()
        assert task
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        return ok("fine")

    examining = asyncio.create_task(examine_with(Check("a", swallow), check("b", ok("fine"))))
    with pytest.raises(asyncio.CancelledError):
        await examining
