"""Two servers before one database: what is changed through the one is told by the other as soon as by itself."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest

from tests.faults import sites
from tests.faults.load import Pollers, print_figure, read_states
from tests.faults.oracle import Oracle
from tests.faults.sites import Account, Address, holds, listening, processes, read_metrics, settings_of
from tests.faults.witness import Witness
from tests.support.facts import until
from tests.support.postgres import Sql
from tests.support.processes import ServerProcess

account = sites.account

TASKS = 40
CLIENTS_OF_A_TASK = 5


class Person:
    """Somebody who uses one of the servers."""

    def __init__(self, session: aiohttp.ClientSession, address: Address) -> None:
        self._session = session
        self._url = f"http://{address[0]}:{address[1]}/api/generate"

    async def create(self) -> str:
        async with self._session.post(self._url, json={"prompt": "a lake"}) as reply:
            assert reply.status == 202, await reply.text()
            return str((await reply.json())["taskId"])

    async def cancel(self, task_id: str) -> None:
        async with self._session.post(f"{self._url}/cancel", json={"taskId": task_id}) as reply:
            assert reply.status == 200, await reply.text()


@pytest.mark.parametrize("rounds", [2, pytest.param(40, marks=pytest.mark.slow)])
async def test_a_change_through_one_server_is_told_by_the_other(
    account: Account, sql: Sql, dsn: str, tmp_path: Path, rounds: int
) -> None:
    """Every change is made by a request to A; as many clients wait at B as at A itself."""
    witness, headers = Witness(dsn), {"Authorization": f"Bearer {account.token}"}
    oracles: dict[str, Oracle] = {"through A": Oracle(), "through B": Oracle()}
    task_ids: list[str] = []
    with processes() as started:
        settings = settings_of(dsn, tmp_path, polling__sweep_seconds=300)
        started += [ServerProcess(tmp_path, **settings) for _ in oracles]  # type: ignore[arg-type]
        a, b = [await listening(server) for server in started]
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            Pollers(oracles["through A"], [a], token=account.token) as at_a,
            Pollers(oracles["through B"], [b], token=account.token) as at_b,
        ):
            person = Person(session, a)
            for _ in range(rounds):
                fresh = [await person.create() for _ in range(TASKS)]
                for pollers in (at_a, at_b):
                    pollers.follow(fresh, clients=CLIENTS_OF_A_TASK)
                for address in (a, b):
                    await until(lambda address=address: holds(address, TASKS * CLIENTS_OF_A_TASK), seconds=60)
                for task_id in fresh:
                    await person.cancel(task_id)
                await at_a.until_done()
                await at_b.until_done()
                task_ids += fresh
        repairs = [(await read_metrics(address))["longpoll_missed_notify_repairs_total"] for address in (a, b)]
    assert repairs == [0, 0]
    for place, oracle in oracles.items():
        witness.testify(oracle)
        figures = oracle.check(read_states(dsn, task_ids))
        print_figure("two servers", told=place, **figures)
        assert {reply.reason for reply in oracle.replies} == {"change"}
        assert not oracle.broken
        assert not oracle.refusals
