"""The files that travel with the code: in a checkout they stand beside the package, in a wheel inside it."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """Return the folder `sql`, `templates` or `static`, wherever this installation has it."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def static_files() -> dict[str, Path]:
    """Return the files below `static`, by their paths there: `style.css`, `pages/task.js`."""
    top = folder("static")
    return {path.relative_to(top).as_posix(): path for path in sorted(top.rglob("*")) if path.is_file()}


def read_own(name: str) -> str:
    """Return the text of a file that stands in the package itself."""
    return _PACKAGE.joinpath(name).read_text(encoding="utf-8")


def read_text(*parts: str) -> str:
    """Return the text of a file in one of those folders."""
    return folder(parts[0]).joinpath(*parts[1:]).read_text(encoding="utf-8")
