"""Workers that are killed, or frozen for longer than their lease: every task ends once, and everybody is told."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.faults import sites
from tests.faults.load import Oracle, Pollers, add_tasks, print_figure, read_states
from tests.faults.sites import Account, processes, settings_of
from tests.faults.witness import Witness, double_results
from tests.support.facts import until
from tests.support.postgres import Sql
from tests.support.processes import ServerProcess

config, account, open_site = sites.config, sites.account, sites.open_site

TASKS = 2
CLIENTS_OF_A_TASK = 100
LEASE_SECONDS = 2.0
STEP_SECONDS = 0.3
LEASE_LOST = re.compile("lease.lost")


class Workshop:
    """Worker processes that share a queue, and clients that wait for what they make."""

    def __init__(self, sql: Sql, dsn: str, folder: Path, account: Account, pollers: Pollers) -> None:
        self._sql = sql
        self._folder = folder
        self._account = account
        self._pollers = pollers
        self._settings = settings_of(
            dsn,
            folder,
            generation__workers=1,
            generation__step_seconds=STEP_SECONDS,
            generation__lease_seconds=LEASE_SECONDS,
            generation__max_attempts=50,
        )
        self.started: list[ServerProcess] = []
        self.task_ids: list[str] = []

    def order(self, count: int, *, clients: int = 5) -> None:
        """Put more tasks into the queue, and have clients follow each of them."""
        task_ids = add_tasks(self._sql, self._account.user_id, count)
        self._pollers.follow(task_ids, clients=clients)
        self.task_ids += task_ids

    def hire(self) -> None:
        """Start one more worker."""
        self.started.append(ServerProcess(self._folder, "worker", **self._settings))  # type: ignore[arg-type]

    async def until_one_works(self) -> tuple[ServerProcess, str]:
        """Wait until a worker that runs has made a step of a task; returns both."""
        return await until(self._one_that_works, seconds=60)  # type: ignore[no-any-return]

    def _one_that_works(self) -> tuple[ServerProcess, str] | None:
        held = self._sql(
            "SELECT lease_owner, task_id FROM public.image_generations WHERE status = 'processing' AND progress > 0"
        )
        for owner, task_id in held:
            for process in self.started:
                if process.process.poll() is None and f"-{process.process.pid}-" in owner:
                    return process, task_id
        return None

    async def until_taken_over(self, task_id: str, frozen: ServerProcess) -> None:
        """Wait until another worker has made a step of this task."""
        statement = "SELECT progress > 0 AND lease_owner NOT LIKE %s FROM public.image_generations WHERE task_id = %s"
        name = f"%-{frozen.process.pid}-%"
        await until(lambda: self._sql(statement, (name, task_id))[0][0], seconds=60)

    async def until_ended(self, task_ids: Sequence[str]) -> None:
        """Wait until these tasks have been completed."""
        await until(lambda: self._ended(task_ids), seconds=120)

    def _ended(self, task_ids: Sequence[str]) -> bool:
        statement = "SELECT count(*) FROM public.image_generations WHERE status = 'completed' AND task_id = ANY (%s)"
        return bool(self._sql(statement, (list(task_ids),))[0][0] == len(task_ids))


Open = Callable[[], contextlib.AbstractAsyncContextManager[tuple[Workshop, dict[str, float]]]]


@pytest.fixture
def open_workshop(open_site: Any, account: Account, sql: Sql, dsn: str, tmp_path: Path) -> Open:
    """Open a workshop with two workers and 200 waiting clients; gives it, and the figures that are there behind it."""

    @contextlib.asynccontextmanager
    async def begin() -> AsyncIterator[tuple[Workshop, dict[str, float]]]:
        site, oracle, witness = await open_site(), Oracle(), Witness(dsn)
        figures: dict[str, float] = {}
        async with Pollers(oracle, [site.address], token=account.token) as pollers:
            workshop = Workshop(sql, dsn, tmp_path, account, pollers)
            workshop.order(TASKS, clients=CLIENTS_OF_A_TASK)
            await until(lambda: site.held == TASKS * CLIENTS_OF_A_TASK)
            with processes() as workshop.started:
                workshop.hire()
                workshop.hire()
                yield workshop, figures
                await workshop.until_ended(workshop.task_ids)
            await pollers.until_done()
        witness.testify(oracle)
        changes = witness.changes()
        figures["again"] = sum(each.attempt > 1 and each.status == "completed" for each in changes)
        figures["double_results"] = len(double_results(changes))
        figures.update(oracle.check(read_states(dsn, workshop.task_ids)))
        assert double_results(changes) == []
        assert not oracle.broken

    return begin


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
async def test_the_tasks_of_killed_workers_are_done_by_others_and_once(open_workshop: Open, kills: int) -> None:
    async with open_workshop() as (workshop, figures):
        for _ in range(kills):
            workshop.order(1)
            victim, _ = await workshop.until_one_works()
            victim.stop(signal.SIGKILL)
            workshop.hire()
    assert figures["again"] >= 1
    print_figure("workers killed", kills=kills, **figures)


@pytest.mark.parametrize("freezes", [1, pytest.param(10, marks=pytest.mark.slow)])
async def test_a_worker_that_was_frozen_past_its_lease_is_refused(open_workshop: Open, dsn: str, freezes: int) -> None:
    async with open_workshop() as (workshop, figures):
        for _ in range(freezes):
            workshop.order(2)
            frozen, task_id = await workshop.until_one_works()
            frozen.process.send_signal(signal.SIGSTOP)
            await workshop.until_taken_over(
                task_id, frozen
            )  # it is processing, as the frozen one believes: but not by it
            frozen.process.send_signal(signal.SIGCONT)
            await asyncio.to_thread(frozen.until_said, LEASE_LOST)
            assert await asyncio.to_thread(frozen.stop) == 0  # the next that says so shall be another one
            workshop.hire()
    print_figure("workers frozen", freezes=freezes, **figures)
