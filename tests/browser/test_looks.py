"""Every page in a real browser, small and large, light and dark: nothing is refused, cut off or without a name."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, expect

from server.web import keys
from tests.support.facts import until
from tests.support.people import Person
from tests.support.postgres import Sql
from tests.support.raw_http import secret_of

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("browser")]

SIZES = {"phone": {"width": 375, "height": 800}, "desk": {"width": 1280, "height": 900}}

# What neither a keyboard nor a screen reader could name, and ids that are there twice.
FIND_FAULTS = """() => {
  const isShown = (element) => element.checkVisibility();
  const nameOf = (element) => [
    element.getAttribute("aria-label"), element.textContent, element.getAttribute("title"),
    ...[...(element.labels ?? [])].map((label) => label.textContent),
    ...[...element.querySelectorAll("img[alt]")].map((picture) => picture.alt),
  ].join("").trim();
  const nameless = [...document.querySelectorAll("a[href], button, input:not([type=hidden]), select, textarea, progress")]
    .filter((element) => isShown(element) && !element.closest("[aria-hidden=true]") && !nameOf(element));
  const ids = [...document.querySelectorAll("[id]")].map(({ id }) => id);
  const twice = ids.filter((id, index) => ids.indexOf(id) !== index);
  const titles = [...document.querySelectorAll("h1")].filter(isShown);
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  return [
    ...nameless.map((element) => `no name: ${element.outerHTML.slice(0, 100)}`),
    ...twice.map((id) => `twice: #${id}`),
    ...(titles.length === 1 ? [] : [`${titles.length} titles`]),
    ...(wide > 0 ? [`${wide} px too wide`] : []),
    ...(document.documentElement.lang ? [] : ["no language"]),
  ];
}"""


# A page that is hidden until `looking` says otherwise; `waiting`: it has begun to wait for that.
UNSEEN = """
  Object.defineProperty(document, "visibilityState", { get: () => window.looking ?? "hidden" });
  const listen = document.addEventListener.bind(document);
  document.addEventListener = (name, ...rest) => {
    window.waiting ||= name === "visibilitychange";
    listen(name, ...rest);
  };
"""


@pytest_asyncio.fixture(loop_scope="session")
async def browser_of(chromium: Browser, alice: Person) -> AsyncIterator[Callable[..., Any]]:
    """Open a page of Alice's browser: `page, faults = await browser_of(alice)`; with it comes what goes wrong."""
    contexts: list[BrowserContext] = []

    async def open_page(person: Person | None, **options: Any) -> tuple[Page, list[str]]:
        context = await chromium.new_context(**options)
        contexts.append(context)
        if person is not None:
            cookie = {"name": "longpoll", "value": secret_of(person), "url": str(person.http.make_url("/"))}
            await context.add_cookies([cookie])
        page = await context.new_page()
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        return page, faults

    yield open_page
    for context in contexts:
        await context.close()


@pytest.mark.parametrize("size", SIZES)
async def test_every_page_can_be_read_and_used(
    alice: Person, sql: Sql, browser_of: Callable[..., Any], size: str
) -> None:
    long = "a-word-that-has-no-place-to-break" * 8
    task_ids = [await alice.create(prompt) for prompt in ("a quiet lake", long, "two moons")]
    sql("UPDATE public.image_generations SET status = 'failed', error = %s WHERE task_id = %s", (long, task_ids[1]))
    sql("UPDATE public.image_generations SET status = 'processing', progress = 0.4 WHERE task_id = %s", (task_ids[2],))
    sql("UPDATE longpoll.sessions SET agent = %s", (long[:200],))
    async with alice.http.post("/api/auth/tokens", json={"name": long[:100]}) as reply:
        assert reply.status == 201
    for scheme in ("light", "dark"):
        page, faults = await browser_of(alice, viewport=SIZES[size], color_scheme=scheme)
        for url in (
            "/", "/tasks", "/tasks?status=canceled", *(f"/tasks/{each}" for each in task_ids), "/account", "/ops", "/docs",
        ):  # fmt: skip
            await page.goto(str(alice.http.make_url(url)))
            assert await page.evaluate(FIND_FAULTS) == [], url
        assert faults == []
        stranger, faults = await browser_of(None, viewport=SIZES[size], color_scheme=scheme)
        for url in ("/login", "/register", "/docs"):
            await stranger.goto(str(alice.http.make_url(url)))
            assert await stranger.evaluate(FIND_FAULTS) == [], url
        assert faults == []


async def test_the_figures_move_by_themselves_and_say_when_they_are_old(
    alice: Person, browser_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.web.handlers.ops.REFRESH_SECONDS", 0.05)
    page, _ = await browser_of(alice)
    await page.goto(str(alice.http.make_url("/ops")))
    watched = page.locator("[data-figure='polls.watched']")
    await expect(watched).to_have_text("0")
    await expect(page.get_by_role("status")).to_have_text("Ready")
    await alice.status(await alice.create(), wait=0)
    await expect(watched).to_have_text("1")
    await expect(page.get_by_role("row", name="Answered at once 1 100%")).to_be_visible()
    await page.route("**/ops/figures", lambda route: route.abort())
    await expect(page.get_by_role("alert")).to_contain_text("These figures are old")
    await page.unroute("**/ops/figures")
    await expect(page.get_by_role("alert")).to_be_hidden()
    alice.app[keys.WAITERS].draining = True
    await expect(page.get_by_role("status")).to_have_text("Not ready")


async def test_a_page_that_nobody_looks_at_asks_for_no_figures(
    alice: Person, browser_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.web.handlers.ops.REFRESH_SECONDS", 0.05)
    asked: list[str] = []

    page, _ = await browser_of(alice)
    await page.add_init_script(UNSEEN)
    page.on("request", lambda request: asked.append(request.url))
    await page.goto(str(alice.http.make_url("/ops")))
    await until(lambda: page.evaluate("window.waiting"))
    assert not [url for url in asked if "figures" in url]
    await page.evaluate("window.looking = 'visible'; document.dispatchEvent(new Event('visibilitychange'))")
    await until(lambda: [url for url in asked if "figures" in url])


async def test_whoever_is_cut_off_is_told_before_the_held_request_knows(
    alice: Person, browser_of: Callable[..., Any]
) -> None:
    await alice.create("a lake")
    page, _ = await browser_of(alice)
    await page.goto(str(alice.http.make_url("/")))
    await until(lambda: alice.held == 1)
    await page.context.set_offline(True)
    await expect(page.get_by_text("You are offline.")).to_be_visible()
    await page.context.set_offline(False)
    await expect(page.get_by_text("You are offline.")).to_be_hidden()
