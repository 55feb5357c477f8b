"""The desk: how a page, and all tabs together, share the browser's few connections."""

from __future__ import annotations

from tests.browser.harness import Client


async def test_a_page_of_many_tasks_holds_the_newest_and_asks_for_the_others_in_turn(
    client: Client,
) -> None:
    await client.page.evaluate("harness.watch(6)")
    asks = [await client.server.next_ask() for _ in range(4)]
    held = {ask.query["taskId"] for ask in asks if not ask.instant}
    looks = [ask for ask in asks if ask.instant]
    for _ in range(2):
        looks[-1].tell(1, reason="immediate", changed=False)
        looks.append(await client.server.next_ask())

    assert held == {"task-6", "task-5", "task-4"}
    assert {ask.query["taskId"] for ask in looks} == {"task-1", "task-2", "task-3"}
    assert client.server.most_held == 4


async def test_tabs_share_the_held_polls_of_the_browser(client: Client) -> None:
    await client.page.evaluate("harness.watch(4)")
    holds = [await client.server.next_ask() for _ in range(4)]
    other = await client.page.context.new_page()
    await other.goto(client.server.url)
    await other.wait_for_function("window.harness")
    await other.evaluate("harness.watch(1)")
    first = look = await client.server.next_ask()
    await client.page.goto("about:blank")
    for hold in holds:
        await hold.wait_until_gone()
    while look.instant:
        look.tell(1, reason="immediate", changed=False)
        look = await client.server.next_ask()
    await other.close()

    assert not any(hold.instant for hold in holds)
    assert first.instant
    assert client.server.most_held == 5
