"""What people type is the same however it was sent: as JSON or a form, from a page or a script."""

from __future__ import annotations

import base64
import binascii
import codecs
import io
from typing import Any

import orjson
import pytest

from server.storage.images import reference_name
from server.web import keys
from tests.support.people import Person, Start
from tests.support.postgres import Sql
from tests.web.test_bad_input import FORM, field, parts, raw
from tests.web.test_tasks import form, picture

PAGE = {"Accept": "text/html"}
URLENCODED = {"Content-Type": "application/x-www-form-urlencoded"}


async def create(person: Person, status: int = 202, headers: dict[str, str] | None = None, **body: Any) -> Any:
    given = {**body.pop("headers", {}), **(headers or {})}
    async with person.http.post("/api/generate_advanced", headers=given, **body) as reply:
        assert reply.status == status, await reply.text()
        return await reply.json()


def prompts(sql: Sql) -> list[str]:
    return [prompt for (prompt,) in sql("SELECT prompt FROM public.image_generations ORDER BY created_at")]


def encoded(name: str, value: bytes, encoding: str, rest: str = "") -> bytes:
    head = f'Content-Disposition: form-data; name="{name}"{rest}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n'
    return head.encode() + value


async def test_line_ends_are_one_character_by_form_and_by_json(alice: Person, sql: Sql) -> None:
    """The same prompt with the same seed is the same order, and the same picture."""
    for prompt in ("two\r\nlines", "two\rlines", "two\nlines", "\r\n two\r\nlines \r\n"):
        for body in ({"json": {"prompt": prompt, "seed": 7}}, {"data": form(prompt=prompt, seed="7")}):
            await create(alice, headers={"Idempotency-Key": "one order"}, **body)
    assert prompts(sql) == ["two\nlines"]


async def test_a_prompt_of_lines_is_as_long_as_the_page_says(alice: Person) -> None:
    longest = "\r\n".join(["x" * 29] * 133) + "\r\n" + "y" * 10
    assert len(longest.replace("\r\n", "\n")) == 4000
    await create(alice, data=form(prompt=longest))
    refused = await create(alice, 400, data=form(prompt=longest + "z"))
    assert refused["detail"] == "prompt has 4001 characters; at most 4000 are accepted."
    await create(alice, data=form(prompt="x" + "\r\n" * 3998 + "x"))


@pytest.mark.parametrize(
    "prompt",
    [
        "\u200b",
        "\ufeff",
        " \u200b\u200d\u2060 \n",
        "\u202e\u2066",
        "\xad",
        "\u3164",
        "\x01\x02",
        "\ufe0f",
        "\U000e0041",
    ],
)
async def test_a_prompt_that_shows_nothing_is_none(alice: Person, sql: Sql, prompt: str) -> None:
    for body in ({"json": {"prompt": prompt}}, {"data": form(prompt=prompt)}):
        assert (await create(alice, 400, **body))["detail"].startswith("prompt is required")
    assert prompts(sql) == []


async def test_what_belongs_to_a_text_stays_in_it(alice: Person, sql: Sql) -> None:
    """Joiners and variation selectors make emoji and scripts what they are; only the ends are trimmed."""
    for prompt in ("👩\u200d🚀", "❤\ufe0f", "\u0645\u06cc\u200c\u062e\u0648", "e\u0301", "क्\u200d"):
        await create(alice, json={"prompt": f"\ufeff{prompt}\u200b"})
        assert prompts(sql).pop() == prompt


async def test_a_byte_order_mark_before_json_is_no_part_of_it(alice: Person, sql: Sql) -> None:
    body = codecs.BOM_UTF8 + orjson.dumps({"prompt": "x"})
    made = await create(alice, **raw(body))
    for url, status, text in (
        ("/api/generate/cancel", 200, orjson.dumps({"taskId": made["taskId"]})),
        ("/api/auth/tokens", 201, b"{}"),
        ("/api/auth/register", 201, b'{"email": "carol@example.org", "password": "correct horse battery"}'),
    ):
        async with alice.http.post(url, **raw(codecs.BOM_UTF8 + text)) as reply:
            assert reply.status == status, await reply.text()
    assert "JSON" in (await create(alice, 400, **raw(codecs.BOM_UTF8 * 2 + b"{}")))["detail"]
    assert prompts(sql) == ["x"]


