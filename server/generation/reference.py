"""The reference image a person uploads: checked, stripped of everything but its pixels, made small.

What a file calls itself counts for nothing, its content alone does. Nothing is decoded before the header's size is
known to be acceptable.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import ExifTags, Image

from server.errors import ImageRejected, PayloadTooLarge, UnsupportedMedia

MAX_BYTES = 10 * 1024 * 1024
"""The largest accepted upload, in bytes."""

MAX_PIXELS = 16_000_000
"""The largest accepted picture, in pixels (width times height)."""

MAX_EDGE = 1536
"""The longer edge of what is kept, in pixels."""

_FORMATS = ("PNG", "JPEG", "WEBP")
_ACCEPTED = "Accepted are PNG, JPEG and WebP."
_ALLOWED = f"at most {MAX_PIXELS // 1_000_000} million pixels are allowed."
_BROKEN = "The image file is damaged or incomplete."
_PILLOW_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, KeyError, IndexError, TypeError,
    AttributeError, OverflowError, AssertionError, NotImplementedError, RuntimeError, MemoryError,
    UserWarning,  # where warnings are errors
)  # fmt: skip
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_KINDS: tuple[tuple[bytes, str], ...] = (
    (b"GIF8", "a GIF image"),
    (b"BM", "a BMP image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"\0\0\1\0", "an icon file"),
    (b"%PDF", "a PDF document"),
    (b"PK\3\4", "a ZIP archive"),
    (b"8BPS", "a Photoshop document"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (b"\xff\x0a", "a JPEG XL image"),
)


def clean_reference(content: bytes) -> bytes:
    """Check an uploaded image and return its pixels as a new PNG, RGB or RGBA, without any metadata.

    It is turned upright as its EXIF data says, and scaled so that the longer edge is at most `MAX_EDGE`. Of an
    animation the first frame is taken. Blocks for up to a second: call it in an executor.

    Raises:
        PayloadTooLarge: over `MAX_BYTES`.
        UnsupportedMedia: the content is not PNG, JPEG or WebP.
        ImageRejected: empty, damaged, truncated, or over `MAX_PIXELS`.
    """
    if not content:
        raise ImageRejected("The image file is empty.")
    if len(content) > MAX_BYTES:
        raise PayloadTooLarge(f"The image has {len(content)} bytes, {MAX_BYTES} are allowed.")
    if not _is_accepted(content):
        raise UnsupportedMedia(f"This is {_kind_of(content)}. {_ACCEPTED}")
    if (size := _declared_size(content)) is not None:
        _check_size(*size)
    try:
        return _reencoded(content)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageRejected(f"The image is too large; {_ALLOWED}") from error
    except _PILLOW_ERRORS as error:
        raise ImageRejected(_BROKEN) from error


def _is_accepted(content: bytes) -> bool:
    if content.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
        return True
    return content[:4] == b"RIFF" and content[8:12] == b"WEBP"


def _kind_of(content: bytes) -> str:
    for signature, name in _KINDS:
        if content.startswith(signature):
            return name
    if content[4:8] == b"ftyp":
        return "a HEIF or AVIF image, or a film"
    start = content[:512]
    if b"<svg" in start.lower() or start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<?xml"):
        return "an SVG drawing or other XML"
    return "text" if _is_text(start) else "no image of a known kind"


def _is_text(start: bytes) -> bool:
    return bool(start.decode("utf-8", "ignore")) and not any(byte < 32 and byte not in b"\t\n\r\f" for byte in start)


def _declared_size(content: bytes) -> tuple[int, int] | None:
    """Return the width and height that the header of a PNG or WebP names.

    Pillow reserves a WebP's whole canvas on opening, and warns of a large PNG; of a JPEG it reads only the header.
    """
    if content.startswith(b"\x89PNG") and len(content) >= 24:
        return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    kind = content[12:16]
    if content[:4] != b"RIFF" or len(content) < 30:
        return None
    if kind == b"VP8X":
        return int.from_bytes(content[24:27], "little") + 1, int.from_bytes(content[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(content[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(content[26:28], "little") & 0x3FFF, int.from_bytes(content[28:30], "little") & 0x3FFF


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageRejected(f"The image is {width} x {height} pixels; {_ALLOWED}")


def _reencoded(content: bytes) -> bytes:
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        _check_size(*image.size)
        image.draft("RGB", (MAX_EDGE, MAX_EDGE))  # lets a JPEG be decoded at half size, when that is enough
        image.load()
        turn = _UPRIGHT.get(_orientation(image))
        plain = _eight_bits(image)
    plain.thumbnail((MAX_EDGE, MAX_EDGE), Image.Resampling.LANCZOS)
    if turn is not None:
        plain = plain.transpose(turn)
    # A fresh image has pixels only: no EXIF, comment, profile, text
    bare = Image.new(plain.mode, plain.size)
    bare.paste(plain)
    written = io.BytesIO()
    bare.save(written, "PNG", compress_level=4)
    return written.getvalue()


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation 1..8; damaged EXIF data, which cameras do write, counts as upright."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except _PILLOW_ERRORS:
        return 1
    return orientation if isinstance(orientation, int) else 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return the image as RGB, or as RGBA if it can be transparent."""
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would cut off at 255
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")
