"""Colour profiles made by hand."""

from __future__ import annotations

import struct

import numpy as np
from PIL import ImageCms


def swapped_profile(padding: int = 0) -> bytes:
    """Return a profile in which red is what blue is in sRGB, and blue red."""
    content = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = content.replace(b"rXYZ", b"____").replace(b"bXYZ", b"rXYZ").replace(b"____", b"bXYZ")
    filled = swapped + np.random.default_rng(3).integers(0, 256, padding, dtype=np.uint8).tobytes()
    return struct.pack(">I", len(filled)) + filled[4:]


def made_profile(space: bytes, connection: bytes, kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    """Build a profile by hand."""
    table, body = b"", b""
    start = 132 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s12x4s", start + len(body), b"lcms", 0x02400000, kind, space, connection, b"acsp")
    white = struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)
    return head.ljust(68, b"\0") + white + bytes(48) + struct.pack(">I", len(tags)) + table + body


def linear_grey() -> bytes:
    """Return a profile in which half the value is half the light.

    Its curve is a gamma of 1.0: that of no entries means the same, but Chromium 150 leaves out a profile with one.
    """
    linear = b"curv" + bytes(4) + struct.pack(">IH", 1, 0x100)
    white = b"XYZ " + bytes(4) + struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)
    return made_profile(b"GRAY", b"XYZ ", b"mntr", {b"wtpt": white, b"kTRC": linear})


def inverted_cmyk() -> bytes:
    """Return a profile in which no ink is black, and any ink white."""
    grid = b"".join(bytes((255 if number else 0, 128, 128)) for number in range(16))
    ramp = bytes(range(256))
    numbers = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + numbers + ramp * 4 + grid + ramp * 3
    return made_profile(b"CMYK", b"Lab ", b"prtr", {b"A2B0": table})
