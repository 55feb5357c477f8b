"""A real browser, shared by all tests of this folder.

Playwright's objects belong to one event loop: tests and fixtures here use `loop_scope="session"`. A test
whose other fixtures live in a loop of their own opens its own browser with `open_chromium`.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page

from tests.browser.chromium import open_chromium
from tests.browser.harness import Client
from tests.browser.scripted_server import ScriptedServer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run every coroutine test of this folder in the loop the browser lives in."""
    here = Path(__file__).parent
    for item in items:
        function = getattr(item, "function", None)
        if here in item.path.parents and inspect.iscoroutinefunction(function):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium() -> AsyncIterator[Browser]:
    """The browser of all tests of this folder."""
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
