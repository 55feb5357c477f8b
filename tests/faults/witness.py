"""A witness inside the database: it sees every visible change, whoever made it, and when."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tests.faults.oracle import TERMINAL, Commit, Oracle
from tests.support.postgres import execute

_INSTALL = """
CREATE TABLE longpoll.witnessed (
  task_id text, version bigint, status text, attempt integer, lease_owner text,
  at double precision DEFAULT extract(epoch FROM clock_timestamp())
);
CREATE FUNCTION longpoll.witness() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
  INSERT INTO longpoll.witnessed VALUES (NEW.task_id, NEW.version, NEW.status, NEW.attempt, NEW.lease_owner);
  RETURN NULL;
END
$$;
CREATE TRIGGER witness AFTER UPDATE ON public.image_generations
  FOR EACH ROW WHEN (OLD.version <> NEW.version) EXECUTE FUNCTION longpoll.witness();
"""


@dataclass(frozen=True, slots=True)
class Change:
    """What one commit made of a task."""

    task_id: str
    version: int
    status: str
    attempt: int
    lease_owner: str | None
    at: float


class Witness:
    """Writes down changes from now on; rolled back changes leave no trace."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        execute(dsn, _INSTALL)

    def changes(self) -> list[Change]:
        """Return all changes of each task, in order."""
        rows = execute(
            self._dsn,
            "SELECT task_id, version, status, attempt, lease_owner, at FROM longpoll.witnessed ORDER BY task_id, version",
        )
        return [Change(*row) for row in rows]

    def testify(self, oracle: Oracle) -> None:
        """Tell the oracle of every commit. The change's own time is some microseconds before that of its commit."""
        offset = time.time() - time.perf_counter()
        oracle.commits += [Commit(each.task_id, each.version, each.status, each.at - offset) for each in self.changes()]


def double_results(changes: Iterable[Change]) -> list[str]:
    """Return every way in which a task was done by two at once, or ended twice: the fence let somebody through."""
    ends: Counter[str] = Counter()
    owners: dict[tuple[str, int], str] = {}
    newest: Counter[str] = Counter()
    doubles = []
    for each in changes:
        ends[each.task_id] += each.status in TERMINAL
        if ends[each.task_id] > 1:
            doubles.append(f"{each.task_id} ended twice")
        if each.attempt < newest[each.task_id]:
            doubles.append(f"{each.task_id} was changed by attempt {each.attempt} behind {newest[each.task_id]}")
        newest[each.task_id] = each.attempt
        if each.lease_owner is not None:
            owner = owners.setdefault((each.task_id, each.attempt), each.lease_owner)
            if owner != each.lease_owner:
                doubles.append(f"attempt {each.attempt} of {each.task_id} had two workers")
    return doubles
