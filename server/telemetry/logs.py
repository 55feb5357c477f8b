"""What is logged: every event by name, and how it is printed.

An event is `noun.participle`; its data stands in keys whose names carry their units.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import re
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO, Final, TextIO

import orjson
import structlog

from server import config

log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger()

REQUEST_FINISHED = "request.finished"
REQUEST_CRASHED = "request.crashed"
REQUEST_MALFORMED = "request.malformed"
POLL_FINISHED = "poll.finished"
METRICS_SNAPSHOT = "metrics.snapshot"

SERVER_STARTED = "server.started"
PARKING_UNAVAILABLE = "parking.unavailable"
SERVER_STOPPING = "server.stopping"
SERVER_STOPPED = "server.stopped"
TASK_DIED = "task.died"
ERROR_UNHANDLED = "error.unhandled"
PROCESS_STARTED = "process.started"
PROCESS_DIED = "process.died"
LIBRARY_WARNED = "library.warned"
POSTGRES_RESTARTED = "postgres.restarted"
POSTGRES_FAILED = "postgres.failed"

QUERY_FAILED = "query.failed"
CONNECTION_REFUSED = "connection.refused"
MIGRATION_APPLIED = "migration.applied"
LISTENER_CONNECTED = "listener.connected"
LISTENER_LOST = "listener.lost"
HEARTBEAT_MISSED = "heartbeat.missed"
NOTIFICATION_MALFORMED = "notification.malformed"
QUEUE_FILLING = "queue.filling"
READ_FAILED = "read.failed"
WAKE_REPAIRED = "wake.repaired"
SWEEP_FAILED = "sweep.failed"

TURN_TAKEN = "turn.taken"
WORKER_STARTED = "worker.started"
WORKER_STOPPED = "worker.stopped"
WORKER_FAILED = "worker.failed"
TASK_CLAIMED = "task.claimed"
TASK_FINISHED = "task.finished"
TASK_RETRIED = "task.retried"
TASK_RESCUED = "task.rescued"
TASK_RELEASED = "task.released"
LEASE_LOST = "lease.lost"
GENERATOR_STARTED = "generator.started"
GENERATOR_DIED = "generator.died"
GENERATOR_WROTE = "generator.wrote"
GENERATOR_CRASHED = "generator.crashed"
TASKS_EXPIRED = "tasks.expired"
FILES_CLEANED = "files.cleaned"
CLEANING_FAILED = "cleaning.failed"
STATIC_FAILED = "static.failed"
PICTURES_FAILED = "pictures.failed"
PICTURES_LOST = "pictures.lost"
PICTURES_RESTORED = "pictures.restored"
PICTURES_MISSING = "pictures.missing"

ACCOUNT_REGISTERED = "account.registered"
LOGIN_SUCCEEDED = "login.succeeded"
LOGIN_REFUSED = "login.refused"
PASSWORD_CHANGED = "password.changed"  # noqa: S105 - the name of an event
ACCOUNT_DELETED = "account.deleted"
TOKEN_CREATED = "token.created"  # noqa: S105 - the name of an event
USES_UNWRITTEN = "uses.unwritten"
RECHECK_FAILED = "recheck.failed"


_SAYS_NO_VALUE: Final = re.compile(
    r"Too many headers received|(Duplicate|Missing) '[A-Za-z-]{1,40}' header( found\.| in request\.)"
)


class _LibraryHandler(logging.Handler):
    """Forwards records of `logging` (aiohttp, asyncio and others) to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        report = log.error if record.levelno >= logging.ERROR else log.warning
        report(LIBRARY_WARNED, logger=record.name, message=record.getMessage(), exc_info=record.exc_info or None)


class ProtocolComplaints(logging.Handler):
    """Handles the records of aiohttp's protocol logger: malformed requests, and errors outside of every handler.

    Of the former one line a second is logged, for strangers must not fill the disk, and nothing that they have sent: a
    line that can't be parsed may be somebody's cookie. The latter are crashes like any other.
    """

    def __init__(
        self,
        malformed: tuple[type[Exception], ...],
        *,
        count_malformed: Callable[[], None],
        count_crash: Callable[[], None],
    ) -> None:
        """Call one of the two for each; `malformed` is what the parser raises, and what becomes of it in a body."""
        super().__init__()
        self._malformed = malformed
        self._count_malformed = count_malformed
        self._count_crash = count_crash
        self._logged_at = -1.0

    def emit(self, record: logging.LogRecord) -> None:
        """Count a complaint, and log it."""
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not isinstance(error, self._malformed):
            self._count_crash()
            log.error(REQUEST_CRASHED, message=record.getMessage(), exc_info=error)
            return
        self._count_malformed()
        if record.created - self._logged_at < 1:
            return
        self._logged_at = record.created
        kind = None if error is None else type(error).__name__
        log.warning(REQUEST_MALFORMED, message=record.getMessage(), kind=kind, reason=_reason(error))


