"""What polls are held on: tasks that somebody can change, and when each change was committed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, Self


class Task(NamedTuple):
    """A task to be polled, and the secret of a bearer token that may."""

    task_id: str
    secret: str
    version: int = 1


class Commit(NamedTuple):
    """A change of a task (by its place in `Workload.tasks`).

    Times of the monotonic clock: just before the change was sent, and just after its COMMIT was known to have
    succeeded. The commit itself lies between the two.
    """

    task: int
    version: int
    sent: float
    returned: float


class Workload(Protocol):
    """The tasks of one run and the hand that changes them. Leaving the block removes whatever was made for it."""

    @property
    def tasks(self) -> Sequence[Task]:
        """The tasks, once the block was entered."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    @property
    def left(self) -> bool:
        """Whether any task can still be changed."""

    def change(self, task: int) -> Commit | None:
        """Change one task visibly; None if it has ended."""

    def change_all(self, *, singly: bool, ending: bool) -> list[Commit]:
        """Change every task, by one statement or by one for each; `ending`: into a final state."""

    def foreign_changes(self) -> int:
        """Return how many changes were made by somebody else, so far as can be known."""
