"""Finishes the polls of revoked credentials, also when the notification of the revocation was missed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final, Protocol

from server.errors import StorageError
from server.telemetry import logs
from server.waiting.waiters import Reason, Waiters

_BATCH: Final = 1000
_RETRY_SECONDS: Final = 1.0


class Credentials(Protocol):
    """The cache of credentials, as this module needs it."""

    listening: bool
    """Whether revocations are heard."""

    def invalidate(self, key: str) -> None:
        """Look this one up again when it is used next."""

    async def recheck(self, keys: Sequence[str]) -> None:
        """Look these up now; those that are worth nothing any more are revoked."""

    def on_listener_lost(self) -> None:
        """From now on revocations may be missed."""

    def on_listener_restored(self) -> None:
        """From now on revocations are heard again."""


class Revocations:
    """Rechecks the credentials of held polls whenever a revocation may have been missed.

    While notifications arrive nothing is looked up. While they don't, every held credential is, as often as a request
    with it would be; and once more when they arrive again. A database that can't be asked revokes nothing meanwhile:
    the polls go on, and end with their time.
    """

    def __init__(self, credentials: Credentials, waiters: Waiters, *, unproven_seconds: float) -> None:
        """Join who knows the credentials and who holds the polls.

        `unproven_seconds`: how long a credential is trusted while revocations may go unheard.
        """
        self._credentials = credentials
        self._unproven_seconds = unproven_seconds
        self._waiters = waiters
        self._changed: set[str] = set()
        self._all = False
        self._wanted = asyncio.Event()

    def changed(self, key: str) -> None:
        """Take a notification: the row of this credential is not as it was."""
        self._credentials.invalidate(key)
        self._changed.add(key)
        self._wanted.set()

    def on_listener_lost(self) -> None:
        """From now on revocations may be missed."""
        self._credentials.on_listener_lost()
        self._wanted.set()

    def on_listener_restored(self) -> None:
        """From now on revocations are heard; those that were missed are found by reading."""
        self._credentials.on_listener_restored()
        self._all = True
        self._wanted.set()

    async def run(self) -> None:
        """Look up what is to be looked up, for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if self._credentials.listening else self._unproven_seconds):
                    await self._wanted.wait()
            self._wanted.clear()  # ours alone: nobody waits on it but this loop
            try:
                await self._recheck()
            except StorageError as error:
                logs.log.warning(logs.RECHECK_FAILED, error=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
                self._wanted.set()

    async def _recheck(self) -> None:
        changed, everything = self._changed, self._all or not self._credentials.listening
        held = self._waiters.credentials()
        keys = sorted(held if everything else held & changed)
        self._changed, self._all = set(), False
        try:
            for start in range(0, len(keys), _BATCH):
                await self._credentials.recheck(keys[start : start + _BATCH])
        except StorageError:
            self._changed |= changed
            self._all |= everything
            raise
        # Their deadlines were set by another end of their credential: they are to ask again.
        self._waiters.finish_those_of(held & changed, Reason.TIMEOUT)
