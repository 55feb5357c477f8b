"""Uploaded reference images whose file says which colours its numbers mean."""

from __future__ import annotations

import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from server.generation.reference import clean_reference
from tests.generation.test_reference import chunk, drawn, encoded, opened, png
from tests.support.profiles import inverted_cmyk, linear_grey, swapped_profile


def assert_swapped(first: Any, second: Any) -> None:
    """Red has become blue, and blue red."""
    assert first[2] > 190, first
    assert first[0] < 60, first
    assert second[0] > 190, second
    assert second[2] < 60, second


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("JPEG", "RGB"), ("WEBP", "RGB"), ("WEBP", "RGBA")],
)
def test_colours_are_those_of_the_files_profile(kind: str, mode: str) -> None:
    image = drawn(mode)
    if mode == "RGBA":
        image.putalpha(128)
    found = opened(clean_reference(encoded(image, kind, icc_profile=swapped_profile())))
    left, right = np.asarray(found).astype(int)[12, [4, 35]]
    assert_swapped(left, right)
    assert mode != "RGBA" or left[3] == right[3] == 128
    assert not found.info


def test_a_photograph_has_both_its_profile_and_its_orientation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    found = opened(clean_reference(encoded(drawn(), "JPEG", exif=exif, icc_profile=swapped_profile())))
    top, bottom = np.asarray(found).astype(int)[[4, 35], 12]
    assert found.size == (24, 40)
    assert_swapped(top, bottom)


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_grey_has_a_profile_too(mode: str) -> None:
    image = Image.new("L", (8, 8), 128).convert(mode)
    found = opened(clean_reference(encoded(image, icc_profile=linear_grey())))
    assert abs(int(np.asarray(found)[4, 4, 0]) - 188) <= 2, "half the light is 188 in sRGB"


def test_ink_has_a_profile_too() -> None:
    found = opened(clean_reference(encoded(Image.new("CMYK", (16, 16)), "JPEG", icc_profile=inverted_cmyk())))
    assert np.asarray(found).max() < 10


@pytest.mark.parametrize("padding", [1_500_000, 3_500_000])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_profile_may_have_megabytes(kind: str, padding: int) -> None:
    found = opened(clean_reference(encoded(drawn(), kind, icc_profile=swapped_profile(padding))))
    assert np.asarray(found)[12, 4, 2] > 190


@pytest.mark.parametrize(
    "profile",
    [b"no profile", b"x", swapped_profile()[:200], linear_grey(), inverted_cmyk(), swapped_profile(5_000_000)],
    ids=["words", "a byte", "cut off", "of grey", "of ink", "too large"],
)
def test_a_profile_that_does_not_fit_is_none(profile: bytes) -> None:
    found = opened(clean_reference(encoded(drawn(), icc_profile=profile)))
    assert tuple(np.asarray(found)[12, 4]) == (220, 20, 30)


def test_a_bomb_in_a_profile_is_none() -> None:
    squeezed = zlib.compress(bytes(400_000_000), 9)
    tracemalloc.start()
    try:
        assert opened(clean_reference(png(8, 8, chunk(b"iCCP", b"p\0\0" + squeezed)))).size == (8, 8)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
