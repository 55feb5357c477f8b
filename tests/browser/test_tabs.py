"""Pages that outlive a login: whatever happens in another tab, nothing reaches or shows what is another user's."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, expect

from tests.browser.visitor import end_session, go_to, log_in, log_in_anew, url_of, visiting
from tests.support.facts import until
from tests.support.people import Person
from tests.support.postgres import Sql

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("browser")]

DEAF = "Object.defineProperty(globalThis, 'BroadcastChannel', {value: undefined})"
LOOK = "document.dispatchEvent(new Event('visibilitychange'))"
BACK = "window.dispatchEvent(new PageTransitionEvent('pageshow', {persisted: true}))"
ENDED = "Your session has ended. Log in in a new tab"
FILE = {"name": "a.png", "mimeType": "image/png", "buffer": b"\x89PNG\r\n\x1a\nenough to be one"}


@pytest_asyncio.fixture(loop_scope="session")
async def tab(chromium: Browser, alice: Person) -> AsyncIterator[Page]:
    """A tab of Alice's browser."""
    async with visiting(chromium, alice) as page:
        yield page


async def open_tab(context: BrowserContext, person: Person, path: str = "/") -> Page:
    page = await context.new_page()
    await go_to(page, url_of(person, path))
    return page


async def show_card(tab: Page, alice: Person, prompt: str = "alice's lake") -> str:
    """Have the tab show a picture that is being made, and wait for it."""
    task_id = await alice.create(prompt)
    await go_to(tab, url_of(alice))
    await expect(tab.get_by_role("heading", name=prompt)).to_be_visible()
    await until(lambda: alice.held == 1)
    return task_id


async def type_prompt(tab: Page, prompt: str) -> None:
    await tab.get_by_role("textbox", name="Prompt").fill(prompt)


async def send(tab: Page) -> None:
    await tab.get_by_role("button", name="Create picture").click()


def owners(sql: Sql) -> list[tuple[str, str]]:
    return sql("SELECT prompt, user_id::text FROM public.image_generations ORDER BY created_at")


# Another user ---------------------------------------------------------------------------------------------------------


async def test_when_somebody_else_logs_in_all_tabs_are_theirs(alice: Person, bob: Person, tab: Page) -> None:
    task_id = await show_card(tab, alice)
    detail = await open_tab(tab.context, alice, f"/tasks/{task_id}")
    await log_in(tab.context, bob)
    await open_tab(tab.context, bob)
    for page in (tab, detail):
        await expect(page.get_by_text("bob@example.org")).to_be_visible()
        await expect(page.get_by_text("alice's lake")).to_have_count(0)
    assert detail.url == url_of(bob, "/tasks")


async def test_what_is_sent_from_a_page_of_somebody_else_reaches_nobody(
    alice: Person, bob: Person, tab: Page, sql: Sql
) -> None:
    """Also if the tab has heard nothing; and what was typed is there again when its user is."""
    await tab.add_init_script(DEAF)
    await go_to(tab, url_of(alice))
    await type_prompt(tab, "for alice only")
    await log_in(tab.context, bob)
    await send(tab)
    await expect(tab.get_by_text("bob@example.org")).to_be_visible()
    await expect(tab.get_by_role("textbox", name="Prompt")).to_have_value("")
    assert owners(sql) == []
    await log_in(tab.context, alice)
    await go_to(tab, url_of(alice))
    await expect(tab.get_by_role("textbox", name="Prompt")).to_have_value("for alice only")


async def test_a_poll_of_a_page_of_somebody_else_shows_nothing_of_it_any_more(
    alice: Person, bob: Person, tab: Page, sql: Sql
) -> None:
    await tab.add_init_script(DEAF)
    await show_card(tab, alice)
    await log_in(tab.context, bob)
    sql("UPDATE public.image_generations SET status = 'processing'")
    await expect(tab.get_by_text("bob@example.org")).to_be_visible()
    await expect(tab.get_by_text("alice's lake")).to_have_count(0)


@pytest.mark.parametrize("event", [LOOK, BACK])
async def test_whoever_looks_at_a_tab_that_heard_nothing_sees_their_own(
    alice: Person, bob: Person, tab: Page, sql: Sql, event: str
) -> None:
    await tab.add_init_script(DEAF)
    await alice.create("alice's lake")
    sql("UPDATE public.image_generations SET status = 'canceled'")
    await go_to(tab, url_of(alice))
    await expect(tab.get_by_text("alice's lake")).to_be_visible()
    await log_in(tab.context, bob)
    await tab.evaluate(event)
    await expect(tab.get_by_text("bob@example.org")).to_be_visible()
    await expect(tab.get_by_text("alice's lake")).to_have_count(0)


async def test_the_tabs_of_a_user_have_a_leader_of_their_own(alice: Person, tab: Page) -> None:
    """A tab that has not heard of a login yet must not have its tasks asked for by one of another user."""
    await show_card(tab, alice)
    names = await tab.evaluate("navigator.locks.query().then(({held}) => held.map(({name}) => name))")
    assert names == [f"longpoll-feed-3-{alice.user.user_id}"]


