"""Texts as people type them: what is counted, kept and compared is the same however they were sent.

A browser's form sends CRLF where its text field counts one line feed; a script sends what its string holds. The page
counts by the same rules (`static/parts/texts.js`).
"""

from __future__ import annotations

import re
from typing import Final

# Unicode's white space, the ASCII separators, and the three zero-width spaces (U+200B, U+2060, U+FEFF).
_SPACES: Final = "".join(
    chr(code)
    for first, last in (
        (0x09, 0x0D), (0x1C, 0x20), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200B), (0x2028, 0x2029),
        (0x202F, 0x202F), (0x205F, 0x2060), (0x3000, 0x3000), (0xFEFF, 0xFEFF),
    )
    for code in range(first, last + 1)
)  # fmt: skip
# Controls, and what Unicode calls Default_Ignorable_Code_Point, which Python doesn't know by name; and blank Braille.
_SHOWN: Final = re.compile(
    rf"[^{_SPACES}\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    r"\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    r"\U000e0000-\U000e0fff]"
)


def tidy(text: str) -> str:
    """Return a text with line feeds for line ends, and without white space around it."""
    return text.replace("\r\n", "\n").replace("\r", "\n").strip(_SPACES)


def shows_nothing(text: str) -> bool:
    """Whether nobody would see anything of this text."""
    return _SHOWN.search(text) is None
