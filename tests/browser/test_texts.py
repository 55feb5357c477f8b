"""The page counts, trims and misses what the server does, to the last character of Unicode."""

from __future__ import annotations

from typing import Any

import pytest

from server.web.handlers import texts
from tests.browser.harness import Client

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("browser")]

EVERY = "[...Array(0x110000).keys()].filter((code) => code < 0xD800 || code > 0xDFFF)"
TEXTS = ["a\r\nb", "a\rb\n\nc", "\r\n a \u2060\ufeff\x1c\x85", "\u200b\u200d\ufe0f", "🌊\r\n🌊", "", "\r", "a\u200bb"]


async def read(client: Client, expression: str, *arguments: Any) -> Any:
    script = f"import('/static/parts/texts.js').then((texts) => {{ const [given] = arguments_; return {expression}; }})"
    return await client.page.evaluate(f"(arguments_) => {script}", list(arguments))


async def test_page_and_server_see_nothing_in_the_same_characters(client: Client) -> None:
    found = await read(client, f"{EVERY}.filter((code) => texts.showsNothing(String.fromCodePoint(code)))")

    assert found == [
        code for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF and texts.shows_nothing(chr(code))
    ]


async def test_page_and_server_trim_the_same_characters(client: Client) -> None:
    found = await read(client, f"{EVERY}.filter((code) => texts.tidy(String.fromCodePoint(code)) === '')")

    assert found == [code for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF and not texts.tidy(chr(code))]


async def test_page_and_server_make_the_same_of_a_text(client: Client) -> None:
    found = await read(client, "given.map((text) => [texts.tidy(text), texts.lengthOf(texts.tidy(text))])", TEXTS)

    assert found == [[texts.tidy(text), len(texts.tidy(text))] for text in TEXTS]
