"""The reference image a person uploads: checked, stripped of everything but its pixels, made small.

What a file calls itself counts for nothing, its content alone does. Nothing is decoded before the header's size is
known to be acceptable. The pixels come out as the colours that a browser shows: converted to sRGB by the file's profile.
"""

from __future__ import annotations

import io
import struct
import zlib

from PIL import ExifTags, Image, ImageCms

from server.errors import ImageRejected, PayloadTooLarge, UnsupportedMedia

MAX_BYTES = 10 * 1024 * 1024
"""The largest accepted upload, in bytes."""

MAX_PIXELS = 16_000_000
"""The largest accepted picture, in pixels (width times height)."""

MAX_EDGE = 1536
"""The longer edge of what is kept, in pixels."""

MAX_PROFILE = 4 * 1024 * 1024
"""The largest colour profile that is applied, in bytes; a larger one counts as none."""

_FORMATS = ("PNG", "JPEG", "WEBP")
_ACCEPTED = "Accepted are PNG, JPEG and WebP."
_ALLOWED = f"at most {MAX_PIXELS // 1_000_000} million pixels are allowed."
_BROKEN = "The image file is damaged or incomplete."
_PILLOW_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, KeyError, IndexError, TypeError,
    AttributeError, OverflowError, AssertionError, NotImplementedError, RuntimeError, MemoryError,
    ImageCms.PyCMSError,
    UserWarning,  # where warnings are errors
)  # fmt: skip
_PNG = b"\x89PNG\r\n\x1a\n"
# What a PNG's pixels and their orientation are made of. Texts, which may be workflows of many megabytes, are left unread.
_PNG_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"})
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
    profile = None
    if content.startswith(_PNG):
        content, profile = _bare_png(content)
    try:
        return _reencoded(content, profile)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageRejected(f"The image is too large; {_ALLOWED}") from error
    except _PILLOW_ERRORS as error:
        raise ImageRejected(_BROKEN) from error


def _is_accepted(content: bytes) -> bool:
    if content.startswith((_PNG, b"\xff\xd8\xff")):
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
    """Return the width and height that the header of a PNG or WebP names; for a JPEG None.

    Pillow reserves a WebP's whole canvas on opening, and warns of a large PNG; of a JPEG it reads only the header.

    Raises:
        ImageRejected: what stands in the header's place is none.
    """
    if content.startswith(_PNG):
        return _size_of_png(content)
    return _size_of_webp(content) if content.startswith(b"RIFF") else None


def _size_of_png(content: bytes) -> tuple[int, int]:
    header = content[12:29]
    if content[8:16] != b"\0\0\0\rIHDR" or content[29:33] != zlib.crc32(header).to_bytes(4, "big"):
        raise ImageRejected(_BROKEN)
    return int.from_bytes(header[4:8], "big"), int.from_bytes(header[8:12], "big")


def _size_of_webp(content: bytes) -> tuple[int, int]:
    kind, body = content[12:16], content[20:30]
    if kind == b"VP8X" and len(body) == 10:
        width, height = int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
        if width * height < 2**32:  # as the format demands
            return width, height
    elif kind == b"VP8L" and body[:1] == b"\x2f":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    raise ImageRejected(_BROKEN)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageRejected(f"The image is {width} x {height} pixels; {_ALLOWED}")


def _bare_png(content: bytes) -> tuple[bytes, bytes | None]:
    """Return a PNG with nothing in it but its pixels, and its colour profile."""
    kept, profile, place = [_PNG], None, len(_PNG)
    while place + 8 <= len(content):
        kind = content[place + 4 : place + 8]
        end = place + 12 + int.from_bytes(content[place : place + 4], "big")
        if kind in _PNG_CHUNKS:
            kept.append(content[place:end])
        elif kind == b"iCCP":
            profile = _inflated(content[place + 8 : end - 4].partition(b"\0")[2][1:])
        place = len(content) if kind == b"IEND" else end
    return b"".join(kept), profile


def _inflated(squeezed: bytes) -> bytes | None:
    try:
        return zlib.decompressobj().decompress(squeezed, MAX_PROFILE + 1)
    except zlib.error:
        return None


def _reencoded(content: bytes, profile: bytes | None) -> bytes:
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        _check_size(*image.size)
        image.draft("RGB", (MAX_EDGE, MAX_EDGE))  # lets a JPEG be decoded at half size, when that is enough
        image.load()
        turn = _UPRIGHT.get(_orientation(image))
        profile = profile or image.info.get("icc_profile")
        grey = image.mode[:1] in {"1", "L", "I"}
        pixels = image if image.mode == "CMYK" else _eight_bits(image)
        pixels.thumbnail((MAX_EDGE, MAX_EDGE), Image.Resampling.LANCZOS)
        plain = _in_srgb(pixels, profile, grey=grey)
    if turn is not None:
        plain = plain.transpose(turn)
    # A fresh image has pixels only: no EXIF, comment, profile, text
    bare = Image.new(plain.mode, plain.size)
    bare.paste(plain)
    written = io.BytesIO()
    bare.save(written, "PNG", compress_level=4)
    return written.getvalue()


def _in_srgb(pixels: Image.Image, profile: bytes | None, *, grey: bool) -> Image.Image:
    """Return RGB, RGBA or CMYK as RGB or RGBA, its colours converted if it has a profile that fits it, as browsers do."""
    converted = None
    if profile is not None and len(profile) <= MAX_PROFILE:
        try:
            converted = _converted(pixels, ImageCms.ImageCmsProfile(io.BytesIO(profile)), grey=grey)
        except _PILLOW_ERRORS:
            converted = None  # a damaged profile says nothing about good pixels, nor does one of another colour space
    if converted is None:
        return pixels.convert("RGB") if pixels.mode == "CMYK" else pixels
    if pixels.mode == "RGBA":
        converted.putalpha(pixels.getchannel("A"))
    return converted


def _converted(pixels: Image.Image, source: ImageCms.ImageCmsProfile, *, grey: bool) -> Image.Image | None:
    target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    colours = pixels if pixels.mode == "CMYK" else pixels.convert("RGB")
    if grey and source.profile.xcolor_space.strip() == "GRAY":
        colours = pixels.getchannel("R")
    return ImageCms.profileToProfile(colours, source, target, outputMode="RGB")


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
        import numpy as np  # noqa: PLC0415 - a fifth of all that a server imports, and only these few pictures need it

        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")
