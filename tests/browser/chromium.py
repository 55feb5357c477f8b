"""Finding and starting the browser that tests drive."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Browser, async_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
]
HOW_TO_GET_IT = "no Chromium found: `apt-get install chromium`, or name one in CHROMIUM"


def find_browser() -> str | None:
    """Find the browser to drive: `CHROMIUM`, else the first known name on the path."""
    found = (shutil.which(name) for name in NAMES)
    return os.environ.get("CHROMIUM") or next(filter(None, found), None)


@asynccontextmanager
async def open_chromium(*arguments: str) -> AsyncIterator[Browser]:
    """Start a headless Chromium, with arguments of its own. Without one the test is skipped, but in CI it fails."""
    path = find_browser()
    if path is None:
        refuse = pytest.fail if os.environ.get("CI") else pytest.skip
        refuse(HOW_TO_GET_IT)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=[*ARGUMENTS, *arguments])
        yield browser
        await browser.close()
