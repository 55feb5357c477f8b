"""The Python end of `harness.js`: what a test says to the client in its page, and reads back."""

from __future__ import annotations

from typing import Any

from playwright.async_api import Page

from tests.browser.scripted_server import Ask, ScriptedServer


class Client:
    """The module under test in its page, with a clock that only the test moves."""

    def __init__(self, page: Page, server: ScriptedServer) -> None:
        self.page = page
        self.server = server

    async def start(self, **options: Any) -> None:
        await self.page.evaluate("options => harness.start(options)", options)

    async def start_held(self, version: int = 1, **options: Any) -> Ask:
        """Follow from a version and return the held poll."""
        await self.start(version=version, **options)
        return await self.server.next_ask()

    async def advance(self, ms: int) -> None:
        await self.page.evaluate("ms => harness.advance(ms)", ms)

    async def read(self, name: str) -> Any:
        return await self.page.evaluate(f"harness.{name}")

    async def pause(self, number: int) -> int:
        """Wait until the client pauses for the `number`th time; return for how many ms."""
        await self.page.wait_for_function("number => harness.pauses.length >= number", arg=number)
        return int((await self.read("pauses"))[number - 1])

    async def outcome(self) -> dict[str, Any]:
        await self.page.wait_for_function("harness.outcome")
        return dict(await self.read("outcome"))
