"""Builds the web application: the one place where things are made and joined."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final
from urllib.parse import urlsplit

import aiohttp_jinja2
import aiohttp_session
import jinja2
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from server import resources
from server.config import Config
from server.errors import ConfigurationError
from server.generation.procedural import ProceduralGenerator
from server.generation.turn import Turn
from server.generation.worker import Worker, worker_name
from server.protocol.parking import Parking
from server.runtime import file_limit
from server.runtime.background import Background, counted_errors
from server.storage.backlog import BacklogCount
from server.storage.database import Database
from server.storage.images import FileImages
from server.storage.listener import Listener
from server.storage.notification_queue import NotificationQueue
from server.storage.retention import Retention, join_folder
from server.storage.sessions import UNPROVEN_SECONDS, Sessions
from server.storage.tasks import TaskReader, UserTasks, WorkQueue
from server.storage.tokens import Tokens
from server.storage.users import Users
from server.storage.uses import Uses
from server.telemetry import logs
from server.telemetry.loop_lag import LoopLag
from server.telemetry.metrics import Metrics, Snapshots
from server.telemetry.requests import RequestLog
from server.waiting.batches import BatchPolling
from server.waiting.board import Board
from server.waiting.polling import Polling
from server.waiting.revocations import Revocations
from server.waiting.waiters import Waiters
from server.web import keys, middlewares
from server.web.cookies import CookieSessions
from server.web.guesses import Guesses
from server.web.handlers.status import repeats_of
from server.web.handlers.tasks import CLIENT_MARGIN_SECONDS, result_url
from server.web.hosts import Hosts
from server.web.openapi.document import describe
from server.web.proxy_headers import ProxyHeaders
from server.web.rate_limits import RateLimits
from server.web.routes import ROUTES
from server.web.uploads import UPLOADS, Uploads

WORKERS: Final = web.AppKey("workers", tuple[Worker, ...])
TURN: Final = web.AppKey[Turn | None]("turn")
_REVOCATIONS: Final = web.AppKey("revocations", Revocations)
_USES: Final = web.AppKey("uses", Uses)
_READY_SECONDS: Final = 15.0
# Read once: a process shows the pages that belong to its code, whatever becomes of the files while it runs.
_TEMPLATES: Final = {
    path.name: path.read_text(encoding="utf-8") for path in sorted(resources.folder("templates").iterdir())
}


def build_app(config: Config, dsn: str, turn: Turn | None = None) -> web.Application:
    """Return the application of one process that speaks to this Postgres. Nothing is opened before it starts.

    With a `turn`, of all processes that share it only one runs its workers.
    """
    metrics = Metrics()
    proxy_headers = ProxyHeaders(config.server.trusted_proxies, config.server.public_url)
    database = Database(
        dsn,
        pool_size=config.database.pool_size,
        timeout=config.database.timeout_seconds,
        application="longpoll-serve",
    )
    uses = Uses(database, session_seconds=config.sessions.days * 86_400)
    sessions = Sessions(
        database,
        uses,
        days=config.sessions.days,
        cache_size=config.sessions.cache_size,
        revoked=lambda key: app[keys.WAITERS].revoke(key),  # noqa: PLW0108 - made below
    )
    rates, guesses = _limits(config)
    cookies = CookieSessions(sessions, secure=is_https(config))
    request_log = RequestLog(metrics, config.logging, lambda: database.clock_offset)
    app = web.Application(
        middlewares=[
            middlewares.observe(request_log, proxy_headers, secure=is_https(config)),
            middlewares.guard(_hosts(config), proxy_headers, rates),
            aiohttp_session.session_middleware(cookies),
        ],
        client_max_size=64 * 1024,
    )
    app[keys.CONFIG], app[keys.METRICS], app[keys.DATABASE], app[keys.SESSIONS] = config, metrics, database, sessions
    app[keys.COOKIE_SESSIONS], app[keys.TOKENS], app[_USES] = cookies, Tokens(database, sessions.forget), uses
    app[keys.TASKS], app[keys.USERS] = UserTasks(database), Users(database)
    app[keys.IMAGES] = FileImages.below(config.database.data_dir)
    app[keys.PROXY_HEADERS], app[keys.RATE_LIMITS], app[keys.REQUEST_LOG] = proxy_headers, rates, request_log
    app[keys.GUESSES] = guesses
    app[keys.BACKLOG], app[keys.STARTED_AT] = BacklogCount(database), time.time()
    app[TURN] = turn
    app[keys.BACKGROUND], app[UPLOADS], app[keys.LOOP_LAG] = Background(metrics), Uploads(), LoopLag()
    app[keys.DESCRIPTION] = describe(
        config,
        secure=is_https(config),
        client_timeout_seconds=config.polling.hold_seconds + CLIENT_MARGIN_SECONDS,
    )
    app.add_routes(ROUTES)
    _add_templates(app)
    _add_waiting(app, dsn)
    app.cleanup_ctx.append(_run)
    app.on_shutdown.append(_release_waiters)
    return app


def is_https(config: Config) -> bool:
    """Whether browsers reach this site by https: natively, or by a proxy in front."""
    return bool(config.server.tls_certificate) or config.server.public_url.startswith("https://")


def make_workers(config: Config, database: Database, images: FileImages, metrics: Metrics) -> list[Worker]:
    """Return the workers of this process, each with a name of its own."""
    settings = config.generation
    executor = ThreadPoolExecutor(max(settings.workers, 1), thread_name_prefix="generator")
    generator = ProceduralGenerator(settings.step_seconds, executor)
    return [
        Worker(
            WorkQueue(
                database, worker_name(), lease_seconds=settings.lease_seconds, max_attempts=settings.max_attempts
            ),
            generator,
            images,
            settings,
            metrics,
            result_url=result_url,
        )
        for _ in range(settings.workers)
    ]


def _add_waiting(app: web.Application, dsn: str) -> None:
    metrics, polling = app[keys.METRICS], app[keys.CONFIG].polling
    tasks = TaskReader(app[keys.DATABASE])
    waiters = Waiters(max_held=polling.max_held, max_held_per_user=polling.max_held_per_user)
    board = Board(
        read=tasks.read,
        read_versions=tasks.read_versions,
        barrier=lambda: app[keys.LISTENER].barrier(),  # noqa: PLW0108 - made below: the two know each other
        sweep_seconds=polling.sweep_seconds,
        linger_seconds=polling.linger_seconds,
        metrics=metrics,
    )
    app[WORKERS] = tuple(make_workers(app[keys.CONFIG], app[keys.DATABASE], app[keys.IMAGES], metrics))
    app[keys.WAITERS], app[keys.BOARD] = waiters, board
    app[_REVOCATIONS] = Revocations(app[keys.SESSIONS], waiters, unproven_seconds=UNPROVEN_SECONDS)
    app[keys.LISTENER] = _listener(app, dsn)
    app[keys.POLLING] = Polling(board, waiters, jitter_seconds=polling.jitter_seconds)
    app[keys.BATCH_POLLING] = BatchPolling(board, waiters, jitter_seconds=polling.jitter_seconds)
    app[keys.PARKING] = Parking(
        app[keys.REQUEST_LOG],
        waiters,
        repeats_of(app),
        enabled=polling.park,
        keepalive_seconds=app[keys.CONFIG].server.keepalive_seconds,
        most_descriptors=file_limit.limit(),
    )
    _add_gauges(app)


def _listener(app: web.Application, dsn: str) -> Listener:
    database, board, revocations, workers = app[keys.CONFIG].database, app[keys.BOARD], app[_REVOCATIONS], app[WORKERS]

    def restored() -> None:
        board.on_listener_restored()
        revocations.on_listener_restored()
        _wake(workers)

    def lost() -> None:
        board.on_listener_lost()
        revocations.on_listener_lost()

    return Listener(
        database.listen_dsn or dsn,
        app[keys.DATABASE],
        {
            "generation_changed": board.on_notification,
            "generation_created": lambda _payload: _wake(workers),
            "session_revoked": app[keys.SESSIONS].forget,
            "session_changed": revocations.changed,
        },
        restored=restored,
        lost=lost,
        heartbeat_seconds=database.heartbeat_seconds,
        timeout=database.timeout_seconds,
        metrics=app[keys.METRICS],
    )


def _add_gauges(app: web.Application) -> None:
    gauge, listener, pulse = app[keys.METRICS].gauge, app[keys.LISTENER], app[keys.LOOP_LAG]
    waiters, board, database = app[keys.WAITERS], app[keys.BOARD], app[keys.DATABASE]
    gauge("longpoll_held_connections", "Polls that are held now", lambda: len(waiters))
    gauge("longpoll_watched_tasks", "Tasks whose state is kept in memory", lambda: len(board))
    gauge("longpoll_listener_up", "Whether notifications are proven to arrive", lambda: listener.healthy)
    gauge("longpoll_listener_lag_seconds", "How long a notification took", lambda: listener.lag_seconds)
    gauge("longpoll_loop_stop_seconds", "Longest stop of the loop within a minute", lambda: pulse.longest_stop_seconds)
    gauge("longpoll_database_statements", "Statements sent since the start", lambda: database.statements)
    gauge("longpoll_log_writes_lost", "Writes to the log that failed, such as on a full disk", logs.lost_writes)
    gauge("longpoll_database_connections", "Connections of the pool that are open", lambda: database.connections)
    gauge("longpoll_database_connects_failed", "Connections refused since the start", lambda: database.connects_failed)
    add_picture_gauges(app[keys.METRICS], app[keys.IMAGES])


def add_picture_gauges(metrics: Metrics, images: FileImages) -> None:
    """Have the metrics tell how the folder of the pictures is."""
    metrics.gauge("longpoll_pictures_usable", "Whether pictures can be stored", lambda: images.usable)
    metrics.gauge("longpoll_picture_failures", "Files that couldn't be read or written", lambda: images.failures)


def _hosts(config: Config) -> Hosts:
    server = config.server
    public = urlsplit(server.public_url).hostname or ""
    return Hosts([public, server.host, socket.gethostname(), *server.allowed_hosts])


def _limits(config: Config) -> tuple[RateLimits, Guesses]:
    try:
        return RateLimits(config.limits), Guesses(config.limits)
    except ValueError as error:
        raise ConfigurationError(f'a rule of [limits] must be like "10 per minute": {error}') from error


def _wake(workers: Sequence[Worker]) -> None:
    for worker in workers:
        worker.wake()


async def _run(app: web.Application) -> AsyncIterator[None]:
    """Open what the handlers use, in this order, and close it in the other."""
    config, database, background = app[keys.CONFIG], app[keys.DATABASE], app[keys.BACKGROUND]
    try:
        await database.open()
        await database.check_role()
        await join_folder(database, app[keys.IMAGES])
        app[keys.COOKIE_SESSIONS].belong_to(await app[keys.SESSIONS].read_site())
        await app[keys.USERS].open()
        background.start("listener", app[keys.LISTENER].run)
        background.start("board", app[keys.BOARD].run)
        background.start("revocations", app[_REVOCATIONS].run)
        background.start("uses", app[_USES].run)
        await wait_until_heard(app[keys.LISTENER])
        background.start("pulse", app[keys.LOOP_LAG].beat)
        background.start("metrics", partial(log_metrics, app[keys.METRICS], config.logging.snapshot_seconds))
        background.start("notification queue", _watched_queue(database, app[keys.METRICS]).run)
        background.start("pictures", app[keys.IMAGES].watch)
        background.start("cleaning", Retention(database, app[keys.IMAGES], config.generation, app[keys.METRICS]).run)
        workers = app[WORKERS]
        for number, worker in enumerate(workers, 1):
            background.start(f"worker {number}", partial(_work_in_turn, worker, app[TURN]))
        with counted_errors(app[keys.METRICS]):
            yield
    finally:
        await background.close()
        app[keys.USERS].close()
        app[UPLOADS].close()
        await database.close()


async def _work_in_turn(worker: Worker, turn: Turn | None) -> None:
    if turn:
        await turn.come()
    await worker.run()


def _watched_queue(database: Database, metrics: Metrics) -> NotificationQueue:
    queue = NotificationQueue(database)
    metrics.gauge("longpoll_notification_queue_usage", "Share of it in use, asked each minute", lambda: queue.usage)
    return queue


async def wait_until_heard(listener: Listener) -> None:
    """Return as soon as a notification that we sent ourselves has come back.

    Raises:
        ConfigurationError: it never came.
    """
    try:
        async with asyncio.timeout(_READY_SECONDS):
            await listener.until_healthy()
    except TimeoutError:
        if listener.refusal:
            raise ConfigurationError(
                f"LISTEN doesn't work: no connection for it could be had within {_READY_SECONDS:g} s: {listener.refusal}"
            ) from None
        raise ConfigurationError(
            f"LISTEN doesn't work: a notification sent by this server did not come back within {_READY_SECONDS:g} s."
            " A transaction pooler (PgBouncer, Supavisor) drops LISTEN:"
            " give database.listen_dsn a direct or session-mode connection"
        ) from None


async def _release_waiters(app: web.Application) -> None:
    # Without this, stopping takes as long as the longest hold.
    app[keys.DATABASE].begin_shutdown()
    app[keys.WAITERS].drain(0)
    app[keys.PARKING].close()


async def log_metrics(metrics: Metrics, every_seconds: float) -> None:
    """Log all plain figures now and then, for those who read logs rather than graphs."""
    snapshots = Snapshots(metrics)
    while True:
        await asyncio.sleep(every_seconds)
        logs.log.info(logs.METRICS_SNAPSHOT, **metrics.summary(), **snapshots.take())


def _add_templates(app: web.Application) -> None:
    app[keys.STATIC_VERSION] = _static_version()
    aiohttp_jinja2.setup(
        app,
        loader=jinja2.DictLoader(_TEMPLATES),
        autoescape=True,
        enable_async=True,
        undefined=jinja2.StrictUndefined,
    )


def _static_version() -> str:
    digest = hashlib.sha256()
    for path in sorted(resources.folder("static").iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def server_logger(metrics: Metrics) -> logging.Logger:
    """Return the logger for aiohttp's protocol, which tells malformed requests from our own failures."""
    # aiohttp thinks an unknown method worth no more than a debug message (web_protocol.py, `handle_error`).
    logger = logging.Logger("aiohttp.server", logging.DEBUG)  # noqa: LOG001 - one of its own for each application
    logger.addHandler(
        logs.ProtocolComplaints(
            (HttpProcessingError, web.RequestPayloadError),
            count_malformed=metrics.malformed_requests.inc,
            count_crash=metrics.crashes.inc,
        )
    )
    return logger