async def test_a_message_of_another_version_of_the_page_is_ignored(alice: Person, tab: Page) -> None:
    errors: list[str] = []

    def note(error: object) -> None:
        errors.append(str(error))

    tab.on("pageerror", note)
    await show_card(tab, alice)
    await tab.evaluate(
        """new BroadcastChannel("longpoll-identity-1").addEventListener("message", ({ data }) => {
          globalThis.heardLast ||= data === "last";
        })"""
    )
    other = await open_tab(tab.context, alice, "/tasks")
    await other.evaluate(
        """() => {
          const channel = new BroadcastChannel("longpoll-identity-1");
          for (const data of [null, 7, {}, { user: 7, left: true }, { user: "somebody" }, { left: true }, "last"]) {
            channel.postMessage(data);
          }
        }"""
    )
    await until(lambda: tab.evaluate("globalThis.heardLast"))
    await expect(tab.get_by_text("alice's lake")).to_be_visible()
    assert errors == []


# Logging out and in ---------------------------------------------------------------------------------------------------


async def test_logging_out_in_one_tab_leaves_nothing_in_the_others(alice: Person, tab: Page) -> None:
    await show_card(tab, alice)
    await type_prompt(tab, "half a prompt")
    other = await open_tab(tab.context, alice, "/tasks")
    await other.get_by_role("button", name="Log out").click()
    await tab.wait_for_url("**/login?next=%2F")
    assert await tab.evaluate("sessionStorage.length") == 0
    await other.go_back()
    await expect(other.get_by_role("heading", name="Welcome back")).to_be_visible()
    await expect(other.get_by_text("Your session has ended")).to_have_count(0)
    await expect(other.get_by_text("alice's lake")).to_have_count(0)


async def test_logging_out_everywhere_is_a_logout_too(alice: Person, tab: Page) -> None:
    """Also in a tab whose held poll has been refused before it hears why."""
    await show_card(tab, alice)
    await type_prompt(tab, "half a prompt")
    other = await open_tab(tab.context, alice, "/account")
    await other.get_by_role("button", name="Log out everywhere").click()
    await tab.wait_for_url("**/login?next=%2F")
    assert await tab.evaluate("sessionStorage.length") == 0


async def test_logging_in_in_one_tab_opens_the_others(alice: Person, tab: Page) -> None:
    await tab.context.clear_cookies()
    await go_to(tab, url_of(alice, "/tasks"))
    await expect(tab.get_by_role("heading", name="Welcome back")).to_be_visible()
    await log_in(tab.context, alice)
    await open_tab(tab.context, alice)
    await tab.wait_for_url("**/tasks")


# A session that has ended ---------------------------------------------------------------------------------------------


async def test_a_session_that_ends_while_somebody_waits_loses_nothing(alice: Person, tab: Page, sql: Sql) -> None:
    task_id = await show_card(tab, alice)
    await type_prompt(tab, "typed with care")
    await tab.get_by_text("Advanced", exact=True).first.click()
    await tab.get_by_label("Reference image").set_input_files(FILE)
    await end_session(alice)
    sql("UPDATE public.image_generations SET status = 'processing'")
    await expect(tab.get_by_text(ENDED)).to_be_visible()
    await expect(tab.get_by_role("textbox", name="Prompt")).to_have_value("typed with care")
    async with tab.context.expect_page() as opening:
        await tab.get_by_role("link", name="Log in", exact=True).click()
    login = await opening.value
    await expect(login.get_by_text("Your session has ended. Log in to go on.")).to_be_visible()
    await log_in_anew(tab.context, alice)
    await login.reload()  # as the form would, with a session
    await expect(tab.get_by_text(ENDED)).to_be_hidden()
    await expect(tab.get_by_text("a.png")).to_be_visible()
    sql("UPDATE public.image_generations SET progress = 0.4 WHERE task_id = %s", (task_id,))
    await expect(tab.get_by_text("40 %")).to_be_visible()


async def test_a_session_that_has_ended_when_a_prompt_is_sent_loses_nothing(alice: Person, tab: Page, sql: Sql) -> None:
    await go_to(tab, url_of(alice))
    await type_prompt(tab, "typed with care")
    await end_session(alice)
    await send(tab)
    await expect(tab.get_by_text("Your session has ended: this was not sent.")).to_be_visible()
    await expect(tab.get_by_text(ENDED)).to_be_visible()
    await tab.reload()  # whoever doesn't heed the notice
    await expect(tab.get_by_text("Your session has ended. Log in to go on.")).to_be_visible()
    await log_in_anew(tab.context, alice)
    await go_to(tab, url_of(alice))
    await expect(tab.get_by_role("textbox", name="Prompt")).to_have_value("typed with care")
    await send(tab)
    await until(lambda: owners(sql) == [("typed with care", alice.user.user_id)])


async def test_whoever_never_logged_in_is_told_of_no_session(alice: Person, tab: Page) -> None:
    await tab.context.clear_cookies()
    await go_to(tab, url_of(alice))
    await expect(tab.get_by_text("Log in to see your pictures.")).to_be_visible()
