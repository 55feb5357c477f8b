"""Which passwords are taken, and in which form they are hashed."""

from __future__ import annotations

import functools
import unicodedata
from typing import Final

from server import resources
from server.errors import BadRequest

MIN_PASSWORD: Final = 8
MAX_PASSWORD: Final = 1024


def normalize(password: str) -> str:
    """Return the form that is hashed (NFKC): one keyboard sends é as one character, another as two."""
    return unicodedata.normalize("NFKC", password)


def refuse_unhashable(password: str, *, name: str = "password") -> None:
    """Raise if this can be nobody's password.

    Raises:
        BadRequest: it is too long, or contains NUL.
    """
    if len(password) > MAX_PASSWORD or "\0" in password:
        raise BadRequest(f"{name} may have at most {MAX_PASSWORD} characters, and no NUL among them.")


def refuse_weak(password: str, email: str, *, name: str = "password") -> None:
    """Raise if the password is one of the first that anybody would try.

    Raises:
        BadRequest: it is too short or too long, can't be seen, is the person's own address, or is a common one.
    """
    refuse_unhashable(password, name=name)
    text = normalize(password).casefold()
    if len(normalize(password)) < MIN_PASSWORD:
        raise BadRequest(f"{name} must have at least {MIN_PASSWORD} characters.")
    if not any(unicodedata.category(character)[0] not in "CZ" for character in text):
        raise BadRequest(f"{name} must not be of spaces alone: choose something that can be seen.")
    address = normalize(email).casefold()
    if text.strip() in {address, address.partition("@")[0]}:
        raise BadRequest(f"{name} must not be your own email address: it is the first that anybody tries.")
    if text.strip() in _common():
        raise BadRequest(f"{name} is one of the most common ones, which are tried first: choose another.")


@functools.cache
def _common() -> frozenset[str]:
    """The ones of at least `MIN_PASSWORD` characters that head the published lists of leaked passwords."""
    return frozenset(resources.read_own("common_passwords.txt").splitlines())
