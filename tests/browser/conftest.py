"""A real browser, shared by all tests of this folder.

Playwright's objects belong to one event loop: tests and fixtures here use `loop_scope="session"`.
"""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
]
HOW_TO_GET_IT = "no Chromium found: `apt-get install chromium`, or name one in CHROMIUM"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run every coroutine test of this folder in the loop the browser lives in."""
    here = Path(__file__).parent
    for item in items:
        function = getattr(item, "function", None)
        if here in item.path.parents and inspect.iscoroutinefunction(function):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


def find_browser() -> str | None:
    """Find the browser to drive: `CHROMIUM`, else the first known name on the path."""
    found = (shutil.which(name) for name in NAMES)
    return os.environ.get("CHROMIUM") or next(filter(None, found), None)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium() -> AsyncIterator[Browser]:
    """A headless Chromium. Without one the tests are skipped, but in CI they fail."""
    path = find_browser()
    if path is None:
        refuse = pytest.fail if os.environ.get("CI") else pytest.skip
        refuse(HOW_TO_GET_IT)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def page(chromium: Browser) -> AsyncIterator[Page]:
    """A fresh page with cookies and storage of its own."""
    context = await chromium.new_context()
    context.set_default_timeout(10_000)
    yield await context.new_page()
    await context.close()
