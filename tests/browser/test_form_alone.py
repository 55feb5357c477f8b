"""Creating pictures with a form alone, in a browser that runs no scripts."""

from __future__ import annotations

import re

import pytest
from playwright.async_api import Browser, expect

from server.web import keys
from tests.browser.visitor import end_session, go_to, log_in_anew, url_of, visiting
from tests.support.people import Enter, Person, Start
from tests.support.postgres import Sql
from tests.web.test_tasks import picture

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("browser")]


async def test_from_the_form_to_the_picture_with_a_reference_image(
    start: Start, enter: Enter, sql: Sql, chromium: Browser
) -> None:
    alice = await enter(await start(generation={"workers": 1, "step_seconds": 0.2}))
    async with visiting(chromium, alice, java_script_enabled=False) as page:
        await go_to(page, url_of(alice))
        await expect(page.get_by_label("Seed")).to_be_hidden()
        await page.get_by_label("Prompt", exact=True).fill("a quiet lake\nat dawn")
        await page.get_by_text("Advanced", exact=True).first.click()
        await page.get_by_label("Reference image").set_input_files(
            {"name": "a.png", "mimeType": "image/png", "buffer": picture()}
        )
        await page.get_by_label("Size").select_option("512x512")
        await page.get_by_role("button", name="Create picture").click()
        await page.wait_for_url(re.compile("/tasks/"))
        await expect(page.get_by_role("img", name="a quiet lake")).to_be_visible(timeout=30_000)
    assert sql("SELECT prompt, type, size, has_reference FROM public.image_generations") == [
        ("a quiet lake\nat dawn", "advanced", "512x512", True)
    ]


async def test_a_session_that_has_ended_loses_nothing_that_was_typed(
    alice: Person, sql: Sql, chromium: Browser
) -> None:
    async with visiting(chromium, alice, java_script_enabled=False) as page:
        await go_to(page, url_of(alice))
        await page.get_by_label("Prompt", exact=True).fill("typed with care")
        await end_session(alice)
        await page.get_by_role("button", name="Create picture").click()
        await expect(page.get_by_text("Your session has ended; what you typed is still here.")).to_be_visible()
        await expect(page.get_by_label("Prompt", exact=True)).to_have_value("typed with care")
        async with page.context.expect_page() as opening:
            await page.get_by_role("link", name="Log in in a new tab").click()
        other = await opening.value
        await expect(other.get_by_text("Your session has ended. Log in to go on.")).to_be_visible()
        await log_in_anew(page.context, alice)
        await page.get_by_role("button", name="Create picture").click()
        await page.wait_for_url(re.compile("/tasks/"))
    assert sql("SELECT prompt FROM public.image_generations") == [("typed with care",)]
    assert alice.app[keys.METRICS].value("longpoll_request_crashes_total") == 0
