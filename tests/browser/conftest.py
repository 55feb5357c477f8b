"""A real browser, shared by all tests of this folder.

Playwright's objects belong to one event loop: fixtures here use `loop_scope="session"`, and each test file says
`pytest.mark.asyncio(loop_scope="session")` in its `pytestmark`. Said later, as a hook could, it would come too late: the loop
of a session is made anew for each test then, and so is the browser, for a second or two each.

The servers and the people of other tests are here too, in that loop. A test elsewhere opens its own browser with
`open_chromium`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from playwright.async_api import Browser, Page

from server.config import Config
from tests.browser.chromium import open_chromium
from tests.browser.harness import Client
from tests.browser.scripted_server import ScriptedServer
from tests.support.people import Enter, MakeClient, Person, Start, entering, starting
from tests.support.postgres import Sql

_opened: list[bool] = []


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium() -> AsyncIterator[Browser]:
    """The browser of all tests of this folder."""
    assert not _opened, "the browser is opened anew for each test: does its file say `loop_scope`?"
    _opened.append(True)
    async with open_chromium() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="session")
async def page(chromium: Browser) -> AsyncIterator[Page]:
    """A fresh page with cookies and storage of its own."""
    context = await chromium.new_context()
    context.set_default_timeout(10_000)
    yield await context.new_page()
    await context.close()


@pytest_asyncio.fixture(loop_scope="session")
async def server() -> AsyncIterator[ScriptedServer]:
    """A scripted server, listening."""
    scripted = ScriptedServer()
    await scripted.start()
    yield scripted
    await scripted.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def tab(chromium: Browser) -> AsyncIterator[Page]:
    """One tab for all tests of this module: going to a new server's page forgets the last one's."""
    context = await chromium.new_context()
    context.set_default_timeout(10_000)
    yield await context.new_page()
    await context.close()


@pytest_asyncio.fixture(loop_scope="session")
async def client(tab: Page, server: ScriptedServer) -> Client:
    """The client in an empty page."""
    return await open_tab(tab, server)


async def open_tab(page: Page, server: ScriptedServer) -> Client:
    """Load the client into an empty page of this server."""
    await page.goto(server.url)
    await page.wait_for_function("window.harness")
    return Client(page, server)


@pytest_asyncio.fixture(loop_scope="session")
async def aiohttp_client() -> AsyncIterator[MakeClient]:
    """Make a client of a server; when the test is over, both are closed."""
    clients: list[TestClient[web.Request, web.Application]] = []

    async def make(server: TestServer) -> TestClient[web.Request, web.Application]:
        clients.append(TestClient(server))
        await clients[-1].start_server()
        return clients[-1]

    yield make
    for client in clients:
        await client.close()


@pytest_asyncio.fixture(loop_scope="session")
async def start(dsn: str, config: Config, aiohttp_client: MakeClient) -> AsyncIterator[Start]:
    """Start a server, as `start` does for other tests."""
    async with starting(dsn, config, aiohttp_client) as begin:
        yield begin


@pytest_asyncio.fixture(loop_scope="session")
async def enter(sql: Sql) -> AsyncIterator[Enter]:
    """Log somebody in, as `enter` does for other tests."""
    async with entering(sql) as log_in:
        yield log_in


@pytest_asyncio.fixture(loop_scope="session")
async def alice(start: Start, enter: Enter) -> Person:
    """A person at a server without workers."""
    return await enter(await start(), "alice")


@pytest_asyncio.fixture(loop_scope="session")
async def bob(alice: Person, enter: Enter) -> Person:
    """Another person at Alice's server."""
    return await enter(alice.http, "bob")
