"""Uploaded reference images: what is let in, what is kept of it, and how the rest is refused."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin

from server.errors import ImageRejected, PayloadTooLarge, Problem, UnsupportedMedia
from server.generation.reference import MAX_BYTES, MAX_EDGE, MAX_PIXELS, clean_reference
from tests.support.profiles import inverted_cmyk, linear_grey, swapped_profile


def drawn(mode: str = "RGB", size: tuple[int, int] = (40, 24)) -> Image.Image:
    """Return a picture whose left half is red and whose right half is blue."""
    image = Image.new("RGB", size, (220, 20, 30))
    image.paste((20, 40, 210), (size[0] // 2, 0, *size))
    return image.convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    written = io.BytesIO()
    image.save(written, kind, **options)
    return written.getvalue()


def opened(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, *extra: bytes, rows: bytes = b"") -> bytes:
    """Build a PNG of eight-bit grey by hand, with chunks of our own before its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows or bytes((width + 1) * height)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + pixels + chunk(b"IEND", b"")


def webp_header(width: int, height: int) -> bytes:
    body = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 1000) + b"WEBPVP8X" + struct.pack("<I", 10) + body + bytes(200)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_every_accepted_kind_becomes_a_png_with_the_same_pixels(kind: str) -> None:
    image = opened(clean_reference(encoded(drawn(), kind)))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (40, 24))
    assert np.abs(np.asarray(image.resize((2, 1), Image.Resampling.BOX)).astype(int)[0, 0] - (220, 20, 30)).max() < 24


def test_the_same_upload_gives_the_same_bytes() -> None:
    content = encoded(drawn(), "JPEG")
    assert clean_reference(content) == clean_reference(content)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"just some words, named .png\n", "text"),
        ("一段文字".encode(), "text"),
        (encoded(drawn("P"), "GIF"), "GIF"),
        (encoded(drawn(), "TIFF"), "TIFF"),
        (encoded(drawn(), "BMP"), "BMP"),
        (encoded(drawn(), "ICO"), "icon"),
        (encoded(drawn(), "PDF"), "PDF"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"  <svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\0\0\0\x20ftypheic" + bytes(40), "HEIF"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "no image"),
        (b"\x89", "no image"),
        (bytes(100), "no image"),
    ],
)
def test_other_kinds_are_refused_by_name_whatever_the_file_is_called(content: bytes, found: str) -> None:
    with pytest.raises(UnsupportedMedia) as caught:
        clean_reference(content)
    assert found in str(caught.value.detail)
    assert "PNG, JPEG and WebP" in str(caught.value.detail)


def test_an_empty_file_is_rejected() -> None:
    with pytest.raises(ImageRejected, match="empty"):
        clean_reference(b"")


def test_too_many_bytes_are_refused_unread() -> None:
    with pytest.raises(PayloadTooLarge):
        clean_reference(b"\x89PNG\r\n\x1a\n" + bytes(MAX_BYTES))


def test_exactly_the_allowed_bytes_pass() -> None:
    content = encoded(drawn())
    assert clean_reference(content + bytes(MAX_BYTES - len(content)))


def jpeg_claiming(width: int, height: int) -> bytes:
    content = encoded(drawn(), "JPEG")
    place = content.index(b"\xff\xc0") + 5
    return content[:place] + struct.pack(">HH", height, width) + content[place + 4 :]


