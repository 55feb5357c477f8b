"""A reference image is kept in the colours in which a browser shows it."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from PIL import Image
from playwright.async_api import Page

from server.generation.reference import clean_reference
from tests.generation.test_reference import drawn, encoded, opened
from tests.support.profiles import linear_grey, swapped_profile

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("browser")]

SHOW = """async (url) => {
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
  const pen = canvas.getContext("2d");
  pen.drawImage(image, 0, 0);
  return [image.naturalWidth, image.naturalHeight, ...pen.getImageData(0, 0, canvas.width, canvas.height).data];
}"""


def turned(kind: str) -> Image.Exif:
    """Say that the picture lies on its side; of a WebP, Chromium doesn't read that."""
    exif = Image.Exif()
    exif[0x0112] = 1 if kind == "WEBP" else 6
    return exif


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
async def test_what_is_kept_is_what_the_browser_shows(page: Page, kind: str, mode: str) -> None:
    profile = linear_grey() if mode == "L" and kind != "WEBP" else swapped_profile()
    content = encoded(drawn(mode), kind, icc_profile=profile, exif=turned(kind), quality=95)
    width, height, *data = await page.evaluate(SHOW, f"data:;base64,{base64.b64encode(content).decode()}")
    kept = opened(clean_reference(content)).convert("RGB")

    assert kept.size == (width, height)
    shown = np.array(data).reshape(height, width, 4)[..., :3]
    assert np.abs(np.asarray(kept).astype(int) - shown).mean() < 4
