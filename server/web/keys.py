"""The typed keys of what the application and a request carry."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from server.config import Config
from server.generation.desk import ClaimDesk
from server.protocol.parking import Parking
from server.runtime.background import Background
from server.storage.backlog import BacklogCount
from server.storage.database import Database
from server.storage.images import FileImages
from server.storage.listener import Listener
from server.storage.sessions import Sessions
from server.storage.tasks import Task, UserTasks
from server.storage.tokens import Tokens
from server.storage.users import User, Users
from server.telemetry.loop_lag import LoopLag
from server.telemetry.metrics import Metrics
from server.telemetry.requests import RequestLog, RequestRecord
from server.waiting.batches import BatchPolling
from server.waiting.board import Board
from server.waiting.places import Places
from server.waiting.polling import Polling
from server.waiting.revocations import Revocations
from server.waiting.waiters import Waiters
from server.web.cookies import CookieSessions
from server.web.guesses import Guesses
from server.web.proxy_headers import ProxyHeaders
from server.web.rate_limits import RateLimits

CONFIG: Final = web.AppKey("config", Config)
METRICS: Final = web.AppKey("metrics", Metrics)
REQUEST_LOG: Final = web.AppKey("request log", RequestLog)
PARKING: Final = web.AppKey("parking", Parking)
LOOP_LAG: Final = web.AppKey("loop lag", LoopLag)
BACKGROUND: Final = web.AppKey("background", Background)
DATABASE: Final = web.AppKey("database", Database)
LISTENER: Final = web.AppKey("listener", Listener)
BOARD: Final = web.AppKey("board", Board[Task])
WAITERS: Final = web.AppKey("waiters", Waiters)
POLLING: Final = web.AppKey("polling", Polling[Task])
BATCH_POLLING: Final = web.AppKey("batch polling", BatchPolling[Task])
PLACES: Final = web.AppKey("places", Places)
BACKLOG: Final = web.AppKey("backlog", BacklogCount)
CLAIM_DESK: Final = web.AppKey("claim desk", ClaimDesk)
TASKS: Final = web.AppKey("tasks", UserTasks)
IMAGES: Final = web.AppKey("images", FileImages)
USERS: Final = web.AppKey("users", Users)
REVOCATIONS: Final = web.AppKey("revocations", Revocations)
SESSIONS: Final = web.AppKey("sessions", Sessions)
TOKENS: Final = web.AppKey("tokens", Tokens)
COOKIE_SESSIONS: Final = web.AppKey("cookie sessions", CookieSessions)
STATIC_VERSION: Final = web.AppKey("static version", str)
PROXY_HEADERS: Final = web.AppKey("clients", ProxyHeaders)
GUESSES: Final = web.AppKey("guesses", Guesses)
RATE_LIMITS: Final = web.AppKey("rates", RateLimits)
DESCRIPTION: Final = web.AppKey("description", dict[str, object])  # of the API
RENDERED: Final = web.AppKey("rendered", dict[str, str])  # parts of pages that are the same for everybody
STARTED_AT: Final = web.AppKey("started at", float)  # by time.time()


RECORD: Final = web.RequestKey("record", RequestRecord)
USER: Final = web.RequestKey[User | None]("user")  # who asks, once somebody has looked; None: a stranger
