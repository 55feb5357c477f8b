"""The task feed: one held request for all tasks that a page shows, and for all tabs together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.browser.conftest import open_tab
from tests.browser.harness import Client
from tests.browser.scripted_server import Ask, ScriptedServer
from tests.support.facts import until

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("browser")]

LOOK = "document.dispatchEvent(new Event('visibilitychange'))"
DEAF = """() => {
  const { feed } = harness;
  const receive = feed.receive.bind(feed);
  feed.receive = (message) => ["wake", "ping"].includes(message.type) || receive(message);
}"""
HIDE = "window.dispatchEvent(new PageTransitionEvent('pagehide', {persisted: true}))"
SEND = """(messages) => {
  const channel = new BroadcastChannel("longpoll-feed-3-");
  for (const message of messages) channel.postMessage(message);
}"""
UNKNOWN: list[Any] = [
    None, 7, "wake", [], {}, {"kind": "wake"}, {"type": "nope"}, {"type": "toString"}, {"type": None},
    {"type": "tasks"}, {"type": "tasks", "tab": "x", "tasks": [None]}, {"type": "tasks", "tab": "x", "tasks": {"a": 1}},
    {"type": "update"}, {"type": "update", "task": None, "reset": False}, {"type": "update", "task": {"taskId": "a", "version": 9}},
    {"type": "failure", "taskId": "a"}, {"type": "failure", "taskId": "a", "error": None},
    {"type": "state"}, {"type": "state", "state": 5},
]  # fmt: skip
SHOW = "window.dispatchEvent(new PageTransitionEvent('pageshow', {persisted: true}))"


@pytest_asyncio.fixture(loop_scope="session")
async def other(client: Client) -> AsyncIterator[Client]:
    """Another tab of the same browser, with the same client in it."""
    page = await client.page.context.new_page()
    yield await open_tab(page, client.server)
    await page.close()


async def watch(client: Client, *task_ids: str, **settings: Any) -> None:
    await client.page.evaluate("([ids, settings]) => harness.watch(ids, settings)", [task_ids, settings])


async def until_told(client: Client, *messages: str) -> None:
    await client.page.wait_for_function(
        "expected => expected.every((message) => harness.told.includes(message))", arg=list(messages)
    )


async def until_asked_for(server: ScriptedServer, tasks: dict[str, int]) -> Ask:
    """Wait for the request that names just these; those before it were given up for it."""
    async with asyncio.timeout(10):
        while (ask := await server.next_ask()).tasks != tasks:
            await ask.wait_until_gone()
    await until(lambda: server.held == 1)
    return ask


# One page


async def test_every_tab_is_told_of_a_new_place(client: Client, other: Client) -> None:
    await watch(client, "a")
    await until_asked_for(client.server, {"a": 1})
    await watch(other, "a")
    await client.page.evaluate("harness.feed.wake()")
    instant = await client.server.next_ask()
    while not instant.instant:
        instant = await client.server.next_ask()
    instant.tell_of({"a": 2}, status="pending", place=4)
    held = await client.server.next_ask()
    assert held.query.getall("task") == ["a:2:4"]
    held.tell_of({"a": 2}, status="pending", place=1, reason="place", changed=False)
    again = await client.server.next_ask()
    assert again.query.getall("task") == ["a:2:1"]
    for tab in (client, other):
        await tab.page.wait_for_function("() => harness.told.filter((told) => told === 'a 2').length === 2")


async def test_a_page_of_many_tasks_holds_one_request(client: Client) -> None:
    task_ids = [f"task-{number}" for number in range(20)]
    await watch(client, *task_ids)
    ask = await client.server.next_ask()

    assert ask.tasks == dict.fromkeys(task_ids, 1)
    assert (ask.instant, ask.query["gather"]) == (False, "2")
    assert client.server.arrived.empty()


async def test_each_card_is_told_of_its_own_task_and_the_request_goes_on_from_there(client: Client) -> None:
    await watch(client, "a", "b", "c")
    (await client.server.next_ask()).tell_of({"a": 4, "c": 2})
    (again := await client.server.next_ask()).tell_of({"b": 3}, status="completed")
    last = await client.server.next_ask()

    assert again.tasks == {"a": 4, "b": 1, "c": 2}
    assert last.tasks == {"a": 4, "c": 2}
    assert await client.read("told") == ["a 4", "c 2", "b 3 completed"]


async def test_fifty_are_asked_for_the_newest_first_and_the_others_follow_as_places_get_free(client: Client) -> None:
    task_ids = [f"task-{number}" for number in range(60)]
    await watch(client, *task_ids)
    ask = await client.server.next_ask()
    assert sorted(ask.tasks) == sorted(task_ids[10:])
    ask.tell_of({"task-59": 2, "task-20": 2}, status="completed")
    ask = await client.server.next_ask()

    assert sorted(ask.tasks) == sorted(set(task_ids[8:]) - {"task-59", "task-20"})


async def test_a_new_task_joins_the_request_and_one_that_is_forgotten_leaves_it(client: Client) -> None:
    await watch(client, "a")
    await client.server.next_ask()
    await watch(client, "b")
    await until_asked_for(client.server, {"a": 1, "b": 1})
    await client.page.evaluate("harness.feed.unwatch('a')")
    ask = await until_asked_for(client.server, {"b": 1})
    await client.page.evaluate("harness.feed.unwatch('b')")
    await ask.wait_until_gone()

    assert client.server.arrived.empty()


async def test_a_task_that_is_no_more_is_told_to_its_card_alone(client: Client) -> None:
    await watch(client, "a", "b")
    (await client.server.next_ask()).tell_of({}, gone=["a"])
    again = await client.server.next_ask()

    assert again.tasks == {"b": 1}
    assert await client.read("told") == ["a task_not_found"]


async def test_whoever_is_not_signed_in_is_told_so_for_every_card(client: Client) -> None:
    await watch(client, "a", "b")
    (await client.server.next_ask()).refuse_as_ours(401, "not_signed_in")
    await until_told(client, "a not_signed_in", "b not_signed_in")

    assert client.server.arrived.empty()


async def test_a_proxys_refusals_end_no_card(client: Client) -> None:
    """While a server is put in place of another, a proxy may have a 404 or a 403 of its own for some seconds."""
    await client.page.evaluate("Math.random = () => 0")
    await watch(client, "a", "b")
    for status in (404, 403, 401, 410):
        (await client.server.next_ask()).refuse(status)
    (await client.server.next_ask()).tell_of({"a": 2})
    await until_told(client, "a 2")

    assert (await client.server.next_ask()).tasks == {"a": 2, "b": 1}
    assert await client.read("told") == ["a 2"]


async def test_somebody_elses_login_is_told_to_every_card(client: Client) -> None:
    await watch(client, "a", "b")
    (await client.server.next_ask()).refuse_as_ours(409, "other_user")
    await until_told(client, "a other_user", "b other_user")


async def test_a_task_that_is_quiet_for_too_long_is_given_up_after_one_last_look(client: Client) -> None:
    await watch(client, "a", budgetSeconds=0.3)
    held = await client.server.next_ask()
    await until(
        lambda: client.page.evaluate(
            "performance.now() - harness.feed.leader.loop.tasks.byId.get('a').quietSince > 300"
        )
    )
    held.tell_of({}, reason="timeout", changed=False)
    look = await client.server.next_ask()
    look.tell_of({}, reason="immediate", changed=False)
    await until_told(client, "a budget_spent")

    assert look.instant


async def test_somebody_who_looks_again_sees_the_state_of_this_moment(client: Client) -> None:
    await watch(client, "a")
    held = await client.server.next_ask()
    await client.page.evaluate(LOOK)
    await held.wait_until_gone()
    look = await client.server.next_ask()
    look.tell_of({}, reason="immediate", changed=False)

    assert look.instant
    assert not (await client.server.next_ask()).instant


async def test_a_page_put_aside_asks_nothing_until_it_is_shown_again(client: Client) -> None:
    await watch(client, "a")
    held = await client.server.next_ask()
    await client.page.evaluate(HIDE)
    await held.wait_until_gone()
    assert client.server.arrived.empty()
    await client.page.evaluate(SHOW)

    assert (await client.server.next_ask()).tasks == {"a": 1}


# Many tabs


async def test_all_tabs_share_one_request_and_each_hears_of_its_own_tasks(client: Client, other: Client) -> None:
    await watch(client, "a", "both")
    await client.server.next_ask()
    await watch(other, "b", "both")
    ask = await until_asked_for(client.server, {"a": 1, "b": 1, "both": 1})
    ask.tell_of({"a": 2, "b": 3, "both": 4})
    await until_told(client, "a 2", "both 4")
    await until_told(other, "b 3", "both 4")

    assert (await client.server.next_ask()).tasks == {"a": 2, "b": 3, "both": 4}
    assert client.server.held == 1
    assert len(await client.read("told")) == len(await other.read("told")) == 2


async def test_when_the_tab_that_asks_is_closed_another_one_goes_on(client: Client, other: Client) -> None:
    await watch(other, "b")
    await client.server.next_ask()
    await watch(client, "a")
    ask = await until_asked_for(client.server, {"a": 1, "b": 1})
    ask.tell_of({"a": 5, "b": 5})
    await until_told(client, "a 5")
    held = await client.server.next_ask()
    await other.page.close()
    await held.wait_until_gone()

    assert (await client.server.next_ask()).tasks == {"a": 5}


async def test_when_the_tab_that_asks_crashes_another_one_goes_on(client: Client, other: Client) -> None:
    await watch(other, "b")
    await client.server.next_ask()
    await watch(client, "a")
    held = await until_asked_for(client.server, {"a": 1, "b": 1})
    other.page.on("crash", lambda _page: None)
    with pytest.raises(Exception, match="crash"):
        await other.page.goto("chrome://crash")
    await held.wait_until_gone()

    assert (await client.server.next_ask()).tasks == {"a": 1}


async def test_what_a_closed_tab_has_shown_is_asked_for_no_longer(client: Client, other: Client) -> None:
    await watch(client, "a")
    await client.server.next_ask()
    await watch(other, "b")
    await until_asked_for(client.server, {"a": 1, "b": 1})
    await other.page.close(run_before_unload=False)

    await until_asked_for(client.server, {"a": 1})


async def test_a_tab_that_is_behind_is_told_what_it_missed(client: Client, other: Client) -> None:
    await watch(client, "a")
    (await client.server.next_ask()).tell_of({"a": 7})
    await client.server.next_ask()
    await watch(other, "a")
    (await until_asked_for(client.server, {"a": 1})).tell_of({"a": 7})
    await until_told(other, "a 7")

    assert await client.read("told") == ["a 7"]


async def test_looking_at_any_tab_is_a_look_for_all(client: Client, other: Client) -> None:
    await watch(client, "a")
    await client.server.next_ask()
    await watch(other, "b")
    await until_asked_for(client.server, {"a": 1, "b": 1})
    await other.page.evaluate(LOOK)
    look = await client.server.next_ask()

    assert (look.instant, look.tasks) == (True, {"a": 1, "b": 1})


async def test_a_tab_that_leads_and_hears_nothing_gives_way_to_one_that_is_looked_at(
    client: Client, other: Client
) -> None:
    """As one that the browser has frozen: headless Chromium freezes none."""
    await watch(other, "b")
    await client.server.next_ask()
    await watch(client, "a", pongSeconds=0.2)
    held = await until_asked_for(client.server, {"a": 1, "b": 1})
    await other.page.evaluate(DEAF)
    await client.page.evaluate(LOOK)
    await held.wait_until_gone()

    await until_asked_for(client.server, {"a": 1, "b": 1})
    assert await other.read("feed.leader") is None
    assert await client.read("feed.leader !== null")


async def test_a_leader_that_answers_is_left_alone(client: Client, other: Client) -> None:
    await watch(client, "a")
    await client.server.next_ask()
    await watch(other, "b", pongSeconds=0.2)
    await until_asked_for(client.server, {"a": 1, "b": 1})
    # A timer of the page that is set later, and for longer, ends after the one of its patience would have.
    await other.page.evaluate("harness.feed.pingLeader(); new Promise((resolve) => setTimeout(resolve, 400))")

    assert client.server.arrived.empty()
    assert await other.read("feed.leader") is None


async def test_a_message_of_another_version_of_the_page_is_ignored(client: Client, other: Client) -> None:
    errors: list[str] = []

    def note(error: object) -> None:
        errors.append(str(error))

    client.page.on("pageerror", note)
    await watch(client, "a")
    await client.server.next_ask()
    await other.page.evaluate(SEND, [*UNKNOWN, {"type": "wake"}])  # the last one is known: those before it have come
    look = await client.server.next_ask()
    look.tell_of({"a": 2})
    await until_told(client, "a 2")

    assert (look.instant, look.tasks) == (True, {"a": 1})
    assert await client.read("told") == ["a 2"]
    assert errors == []


async def test_without_web_locks_each_tab_asks_for_itself(client: Client) -> None:
    """Plain http on a local network is no secure context."""
    page = await client.page.context.new_page()
    await page.add_init_script("Object.defineProperty(navigator, 'locks', {value: undefined})")
    insecure = await open_tab(page, client.server)
    await watch(client, "a")
    assert (await client.server.next_ask()).tasks == {"a": 1}
    await watch(insecure, "b")
    assert (await client.server.next_ask()).tasks == {"b": 1}
    await until(lambda: client.server.held == 2)
    await page.close()
