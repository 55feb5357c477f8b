"""All that a handler may reach, and what a request carries."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from server.config import Config
from server.protocol.parking import Parking
from server.runtime.background import Background
from server.storage.backlog import BacklogCount
from server.storage.database import Database
from server.storage.images import FileImages
from server.storage.listener import Listener
from server.storage.sessions import Sessions
from server.storage.tasks import OwnTasks, Task
from server.storage.tokens import Tokens
from server.storage.users import User, Users
from server.telemetry.loop_lag import Pulse
from server.telemetry.metrics import Metrics
from server.telemetry.requests import Observer, Trace
from server.waiting.batches import BatchPolling
from server.waiting.board import Board
from server.waiting.polling import Polling
from server.waiting.waiters import Waiters
from server.web.cookies import CookieSessions
from server.web.guesses import Guesses
from server.web.proxy_headers import Clients
from server.web.rate_limits import Rates

CONFIG: Final = web.AppKey("config", Config)
METRICS: Final = web.AppKey("metrics", Metrics)
OBSERVER: Final = web.AppKey("observer", Observer)
PARKING: Final = web.AppKey("parking", Parking)
PULSE: Final = web.AppKey("pulse", Pulse)
BACKGROUND: Final = web.AppKey("background", Background)
DATABASE: Final = web.AppKey("database", Database)
LISTENER: Final = web.AppKey("listener", Listener)
BOARD: Final = web.AppKey("board", Board[Task])
WAITERS: Final = web.AppKey("waiters", Waiters)
POLLING: Final = web.AppKey("polling", Polling[Task])
BATCH_POLLING: Final = web.AppKey("batch polling", BatchPolling[Task])
BACKLOG: Final = web.AppKey("backlog", BacklogCount)
TASKS: Final = web.AppKey("tasks", OwnTasks)
IMAGES: Final = web.AppKey("images", FileImages)
USERS: Final = web.AppKey("users", Users)
SESSIONS: Final = web.AppKey("sessions", Sessions)
TOKENS: Final = web.AppKey("tokens", Tokens)
COOKIE_SESSIONS: Final = web.AppKey("cookie sessions", CookieSessions)
STATIC_VERSION: Final = web.AppKey("static version", str)
CLIENTS: Final = web.AppKey("clients", Clients)
GUESSES: Final = web.AppKey("guesses", Guesses)
RATES: Final = web.AppKey("rates", Rates)
DESCRIPTION: Final = web.AppKey("description", dict[str, object])  # of the API
STARTED_AT: Final = web.AppKey("started at", float)  # by time.time()


TRACE: Final = web.RequestKey("trace", Trace)
USER: Final = web.RequestKey[User | None]("user")  # who asks, once somebody has looked; None: a stranger
