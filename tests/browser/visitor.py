"""Somebody at the real pages: a real browser, logged in at a real server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from playwright.async_api import Browser, BrowserContext, Error, Frame, Page

from server.storage.users import User
from server.web import keys
from tests.support.people import Person
from tests.support.raw_http import secret_of


def url_of(person: Person, path: str = "/") -> str:
    return str(person.http.make_url(path))


async def go_to(page: Page, url: str) -> None:
    """Open an address also while the page that is shown goes somewhere by itself: of two navigations the browser drops one.

    Raises:
        Error: of playwright, for each other reason; or the page has ended up at another address.
    """
    arrived = asyncio.Event()

    def on_navigated(frame: Frame) -> None:
        if frame == page.main_frame:
            arrived.set()

    page.on("framenavigated", on_navigated)
    try:
        await page.goto(url)
    except Error as error:
        if "net::ERR_ABORTED" not in error.message and "interrupted by another navigation" not in error.message:
            raise
        async with asyncio.timeout(10):
            await arrived.wait()
        await page.wait_for_url(url)
    finally:
        page.remove_listener("framenavigated", on_navigated)


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
