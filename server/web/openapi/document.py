"""The whole description of one server."""

from __future__ import annotations

from functools import cache
from typing import Final

from server import __version__
from server.config import Config
from server.storage.retention import retention
from server.web.cookies import bare_name
from server.web.openapi import accounts, parameters, site, waiting, work
from server.web.openapi.parts import Json
from server.web.openapi.schemas import schemas

_ABOUT: Final = """\
A person asks for a picture; making it takes a while. The status request is held by the server until the task changes \
or {hold:g} seconds pass: whoever waits is told the moment there is something to tell, and asks again at once.

Name the version you have seen (`version=4`), and nothing is missed: if the task has gone on meanwhile, the answer comes \
at once. A hold that ends without news is a 200 like any other. Give each request {patience:g} s before you give it up.

Errors are `application/problem+json` (RFC 9457) with a `code` that programs may compare; addresses outside of `/api/`, \
and those under `/api/auth/`, answer with a page instead if `Accept` names `text/html`. A page that needs a login then \
sends there. Whatever isn't described here is 404 `not_found`, another method 405 `method_not_allowed`. \
Every GET may be sent as HEAD. Times are RFC 3339 in UTC.

{retention} Their tasks go with them: whoever waits for one then is told 410, afterwards it is 404.\
"""


def describe(config: Config, *, secure: bool, client_timeout_seconds: float) -> Json:
    """Return the description of a server with these settings. `secure`: it is reached by https."""
    hold = config.polling.hold_seconds
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Long-poll task server",
            "version": __version__,
            "description": _ABOUT.format(
                hold=hold, patience=client_timeout_seconds, retention=retention(config.generation.keep_days)
            ),
        },
        "servers": [{"url": config.server.public_url or "/"}],
        "tags": [
            {"name": "Waiting", "description": "The requests that are held."},
            {"name": "Tasks", "description": "Pictures and their orders."},
            {"name": "Work", "description": "For workers: machines that make the pictures, with a token of their own."},
            {"name": "Accounts", "description": "Who you are: a cookie for browsers, a token for scripts."},
            {"name": "Operation", "description": "For operators and load balancers."},
            {"name": "Pages", "description": "For people."},
        ],
        "security": [{"cookie": []}, {"token": []}],
        "paths": _paths(),
        "components": {
            "schemas": _schemas(),
            "parameters": parameters.parameters(hold),
            "headers": parameters.headers(),
            "securitySchemes": {
                "cookie": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": bare_name(secure=secure),
                    "description": "The session that a login begins. The cookie that it sets has the site's id behind this"
                    " name, so that other sites on the same host leave it alone; both names are read.",
                },
                "token": {"type": "http", "scheme": "bearer", "description": "A token of `/api/auth/tokens`."},
                "worker": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A worker's token, which an operator makes. It is good for `/api/work/` alone.",
                },
            },
        },
    }


# The settings of a server don't show in these two: they are made once, however many servers a process has.
@cache
def _paths() -> Json:
    return {**waiting.paths(), **work.paths(), **accounts.paths(), **site.paths()}


@cache
def _schemas() -> Json:
    return schemas()
