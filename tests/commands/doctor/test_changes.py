"""The doctor sends what a page would: a form of the site's own, and a large body, through the real nginx."""

from __future__ import annotations

import ssl
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import aiohttp
import pytest

from tests.commands.doctor.conftest import Examine
from tests.commands.doctor.nginx import nginx
from tests.support.people import Person
from tests.support.postgres import Sql

ROOT = Path(__file__).resolve().parents[3]
Before = Callable[..., AbstractAsyncContextManager[str]]
SHORT = {"hold_seconds": 0.3}
LARGE = "client_max_body_size 12m; "
HOST = "proxy_set_header Host $http_host; "


@pytest.fixture
def before(tmp_path: Path, alice: Person) -> Before:
    """Put nginx before Alice's server: `async with before("client_max_body_size 12m;") as url`."""
    return lambda directives, tls=None: nginx(tmp_path, alice.http.server.port or 0, directives, tls)


async def test_nginx_as_it_comes_fails_by_the_host_and_the_body(before: Before, examined: Examine) -> None:
    async with before("") as url:
        examination = await examined(url=url, polling=SHORT)
    assert (examination.code, examination.named("FAILED")) == (1, ["origin", "upload"])
    assert "is taken for another site's" in examination["origin"]
    assert (
        f"proxy_set_header Host $http_host (nginx); or set LONGPOLL_SERVER__PUBLIC_URL={url}" in examination["origin"]
    )
    assert "an upload of 2 MB was answered by a proxy, with 413" in examination["upload"]
    assert "client_max_body_size 12m (nginx)" in examination["upload"]


@pytest.mark.parametrize(("directives", "name"), [(LARGE, "origin"), (HOST, "upload")])
async def test_each_is_told_by_itself(before: Before, examined: Examine, directives: str, name: str) -> None:
    async with before(directives) as url:
        assert (await examined(url=url, polling=SHORT)).failure(name)


async def test_nothing_is_left_of_it(before: Before, examined: Examine, sql: Sql) -> None:
    async with before(HOST + LARGE) as url:
        assert (await examined(url=url, polling=SHORT)).sound
    assert sql("SELECT count(*) FROM public.image_generations") == sql("SELECT count(*) FROM longpoll.tokens") == [(0,)]


@pytest.mark.parametrize(
    "directives", ["limit_except GET { deny all; } ", "if ($request_method = POST) { return 405; } "]
)
async def test_a_proxy_that_lets_no_post_through_is_told(before: Before, examined: Examine, directives: str) -> None:
    async with before(HOST + LARGE + directives) as url:
        examination = await examined(url=url, polling=SHORT)
    assert "a POST is answered by a proxy, with 40" in examination["origin"]


async def test_another_public_url_is_told(alice: Person, examined: Examine) -> None:
    url = str(alice.http.make_url("")).rstrip("/")
    settings = {"public_url": "http://pictures.example.org"}
    said = (await examined(url=url, polling=SHORT, server=settings)).failure("origin")
    assert f"server.public_url is http://pictures.example.org: forms and uploads of pages at {url} are refused" in said
    assert f"set LONGPOLL_SERVER__PUBLIC_URL={url}, or give --url as browsers see the site" in said


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, and its key."""
    command = [sys.executable, "-m", "server", "certificate", "--folder", str(tmp_path / "tls")]
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    certificate, key = sorted((tmp_path / "tls").iterdir())
    return (certificate, key) if "key" in key.name else (key, certificate)


async def test_https_in_front_without_public_url_is_told(
    before: Before, examined: Examine, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    trust = ssl.create_default_context(cafile=pair[0])
    monkeypatch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", trust)  # as if the system knew the certificate
    async with before(HOST + LARGE, pair) as url:
        said = (await examined(url=url, polling=SHORT)).failure("origin")
        assert "something in front speaks https, but the server doesn't know" in said
        assert said.endswith(f"set LONGPOLL_SERVER__PUBLIC_URL={url}.")
