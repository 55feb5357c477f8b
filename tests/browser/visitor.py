"""Somebody at the real pages: a real browser, logged in at a real server."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from playwright.async_api import Browser, BrowserContext, Page

from server.storage.users import User
from server.web import keys
from tests.support.people import Person
from tests.support.raw_http import secret_of


def url_of(person: Person, path: str = "/") -> str:
    return str(person.http.make_url(path))


async def log_in(context: BrowserContext, person: Person, secret: str | None = None) -> None:
    """Have the browser's next requests be this person's, as after a login in one of its tabs."""
    name = person.app[keys.COOKIE_SESSIONS].cookie_name
    await context.add_cookies([{"name": name, "value": secret or secret_of(person), "url": url_of(person)}])


async def log_in_anew(context: BrowserContext, person: Person) -> None:
    """Begin another session."""
    secret = await person.app[keys.SESSIONS].create(User(person.user.user_id, person.user.email))
    await log_in(context, person, secret)


async def end_session(person: Person) -> None:
    """End a person's session behind the browser's back."""
    await person.app[keys.SESSIONS].revoke(secret_of(person))


@contextlib.asynccontextmanager
async def visiting(browser: Browser, person: Person, **options: Any) -> AsyncIterator[Page]:
    """Open a page in which this person is logged in, with cookies and storage of its own."""
    context = await browser.new_context(**options)
    context.set_default_timeout(20_000)
    await log_in(context, person)
    yield await context.new_page()
    await context.close()
