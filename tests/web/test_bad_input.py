"""Creating with whatever people and programs send: each refusal says what is wrong, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import struct
import zlib
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from aiohttp import FormData
from PIL import Image

from tests.support.facts import until
from tests.support.people import Enter, Person, Start
from tests.support.postgres import Sql
from tests.support.raw_http import connect_to, request, secret_of
from tests.web.test_tasks import form, image_files, picture

FORM = "multipart/form-data; boundary=XX"


@pytest.fixture
async def refused(alice: Person, sql: Sql) -> AsyncIterator[Any]:
    """Send an order and expect a refusal; when the test is over, no row and no file may be left of any of them."""

    async def send(status: int, url: str = "/api/generate_advanced", **body: Any) -> str:
        async with alice.http.post(url, **body) as reply:
            text = await reply.text()
            assert reply.status == status, text
            assert reply.content_type == "application/problem+json"
            assert "Traceback" not in text
            return str(orjson.loads(text).get("detail", ""))

    yield send
    assert sql("SELECT count(*) FROM public.image_generations") == [(0,)]
    assert image_files(alice) == []
    assert alice.metric("longpoll_request_crashes_total") == 0


def raw(body: bytes, content_type: str = "application/json") -> dict[str, Any]:
    return {"data": body, "headers": {"Content-Type": content_type}}


def parts(*contents: bytes) -> bytes:
    """Return a multipart body of raw parts, header lines included."""
    return b"".join(b"--XX\r\n" + content + b"\r\n" for content in contents) + b"--XX--\r\n"


def field(name: str, value: bytes) -> bytes:
    return f'Content-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value


async def test_a_prompt_is_required(refused: Any) -> None:
    bodies: list[dict[str, Any]] = [
        {},
        *({"prompt": value} for value in ("", "  \n\t", "\u2003", None, 5, True, ["x"])),
    ]
    for url in ("/api/generate", "/api/generate_advanced"):
        for body in bodies:
            assert (await refused(400, url, json=body)).startswith("prompt is required")
    for order in (form(seed="1"), form(prompt=""), form(prompt="   ")):
        assert (await refused(400, data=order)).startswith("prompt is required")


async def test_a_prompt_over_4000_characters_is_refused(refused: Any) -> None:
    for prompt in ("x" * 4001, "🌊" * 4001):
        for body in ({"json": {"prompt": prompt}}, {"data": form(prompt=prompt)}):
            assert await refused(400, **body) == "prompt has 4001 characters; at most 4000 are accepted."
    assert await refused(413, data=form(prompt="x" * 20_000)) == "The field prompt is too long."


async def test_a_prompt_must_be_text(refused: Any) -> None:
    for body in ({"json": {"prompt": "a\0b"}}, {"data": form(prompt="a\0b")}):
        assert "NUL" in await refused(400, **body)
    assert await refused(400, **raw(b'{"prompt": "\\ud800"}')) == "The body isn't JSON."
    assert await refused(400, **raw(b'{"prompt": "\xff\xfe"}')) == "The body isn't JSON."
    for value in (b"\xff\xfe", b"\xed\xa0\x80"):
        assert "UTF-8" in await refused(400, **raw(parts(field("prompt", value)), FORM))


async def test_a_body_that_is_no_json_object_is_refused(refused: Any) -> None:
    for body in (b"", b"{", b"nonsense", b'{"prompt": NaN}', b"[" * 20_000):
        assert await refused(400, **raw(body)) == "The body isn't JSON."
    for body in (b"[]", b'"prompt"', b"5", b"null"):
        assert await refused(400, **raw(body)) == "The body must be a JSON object."


async def test_unknown_fields_are_named(refused: Any) -> None:
    body = {"prompt": "x", "promt": "y", "steps": 5}
    expected = "Unknown field: promt, steps. Known are: priority, prompt, seed, size."
    assert await refused(400, json=body) == expected
    assert "Unknown field: steps" in await refused(400, data=form(prompt="x", steps="5"))
    assert "Unknown field: reference_image" in await refused(400, json={"prompt": "x", "reference_image": "…"})
    assert "Unknown field: taskid" in await refused(400, "/api/generate/cancel", json={"taskid": "x"})


async def test_a_seed_is_a_whole_number(refused: Any) -> None:
    seeds: tuple[Any, ...] = (-1, 1.5, 1e300, True, "abc", "-1", "1.5", "٣", 2**53, "9" * 20, [], {})
    for seed in seeds:
        assert "seed must be a whole number" in await refused(400, json={"prompt": "x", "seed": seed})
    assert "seed must be" in await refused(400, data=form(prompt="x", seed="-1"))


async def test_a_size_is_one_of_those_offered(refused: Any) -> None:
    for size in ("1x1", "768", "768X768", 768, True, ["768x768"], "768x768 "):
        assert "size must be one of: " in await refused(400, json={"prompt": "x", "size": size})


async def test_a_field_that_is_there_twice_is_refused(refused: Any) -> None:
    body = parts(field("prompt", b"x"), field("prompt", b"y"))
    assert await refused(400, **raw(body, FORM)) == "The field prompt is there twice."
    twice = form(prompt="x", reference_image=picture())
    twice.add_field("reference_image", picture(), filename="b.png")
    assert await refused(400, data=twice) == "The field reference_image is there twice."


async def test_a_form_that_is_none_is_refused(refused: Any) -> None:
    for body in (
        b"",
        b"nonsense",
        b"--XX\r\n",
        b"--XX\r\n" + field("prompt", b"cut off"),
        b"--YY\r\n" + field("prompt", b"x") + b"\r\n--YY--\r\n",
        parts(b"no header at all"),
        parts(b"Broken header\r\n\r\nx"),
        parts(b"Content-Disposition: form-data\r\n\r\nno name"),
        parts(b"X: " + b"y" * 20_000 + b"\r\n\r\nx"),
        parts(b"".join(b"X%d: y\r\n" % number for number in range(500)) + b"\r\nx"),
        parts(b"Content-Type: multipart/mixed; boundary=YY\r\n\r\n--YY\r\n\r\nx\r\n--YY--"),
    ):
        await refused(400, **raw(body, FORM))
    for content_type in (
        "multipart/form-data",
        "multipart/form-data; boundary=",
        f"multipart/form-data; boundary={'x' * 99}",
    ):
        await refused(400, **raw(parts(field("prompt", b"x")), content_type))


async def test_other_kinds_of_body_are_refused(refused: Any) -> None:
    for content_type in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "image/png",
        "multipart/mixed; boundary=XX",
        "nonsense",
    ):
        assert (await refused(415, **raw(b'{"prompt": "x"}', content_type))).startswith("Send multipart/form-data or")
    for url in ("/api/generate/cancel", "/api/auth/tokens"):
        assert (await refused(415, url, **raw(b"{}", "text/plain"))).startswith("Send application/json, not")


async def test_a_huge_body_is_refused(refused: Any) -> None:
    for url in ("/api/generate", "/api/generate/cancel", "/api/auth/tokens", "/api/auth/login"):
        await refused(413, url, **raw(b'{"prompt": "' + b"x" * 70_000 + b'"}'))
    bomb = zlib.compress(b" " * 50_000_000)
    headers = {"Content-Type": "application/json", "Content-Encoding": "deflate"}
    await refused(413, data=bomb, headers=headers)


async def test_a_body_that_is_not_what_its_headers_say_is_refused(refused: Any) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert "broken" in await refused(400, data=b"not gzip at all", headers=headers)
    assert "broken" in await refused(400, data=b"not gzip", headers={**headers, "Content-Type": FORM})


def one_colour(width: int, height: int) -> bytes:
    """Return a PNG of one colour, made without ever holding its pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer, row = zlib.compressobj(1), b"\0" + b"\0" * ((width + 7) // 8)
    pixels = b"".join(packer.compress(row * 100) for _ in range(height // 100)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


async def test_images_that_cannot_be_used_are_refused(refused: Any) -> None:
    """What a file calls itself counts for nothing."""
    noise = io.BytesIO()
    Image.effect_noise((300, 300), 90).save(noise, "JPEG")
    gif = io.BytesIO()
    Image.new("RGB", (4, 4)).save(gif, "GIF")
    cases: list[tuple[int, bytes, str]] = [
        (415, b"only text", "This is text. Accepted are PNG, JPEG and WebP."),
        (415, gif.getvalue(), "This is a GIF image."),
        (415, b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (422, one_colour(50_000, 50_000), "The image is 50000 x 50000 pixels; at most 16 million pixels are allowed."),
        (422, noise.getvalue()[: len(noise.getvalue()) // 2], "damaged or incomplete"),
        (422, picture()[:40], "damaged or incomplete"),
        (422, b"", "The image file is empty."),
        (413, b"\x89PNG\r\n\x1a\n" + b"x" * (11 * 1024 * 1024), "at most 10 MiB"),
    ]
    for status, content, text in cases:
        assert text in await refused(status, data=form(prompt="x", reference_image=content))


async def test_a_good_image_with_a_bad_field_behind_it_leaves_no_file(refused: Any) -> None:
    for fields in ({"seed": "-1"}, {"size": "1x1"}, {"prompt": ""}, {"other": "x"}):
        order = FormData(default_to_multipart=True)
        order.add_field("reference_image", picture(), filename="a.png")
        for name, value in {"prompt": "x", **fields}.items():
            order.add_field(name, value)
        await refused(400, data=order)


async def test_a_body_that_never_comes_is_given_up(start: Start, enter: Enter) -> None:
    alice = await enter(await start(server={"receive_seconds": 0.2, "body_bytes_per_second": 0}))
    head = f"HTTP/1.1\r\nHost: x\r\nCookie: longpoll={secret_of(alice)}\r\nContent-Length: 1000\r\n"
    for url, content_type, beginning in (
        ("/api/generate", "application/json", '{"prompt"'),
        ("/api/generate", FORM, "--XX\r\nContent-Disposition: form"),
        ("/api/generate", FORM, '--XX\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nand then'),
        ("/api/generate/cancel", "application/json", ""),
        ("/api/auth/login", "application/x-www-form-urlencoded", "email="),
        ("/api/auth/tokens", "application/json", "{"),
    ):
        async with connect_to(alice) as connection:
            await connection.send(f"POST {url} {head}Content-Type: {content_type}\r\n\r\n{beginning}")
            async with asyncio.timeout(15):
                reply = await connection.reply()
            assert reply.status == 400
            assert "did not arrive within 0.2 seconds" in reply.body.decode()


DRIPPING = (
    ("/api/generate", "application/json", '{"prompt": "'),
    ("/api/generate", FORM, '--XX\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nand then'),
    ("/api/generate", FORM, '--XX\r\nContent-Disposition: form-data; name="reference_image"\r\n\r\n'),
    ("/api/generate", FORM, "--XX\r\nContent-Disposition: form-"),
    ("/api/auth/login", "application/x-www-form-urlencoded", "email="),
    ("/api/auth/logout", "application/json", ""),
    ("/nowhere", "application/json", ""),
)


@pytest.mark.parametrize(
    "settings", [{"body_seconds": 0.6, "body_bytes_per_second": 0}, {"body_bytes_per_second": 1000}]
)
@pytest.mark.parametrize(("url", "content_type", "beginning"), DRIPPING)
async def test_a_body_that_drips_is_given_up(
    start: Start, enter: Enter, settings: Any, url: str, content_type: str, beginning: str
) -> None:
    """Each piece comes in time, and the whole never."""
    alice = await enter(await start(server={"receive_seconds": 0.3, **settings}))
    alice.http.server.runner.server._kwargs["lingering_time"] = 0.2  # type: ignore[attr-defined]
    async with connect_to(alice) as connection:
        text = request(alice, url, method="POST").removesuffix("\r\n")
        await connection.send(f"{text}Content-Type: {content_type}\r\nContent-Length: 1000000\r\n\r\n{beginning}")
        replying = asyncio.create_task(connection.reply())

        async def drip() -> bool:
            with contextlib.suppress(ConnectionError):
                await connection.send("x")
            return replying.done()

        await until(drip, seconds=20)
        reply = await replying
        if url.startswith("/api/generate") or url.endswith("login"):
            assert reply.status == 400
            assert "The body " in reply.body.decode()

        async def is_closed() -> bool:
            with contextlib.suppress(ConnectionError):
                await connection.send("x")
            return connection.writer.is_closing() or connection._reader.at_eof()

        await until(is_closed, seconds=20)


async def test_a_slow_body_is_taken_all_the_same(start: Start, enter: Enter) -> None:
    """A quick beginning makes up for a slow end."""
    alice = await enter(await start(server={"receive_seconds": 0.5, "body_bytes_per_second": 100}))
    body = json.dumps({"prompt": "x"}) + " " * 3000
    async with connect_to(alice) as connection:
        await connection.send(request(alice, "/api/generate", method="POST", body=body).removesuffix(" " * 100))
        for _ in range(50):
            await connection.send(" ")
            await asyncio.sleep(0.02)  # a slow client
        await connection.send(" " * 50)
        assert (await connection.reply()).status == 202


async def test_a_body_that_is_complete_is_not_too_slow(start: Start, enter: Enter) -> None:
    alice = await enter(await start(server={"receive_seconds": 2.0, "body_bytes_per_second": 1000}))
    async with connect_to(alice) as connection:
        await connection.send(
            request(alice, "/api/generate", method="POST", body='{"prompt": "x"}').removesuffix('pt": "x"}')
        )
        for piece in ('pt": ', '"x"}'):
            await asyncio.sleep(1.1)  # a slow client
            await connection.send(piece)
        assert (await connection.reply()).status == 202


async def test_a_body_with_broken_chunks_is_a_400(alice: Person) -> None:
    async with connect_to(alice) as connection:
        await connection.send(
            f"POST /api/generate HTTP/1.1\r\nHost: x\r\nCookie: longpoll={secret_of(alice)}\r\n"
            "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        await connection.send('5\r\n{"pro\r\nZZZ\r\n')
        assert (await connection.reply()).status == 400
    assert alice.metric("longpoll_request_crashes_total") == 0