@pytest.mark.parametrize(
    "content",
    [
        png(50_000, 50_000, rows=b"\0"),
        png(4001, 4000, rows=b"\0"),
        webp_header(16_000, 16_000),
        jpeg_claiming(5000, 5000),
        jpeg_claiming(60_000, 60_000),
    ],
    ids=["png bomb", "png just over", "webp", "jpeg", "jpeg bomb"],
)
def test_too_many_pixels_are_refused_before_any_is_decoded(content: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ImageRejected, match="16 million pixels"):
            clean_reference(content)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_exactly_the_allowed_pixels_pass_and_come_out_smaller() -> None:
    image = opened(clean_reference(png(MAX_PIXELS // 4000, 4000)))
    assert image.size == (MAX_EDGE, MAX_EDGE)


@pytest.mark.parametrize("size", [(3000, 1000), (1000, 3000)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_longer_edge_is_brought_down_and_the_form_kept(size: tuple[int, int], kind: str) -> None:
    width, height = opened(clean_reference(encoded(drawn(size=size), kind))).size
    assert max(width, height) == MAX_EDGE
    assert width / height == pytest.approx(size[0] / size[1], rel=0.01)


def test_a_small_image_is_not_blown_up() -> None:
    assert opened(clean_reference(encoded(drawn(size=(1, 1))))).size == (1, 1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_truncated_file_is_rejected(kind: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise), kind)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(ImageRejected, match="damaged or incomplete") as caught:
            clean_reference(content[: int(len(content) * share)])
        assert caught.value.__cause__ is not None


def test_a_message_never_carries_the_librarys_own_words() -> None:
    with pytest.raises(ImageRejected) as caught:
        clean_reference(b"\x89PNG\r\n\x1a\n" + b"rubbish")
    assert str(caught.value) == "The image file is damaged or incomplete."


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_photograph_is_turned_upright_and_forgets_that_it_lay(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "secret place"
    image = opened(clean_reference(encoded(drawn(), kind, exif=exif)))
    assert image.size == (24, 40)
    top, bottom = np.asarray(image).astype(int)[[4, 35], 12]
    assert top[0] > 150 > top[2]
    assert bottom[2] > 150 > bottom[0]
    assert not image.getexif()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_undone(orientation: int) -> None:
    image = drawn()
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = opened(clean_reference(encoded(image, exif=exif)))
    image.info["exif"] = exif.tobytes()
    assert np.array_equal(np.asarray(found), np.asarray(ImageOps.exif_transpose(image)))


def test_no_metadata_survives() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "secret-words")
    text.add_itxt("XML:com.adobe.xmp", "<x>secret-words</x>")
    content = encoded(drawn(), pnginfo=text, icc_profile=b"secret-words" * 9, dpi=(300, 300))
    clean = clean_reference(content)
    assert b"secret" not in clean
    assert not opened(clean).info


# Text and workflows in the file ---------------------------------------------------------------------------------------


def text_chunks(size: int) -> list[bytes]:
    """Return the chunks in which programs keep how a picture was made."""
    words = np.random.default_rng(2).integers(32, 127, size, dtype=np.uint8).tobytes()
    return [
        chunk(b"tEXt", b"workflow\0" + words),
        chunk(b"zTXt", b"prompt\0\0" + zlib.compress(words)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(words)),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(words)),
    ]


@pytest.mark.parametrize("number", range(4))
def test_a_png_may_carry_megabytes_of_text(number: int) -> None:
    """Programs that make pictures keep their whole workflow in them."""
    assert opened(clean_reference(png(8, 8, text_chunks(2_000_000)[number]))).size == (8, 8)


def test_a_thousand_texts_cost_nothing() -> None:
    extra = [chunk(b"zTXt", b"prompt\0\0" + zlib.compress(bytes(1_000_000), 9))] * 1000
    tracemalloc.start()
    try:
        assert opened(clean_reference(png(8, 8, *extra))).size == (8, 8)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_damaged_text_does_not_spoil_a_good_picture() -> None:
    broken = chunk(b"zTXt", b"prompt\0\0no zlib")[:-1] + b"?"
    assert opened(clean_reference(png(8, 8, broken))).size == (8, 8)


# Broken files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"\x89PNG\r\n\x1a\n" + b"kjuj" * 20,
        png(8, 8)[:18] + b"\xff\xff" + png(8, 8)[20:],
        webp_header(1 << 24, 1 << 24),
        b"RIFF" + struct.pack("<I", 1000) + b"WEBPVP8 " + b"kjuj" * 20,
        b"RIFF" + struct.pack("<I", 1000) + b"WEBPVP8L" + b"kjuj" * 20,
        b"RIFF" + struct.pack("<I", 1000) + b"WEBPkjuj" + b"kjuj" * 20,
        b"RIFF" + struct.pack("<I", 1000) + b"WEBPVP8X",
    ],
    ids=["words", "a flipped bit", "no canvas", "no frame", "no lossless frame", "no kind", "no body"],
)
def test_a_broken_file_claims_no_size(content: bytes) -> None:
    with pytest.raises(ImageRejected) as caught:
        clean_reference(content)
    assert str(caught.value) == "The image file is damaged or incomplete."


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_spoil_a_good_picture() -> None:
    content = encoded(drawn(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert opened(clean_reference(content)).size == (40, 24)


def test_a_cmyk_jpeg_becomes_rgb() -> None:
    image = opened(clean_reference(encoded(drawn("CMYK"), "JPEG")))
    assert image.mode == "RGB"
    assert np.asarray(image)[12, 4, 0] > 150


def test_sixteen_bits_of_grey_keep_their_range() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None, :].repeat(4, axis=0)
    pixels = np.asarray(opened(clean_reference(encoded(Image.fromarray(ramp)))))
    assert pixels.shape == (4, 256, 3)
    assert np.abs(pixels[0, :, 0].astype(int) - np.arange(256)).max() <= 1


def test_a_transparent_palette_becomes_rgba() -> None:
    image = drawn("P")
    content = encoded(image, transparency=image.getpixel((1, 1)))
    found = opened(clean_reference(content))
    assert found.mode == "RGBA"
    assert np.asarray(found)[1, 1, 3] == 0
    assert np.asarray(found)[1, 39, 3] == 255


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_every_mode_becomes_colour(mode: str) -> None:
    assert opened(clean_reference(encoded(drawn(mode)))).mode == ("RGBA" if "A" in mode else "RGB")


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_kept(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
    image = opened(clean_reference(content))
    assert getattr(image, "n_frames", 1) == 1
    assert np.asarray(image)[8, 8, 0] > 200
    assert np.asarray(image)[8, 8, 1] < 60


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"iCCP"])
def test_a_bomb_in_a_text_chunk_stays_small(name: bytes) -> None:
    squeezed = zlib.compress(bytes(200_000_000 if name == b"zTXt" else 50_000_000), 9)
    body = b"Comment\0" + (b"\1\0\0\0" if name == b"iTXt" else b"\0") + squeezed
    tracemalloc.start()
    try:
        clean_reference(png(8, 8, chunk(name, body)))
    except ImageRejected:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 20_000_000


VALID = [
    encoded(drawn(), "PNG"),
    encoded(drawn("P"), "PNG", transparency=0),
    encoded(drawn("LA"), "PNG"),
    encoded(drawn(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"),
    encoded(drawn("CMYK"), "JPEG", progressive=True),
    encoded(drawn(), "WEBP"),
    encoded(drawn("RGBA"), "WEBP", lossless=True),
    encoded(drawn("RGBA"), "PNG", icc_profile=swapped_profile()),
    encoded(drawn("L"), "PNG", icc_profile=linear_grey()),
    encoded(drawn("CMYK"), "JPEG", icc_profile=inverted_cmyk()),
]


@given(
    content=st.sampled_from(VALID),
    changes=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=12),
    end=st.one_of(st.none(), st.integers(0, 4000)),
)
@settings(max_examples=400, deadline=None, database=None)
def test_whatever_is_done_to_a_file_it_is_cleaned_or_refused(
    content: bytes, changes: list[tuple[int, int]], end: int | None
) -> None:
    spoiled = bytearray(content)
    for place, value in changes:
        spoiled[place % len(spoiled)] = value
    try:
        clean = clean_reference(bytes(spoiled[:end]))
    except Problem:
        return
    assert opened(clean).mode in ("RGB", "RGBA")


@given(
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x40\0\0\0WEBPVP8 "]), st.binary(max_size=300)
)
@settings(max_examples=200, deadline=None, database=None)
def test_rubbish_is_refused(start: bytes, rest: bytes) -> None:
    with pytest.raises(Problem):
        clean_reference(start + rest)
