"""Builds the web application: the one place where things are made and joined."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final, TypeAlias

import aiohttp_session
from aiohttp import web
from aiohttp.typedefs import Middleware

from server.config import Config
from server.errors import ConfigurationError
from server.generation.desk import ClaimDesk
from server.generation.turn import Turn
from server.generation.workers import Workers
from server.protocol.parking import Parking
from server.runtime import file_limit
from server.runtime.background import Background, counted_errors
from server.storage.backlog import BacklogCount
from server.storage.database import Database
from server.storage.images import FileImages
from server.storage.listener import Listener
from server.storage.notification_queue import NotificationQueue
from server.storage.queue import QueueReader
from server.storage.retention import Retention, join_folder
from server.storage.sessions import UNPROVEN_SECONDS, Sessions
from server.storage.tasks import Task, TaskReader, UserTasks
from server.storage.tokens import Tokens
from server.storage.users import Users
from server.storage.uses import Uses
from server.telemetry import logs
from server.telemetry.loop_lag import LoopLag
from server.telemetry.metrics import Metrics
from server.telemetry.requests import RequestLog
from server.telemetry.snapshots import log_snapshots
from server.waiting.batches import BatchPolling
from server.waiting.board import Board
from server.waiting.places import Places
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
from server.web.templates import add_templates
from server.web.uploads import UPLOADS, Uploads

WORKERS: Final = web.AppKey("workers", Workers)
Services: TypeAlias = Mapping[str, Callable[[], Awaitable[None]]]
"""By name, what runs in the background for as long as the process does."""


class Process:
    """What a process has, whether it serves or only works: a database, pictures, workers, and who hears of news."""

    def __init__(self, config: Config, dsn: str, *, application: str) -> None:
        """Make them; nothing is opened before `running`. `application`: the name that Postgres shows."""
        self.config = config
        self.metrics = Metrics()
        self.background = Background(self.metrics)
        self.database = Database(
            dsn,
            pool_size=config.database.pool_size,
            timeout=config.database.timeout_seconds,
            application=application,
        )
        self.images = FileImages.below(config.database.data_dir)
        self.workers = Workers(config.generation, self.database, self.images, self.metrics, result_url=result_url)
        self._listen_dsn = config.database.listen_dsn or dsn
        self.images.add_gauges(self.metrics)

    def make_listener(
        self, channels: Mapping[str, Callable[[str], None]], *, lost: Callable[[], None], restored: Callable[[], None]
    ) -> Listener:
        """Return what hears these channels, and wakes the workers; see `Listener`."""

        def wake_and_restore() -> None:
            restored()
            self.workers.wake()

        settings = self.config.database
        listener = Listener(
            self._listen_dsn,
            self.database,
            {"generation_created": self.workers.wake, **channels},
            restored=wake_and_restore,
            lost=lost,
            heartbeat_seconds=settings.heartbeat_seconds,
            timeout=settings.timeout_seconds,
            metrics=self.metrics,
        )
        self.metrics.gauge(
            "longpoll_listener_up", "Whether notifications are proven to arrive", lambda: listener.healthy
        )
        return listener

    @contextlib.asynccontextmanager
    async def running(
        self,
        listener: Listener,
        prepare: Callable[[], Awaitable[None]],
        services: Services,
        turn: Turn | None = None,
    ) -> AsyncIterator[None]:
        """Open everything, in this order, and close it in the other when the block ends. The workers begin last.

        Raises:
            ConfigurationError: the database, the folder of the pictures or LISTEN can't be used as they are.
        """
        try:
            await self.database.open()
            await self.database.check_role()
            await prepare()
            # The listener first, and alone: where connections are few, the pool must not take its own.
            self.background.start("listener", listener.run)
            await listener.until_healthy()
            everything: Services = {
                "pictures": self.images.watch,
                "metrics": partial(log_snapshots, self.metrics, self.config.logging.snapshot_seconds),
                **services,
            }
            for name, run in everything.items():
                self.background.start(name, run)
            self.workers.start(self.background, turn)
            with counted_errors(self.metrics):
                yield
        finally:
            await self.background.close()
            await self.database.close()


class Site(Process):
    """What a process has besides if it serves: who waits for what, who is logged in, and how often anybody may ask."""

    def __init__(self, config: Config, dsn: str) -> None:
        """Make all of it; nothing is opened before `run`."""
        super().__init__(config, dsn, application="longpoll-serve")
        polling, server = config.polling, config.server
        self.waiters = Waiters(max_held=polling.max_held, max_held_per_user=polling.max_held_per_user)
        self.uses = Uses(self.database, session_seconds=config.sessions.days * 86_400)
        self.sessions = Sessions(
            self.database,
            self.uses,
            days=config.sessions.days,
            cache_size=config.sessions.cache_size,
            revoked=self.waiters.revoke,
        )
        self.revocations = Revocations(self.sessions, self.waiters, unproven_seconds=UNPROVEN_SECONDS)
        self.board = self._make_board()
        self.claim_desk = ClaimDesk(config.generation, self.database, self.waiters, self.metrics)
        self.places = self._make_places()
        self.listener = self._listen()
        self.rate_limits, self.guesses = _limits(config)
        self.proxy_headers = ProxyHeaders(server.trusted_proxies, server.public_url)
        self.request_log = RequestLog(self.metrics, config.logging, lambda: self.database.clock_offset)
        self.cookies = CookieSessions(self.sessions, secure=server.is_https)
        self.users, self.uploads, self.loop_lag = Users(self.database), Uploads(), LoopLag()
        self._add_gauges()

    def _make_board(self) -> Board[Task]:
        tasks, polling = TaskReader(self.database), self.config.polling
        return Board(
            read=tasks.read,
            read_versions=tasks.read_versions,
            barrier=lambda: self.listener.barrier(),  # noqa: PLW0108 - made later: the two know each other
            sweep_seconds=polling.sweep_seconds,
            linger_seconds=polling.linger_seconds,
            metrics=self.metrics,
        )

    def _make_places(self) -> Places:
        return Places(
            QueueReader(self.database).read,
            self.metrics,
            clock=time.monotonic,
            wall_clock=lambda: time.time() - self.database.clock_offset,
        )

    def _listen(self) -> Listener:
        def restored() -> None:
            self.board.on_listener_restored()
            self.revocations.on_listener_restored()
            self.claim_desk.wake()

        def lost() -> None:
            self.board.on_listener_lost()
            self.revocations.on_listener_lost()

        def wake(payload: str) -> None:
            self.workers.wake(payload)
            self.claim_desk.wake(payload)

        channels = {
            "generation_created": wake,
            "generation_changed": self.board.on_notification,
            "session_revoked": self.sessions.forget,
            "session_changed": self.revocations.changed,
        }
        return self.make_listener(channels, lost=lost, restored=restored)

    def middlewares(self) -> list[Middleware]:
        """Return what every request passes, the outermost first."""
        secure = self.config.server.is_https
        return [
            middlewares.observe(self.request_log, self.proxy_headers, secure=secure),
            middlewares.guard(Hosts.of(self.config.server), self.proxy_headers, self.rate_limits),
            aiohttp_session.session_middleware(self.cookies),
        ]

    def contents(self) -> dict[str | web.AppKey[Any], Any]:
        """Return what handlers may reach, by its key."""
        config, database, jitter = self.config, self.database, self.config.polling.jitter_seconds
        patience = config.polling.hold_seconds + CLIENT_MARGIN_SECONDS
        return {
            WORKERS: self.workers,
            UPLOADS: self.uploads,
            keys.BACKGROUND: self.background,
            keys.BACKLOG: BacklogCount(database),
            keys.BATCH_POLLING: BatchPolling(self.board, self.waiters, self.places, jitter_seconds=jitter),
            keys.BOARD: self.board,
            keys.CLAIM_DESK: self.claim_desk,
            keys.CONFIG: config,
            keys.COOKIE_SESSIONS: self.cookies,
            keys.DATABASE: database,
            keys.DESCRIPTION: describe(config, secure=config.server.is_https, client_timeout_seconds=patience),
            keys.GUESSES: self.guesses,
            keys.IMAGES: self.images,
            keys.LISTENER: self.listener,
            keys.LOOP_LAG: self.loop_lag,
            keys.METRICS: self.metrics,
            keys.PLACES: self.places,
            keys.POLLING: Polling(self.board, self.waiters, self.places, jitter_seconds=jitter),
            keys.PROXY_HEADERS: self.proxy_headers,
            keys.RATE_LIMITS: self.rate_limits,
            keys.REQUEST_LOG: self.request_log,
            keys.REVOCATIONS: self.revocations,
            keys.SESSIONS: self.sessions,
            keys.STARTED_AT: time.time(),
            keys.TASKS: UserTasks(database, most_waiting=config.generation.max_waiting_per_user),
            keys.TOKENS: Tokens(database, self.sessions.forget),
            keys.USERS: self.users,
            keys.WAITERS: self.waiters,
        }

    async def run(self, turn: Turn | None, _app: web.Application) -> AsyncIterator[None]:
        """Run, as a clean-up context of aiohttp's."""
        services = {
            "board": self.board.run,
            "claim desk": self.claim_desk.run,
            "places": self.places.run,
            "revocations": self.revocations.run,
            "uses": self.uses.run,
            "loop lag": self.loop_lag.beat,
            "notification queue": NotificationQueue(self.database, self.metrics).run,
            "retention": Retention(self.database, self.images, self.config.generation, self.metrics).run,
        }
        try:
            async with self.running(self.listener, self._prepare, services, turn):
                yield
        finally:
            self.users.close()
            self.uploads.close()

    async def _prepare(self) -> None:
        await join_folder(self.database, self.images)
        self.cookies.belong_to(await self.sessions.read_site())

    def _add_gauges(self) -> None:
        gauge, database = self.metrics.gauge, self.database
        gauge("longpoll_held_connections", "Polls that are held now", lambda: len(self.waiters))
        gauge("longpoll_watched_tasks", "Tasks whose state is kept in memory", lambda: len(self.board))
        gauge("longpoll_listener_lag_seconds", "How long a notification took", lambda: self.listener.lag_seconds)
        gauge(
            "longpoll_loop_stop_seconds",
            "Longest stop of the loop within a minute",
            lambda: self.loop_lag.longest_stop_seconds,
        )
        gauge("longpoll_database_statements", "Statements sent since the start", lambda: database.statements)
        gauge("longpoll_log_writes_lost", "Writes to the log that failed, such as on a full disk", logs.lost_writes)
        gauge("longpoll_database_connections", "Connections of the pool that are open", lambda: database.connections)
        gauge(
            "longpoll_database_connects_failed",
            "Connections refused since the start",
            lambda: database.connects_failed,
        )


