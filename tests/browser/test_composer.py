"""The form of the page, in a real browser at a real server: what it takes, what it counts, what it sends again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, Route, expect

from server.storage.images import result_name
from server.web import keys
from tests.browser.visitor import go_to, url_of, visiting
from tests.support.facts import until
from tests.support.people import Person
from tests.support.postgres import Sql
from tests.web.test_tasks import form, picture

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("browser")]

COLUMNS = "prompt, type, seed, size, has_reference"
REFUSED = "Please choose a PNG, JPEG or WebP picture."


@pytest_asyncio.fixture(loop_scope="session")
async def tab(chromium: Browser, alice: Person) -> AsyncIterator[Page]:
    """The page, shown to Alice."""
    async with visiting(chromium, alice) as page:
        await go_to(page, url_of(alice))
        yield page


def orders(sql: Sql) -> list[tuple[Any, ...]]:
    return sql(f"SELECT {COLUMNS} FROM public.image_generations ORDER BY created_at")


async def choose(tab: Page, name: str, kind: str, content: bytes) -> None:
    await tab.get_by_label("Reference image").set_input_files({"name": name, "mimeType": kind, "buffer": content})


async def test_what_the_page_counts_the_server_takes(tab: Page, sql: Sql) -> None:
    lines = "\n".join(["🌊" * 29] * 133) + "\n" + "y" * 10
    await tab.get_by_role("textbox", name="Prompt").fill(f"\u200b\n {lines} \n")
    await expect(tab.get_by_text("4000 / 4000")).to_be_visible()
    await tab.get_by_role("button", name="Create picture").click()
    await until(lambda: [prompt for prompt, *_ in orders(sql)] == [lines])


async def test_what_shows_nothing_is_not_sent(tab: Page, sql: Sql) -> None:
    await tab.get_by_role("textbox", name="Prompt").fill("\u200b\ufeff \u2060")
    await expect(tab.get_by_text("0 / 4000")).to_be_visible()
    await tab.get_by_role("button", name="Create picture").click()
    await expect(tab.get_by_text("Please describe a picture.")).to_be_visible()
    assert orders(sql) == []


async def test_a_picture_is_known_by_its_content(tab: Page, sql: Sql) -> None:
    """Windows without a registry entry, old browsers and phones name the same kind differently, or not at all."""
    await tab.get_by_text("Advanced", exact=True).first.click()
    for kind in ("", "image/jpg", "image/pjpeg", "application/octet-stream"):
        await choose(tab, "a.jpeg", kind, picture("JPEG"))
        await expect(tab.get_by_text("a.jpeg", exact=True)).to_be_visible()
        await choose(tab, "b.png", "image/png", b"only text")
        await expect(tab.get_by_text(REFUSED)).to_be_visible()
        await expect(tab.get_by_text("a.jpeg", exact=True)).to_be_hidden()
    await choose(tab, "c", "", picture("WEBP"))
    await expect(tab.get_by_text(REFUSED)).to_be_hidden()
    await tab.get_by_role("textbox", name="Prompt").fill("x")
    await tab.get_by_role("button", name="Create picture").click()
    await until(lambda: [row[4] for row in orders(sql)] == [True])


async def test_a_picture_that_a_proxy_has_not_for_a_moment_is_shown(alice: Person, tab: Page, sql: Sql) -> None:
    task_id = await alice.create("a lake")
    await alice.app[keys.IMAGES].put(result_name(task_id, 1), picture())
    sql("UPDATE public.image_generations SET status = 'completed', result = '/picture', attempt = 1")
    answers = [404, 502]

    async def answer(route: Route) -> None:
        await (route.fulfill(status=answers.pop(), body="gone") if answers else route.continue_())

    await tab.route("**/image", answer)
    await go_to(tab, url_of(alice))
    await expect(tab.get_by_role("img", name="a lake")).to_have_class("is-ready", timeout=15_000)
    assert answers == []


async def make_failed(alice: Person, sql: Sql) -> str:
    """Have Alice ask for a picture with all there is to ask for, which then fails."""
    fields = {"prompt": "two\nlines", "seed": "7", "size": "512x768"}
    async with alice.http.post("/api/generate_advanced", data=form(**fields, reference_image=picture())) as reply:
        task_id = str((await reply.json())["taskId"])
    sql("UPDATE public.image_generations SET status = 'failed', error = 'No luck.'")
    return task_id


@pytest.mark.parametrize("path", ["/", "/tasks/{}"])
async def test_trying_again_after_a_reload_asks_for_the_same(alice: Person, tab: Page, sql: Sql, path: str) -> None:
    task_id = await make_failed(alice, sql)
    await go_to(tab, url_of(alice, path.format(task_id)))
    await tab.get_by_role("button", name="Try again").click()
    await until(lambda: len(orders(sql)) == 2)
    first, second = orders(sql)
    assert first == second == ("two\nlines", "advanced", 7, "512x768", True)
    await expect(tab.get_by_text("In the queue").or_(tab.get_by_text("Next in the queue"))).to_be_visible()
    if path != "/":
        assert not tab.url.endswith(task_id)


async def test_trying_again_in_vain_says_why(alice: Person, tab: Page, sql: Sql) -> None:
    await make_failed(alice, sql)
    await go_to(tab, url_of(alice))
    await expect(tab.get_by_role("button", name="Try again")).to_be_visible()
    sql("DELETE FROM public.image_generations")
    await tab.get_by_role("button", name="Try again").click()
    await expect(tab.get_by_text("Task not found.")).to_be_visible()