def _reason(error: BaseException | None) -> str | None:
    """Return what the parser says is wrong, without the bytes that it quotes (aiohttp, _http_parser.pyx)."""
    said = str(getattr(error, "message", ""))
    if _SAYS_NO_VALUE.fullmatch(said):
        return said
    reason, quoting, _ = said.partition(":\n\n")
    return reason.rpartition("\n")[2].strip() if quoting else None


class _Sink:
    """Writes to a stream; drops and counts what can't be written, so that a full disk or a closed terminal fails no request."""

    def __init__(self, stream: TextIO | BinaryIO) -> None:
        self._stream = stream
        self.lost = 0

    def write(self, data: Any) -> None:
        try:
            self._stream.write(data)
        except (OSError, ValueError):
            self.lost += 1

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self.lost += 1


class _Lines:
    """Writes lines of JSON, many at once.

    A wake that answers thousands writes thousands of lines: structlog's way, made for any event, costs more than the
    reply itself. Here the fields are those of structlog's line, and only the way is shorter.
    """

    def __init__(self, sink: _Sink, processors: list[structlog.types.Processor]) -> None:
        self._sink = sink
        self._renderer = processors[-1]
        self._processors = processors

    @property
    def usable(self) -> bool:
        """Whether structlog's configuration is still ours: a test may capture logs."""
        return self._processors[-1] is self._renderer

    def write(self, replies: list[dict[str, object]]) -> None:
        timestamp, lines = dt.datetime.now(dt.UTC).isoformat().replace("+00:00", "Z"), bytearray()
        for fields in replies:
            fields["level"], fields["timestamp"] = "info", timestamp
            lines += _to_json(fields)  # at once: orjson's results take 4 KB each for as long as they live
            lines += b"\n"
        self._sink.write(lines)
        self._sink.flush()


_sink: _Sink | None = None
_lines: _Lines | None = None
_replies_are_quiet = False


def lost_writes() -> int:
    """Return how many writes to the log have failed."""
    return _sink.lost if _sink is not None else 0


def stopping(number: signal.Signals) -> None:
    """Log the signal that stops the process."""
    log.info(SERVER_STOPPING, signal=number.name)


def log_replies(replies: list[dict[str, object]]) -> None:
    """Log the lines of answered requests, each with its `event`. The dictionaries must not be used afterwards."""
    if _replies_are_quiet or not replies:
        return  # structlog would take its time to find that out
    if _lines is not None and _lines.usable:
        _lines.write(replies)
        return
    for fields in replies:
        log.info(**fields)  # type: ignore[arg-type]


def configure(settings: config.LoggingSettings, stream: TextIO | None = None) -> None:
    """Set up structlog, and route `logging` of the libraries (warnings and worse) into it."""
    stream = stream or sys.stderr
    pretty = settings.format == "console" or (settings.format == "auto" and stream.isatty())
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    processors: list[structlog.types.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        *_renderers(pretty=pretty, colors=stream.isatty()),
    ]
    global _sink, _lines, _replies_are_quiet  # noqa: PLW0603 - structlog's own settings are global, and these belong to them
    _sink = sink = _Sink(stream if pretty else stream.buffer)
    _lines = None if pretty else _Lines(sink, processors)
    _replies_are_quiet = level > logging.INFO
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_make_logger(sink, pretty=pretty),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers = [_LibraryHandler()]
    root.setLevel(logging.WARNING)


def _make_logger(sink: _Sink, *, pretty: bool) -> Callable[..., Any]:
    stream: Any = sink  # all that structlog's loggers do with a file is to write and to flush
    return structlog.WriteLoggerFactory(stream) if pretty else structlog.BytesLoggerFactory(stream)


def _renderers(*, pretty: bool, colors: bool) -> list[structlog.types.Processor]:
    if pretty:
        # Its own way, where rich is installed, shows what every variable held: passwords, cookies, tokens.
        renderer = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)
        return [renderer]
    return [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(serializer=_to_json),
    ]


def _to_json(event: object, **_options: object) -> bytes:
    try:
        return orjson.dumps(event, default=str)
    except TypeError:  # half a surrogate pair, from a URL that isn't UTF-8; a log line must never fail
        return json.dumps(event, default=str).encode()
