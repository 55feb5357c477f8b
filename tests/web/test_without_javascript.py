"""Creating pictures with a form alone, as browsers without JavaScript do."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest

from server.storage.embedded.cluster import EmbeddedPostgres
from server.storage.images import reference_name
from server.web import keys
from tests.support.outage import outage
from tests.support.people import Enter, Person, Start
from tests.support.postgres import Sql
from tests.web.test_tasks import form, image_files, picture

PAGE = {"Accept": "text/html"}
COLUMNS = "SELECT prompt, type, size, has_reference FROM public.image_generations"


async def send(person: Person, status: int, **fields: str | bytes) -> Any:
    async with person.http.post("/", data=form(**fields), headers=PAGE, allow_redirects=False) as reply:
        text = await reply.text()
        assert reply.status == status, text
        return reply.headers["Location"] if status == 303 else html.unescape(text)


def values(text: str) -> dict[str, str]:
    """Return what is typed and chosen in the form of a page."""
    prompt = re.findall(r'<textarea id="prompt".*?>\n(.*?)</textarea>', text, re.DOTALL)
    seed = re.findall(r'<input id="seed".*?value="(.*?)"', text, re.DOTALL)
    size = re.findall(r'<option value="(\S+)" selected>', text)
    mode = re.findall(r'name="type" value="(\w+)" checked', text)
    return {"prompt": prompt[0], "seed": seed[0], "size": size[0], "type": mode[0]}


async def test_the_form_makes_a_task_and_goes_on_to_its_page(alice: Person, sql: Sql) -> None:
    fields = {"prompt": " two\r\nlines ", "type": "advanced", "seed": " 7 ", "size": "512x512"}
    target = await send(alice, 303, **fields, user=alice.user.user_id, key="k", reference_image=picture())
    task_id = target.removeprefix("/tasks/")
    assert sql("SELECT task_id, prompt, type, seed, size, has_reference FROM public.image_generations") == [
        (task_id, "two\nlines", "advanced", 7, "512x512", True)
    ]
    assert image_files(alice) == [reference_name(task_id)]
    async with alice.http.get(target, headers=PAGE) as reply:
        assert '<noscript><meta http-equiv="refresh" content="3"></noscript>' in await reply.text()
    sql("UPDATE public.image_generations SET status = 'canceled'")
    async with alice.http.get(target, headers=PAGE) as reply:
        assert "refresh" not in await reply.text()


async def test_what_is_not_shown_is_not_sent(alice: Person, sql: Sql) -> None:
    """Of a form in basic mode neither the seed nor the image, which are there for the advanced one."""
    await send(alice, 303, prompt="x", type="basic", seed="nonsense", reference_image=picture())
    assert sql(COLUMNS) == [("x", "basic", "768x768", False)]


async def test_the_same_form_sent_twice_makes_one_task(alice: Person, sql: Sql) -> None:
    first = await send(alice, 303, prompt="x", key="once")
    assert await send(alice, 303, prompt="x", key="once") == first
    assert await send(alice, 303, prompt="y", key="once") != first
    assert await send(alice, 303, prompt="x", key="another") != first
    for key in ("", "ключ", "k" * 65):
        await send(alice, 303, prompt="x", key=key)
    assert sql("SELECT count(*) FROM public.image_generations") == [(6,)]


@pytest.mark.parametrize(
    ("wrong", "status", "said"),
    [
        ({"seed": "-1"}, 400, "seed must be a whole number"),
        ({"prompt": "\u200b"}, 400, "prompt is required"),
        ({"prompt": "x" * 4001}, 400, "prompt has 4001 characters"),
        ({"size": "1x1"}, 400, "size must be one of"),
        ({"colour": "red"}, 400, "Unknown field: colour"),
        ({"reference_image": b"only text"}, 415, "This is text."),
        ({"reference_image": picture()[:40]}, 422, "damaged or incomplete"),
    ],
)
async def test_a_refused_form_comes_back_with_what_was_typed(
    alice: Person, sql: Sql, wrong: dict[str, Any], status: int, said: str
) -> None:
    typed = {"prompt": "<b>two</b>\nlines", "type": "advanced", "seed": "7", "size": "512x768", **wrong}
    text = await send(alice, status, **typed)
    assert said in text
    assert "choose it again" in text
    expected = {name: typed[name] for name in ("prompt", "seed", "type")}
    found = values(text)
    assert found == expected | {"size": found["size"]}
    assert found["size"] == typed["size"] or "size" in wrong
    assert sql("SELECT count(*) FROM public.image_generations") == [(0,)]


async def test_over_the_limit_the_form_comes_back_too(start: Start, enter: Enter) -> None:
    alice = await enter(await start(limits={"enabled": True, "create": "1 per minute"}))
    await send(alice, 303, prompt="x")
    async with alice.http.post("/", data=form(prompt="typed"), headers=PAGE) as reply:
        text = await reply.text()
        assert (reply.status, values(text)["prompt"]) == (429, "typed")
        assert int(reply.headers["Retry-After"]) >= 1


@pytest.mark.parametrize("known", [True, False])
async def test_without_a_database_the_form_comes_back_too(
    alice: Person, postgres: EmbeddedPostgres, dsn: str, *, known: bool
) -> None:
    """Whether the session is in memory or not."""
    cookie = f"{alice.app[keys.COOKIE_SESSIONS].cookie_name}=another"
    headers = PAGE if known else PAGE | {"Cookie": cookie}
    await send(alice, 303, prompt="x")
    if not known:
        alice.http.session.cookie_jar.clear()
    with outage(postgres, dsn):
        async with alice.http.post("/", data=form(prompt="typed"), headers=headers) as reply:
            assert (reply.status, values(await reply.text())["prompt"]) == (503, "typed")
            assert 1 <= int(reply.headers["Retry-After"]) <= 4


async def test_a_folder_that_can_not_be_written_does_not_lose_what_was_typed(alice: Person) -> None:
    folder = alice.app[keys.IMAGES].folder
    folder.rename(folder.with_name("away"))
    text = await send(alice, 503, prompt="typed", type="advanced", reference_image=picture())
    assert values(text)["prompt"] == "typed"
    assert "Pictures can't be stored or read just now." in text


async def test_a_stranger_gets_the_form_back_and_the_image_is_not_read(start: Start) -> None:
    client = await start()
    order = form(prompt="typed", user="00000000-0000-0000-0000-000000000001", reference_image=bytes(1 << 20))
    async with client.post("/", data=order, headers=PAGE) as reply:
        text = await reply.text()
        assert reply.status == 401
    assert values(text)["prompt"] == "typed"
    assert 'name="user" value="00000000-0000-0000-0000-000000000001"' in text
    assert 'href="/login?ended" target="_blank"' in text
    async with client.post("/", data=form(prompt="typed")) as reply:
        assert (reply.status, (await reply.json())["code"]) == (401, "not_signed_in")
