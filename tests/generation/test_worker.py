"""Workers: tasks are done once, progress is told, and a worker that lost its task can't write."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

import pytest
from PIL import Image

from server.config import Config
from server.errors import DatabaseUnavailable, GenerationError
from server.generation.generator import GenerationRequest, Generator, Picture, Step
from server.generation.worker import Worker, worker_name
from server.storage.database import Database
from server.storage.images import FileImages, result_name
from server.storage.tasks import Claim, WorkQueue
from server.telemetry.metrics import Metrics
from tests.support.facts import until
from tests.support.postgres import Sql


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (20, 80, 200)).save(file, kind)
    return file.getvalue()


PICTURE = encoded("PNG")


class Rehearsal:
    """A generator that goes on when the test says so, and fails as the test says."""

    name = "rehearsal"

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.content = PICTURE
        self.go_on = asyncio.Event()
        self.can_begin = asyncio.Event()
        self.can_begin.set()
        self.begun = 0
        self.closed = 0
        self.painted = 0

    async def ready(self) -> None:
        await self.can_begin.wait()

    async def generate(self, _request: GenerationRequest) -> AsyncGenerator[Step | Picture, None]:
        self.begun += 1
        try:
            yield Step(0.0, "beginning", "It begins.")
            yield Step(0.5, "painting", "Half of it is there.")
            await self.go_on.wait()
            if self.errors:
                raise self.errors.pop(0)
            yield Step(0.9, "finishing", "Nearly there.")
            self.painted += 1
            yield Picture(self.content)
        finally:
            self.closed += 1


class Unforeseen(Exception):
    """Not one of our own errors."""


@pytest.fixture(autouse=True)
def quick_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write progress sooner than once a second: what is written is the same."""
    monkeypatch.setattr("server.generation.worker._REPORT_SECONDS", 0.05)


Hire = Callable[..., Awaitable[Worker]]


@pytest.fixture
async def hire(dsn: str, config: Config) -> AsyncIterator[Hire]:
    """Start a worker with this generator; `lease_seconds` and the like differ from the defaults."""
    database = Database(dsn, pool_size=4, timeout=5)
    await database.open()
    tasks: dict[Worker, asyncio.Task[None]] = {}

    async def begin(generator: Generator, **settings: object) -> Worker:
        generation = config.replace(generation=settings).generation
        queue = WorkQueue(
            database, worker_name(), lease_seconds=generation.lease_seconds, max_attempts=generation.max_attempts
        )
        images = FileImages.below(config.database.data_dir)
        worker = Worker(queue, generator, images, generation, Metrics(), result_url=lambda task_id: f"/{task_id}")
        tasks[worker] = asyncio.create_task(worker.run())
        return worker

    begin.fire = lambda worker: _fire(tasks[worker])  # type: ignore[attr-defined]
    yield begin
    for task in tasks.values():
        await _fire(task)
    await database.close()


