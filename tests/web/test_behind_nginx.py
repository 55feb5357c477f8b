"""Behind nginx as it comes, opened by a name of the local network: what a person is told when it doesn't work."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.async_api import Page, expect

from server.web import keys
from tests.browser.chromium import open_chromium
from tests.commands.doctor.nginx import nginx
from tests.generation.test_reference import encoded
from tests.support.people import Person
from tests.support.postgres import Sql
from tests.support.raw_http import secret_of

NAME = "pictures.lan"
HOST = "proxy_set_header Host $http_host;"


@contextlib.asynccontextmanager
async def opened(person: Person, folder: Path, directives: str) -> AsyncIterator[tuple[Page, str]]:
    """Open a browser at nginx in front of a person's server; gives a page in it, and the address."""
    async with (
        nginx(folder, person.http.port or 0, directives) as url,
        open_chromium(f"--host-resolver-rules=MAP {NAME} 127.0.0.1") as browser,
    ):
        yield await browser.new_page(), url.replace("127.0.0.1", NAME)


def noise(edge: int) -> bytes:
    """Return a picture that can't be packed."""
    pixels = np.random.default_rng(4).integers(0, 256, (edge, edge, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels))


async def test_a_login_that_is_refused_says_why(alice: Person, tmp_path: Path) -> None:
    """nginx puts the server's own address in place of the name that people open."""
    async with opened(alice, tmp_path, "") as (page, url):
        await page.goto(f"{url}/login")
        await page.get_by_label("Email").fill("alice@example.org")
        await page.get_by_label("Password").fill("correct horse")
        await page.get_by_role("main").get_by_role("button", name="Log in").click()
        reached = f"This one is of {url}, but the request reached the server as http://127.0.0.1:{alice.http.port}."
        await expect(page.get_by_text(reached)).to_be_visible()
        await expect(page.get_by_text("sets server.public_url")).to_be_visible()


async def test_an_upload_that_is_too_large_for_nginx_says_what_to_do(alice: Person, tmp_path: Path, sql: Sql) -> None:
    async with opened(alice, tmp_path, HOST) as (page, url):
        cookie = alice.app[keys.COOKIE_SESSIONS].cookie_name
        await page.context.add_cookies([{"name": cookie, "value": secret_of(alice), "url": url}])
        uploads: list[str] = []
        page.on("request", lambda request: uploads.append(request.url) if request.method == "POST" else None)
        await page.goto(url)
        await page.get_by_role("textbox", name="Prompt").fill("x")
        await page.get_by_text("Advanced", exact=True).first.click()
        file = {"name": "a.png", "mimeType": "image/png", "buffer": noise(800)}
        await page.get_by_label("Reference image").set_input_files(file)  # type: ignore[arg-type]
        await page.get_by_role("button", name="Create picture").click()
        said = "A proxy in front of this server lets no upload of this size through (413). Choose a smaller picture"
        await expect(page.get_by_text(said)).to_be_visible()
        assert len(uploads) == 1
    assert sql("SELECT count(*) FROM public.image_generations") == [(0,)]
