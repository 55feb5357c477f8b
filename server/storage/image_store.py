"""What keeps pictures must offer. It is small on purpose: an object store can take the place of a folder."""

from __future__ import annotations

from typing import Protocol


class ImageStore(Protocol):
    """Keeps pictures by name: ``<task id>.<attempt>.png`` for results, ``<task id>.reference.png`` for references.

    The ending is part of the name and says nothing: what a file is, its content tells. Every method raises
    PicturesUnavailable if the store can't be reached, read or written.

    Attributes:
        usable: whether something could be stored when that was last tried.
    """

    usable: bool

    async def put(self, name: str, content: bytes) -> None:
        """Store it, whole or not at all."""

    async def get(self, name: str) -> bytes | None:
        """Return it, or None if there is none."""

    async def delete(self, name: str) -> None:
        """Delete it, if it is there."""

    async def delete_task(self, task_id: str) -> None:
        """Delete everything that belongs to a task."""
