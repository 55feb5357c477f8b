"""The arguments of the command `token`. Imports nothing that takes long."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Final

from server.storage.grants import MOST_CONCURRENCY, TAGS

_MOST_DAYS: Final = 3650
_LONGEST_NAME: Final = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command line may say."""
    kinds = parser.add_subparsers(dest="kind", required=True)
    worker = kinds.add_parser("worker", help="tokens for /api/work/, and for nothing else")
    actions = worker.add_subparsers(dest="action", required=True)
    make = actions.add_parser("make", help="make one; its secret is shown once")
    make.add_argument("name", type=_name, help="what you call it")
    make.add_argument(
        "--tags", type=_tags, default=TAGS, help=f"what it may claim, of: {','.join(TAGS)}; by default all"
    )
    make.add_argument(
        "--concurrency", type=partial(_count, most=MOST_CONCURRENCY), default=1, help="tasks at a time; by default 1"
    )
    make.add_argument(
        "--days", type=partial(_count, least=0, most=_MOST_DAYS), default=365, help="after so many it ends; 0: never"
    )
    actions.add_parser("list", help="list them")
    actions.add_parser("revoke", help="end one, with all that it holds").add_argument("id", help="as the list has it")


def _count(text: str, *, least: int = 1, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and least <= int(text) <= most):
        raise argparse.ArgumentTypeError(f"it must be a whole number from {least} to {most}")
    return int(text)


def _name(text: str) -> str:
    if not (1 <= len(text.strip()) <= _LONGEST_NAME and text.isprintable()):
        raise argparse.ArgumentTypeError("it must have 1 to 100 printable characters")
    return text.strip()


def _tags(text: str) -> tuple[str, ...]:
    tags = tuple(dict.fromkeys(text.split(",")))
    if unknown := [tag for tag in tags if tag not in TAGS]:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(map(repr, unknown))}; known are: {', '.join(TAGS)}")
    return tags
