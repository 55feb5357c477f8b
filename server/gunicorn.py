"""For gunicorn: `gunicorn server.gunicorn:runner --worker-class aiohttp.GunicornWebWorker`.

aiohttp's worker makes a runner of its own out of an application, one that neither ends a handler whose client has left
nor can park a connection. So it is handed ours.

Of the processes of one gunicorn only one runs the workers of `generation.workers`; when it ends, another one does.
"""

from __future__ import annotations

import os
from pathlib import Path

from aiohttp import web

from server import config
from server.app import build_app
from server.commands import serve
from server.commands.migrate import bring_up_to_date
from server.errors import ConfigurationError
from server.generation.turn import Turn
from server.runtime import file_limit
from server.storage import data_folder
from server.telemetry import logs


async def runner() -> web.AppRunner:
    """Return what one of gunicorn's workers runs: the settings are those of config.toml and the environment.

    Raises:
        ConfigurationError: a setting is wrong, or no Postgres is configured, which all workers must share.
    """
    file = Path(os.environ.get(f"{config.PREFIX}CONFIG", "config.toml"))
    given = file if file.is_file() else None  # noqa: ASYNC240 - nothing is served yet
    settings = config.load(given, os.environ)
    logs.configure(settings.logging)
    file_limit.raise_limit()
    if not settings.database.dsn:
        raise ConfigurationError("gunicorn's workers need one Postgres for all: set database.dsn")
    data_folder.prepare(settings.database.data_dir)
    await bring_up_to_date(settings, settings.database.dsn)
    turn = Turn(settings.database.data_dir, group=os.getppid())
    return serve.make_runner(build_app(settings, settings.database.dsn, turn))
