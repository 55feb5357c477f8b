"""The page of the account in a real browser that runs no scripts."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect

from tests.support.people import Start
from tests.support.postgres import Sql

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("browser")]


async def fill_in(page: Page, button: str, **fields: str) -> None:
    """Fill in the form that has this button, and send it."""
    form = page.locator("form", has=page.get_by_role("button", name=button))
    for label, text in fields.items():
        await form.get_by_label(label.replace("_", " ")).fill(text)
    await form.get_by_role("button", name=button).click()


async def test_everything_on_the_page_works_without_javascript(start: Start, sql: Sql, chromium: Browser) -> None:
    client: Any = await start()
    url = str(client.make_url("/")).rstrip("/")
    async with (
        await chromium.new_page(java_script_enabled=False) as page,
        await chromium.new_page(java_script_enabled=False) as other,
    ):
        await page.goto(f"{url}/register")
        await fill_in(page, "Sign up", Email="alice@example.org", Password="correct horse")
        await other.goto(f"{url}/login")
        await fill_in(other, "Log in", Email="alice@example.org", Password="correct horse")
        await page.get_by_role("link", name="alice@example.org").click()
        await page.get_by_role("button", name="Log out of").click()
        await expect(page.get_by_role("status")).to_have_text("That session has ended.")
        await other.goto(f"{url}/tasks")
        await expect(other).to_have_title("Log in · Longpoll Studio")
        await fill_in(page, "Make a token", Name="cron")
        await expect(page.locator(".secret")).to_contain_text("lp_")
        await page.get_by_role("button", name="Revoke cron").click()
        await expect(page.get_by_role("status")).to_have_text("The token is revoked.")
        await fill_in(page, "Change the password", Present_password="wrong horse", New_password="a better horse")
        await expect(page.get_by_role("alert")).to_contain_text("is not the password")
        await fill_in(page, "Change the password", Present_password="correct horse", New_password="a better horse")
        await expect(page.get_by_role("status")).to_contain_text("The password is changed")
        await page.get_by_role("button", name="Log out everywhere").click()
        await fill_in(page, "Log in", Email="alice@example.org", Password="a better horse")
        await page.get_by_role("link", name="alice@example.org").click()
        await fill_in(page, "Delete my account", Present_password="a better horse")
        await expect(page).to_have_url(f"{url}/register")
    assert sql("SELECT count(*) FROM auth.users") == [(0,)]
