"""The command line: `python -m server [serve|worker|token|migrate|doctor|certificate|loadtest]`.

Each command imports its own modules and no other's: those of a server take half a second.
"""

from __future__ import annotations

from server.runtime import signals

if __name__ == "__main__":
    signals.exit_at_once()  # while modules are imported, here and in `_import`: an interrupt would be a traceback

import argparse
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from server import __version__
from server.commands import token_options
from server.commands.loadtest import options as loadtest
from server.errors import ServerError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code. What goes wrong on purpose is one sentence, not a traceback."""
    options = _parser().parse_args(arguments)
    run = _import(options)
    try:
        with signals.raising():
            return run()
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except signals.Interrupted as interrupt:
        return 128 + interrupt.number


# ruff: noqa: PLC0415 - see above


def _import(options: argparse.Namespace) -> Callable[[], int]:
    """Import what runs the command, and return it."""
    if options.command == "certificate":
        from server.commands import certificate

        return partial(certificate.make, options.folder, options.names)
    if options.command == "loadtest":
        from server.commands.loadtest import command

        return partial(command.run, options)
    from server.commands import start

    serves = options.command in {"serve", "worker"}
    return partial(start.run, _import_main(options), options.config, serves=serves, alone=options.processes == 1)


def _import_main(options: argparse.Namespace) -> Callable[..., Coroutine[Any, Any, int]]:
    """Import what a command does that is given the settings and a Postgres, and return it."""
    if options.command == "doctor":
        from server.commands.doctor import examination

        return partial(examination.run, url=options.url)
    if options.command == "token":
        from server.commands import worker_tokens

        return partial(worker_tokens.run, options=options)
    if options.command == "migrate":
        from server.commands.migrate import migrate

        return migrate
    if options.command == "worker":
        from server.commands.work import work

        return work
    if options.processes > 1:
        from server.commands import supervise

        return partial(supervise.run, processes=options.processes)
    from server.commands.serve import serve

    return serve


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
    token_options.add_arguments(commands.add_parser("token", help="make, list and revoke tokens of workers elsewhere"))
    commands.add_parser("migrate", help="bring the schema up to date, and stop")
    look = commands.add_parser("doctor", help="check a deployment: Postgres, limits, and what stands in front")
    look.add_argument("--url", default="", help="the site as browsers see it, such as https://pictures.example.org")
    certificate = commands.add_parser("certificate", help="make a certificate of one's own, to try https with")
    certificate.add_argument("--folder", type=Path, default=Path(".data"), help="where the two files go")
    certificate.add_argument("names", nargs="*", default=["localhost", "127.0.0.1"], help="host names and addresses")
    load = commands.add_parser("loadtest", help="hold many polls on a server, change their tasks, and say what it cost")
    loadtest.add_arguments(load)
    return parser


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 64):
        raise argparse.ArgumentTypeError("it must be a whole number from 1 to 64")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
