"""The newcomer's first minute, in a real browser, against everything the README's first command starts."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.async_api import Browser, Page, Request, expect

from tests.support.postgres import execute
from tests.support.processes import ServerProcess, server_process

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("browser")]


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="longpoll-run-", dir="/tmp"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


# Every text that the progress in percent has had, as a person would have seen it.
WATCH_PROGRESS = """() => {
  window.shown = [];
  const look = () => document.querySelectorAll(".card-percent").forEach(({ textContent }) => {
    if (window.shown.at(-1) !== textContent) window.shown.push(textContent);
  });
  new MutationObserver(look).observe(document.body, { subtree: true, childList: true, characterData: true });
}"""


async def sign_up(page: Page, url: str) -> None:
    await page.goto(url)
    await page.wait_for_url(f"{url}/login?next=%2F")
    await page.get_by_role("main").get_by_role("link", name="Sign up").click()
    await page.get_by_label("Email").fill("newcomer@example.org")
    await page.get_by_label("Password").fill("correct horse")
    await page.get_by_role("main").get_by_role("button", name="Sign up").click()
    await page.wait_for_url(f"{url}/")


async def test_from_signing_up_to_a_picture_with_a_handful_of_requests(folder: Path, chromium: Browser) -> None:
    """Five steps of a second each, as the README's first command makes them, and three requests at most."""
    asked: list[str] = []
    with server_process(folder) as server:
        async with await chromium.new_page() as page:
            faults = _listen_for_faults(page)
            page.on("request", lambda request: _note(request, asked))
            await sign_up(page, server.url)
            await page.get_by_role("textbox", name="Prompt").fill("a quiet mountain lake at sunset")
            await page.get_by_label("Size").select_option("512x512")
            await page.evaluate(WATCH_PROGRESS)
            await page.get_by_role("button", name="Create picture").click()
            picture = page.get_by_role("img", name="a quiet mountain lake at sunset")
            await expect(picture).to_be_visible(timeout=30_000)
            assert await picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 512
            await expect(page.get_by_text("newcomer@example.org")).to_be_visible()
            shown = await page.evaluate("window.shown")
        assert server.stop() == 0
    assert 1 <= len(asked) < 4, asked
    (task,) = parse_qs(urlsplit(asked[0]).query)["task"]
    assert task.endswith(":2"), "the answer to the submit has shown the beginning of the work"
    moments = [text for text in shown if text not in {"", "0 %", "100 %"}]
    assert len(set(moments)) >= 2, shown
    assert moments == sorted(moments), "progress never goes back"
    assert faults == []


async def test_progress_moves_survives_a_reload_and_can_be_canceled(begun_folder: Path, chromium: Browser) -> None:
    with server_process(begun_folder, generation__step_seconds=60) as server:
        async with await chromium.new_page() as page:
            faults = _listen_for_faults(page)
            await sign_up(page, server.url)
            await page.get_by_role("textbox", name="Prompt").fill("two moons")
            await page.get_by_role("button", name="Create picture").click()
            await expect(page.get_by_text("In progress")).to_be_visible()
            _move_progress(server, begun_folder)
            await expect(page.get_by_text("40 %")).to_be_visible()
            await page.reload()
            await expect(page.get_by_text("40 %")).to_be_visible()
            await page.get_by_role("button", name="Cancel").click()
            await expect(page.get_by_text(re.compile("Canceling|Stopping|Canceled")).first).to_be_visible()
        assert server.stop() == 0
    assert faults == []


def _note(request: Request, asked: list[str]) -> None:
    if "/api/generate/status" in request.url:
        asked.append(request.url)


def _listen_for_faults(page: Page) -> list[str]:
    """Collect what a person would never see: script errors, and what the content security policy refused."""
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    return faults


def _move_progress(server: ServerProcess, folder: Path) -> None:
    """Write progress as a worker elsewhere would."""
    assert server.process.poll() is None

    dsn = f"host={folder}/.data/sockets port=5432 user=postgres dbname=postgres"
    execute(dsn, "UPDATE public.image_generations SET progress = 0.4, stage = 'shaping'")
