"""The long-poll client, in a real browser, against a server that answers as each test says."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.browser.harness import Client
from tests.browser.scripted_server import Ask

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("browser")]

HOLD_WATCHDOG_MS = 45_000
WAKES = {
    "visible": "document.dispatchEvent(new Event('visibilitychange'))",
    "online": "window.dispatchEvent(new Event('online'))",
}
HIDE = "window.dispatchEvent(new PageTransitionEvent('pagehide', {persisted: true}))"
SHOW = "window.dispatchEvent(new PageTransitionEvent('pageshow', {persisted: true}))"


# What is asked, what is shown


async def test_asks_at_once_and_then_holds_with_the_version_it_was_told(client: Client) -> None:
    await client.start(clientId="page-7")
    first = await client.server.next_ask()
    first.tell(4)
    second = await client.server.next_ask()
    second.tell(5)
    third = await client.server.next_ask()

    assert dict(first.query) == {"taskId": "task-1", "c": "page-7", "wait": "0"}
    assert dict(second.query) == {"taskId": "task-1", "c": "page-7", "version": "4"}
    assert third.version == "5"
    assert await client.read("updates") == [4, 5]


async def test_names_the_place_it_was_told_while_the_task_waits_and_passes_on_another_one(client: Client) -> None:
    await client.start(clientId="page-7")
    (await client.server.next_ask()).tell(4, status="pending", place=3)
    second = await client.server.next_ask()
    second.tell(4, status="pending", place=1, reason="place", changed=False)
    third = await client.server.next_ask()
    third.tell(5)
    fourth = await client.server.next_ask()

    assert (second.version, second.query["place"]) == ("4", "3")
    assert (third.version, third.query["place"]) == ("4", "1")
    assert "place" not in fourth.query
    assert await client.read("updates") == [4, 4, 5]
    assert await client.read("pauses") == []


async def test_a_place_that_is_unknown_is_named_as_none(client: Client) -> None:
    await client.start(clientId="page-7")
    (await client.server.next_ask()).tell(4, status="pending")

    assert (await client.server.next_ask()).query["place"] == "0"


async def test_resolves_with_the_final_state(client: Client) -> None:
    held = await client.start_held(version=3)
    held.tell(4, status="completed", next="stop")

    assert await client.outcome() == {"version": 4, "status": "completed"}
    assert await client.read("updates") == [4]


async def test_stops_when_the_server_says_so(client: Client) -> None:
    held = await client.start_held(version=3)
    held.tell(3, reason="immediate", next="stop")

    assert await client.outcome() == {"version": 3, "status": "processing"}


async def test_a_timeout_is_followed_by_the_next_hold_at_once(client: Client) -> None:
    held = await client.start_held(version=3)
    await client.advance(30_000)
    held.tell(3, reason="timeout", changed=False)
    again = await client.server.next_ask()

    assert (again.version, again.instant) == ("3", False)
    assert await client.read("updates") == []
    assert await client.read("pauses") == []


async def test_never_shows_an_older_version(client: Client) -> None:
    held = await client.start_held(version=5)
    await client.advance(1000)
    held.tell(4, status="completed")
    again = await client.server.next_ask()

    assert again.version == "5"
    assert await client.read("updates") == []
    assert await client.read("outcome") is None


async def test_accepts_an_older_version_after_a_reset(client: Client) -> None:
    held = await client.start_held(version=9)
    await client.advance(1000)
    held.tell(2, reason="reset")
    again = await client.server.next_ask()

    assert again.version == "2"
    assert await client.read("updates") == [2]


# What goes wrong and passes


async def test_backoff_doubles_up_to_ten_seconds_with_full_jitter(client: Client) -> None:
    figures = "luck => [0, 1, 2, 3, 4, 20].map((attempt) => harness.backoff(attempt, () => luck))"

    assert await client.page.evaluate(figures, 1) == [1000, 2000, 4000, 8000, 10000, 10000]
    assert await client.page.evaluate(figures, 0.5) == [500, 1000, 2000, 4000, 5000, 5000]
    assert await client.page.evaluate(figures, 0) == [0, 0, 0, 0, 0, 0]


async def test_every_passing_failure_is_retried_with_growing_pauses(client: Client) -> None:
    failures: list[Callable[[Ask], None]] = [
        lambda ask: ask.refuse(500),
        lambda ask: ask.refuse(502),
        lambda ask: ask.refuse(429),
        lambda ask: ask.say("<p>Please accept our terms</p>"),
        lambda ask: ask.break_off(),
    ]
    ask = await client.start_held()
    for number, fail in enumerate(failures, start=1):
        fail(ask)
        await client.advance(await client.pause(number))
        ask = await client.server.next_ask()

    assert await client.read("pauses") == [1000, 2000, 4000, 8000, 10000]


async def test_the_pauses_start_again_after_a_success(client: Client) -> None:
    ask = await client.start_held()
    for number in (1, 2):
        ask.refuse(503)
        await client.advance(await client.pause(number))
        ask = await client.server.next_ask()
    ask.tell(2)
    (await client.server.next_ask()).refuse(503)

    assert await client.pause(3) == 1000


async def test_retry_after_in_seconds_is_honoured(client: Client) -> None:
    held = await client.start_held()
    held.refuse(503, {"Retry-After": "7"})

    assert await client.pause(1) == 7000


async def test_retry_after_as_a_date_is_measured_by_the_servers_clock(client: Client) -> None:
    held = await client.start_held()
    dates = {
        "Date": "Wed, 01 Jan 2020 00:00:00 GMT",
        "Retry-After": "Wed, 01 Jan 2020 00:00:09 GMT",
    }
    held.refuse(503, dates)

    assert await client.pause(1) == 9000


async def test_retry_after_ms_of_a_reply_is_honoured(client: Client) -> None:
    held = await client.start_held()
    held.tell(1, reason="degraded", changed=False, retryAfterMs=6500)
    await client.advance(await client.pause(1))

    assert await client.read("pauses") == [6500]
    assert not (await client.server.next_ask()).instant


async def test_a_silent_server_is_given_up_and_asked_again(client: Client) -> None:
    held = await client.start_held()
    await client.advance(HOLD_WATCHDOG_MS - 1)
    assert not held.gone.is_set()
    await client.advance(1)
    await held.wait_until_gone()
    await client.advance(await client.pause(1))

    assert (await client.server.next_ask()).version == "1"


# What ends it


@pytest.mark.parametrize(
    ("status", "code"),
    [(401, "not_signed_in"), (404, "task_not_found"), (410, "task_deleted"), (409, "other_user"), (400, "bad_request")],
)
async def test_some_refusals_are_final(client: Client, status: int, code: str) -> None:
    held = await client.start_held()
    held.refuse_as_ours(status, code)

    assert await client.outcome() == {"name": "PollError", "code": code, "status": status}


FOREIGN = {
    "a page": {"text": "<h1>404 Not Found</h1>", "content_type": "text/html"},
    "json": {"text": '{"code": "task_not_found"}', "content_type": "application/json"},
    "a gateway's problem": {
        "text": '{"type": "about:blank", "title": "Not Found", "code": "task_not_found"}',
        "content_type": "application/problem+json",
    },
    "a problem without a code": {
        "text": '{"type": "urn:longpoll:problem:undefined"}',
        "content_type": "application/problem+json",
    },
    "a broken problem": {"text": "{", "content_type": "application/problem+json"},
    "nothing": {"text": "", "content_type": "application/problem+json"},
}


@pytest.mark.parametrize("status", [401, 403, 404, 410])
@pytest.mark.parametrize("kind", FOREIGN)
async def test_only_our_own_refusals_are_final(client: Client, status: int, kind: str) -> None:
    held = await client.start_held()
    held.reply(status=status, **FOREIGN[kind])
    await client.advance(await client.pause(1))
    held = await client.server.next_ask()
    held.tell(2, status="completed", next="stop")

    assert await client.outcome() == {"version": 2, "status": "completed"}


async def test_gives_up_when_nothing_changes_after_one_last_look(client: Client) -> None:
    held = await client.start_held(budgetSeconds=40)
    await client.advance(30_000)
    held.tell(1, reason="timeout", changed=False)
    held = await client.server.next_ask()
    await client.advance(10_000)
    held.tell(1, reason="timeout", changed=False)
    last = await client.server.next_ask()
    last.tell(1, reason="immediate", changed=False)

    assert last.instant
    assert await client.outcome() == {"name": "PollError", "code": "budget_spent", "status": 0}


async def test_a_change_renews_the_budget(client: Client) -> None:
    held = await client.start_held(budgetSeconds=40)
    await client.advance(30_000)
    held.tell(2)
    held = await client.server.next_ask()
    await client.advance(30_000)
    held.tell(2, reason="timeout", changed=False)

    assert not (await client.server.next_ask()).instant


async def test_does_not_wait_longer_for_the_server_than_its_budget(client: Client) -> None:
    held = await client.start_held(budgetSeconds=10)
    held.refuse(503, {"Retry-After": "3600"})
    await client.advance(await client.pause(1))

    assert await client.read("pauses") == [10_000]
    assert (await client.outcome())["code"] == "budget_spent"


# Leaving and coming back


async def test_leaving_closes_the_held_request(client: Client) -> None:
    held = await client.start_held()
    await client.page.evaluate("harness.leave()")
    await held.wait_until_gone()

    assert (await client.outcome())["name"] == "AbortError"


async def test_leaving_ends_a_pause(client: Client) -> None:
    held = await client.start_held()
    held.refuse(503)
    await client.pause(1)
    await client.page.evaluate("harness.leave()")

    assert (await client.outcome())["name"] == "AbortError"


async def test_going_to_another_page_closes_the_held_request(client: Client) -> None:
    held = await client.start_held()
    await client.page.goto("about:blank")

    await held.wait_until_gone()


async def test_a_page_put_aside_asks_nothing_until_it_is_shown_again(client: Client) -> None:
    held = await client.start_held(version=2)
    await client.page.evaluate(HIDE)
    await held.wait_until_gone()
    await client.advance(3_600_000)
    assert client.server.arrived.empty()
    await client.page.evaluate(SHOW)
    first = await client.server.next_ask()
    first.tell(3)

    assert (first.version, first.instant) == ("2", True)
    assert not (await client.server.next_ask()).instant


@pytest.mark.parametrize("wake", WAKES)
async def test_waking_looks_at_once_and_holds_again(client: Client, wake: str) -> None:
    held = await client.start_held(version=2)
    await client.page.evaluate(WAKES[wake])
    await held.wait_until_gone()
    look = await client.server.next_ask()
    look.tell(2, reason="immediate", changed=False)
    again = await client.server.next_ask()

    assert (look.version, look.instant) == ("2", True)
    assert (again.version, again.instant) == ("2", False)
    assert await client.read("pauses") == []


async def test_waking_cuts_a_pause_short(client: Client) -> None:
    held = await client.start_held()
    held.refuse(500)
    await client.pause(1)
    await client.page.evaluate(WAKES["online"])

    assert (await client.server.next_ask()).instant


async def test_waking_does_not_cut_short_what_the_server_asked_for(client: Client) -> None:
    held = await client.start_held()
    held.refuse(503, {"Retry-After": "8"})
    await client.pause(1)
    await client.advance(3000)
    await client.page.evaluate(WAKES["online"])
    rest = await client.pause(2)
    assert client.server.arrived.empty()
    await client.advance(rest)

    assert rest == 5000
    assert (await client.server.next_ask()).instant


async def test_a_flood_of_wakes_is_one_look(client: Client) -> None:
    flood = f"for (let i = 0; i < 50; i += 1) {{ {WAKES['online']} }}"
    held = await client.start_held()
    await client.page.evaluate(flood)
    await held.wait_until_gone()
    look = await client.server.next_ask()
    await client.page.evaluate(flood)
    look.tell(1, reason="immediate", changed=False)

    assert not (await client.server.next_ask()).instant
    assert client.server.arrived.empty()


# No hammering


async def test_instant_replies_without_news_are_spaced_more_and_more(client: Client) -> None:
    ask = await client.start_held()
    for number in range(1, 6):
        ask.tell(1, reason="timeout", changed=False)
        await client.advance(await client.pause(number))
        ask = await client.server.next_ask()

    assert await client.read("pauses") == [1000, 2000, 4000, 8000, 10000]


async def test_no_luck_makes_the_spacing_shorter_than_a_quarter_second(client: Client) -> None:
    await client.page.evaluate("harness.luck = 0")
    ask = await client.start_held()
    for number in (1, 2, 3):
        ask.tell(1, reason="superseded", changed=False)
        await client.advance(await client.pause(number))
        ask = await client.server.next_ask()

    assert await client.read("pauses") == [250, 250, 250]


async def test_servers_that_disagree_are_spaced_too(client: Client) -> None:
    held = await client.start_held(version=9)
    held.tell(2, reason="reset")

    assert await client.pause(1) == 1000


async def test_endless_instant_news_is_spaced_in_the_end(client: Client) -> None:
    ask = await client.start_held(version=0)
    for version in range(1, 22):
        ask.tell(version)
        if version < 21:
            ask = await client.server.next_ask()

    assert await client.pause(1) == 250
