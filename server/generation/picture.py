"""What a finished picture is: told by its content, never by a name or by what somebody calls it."""

from __future__ import annotations

import io
from typing import Final

from PIL import Image

from server.errors import GenerationError
from server.generation.generator import MAX_PICTURE_BYTES

_SUFFIXES: Final = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}
MEDIA_TYPES: Final = tuple(_SUFFIXES)
"""What a picture may be."""

_MAX_PIXELS: Final = 64_000_000


def media_type(content: bytes) -> str | None:
    """Return what kind of picture this is, by its first bytes; None if it is none that browsers are shown."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if content.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    return "image/webp" if content[:4] == b"RIFF" and content[8:12] == b"WEBP" else None


def suffix(media: str) -> str:
    """Return how the name of a file of this kind ends."""
    return _SUFFIXES[media]


def check_picture(content: bytes) -> None:
    """Make sure that this is a whole picture. Takes a while: call it in a thread.

    Raises:
        GenerationError: it isn't. Another attempt may bring one.
    """
    if len(content) > MAX_PICTURE_BYTES:
        raise GenerationError(f"The generator's picture has {len(content)} bytes; at most {MAX_PICTURE_BYTES} are kept")
    if media_type(content) is None:
        raise GenerationError("The generator returned something that is no PNG, JPEG or WebP picture")
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "WEBP")) as image:
            small_enough = image.width * image.height <= _MAX_PIXELS
            if small_enough:
                image.load()
    except Exception as error:  # decoders raise whatever they like at a damaged file
        raise GenerationError("The generator returned a damaged picture") from error
    if not small_enough:
        raise GenerationError(f"The generator's picture has more than {_MAX_PIXELS // 1_000_000} million pixels")
