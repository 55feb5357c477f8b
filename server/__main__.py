"""The command line: `python -m server [serve|worker|migrate|doctor|certificate|loadtest]`."""

from __future__ import annotations

from server.runtime import signals

if __name__ == "__main__":
    signals.exit_at_once()  # the imports below take half a second, in which an interrupt would be a traceback

import argparse
import contextlib
import os
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, Final

from server import __version__, config
from server.commands import migrate, serve, supervise, work
from server.commands.doctor import examination
from server.commands.loadtest import options as loadtest
from server.errors import ServerError
from server.runtime import event_loop, file_limit
from server.storage import data_folder
from server.storage.embedded.cluster import EmbeddedPostgres
from server.storage.embedded.watchdog import keeping_it_running
from server.telemetry import logs

# Not "longpoll": "$user" would put the schema of that name into its search path.
_EMBEDDED_LOGIN: Final = "longpoll_login"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code. What goes wrong on purpose is one sentence, not a traceback."""
    options = _parser().parse_args(arguments)
    try:
        with signals.raising():
            return _run(options)
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except signals.Interrupted as interrupt:
        return 128 + interrupt.number


def _run(options: argparse.Namespace) -> int:
    if options.command == "certificate":
        return _make_certificate(options)
    if options.command == "loadtest":
        return _load(options)
    settings = config.load(_config_file(options.config), os.environ)
    logs.configure(settings.logging)
    file_limit.raise_limit()
    serves = options.command in {"serve", "worker"}
    if serves or not settings.database.dsn:
        data_folder.prepare(settings.database.data_dir)
    with _postgres(settings) as (settings, dsn, where, embedded):
        kind = settings.server.event_loop if serves and options.processes == 1 else event_loop.ASYNCIO
        return event_loop.run(lambda: keeping_it_running(embedded, _work(options, settings, dsn, where)), kind)


def _work(options: argparse.Namespace, settings: config.Config, dsn: str, where: str) -> Coroutine[Any, Any, int]:
    if options.command == "doctor":
        return examination.run(settings, dsn, options.url)
    if options.command == "serve" and options.processes > 1:
        return supervise.run(settings, dsn, where, options.processes)
    return _COMMANDS[options.command](settings, dsn, where)


_COMMANDS = {"serve": serve.serve, "worker": work.work, "migrate": migrate.migrate}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m server", description="A long-poll task server.")
    parser.add_argument("--version", action="version", version=f"longpoll-task-server {__version__}")
    parser.add_argument("--config", type=Path, help="the settings file; by default config.toml here, if there is one")
    commands = parser.add_subparsers(dest="command")
    parser.set_defaults(command="serve", processes=1)
    serve = commands.add_parser(
        "serve", help="run everything: Postgres if none is configured, migrations, web server, workers"
    )
    serve.add_argument(
        "--processes", type=_count, default=1, help="how many serve on one port; the first has the workers"
    )
    commands.add_parser("worker", help="run workers only; as many processes of them as you like")
    commands.add_parser("migrate", help="bring the schema up to date, and stop")
    look = commands.add_parser("doctor", help="check a deployment: Postgres, limits, and what stands in front")
    look.add_argument("--url", default="", help="the site as browsers see it, such as https://pictures.example.org")
    certificate = commands.add_parser("certificate", help="make a self-signed certificate, to try https with")
    certificate.add_argument("--folder", type=Path, default=Path(".data"), help="where the two files go")
    certificate.add_argument("names", nargs="*", default=["localhost", "127.0.0.1"], help="host names and addresses")
    load = commands.add_parser("loadtest", help="hold many polls on a server, change their tasks, and say what it cost")
    loadtest.add_arguments(load)
    return parser


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 64):
        raise argparse.ArgumentTypeError("it must be a whole number from 1 to 64")
    return int(text)


def _config_file(given: Path | None) -> Path | None:
    if given is None and f"{config.PREFIX}CONFIG" in os.environ:
        given = Path(os.environ[f"{config.PREFIX}CONFIG"])
    default = Path("config.toml")
    return given or (default if default.is_file() else None)


@contextlib.contextmanager
def _postgres(settings: config.Config) -> Iterator[tuple[config.Config, str, str, EmbeddedPostgres | None]]:
    """Give the settings, the DSN and where its data lies: of the configured Postgres, or the embedded one for the block."""
    database = settings.database
    if database.dsn:
        yield settings, database.dsn, "in the configured Postgres", None
        return
    postgres_bin = Path(database.postgres_bin) if database.postgres_bin else None
    # Before any thread is started: it ends with the thread that started it, and that is to be the main one.
    with EmbeddedPostgres(Path(database.data_dir).absolute(), postgres_bin=postgres_bin) as embedded:
        migrating = settings.replace(database={"admin_dsn": embedded.dsn})
        yield migrating, embedded.dsn_of(_EMBEDDED_LOGIN), f"in {embedded.location.data}", embedded


def _load(options: argparse.Namespace) -> int:
    from server.commands.loadtest import command  # noqa: PLC0415 - only this command needs the library that draws tables

    return command.run(options)


def _make_certificate(options: argparse.Namespace) -> int:
    from server.commands.certificate import write_certificate  # noqa: PLC0415 - only this command needs the library

    certificate, key = write_certificate(options.folder, options.names)
    print(f"LONGPOLL_SERVER__TLS_CERTIFICATE={certificate}\nLONGPOLL_SERVER__TLS_KEY={key}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
