"""The pages a person sees: they show what is the person's own, and nothing in them can run but our own scripts."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from server import resources
from server.web import keys
from server.web.handlers import pages
from tests.support.people import Enter, Person, Start
from tests.support.postgres import Sql

PAGE = {"Accept": "text/html,application/xhtml+xml"}
EVIL = """<script>alert(1)</script>'"><img src=x onerror=alert(1)> & {{ 7 * 7 }}"""


class Reader(HTMLParser):
    """Collects what could run, and the data of one element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.inline: list[str] = []
        self.tasks: list[Any] = []
        self.prompts: list[str | None] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "style" or (tag == "script" and not given.get("src")):
            self.inline.append(tag)
        self.inline += [f"{tag} {name}" for name in given if name.startswith("on") or name == "style"]
        self.inline += [f"{tag} {name}" for name, value in given.items() if (value or "").startswith("javascript:")]
        if "data-task" in given:
            self.tasks.append(json.loads(given["data-task"] or ""))
        if "data-prompt" in given:
            self.prompts.append(given["data-prompt"])


async def page(person: Person, url: str, status: int = 200) -> str:
    async with person.http.get(url, headers=PAGE, allow_redirects=False) as reply:
        text = await reply.text()
        assert reply.status == status, text
        assert reply.content_type == "text/html"
        policy = reply.headers["Content-Security-Policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert reply.headers["Cache-Control"] == "private, no-store"
        assert Reader(text).inline == []
        assert reply.headers["X-Request-Id"] in text
        return text


async def test_every_page_renders_for_somebody_signed_in(alice: Person) -> None:
    task_id = await alice.create("a lighthouse at dawn")
    for url in ("/ops", "/docs"):
        assert "alice@example.org" in await page(alice, url)
    for url in ("/", "/tasks", f"/tasks/{task_id}"):
        text = await page(alice, url)
        assert "alice@example.org" in text
        assert 'data-hold-seconds="30.0"' in text
        assert 'data-client-timeout-seconds="45.0"' in text


def imported(module: str, found: set[str]) -> set[str]:
    """Add what a module imports, and what that imports in turn, to `found`."""
    static = resources.folder("static")
    path = static / module
    for name in re.findall(
        r'^(?:import|export)\b[^;]*?\bfrom "([^"]+)"', path.read_text(encoding="utf-8"), re.MULTILINE
    ):
        other = (path.parent / name).resolve().relative_to(static.resolve()).as_posix()
        if other not in found:
            found |= imported(other, found | {other})
    return found


async def test_a_page_preloads_just_what_its_module_imports(alice: Person) -> None:
    """One that is missing is found only after those that import it; one too many is loaded for nothing."""
    for url, module in (("/", "pages/generate.js"), (f"/tasks/{await alice.create()}", "pages/task.js")):
        preloaded = re.findall(r'rel="modulepreload" href="/static/([^"]+)"', await page(alice, url))
        assert sorted(preloaded) == sorted(imported(module, set())), url


async def test_strangers_see_the_forms_and_are_sent_to_them(start: Start) -> None:
    client = await start()
    for url in ("/docs", "/login", "/register", "/login?next=%2Ftasks"):
        async with client.get(url, headers=PAGE) as reply:
            text = await reply.text()
            assert reply.status == 200
            assert Reader(text).inline == []
    assert 'value="/tasks"' in text
    async with client.get("/login?next=//evil.example", headers=PAGE) as reply:
        assert "evil" not in await reply.text()
    for method in ("GET", "HEAD"):
        async with client.request(method, "/tasks/abc?x=1&y=é", headers=PAGE, allow_redirects=False) as reply:
            assert reply.status == 303
            assert reply.headers["Location"] == "/login?next=%2Ftasks%2Fabc%3Fx%3D1%26y%3D%25C3%25A9"


async def test_whoever_is_logged_in_needs_no_form(alice: Person) -> None:
    for url, target in (
        ("/login", "/"),
        ("/register?next=/tasks", "/tasks"),
        ("/login?next=https://evil.example", "/"),
    ):
        async with alice.http.get(url, headers=PAGE, allow_redirects=False) as reply:
            assert (reply.status, reply.headers["Location"]) == (303, target)


async def test_the_page_of_a_task_shows_its_prompt_and_state(alice: Person, sql: Sql) -> None:
    """The page's own script begins from the state in it, the same that the status request gives."""
    task_id = await alice.create(EVIL)
    text = await page(alice, f"/tasks/{task_id}")
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    (task,) = Reader(text).tasks
    state = (await alice.status(task_id, wait=0))["data"]
    assert task == {**state, "queuePosition": task["queuePosition"], "prompt": EVIL}
    sql("UPDATE public.image_generations SET status = 'failed', error = %s", (EVIL,))
    text = await page(alice, f"/tasks/{task_id}")
    (task,) = Reader(text).tasks
    assert (task["status"], task["version"], task["error"]) == ("failed", 2, EVIL)
    assert html.escape(EVIL).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in text