def build_app(config: Config, dsn: str, turn: Turn | None = None) -> web.Application:
    """Return the application of one process that speaks to this Postgres. Nothing is opened before it starts.

    With a `turn`, of all processes that share it only one runs its workers.
    """
    site = Site(config, dsn)
    app = web.Application(middlewares=site.middlewares(), client_max_size=64 * 1024)
    app.update(site.contents())
    app[keys.PARKING] = Parking(
        site.request_log,
        site.waiters,
        repeats_of(app),
        enabled=config.polling.park,
        keepalive_seconds=config.server.keepalive_seconds,
        most_descriptors=file_limit.limit(),
    )
    app.add_routes(ROUTES)
    add_templates(app)
    app.cleanup_ctx.append(partial(site.run, turn))
    app.on_shutdown.append(_release_waiters)
    return app


def _limits(config: Config) -> tuple[RateLimits, Guesses]:
    try:
        return RateLimits(config.limits), Guesses(config.limits)
    except ValueError as error:
        raise ConfigurationError(f'a rule of [limits] must be like "10 per minute": {error}') from error


async def _release_waiters(app: web.Application) -> None:
    # Without this, stopping takes as long as the longest hold.
    app[keys.DATABASE].begin_shutdown()
    app[keys.WAITERS].drain(0)
    app[keys.PARKING].close()