async def test_a_form_may_say_how_it_is_encoded(alice: Person, sql: Sql) -> None:
    charset = field("_charset_", b"UTF-8")
    for order in (
        parts(charset, field("prompt", "café".encode())),
        parts(field("prompt", "café".encode()), charset),
        parts(field("_charset_", b"windows-1252"), field("prompt", "café".encode("cp1252"))),
        parts(field("size", b""), field("_charset_", b"iso-8859-1"), field("prompt", "café".encode("cp1252"))),
        parts(
            b'Content-Disposition: form-data; name="prompt"\r\nContent-Type: text/plain; charset=ISO-8859-1\r\n\r\ncaf\xe9'
        ),
    ):
        await create(alice, **raw(order, FORM))
        assert prompts(sql)[-1] == "café"
    for name in (b"utf-16", b"punycode", b"nonsense", b""):
        order = parts(field("size", b""), field("_charset_", name), field("prompt", b"x"))
        assert "must be UTF-8, not" in (await create(alice, 400, **raw(order, FORM)))["detail"]


async def test_a_login_form_may_say_how_it_is_encoded(start: Start) -> None:
    client = await start()
    account = b"email=carol%40example.org&password=correct+horse+battery"
    for url, body, content_type, status in (
        ("register", b"_charset_=utf-8&" + account, "", 201),
        ("login", account + b"&_charset_=UTF-8", "; charset=utf-8", 200),
        ("login", account + b"&_charset_=utf-16", "", 400),
        ("login", account, "; charset=nonsense", 400),
        ("login", account, "; charset=punycode", 400),
        ("login", account + b"&_charset_=utf-8&_charset_=utf-8", "", 400),
    ):
        headers = {"Content-Type": f"application/x-www-form-urlencoded{content_type}"}
        async with client.post(f"/api/auth/{url}", data=body, headers=headers) as reply:
            assert reply.status == status, await reply.text()


async def test_a_field_may_be_encoded_for_transport(alice: Person, sql: Sql) -> None:
    """Mail libraries do it, to whatever isn't ASCII."""
    text, image = "café\nau lait".encode(), picture()
    for encoding, encode in (
        ("base64", base64.encodebytes),
        ("Quoted-Printable", lambda data: binascii.b2a_qp(data, istext=False)),
    ):
        filed = encoded("reference_image", encode(image), encoding, '; filename="a.png"')
        made = await create(alice, **raw(parts(encoded("prompt", encode(text), encoding), filed), FORM))
        assert prompts(sql).pop() == "café\nau lait"
        assert await alice.app[keys.IMAGES].get(reference_name(made["taskId"])) is not None
    for encoding in ("binary", "8bit", ""):
        await create(alice, **raw(parts(encoded("prompt", text, encoding)), FORM))
        assert prompts(sql)[-1] == "café\nau lait"


async def test_an_encoding_for_transport_has_bounds(alice: Person, sql: Sql) -> None:
    for status, part, said in (
        (400, encoded("prompt", b"*" * 5, "base64"), "prompt is required"),
        (400, encoded("prompt", b"YQ", "base64"), "The field prompt is not base64, as it says."),
        (400, encoded("prompt", b"x", "gzip"), "base64 or quoted-printable, not as gzip"),
        (413, encoded("prompt", base64.b64encode(b"x" * 30_000), "base64"), "The field prompt is too long."),
        (413, encoded("prompt", b"=\n" * 80_000, "quoted-printable"), "The field prompt is too long."),
        (413, encoded("reference_image", base64.b64encode(bytes(11 << 20)), "base64"), "at most 10 MiB"),
    ):
        body = io.BytesIO(parts(part))
        reply = await create(alice, status, data=body, headers={"Content-Type": FORM})
        assert said in reply["detail"]
    assert prompts(sql) == []


async def test_a_seed_may_have_white_space_around_it(alice: Person, sql: Sql) -> None:
    for body in ({"json": {"prompt": "x", "seed": " 7\n"}}, {"data": form(prompt="x", seed=" 7 ")}):
        await create(alice, **body)
    assert sql("SELECT DISTINCT seed FROM public.image_generations") == [(7,)]