async def _fire(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.fixture
def order(sql: Sql) -> Callable[[], str]:
    """Put a task into the queue; returns its id."""
    user = sql("SELECT longpoll.register_account('a@example.org', '')")[0][0]

    def put() -> str:
        return str(
            sql(
                "INSERT INTO public.image_generations (user_id, task_id, prompt)"
                " VALUES (%s, 'task-' || gen_random_uuid(), 'a lake') RETURNING task_id",
                (user,),
            )[0][0]
        )

    return put


def column(sql: Sql, task_id: str, name: str) -> object:
    return sql(f"SELECT {name} FROM public.image_generations WHERE task_id = %s", (task_id,))[0][0]


async def until_status(sql: Sql, task_id: str, status: str) -> None:
    await until(lambda: column(sql, task_id, "status") == status)


async def test_a_task_is_claimed_told_of_and_completed(
    hire: Hire, order: Callable[[], str], sql: Sql, config: Config
) -> None:
    generator, task_id = Rehearsal(), order()
    await hire(generator)
    await until(lambda: column(sql, task_id, "stage") == "painting")
    assert column(sql, task_id, "status") == "processing"
    assert column(sql, task_id, "progress") == 0.5
    assert column(sql, task_id, "message") == "Half of it is there."
    generator.go_on.set()
    await until_status(sql, task_id, "completed")
    assert column(sql, task_id, "result") == f"/{task_id}"
    assert column(sql, task_id, "lease_owner") is None
    content = await FileImages.below(config.database.data_dir).get(result_name(task_id, 1))
    assert content == PICTURE


async def test_a_worker_that_is_told_looks_at_once(hire: Hire, order: Callable[[], str], sql: Sql) -> None:
    generator = Rehearsal()
    generator.go_on.set()
    worker = await hire(generator)
    await until(lambda: worker._awake.is_set() is False)
    task_id = order()
    worker.wake()
    await until_status(sql, task_id, "completed")


async def test_a_cancel_ends_the_work_and_does_not_wait_for_a_step(
    hire: Hire, order: Callable[[], str], sql: Sql
) -> None:
    generator, task_id = Rehearsal(), order()
    worker = await hire(generator, lease_seconds=0.3)
    await until(lambda: column(sql, task_id, "stage") == "painting")
    told = asyncio.Event()
    renew = worker._queue.renew

    async def renew_and_tell(claim: Claim) -> bool:
        wanted = await renew(claim)
        if wanted:
            asyncio.get_running_loop().call_soon(told.set)
        return wanted

    worker._queue.renew = renew_and_tell  # type: ignore[method-assign]
    sql("UPDATE public.image_generations SET cancel_requested = true WHERE task_id = %s", (task_id,))
    await told.wait()
    await until_status(sql, task_id, "canceled")
    assert generator.closed == 1
    assert generator.painted == 0


async def test_a_lost_lease_ends_the_work(hire: Hire, order: Callable[[], str], sql: Sql) -> None:
    generator, task_id = Rehearsal(), order()
    worker = await hire(generator, lease_seconds=0.3)
    await until(lambda: column(sql, task_id, "stage") == "painting")
    sql("UPDATE public.image_generations SET lease_owner = 'another' WHERE task_id = %s", (task_id,))
    await until(lambda: worker._metrics.value("longpoll_leases_lost_total"))
    assert (generator.closed, generator.painted) == (1, 0)
    assert column(sql, task_id, "lease_owner") == "another"


async def test_nothing_is_claimed_before_the_generator_can_begin(
    hire: Hire, order: Callable[[], str], sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whose lease has run out is put back meanwhile."""
    monkeypatch.setattr("server.generation.queue_pause.LONGEST_SECONDS", 0.01)
    generator, task_id = Rehearsal(), order()
    generator.can_begin.clear()
    sql(
        "UPDATE public.image_generations SET status = 'processing', attempt = 1, lease_owner = 'dead',"
        " lease_expires_at = now() - interval '1 s' WHERE task_id = %s",
        (task_id,),
    )
    worker = await hire(generator)
    await until(lambda: column(sql, task_id, "status") == "pending")
    looked = worker._queue.rescue
    looks = 0

    async def count() -> dict[str, str]:
        nonlocal looks
        looks += 1
        return await looked()

    worker._queue.rescue = count  # type: ignore[method-assign]
    await until(lambda: looks >= 2)
    assert column(sql, task_id, "attempt") == 1
    generator.can_begin.set()
    generator.go_on.set()
    await until_status(sql, task_id, "completed")
    assert column(sql, task_id, "attempt") == 2


async def test_a_cancel_that_comes_with_the_last_step_is_kept(
    hire: Hire, order: Callable[[], str], sql: Sql, config: Config
) -> None:
    """The owner was told that it will stop: a picture that was ready first doesn't change that."""
    generator, task_id = Rehearsal(), order()
    await hire(generator, lease_seconds=60.0)
    await until(lambda: column(sql, task_id, "stage") == "painting")
    sql("UPDATE public.image_generations SET cancel_requested = true WHERE task_id = %s", (task_id,))
    generator.go_on.set()
    await until_status(sql, task_id, "canceled")
    assert generator.painted == 1
    assert column(sql, task_id, "result") is None
    images = FileImages.below(config.database.data_dir)
    await until(lambda: not list(images.folder.glob("??/*")))


async def test_a_fault_that_may_heal_is_tried_again(hire: Hire, order: Callable[[], str], sql: Sql) -> None:
    generator, task_id = Rehearsal(GenerationError("The model is busy.")), order()
    generator.go_on.set()
    await hire(generator)
    await until_status(sql, task_id, "completed")
    assert column(sql, task_id, "attempt") == 2


async def test_after_three_attempts_a_task_has_failed(hire: Hire, order: Callable[[], str], sql: Sql) -> None:
    generator, task_id = Rehearsal(*[GenerationError("The model is busy.") for _ in range(5)]), order()
    generator.go_on.set()
    await hire(generator)
    await until_status(sql, task_id, "failed")
    assert generator.begun == 3
    assert column(sql, task_id, "error") == "The model is busy."


async def test_a_fault_that_can_not_heal_fails_at_once(hire: Hire, order: Callable[[], str], sql: Sql) -> None:
    generator, task_id = Rehearsal(GenerationError("This is not allowed.", retryable=False)), order()
    generator.go_on.set()
    await hire(generator)
    await until_status(sql, task_id, "failed")
    assert generator.begun == 1


async def test_a_generator_that_crashes_ends_its_task_and_not_the_worker(
    hire: Hire, order: Callable[[], str], sql: Sql
) -> None:
    generator, task_id = Rehearsal(*[Unforeseen("division by zero") for _ in range(3)]), order()
    generator.go_on.set()
    worker = await hire(generator)
    await until_status(sql, task_id, "failed")
    assert column(sql, task_id, "error") == "The generator failed unexpectedly"
    another = order()
    worker.wake()
    await until_status(sql, another, "completed")


async def test_a_worker_that_stops_gives_its_task_back_at_once(hire: Hire, order: Callable[[], str], sql: Sql) -> None:
    generator, task_id = Rehearsal(), order()
    worker = await hire(generator)
    await until(lambda: column(sql, task_id, "stage") == "painting")
    await hire.fire(worker)  # type: ignore[attr-defined]
    assert column(sql, task_id, "status") == "pending"
    assert generator.closed == 1


async def test_a_lease_is_renewed_without_a_visible_change(hire: Hire, order: Callable[[], str], sql: Sql) -> None:
    task_id = order()
    await hire(Rehearsal(), lease_seconds=0.3)
    await until(lambda: column(sql, task_id, "stage") == "painting")
    version, lease = column(sql, task_id, "version"), column(sql, task_id, "lease_expires_at")
    await until(lambda: column(sql, task_id, "lease_expires_at") != lease)
    assert column(sql, task_id, "version") == version


async def test_a_worker_that_lost_its_lease_can_not_write(
    hire: Hire, order: Callable[[], str], sql: Sql, config: Config
) -> None:
    """A frozen worker wakes up after another one has taken its task over."""
    frozen, task_id = Rehearsal(), order()
    await hire(frozen, lease_seconds=60.0)
    await until(lambda: column(sql, task_id, "stage") == "painting")
    sql("UPDATE public.image_generations SET lease_expires_at = now() - interval '1 s' WHERE task_id = %s", (task_id,))
    successor = Rehearsal()
    successor.go_on.set()
    worker = await hire(successor)
    await until_status(sql, task_id, "completed")
    version = column(sql, task_id, "version")
    frozen.go_on.set()
    await until(lambda: frozen.closed)
    other = order()
    worker.wake()
    await until_status(sql, other, "completed")
    assert column(sql, task_id, "attempt") == 2
    assert column(sql, task_id, "version") == version
    assert successor.begun + frozen.begun == 3


async def test_a_task_whose_worker_died_at_the_last_attempt_fails(
    hire: Hire, order: Callable[[], str], sql: Sql
) -> None:
    task_id = order()
    sql(
        "UPDATE public.image_generations SET status = 'processing', attempt = 3, lease_owner = 'dead',"
        " lease_expires_at = now() - interval '1 s' WHERE task_id = %s",
        (task_id,),
    )
    await hire(Rehearsal())
    await until_status(sql, task_id, "failed")
    assert column(sql, task_id, "error") == "The server stopped while it made this picture"


async def test_two_workers_share_the_queue_and_do_each_task_once(
    hire: Hire, order: Callable[[], str], sql: Sql
) -> None:
    task_ids = [order() for _ in range(12)]
    first, second = Rehearsal(), Rehearsal()
    await hire(first)
    await hire(second)
    await until(lambda: first.begun and second.begun)
    first.go_on.set()
    second.go_on.set()
    for task_id in task_ids:
        await until_status(sql, task_id, "completed")
    assert first.begun + second.begun == 12
    assert sql("SELECT DISTINCT attempt FROM public.image_generations") == [(1,)]


async def test_a_picture_whose_lease_was_lost_is_not_kept(
    hire: Hire, order: Callable[[], str], sql: Sql, config: Config
) -> None:
    """Its task was deleted in the last moment, say: nobody would ever see the picture, or delete it."""
    generator, task_id = Rehearsal(), order()
    worker = await hire(generator)
    await until(lambda: column(sql, task_id, "stage") == "painting")
    images = FileImages.below(config.database.data_dir)
    put = worker._images.put

    async def put_and_delete_the_task(name: str, content: bytes) -> None:
        await put(name, content)
        assert await images.get(name) == content
        sql("DELETE FROM public.image_generations WHERE task_id = %s", (task_id,))

    worker._images.put = put_and_delete_the_task  # type: ignore[method-assign]
    generator.go_on.set()
    await until(lambda: worker._metrics.value("longpoll_leases_lost_total"))
    assert await images.get(result_name(task_id, 1)) is None


async def test_an_end_whose_answer_was_lost_is_written_once(
    hire: Hire, order: Callable[[], str], sql: Sql, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database has ended the task, and the connection broke before it said so: the picture stays."""
    monkeypatch.setattr("server.generation.worker._UNREACHABLE_PAUSE_SECONDS", 0.01)
    generator, task_id = Rehearsal(), order()
    worker = await hire(generator)
    complete, answers = worker._queue.complete, [DatabaseUnavailable("the connection broke"), None]
    versions = []

    async def complete_unheard(claim: Claim, result: str) -> bool:
        canceled = await complete(claim, result)
        versions.append(column(sql, task_id, "version"))
        if (lost := answers.pop(0)) is not None:
            raise lost
        return canceled

    worker._queue.complete = complete_unheard  # type: ignore[method-assign]
    generator.go_on.set()
    await until(lambda: not answers)
    await until(
        lambda: worker._metrics.registry.get_sample_value(
            "longpoll_task_processing_seconds_count", {"outcome": "completed"}
        )
    )
    assert len(set(versions)) == 1
    assert column(sql, task_id, "attempt") == 1
    assert await FileImages.below(config.database.data_dir).get(result_name(task_id, 1)) == PICTURE


async def test_attempts_given_back_are_no_tries(hire: Hire, order: Callable[[], str], sql: Sql) -> None:
    """A worker that was told to stop, again and again, leaves the task all of its tries."""
    generator, task_id = Rehearsal(GenerationError("The model is busy.")), order()
    for _ in range(3):
        worker = await hire(generator, max_attempts=2)
        await until(lambda: column(sql, task_id, "stage") == "painting")
        await hire.fire(worker)  # type: ignore[attr-defined]
    assert (column(sql, task_id, "attempt"), column(sql, task_id, "given_back")) == (3, 3)
    generator.go_on.set()
    await hire(generator, max_attempts=2)
    await until_status(sql, task_id, "completed")
    assert column(sql, task_id, "attempt") == 5


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
async def test_a_picture_of_any_kind_is_kept_as_it_is(
    hire: Hire, order: Callable[[], str], sql: Sql, config: Config, kind: str
) -> None:
    generator, task_id = Rehearsal(), order()
    generator.content = encoded(kind)
    generator.go_on.set()
    await hire(generator)
    await until_status(sql, task_id, "completed")
    assert await FileImages.below(config.database.data_dir).get(result_name(task_id, 1)) == generator.content


NO_PICTURE = "The generator returned something that is no PNG, JPEG or WebP picture"
DAMAGED = "The generator returned a damaged picture"


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", NO_PICTURE),
        (b"<html><h1>502 Bad Gateway</h1></html>", NO_PICTURE),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", NO_PICTURE),
        (encoded("GIF"), NO_PICTURE),
        (PICTURE[:50], DAMAGED),
        (encoded("JPEG")[:300], DAMAGED),
        (b"\x89PNG\r\n\x1a\n<html>", DAMAGED),
        (b"RIFF\0\0\0\0WEBP", DAMAGED),
    ],
)
async def test_what_is_no_picture_fails_its_task(
    hire: Hire, order: Callable[[], str], sql: Sql, config: Config, content: bytes, error: str
) -> None:
    generator, task_id = Rehearsal(), order()
    generator.content = content
    generator.go_on.set()
    await hire(generator)
    await until_status(sql, task_id, "failed")
    assert column(sql, task_id, "error") == error
    assert column(sql, task_id, "attempt") == 3  # what a service returns once, it may not return again
    assert not list(FileImages.below(config.database.data_dir).folder.rglob("*.png"))
