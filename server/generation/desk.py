"""Where workers elsewhere wait for tasks: a claim is held until there is one for it.

    claim ── register ──▶ look into the queue ──▶ nothing: wait ──▶ a task was created: look again ──▶ answer

One look serves all who wait, in the order in which they came, and takes no more tasks than it has takers for: so a new
task wakes one of them. Who isn't there any more when the task has been taken gives it back.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from server.config import GenerationSettings
from server.errors import LeaseLost, StorageError
from server.generation.leases import Lease, new_owner
from server.generation.queue_pause import LONGEST_SECONDS, QueuePause
from server.storage.database import Database
from server.storage.grants import TAGS, WorkerGrant
from server.storage.tasks import Claim, PassedOver, WorkQueue
from server.telemetry import logs
from server.telemetry.metrics import Metrics
from server.waiting.waiters import Credential, Reason, UrgentHold, Waiters

MOST_PER_CLAIM: Final = 16
MOST_COUNTED: Final = 1000
"""Of what is passed over no more is counted."""

# How often it is asked when something falls due, and what is passed over.
_ASK_SECONDS: Final = 1.0
_UNREACHABLE_PAUSE_SECONDS: Final = 1.0
_MOST_AT_ONCE: Final = 64


@dataclass(eq=False, slots=True)
class Claimer:
    """A worker that asks for tasks.

    Attributes:
        grant: what its token is good for.
        worker: what it calls itself; its newer claim ends the older one.
        tags: what it can make.
        most: how many tasks it takes at once.
        is_open: whether its connection is.
        taken: the tasks that it gets, each with its lease.
        limited: whether it got none because as many as may be are held with its token.
        gone: whether it waits no more.
        looked: done when the queue was looked into for the first time.
        given: set when it has got what there is.
    """

    grant: WorkerGrant
    worker: str
    tags: frozenset[str]
    most: int
    is_open: Callable[[], bool]
    taken: list[tuple[Lease, Claim]] = field(default_factory=list)
    limited: bool = False
    gone: bool = False
    looked: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    given: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def kind(self) -> str | None:
        """The one type of tasks that it makes, or None if it makes all."""
        return None if self.tags.issuperset(TAGS) else min(self.tags)


class ClaimDesk:
    """The claims that this process holds, and the loop that looks into the queue for them."""

    def __init__(self, settings: GenerationSettings, database: Database, waiters: Waiters, metrics: Metrics) -> None:
        """`run` does the looking, once somebody has come."""
        self.queue = WorkQueue(
            database,
            "",
            lease_seconds=settings.lease_seconds,
            max_attempts=settings.max_attempts,
            most_running=settings.max_running_per_user,
        )
        self._delivery_seconds = settings.delivery_seconds
        self._waiters = waiters
        self._claimers: dict[Claimer, None] = {}
        self._of_token: Counter[str] = Counter()
        self._awake = asyncio.Event()
        self._created = 0
        self._watching = False
        self._pause = QueuePause()
        self._ask_due_at = 0.0
        self._passed_over: asyncio.Task[list[PassedOver]] | None = None
        self._passed_over_until = 0.0
        metrics.gauge("longpoll_held_claims", "Claims of workers elsewhere that wait for a task", self.__len__)

    def __len__(self) -> int:
        return len(self._claimers)

    def wake(self, _payload: str = "") -> None:
        """Look into the queue: there may be one more task, or room for one."""
        if self._claimers:
            self._created += 1
            self._awake.set()

    async def claim(self, claimer: Claimer, seconds: float, credential: Credential) -> Reason:
        """Wait for tasks, for at most that many seconds; returns why that ended. `claimer.taken` has the tasks.

        Raises:
            StorageError: the queue can't be looked into.
        """
        user = f"worker:{claimer.grant.token_id}:{claimer.worker}"
        client, arrival = (user, "", ""), self._waiters.arrive()
        reason = self._waiters.reason_not_to_hold(client, arrival)
        if reason is not None or self._of_token[claimer.grant.token_id] >= 2 * claimer.grant.concurrency:
            return reason or Reason.DEGRADED
        keeps = False
        with self._registered(claimer):
            try:
                await claimer.looked  # registered before; else a task that comes meanwhile would be missed
                hold = UrgentHold(self._waiters, user, client, seconds, arrival, credential)
                reason = await self._wait(claimer, hold, seconds)
                keeps = reason not in {Reason.REVOKED, Reason.SUPERSEDED}
            finally:
                claimer.gone = True
                if not keeps:
                    taken, claimer.taken = claimer.taken, []
                    await self._give_back(taken)
        return reason

    async def _wait(self, claimer: Claimer, hold: UrgentHold, seconds: float) -> Reason:
        if self._waiters.is_revoked(hold.credential):
            return Reason.REVOKED
        if seconds <= 0:
            return Reason.CHANGE if claimer.taken else Reason.TIMEOUT
        with hold:
            while not claimer.taken:
                await claimer.given.wait()
        return hold.reason or Reason.CHANGE

    @contextlib.contextmanager
    def _registered(self, claimer: Claimer) -> Iterator[None]:
        self._claimers[claimer] = None
        self._of_token[claimer.grant.token_id] += 1
        self._awake.set()
        try:
            yield
        finally:
            del self._claimers[claimer]
            self._of_token[claimer.grant.token_id] -= 1
            if not self._of_token[claimer.grant.token_id]:
                del self._of_token[claimer.grant.token_id]

    async def count_passed_over(self, tags: frozenset[str]) -> dict[str, int] | None:
        """Return why nothing fits somebody with these tags; None if that can't be read."""
        now = asyncio.get_running_loop().time()
        if self._passed_over is None or (self._passed_over.done() and now >= self._passed_over_until):
            self._passed_over_until = now + _ASK_SECONDS  # for all who ask meanwhile
            self._passed_over = asyncio.create_task(self.queue.count_passed_over(MOST_COUNTED))
        try:
            rows = await asyncio.shield(self._passed_over)
        except StorageError:
            return None  # logged where it was raised
        return {
            "otherTags": sum(row.waiting for row in rows if row.type is not None and row.type not in tags),
            "userLimit": sum(row.limited for row in rows if row.type in tags),
            "later": sum(row.waiting for row in rows if row.type is None),
        }

    # Looking ----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look into the queue whenever somebody waits and there is a reason to, for ever. May be run again."""
        while True:
            pause = None
            try:
                pause = await self._look()
            except StorageError as error:
                logs.log.warning(logs.WORKER_FAILED, error=str(error))
                self._fail(error)
                await asyncio.sleep(_UNREACHABLE_PAUSE_SECONDS)
                continue
            except Exception:
                self._fail(StorageError("the queue can't be looked into"))
                raise
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._awake.wait()

    def _fail(self, error: StorageError) -> None:
        """Tell those for whom nobody has looked yet; the others go on waiting."""
        for claimer in self._claimers:
            if not claimer.looked.done():
                claimer.looked.set_exception(error)
                claimer.looked.exception()  # whoever asked may have left

    async def _look(self) -> float | None:
        """Give tasks to those who wait; returns for how long to rest unless there is news, None being for ever."""
        woken, created = self._awake.is_set(), self._created
        self._awake.clear()  # ours alone: whatever comes from here on is looked for once more
        self._created = 0
        if self._claimers:
            self._watching = True
        if not self._watching:
            return None
        now = asyncio.get_running_loop().time()
        if not woken or now >= self._ask_due_at:
            await self._rescue()
        if self._claimers and not self._waiters.draining:
            await self._serve(list(self._claimers), created)
        if now < self._ask_due_at:
            return self._ask_due_at - now
        self._ask_due_at = now + _ASK_SECONDS
        return self._rest(await self.queue.next_due())

    def _rest(self, due: float | None) -> float | None:
        if self._claimers:
            return self._pause.until(due)
        # Only leases are watched. Nothing is unfinished: until somebody comes again.
        self._watching = due is not None
        return None if due is None else max(due, LONGEST_SECONDS)

    async def _rescue(self) -> None:
        for task_id, status in (await self.queue.rescue()).items():
            logs.log.warning(logs.TASK_RESCUED, task_id=task_id, status=status)

    async def _serve(self, claimers: Sequence[Claimer], created: int) -> None:
        held = await self.queue.count_held()
        room = Counter({each.grant.token_id: each.grant.concurrency for each in claimers})
        room.subtract({token: count for token, count in held.items() if token in room})
        expected = max(created, sum(not each.looked.done() for each in claimers), 1)
        # Who makes one kind only comes before who makes all: so more of them find something.
        for kind in sorted({each.kind for each in claimers}, key=lambda kind: (kind is None, kind)):
            await self._serve_kind([each for each in claimers if each.kind == kind], room, expected)
        for each in claimers:
            if each.taken:
                each.given.set()
            if not each.looked.done():
                each.looked.set_result(None)

    async def _serve_kind(self, claimers: Sequence[Claimer], room: Counter[str], expected: int) -> None:
        seats = _seats(claimers, room)
        while seated := {new_owner(each.grant): each for each in itertools.islice(seats, min(expected, _MOST_AT_ONCE))}:
            claimed = await self.queue.claim_to_deliver(
                list(seated), kind=claimers[0].kind, lease_seconds=self._delivery_seconds
            )
            await self._deliver(seated, claimed)
            for owner, _ in claimed:
                del seated[owner]
            if seated:  # there were no more
                room.update(each.grant.token_id for each in seated.values())
                return
            expected *= 2

    async def _deliver(self, seated: Mapping[str, Claimer], claimed: Sequence[tuple[str, Claim]]) -> None:
        too_late = []
        for owner, claim in claimed:
            claimer, lease = seated[owner], Lease(owner, claim.attempt)
            if claimer.gone:
                too_late.append((lease, claim))
                continue
            claimer.taken.append((lease, claim))
            if len(claimer.taken) >= claimer.most:
                claimer.given.set()
            logs.log.info(
                logs.TASK_CLAIMED,
                task_id=claim.task_id,
                attempt=claim.attempt,
                token_id=claimer.grant.token_id,
                worker=claimer.worker,
            )
        await self._give_back(too_late)

    async def _give_back(self, taken: Sequence[tuple[Lease, Claim]]) -> None:
        """Give tasks back that nobody was told of."""
        for lease, claim in taken:
            with contextlib.suppress(StorageError, LeaseLost):  # then the lease ends by itself, as soon
                await self.queue.held_by(lease.owner).release(claim)
                logs.log.info(logs.TASK_RELEASED, task_id=claim.task_id)


def _seats(claimers: Sequence[Claimer], room: Counter[str]) -> Iterator[Claimer]:
    """Yield who takes the next task: each in turn, first all for their first one. Who has left has no seat."""
    for number in range(max(each.most for each in claimers)):
        for each in claimers:
            if number >= each.most or each.gone or len(each.taken) < number:
                continue
            each.limited = room[each.grant.token_id] <= 0 and not each.taken
            if room[each.grant.token_id] > 0 and each.is_open():
                room[each.grant.token_id] -= 1
                yield each