async def test_the_page_of_another_users_task_is_a_404_like_that_of_none(alice: Person, bob: Person) -> None:
    task_id = await alice.create("a secret")
    texts = set()
    for given in (task_id, "unknown", "a" * 65, "a.b"):
        text = await page(bob, f"/tasks/{given}", 404)
        texts.add(re.sub(r"[0-9a-f]{16}", "…", text))
    assert len(texts) == 1
    assert "Task not found" in texts.pop()


async def test_the_history_shows_the_persons_own_prompts(alice: Person, bob: Person, sql: Sql) -> None:
    await bob.create("bob's picture")
    await alice.create(EVIL)
    sql("UPDATE public.image_generations SET status = 'completed', result = '/r' WHERE prompt = %s", (EVIL,))
    await alice.create("a quiet lake")
    text = await page(alice, "/tasks")
    assert Reader(text).prompts == ["a quiet lake", EVIL]
    assert "<script>alert" not in text
    assert Reader(await page(alice, "/tasks?status=completed")).prompts == [EVIL]
    assert "No pictures with this status" in await page(alice, "/tasks?status=failed")
    assert "status must be one of" in await page(alice, "/tasks?status=wrong", 400)


async def test_the_history_has_pages(alice: Person, sql: Sql) -> None:
    for number in range(3):
        await alice.create(f"picture {number}")
    text = await page(alice, "/tasks?limit=2")
    assert Reader(text).prompts == ["picture 2", "picture 1"]
    (target,) = re.findall(r'href="(/tasks\?cursor=[^"]+)"', text)
    assert Reader(await page(alice, html.unescape(target))).prompts == ["picture 0"]


async def test_a_person_gets_a_page_when_something_is_wrong(alice: Person) -> None:
    for url, status, title in (("/nowhere", 404, "Not found"), ("/<script>x</script>", 404, "Not found")):
        text = await page(alice, url, status)
        assert title in text
        assert "alice@example.org" in text, "who is logged in still is"
        assert "<script>x" not in text


@pytest.mark.parametrize(
    ("days", "sentence"),
    [
        (0, "Pictures are kept until you delete them."),
        (1, "Pictures are kept for 1 day after they were made, then deleted."),
        (30, "Pictures are kept for 30 days after they were made, then deleted."),
    ],
)
async def test_people_are_told_how_long_their_pictures_are_kept(
    start: Start, enter: Enter, days: float, sentence: str
) -> None:
    """Where they look at them, and where programs are told about them."""
    alice = await enter(await start(generation={"keep_days": days}))
    for url in ("/tasks", "/docs"):
        assert sentence in await page(alice, url)
    async with alice.http.get("/openapi.json") as reply:
        assert sentence in (await reply.json())["info"]["description"]


@pytest.mark.parametrize("how", ["gone", "a folder"])
async def test_a_script_that_can_not_be_read_is_told_as_everything_is(
    alice: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """An installation that is just being replaced, say: for now, and not as if there were no such thing."""
    path = tmp_path / "api.js"
    if how == "a folder":
        path.mkdir()
    monkeypatch.setitem(pages._STATIC, "longpoll/api.js", path)
    async with alice.http.get("/static/longpoll/api.js") as reply:
        assert (reply.status, (await reply.json())["code"]) == (503, "unavailable")
        assert reply.headers["Retry-After"]


async def test_pages_need_no_file_while_the_server_runs(
    start: Start, enter: Enter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = await enter(await start())
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "gone" / "server")
    with pytest.raises(FileNotFoundError):
        resources.read_text("templates", "history.html")
    for url in ("/", "/tasks", "/ops", "/docs"):
        await page(alice, url)


async def test_the_description_for_people_is_rendered_once(alice: Person) -> None:
    """It takes 30 ms, in which nobody else is served; whoever asks by another name still sees that name."""
    first = await page(alice, "/docs")
    rendered = alice.app[keys.RENDERED]["operations"]
    assert rendered in first
    alice.app[keys.RENDERED]["operations"] = "<p>kept</p>"
    async with alice.http.get("/docs", headers=PAGE | {"Host": "nas.local"}) as reply:
        second = await reply.text()
    assert "<p>kept</p>" in second
    assert "http://nas.local/api/auth/register" in second
    assert "nas.local" not in first
