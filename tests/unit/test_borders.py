"""The import borders of pyproject.toml hold for modules that nobody has thought of yet."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The code and its borders, to be changed."""
    shutil.copytree(ROOT / "server", tmp_path / "server", ignore=shutil.ignore_patterns("__pycache__", "static"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def check(copy: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=120, check=False)


def packages(copy: Path) -> list[str]:
    return sorted(".".join(file.parent.relative_to(copy).parts) for file in (copy / "server").rglob("__init__.py"))


def refused(copy: Path, library: str) -> set[str]:
    """Return the packages of which a module that imports this is refused: each one gets such a module."""
    for package in packages(copy):
        (copy / package.replace(".", "/") / "newcomer.py").write_text(f"import {library}\n")
    checked = check(copy)
    assert checked.returncode == 1
    return set(re.findall(rf"(server[\w.]*)\.newcomer -> {library}", checked.stdout))


@pytest.mark.parametrize("library", ["psycopg2", "aiopg"])
def test_postgres_drivers(copy: Path, library: str) -> None:
    assert refused(copy, library) == set(packages(copy))


@pytest.mark.parametrize("library", ["aiohttp", "aiohttp_session", "aiohttp_jinja2"])
def test_http(copy: Path, library: str) -> None:
    """Only its two rooms know it, and the bytes nothing of sessions and templates."""
    rooms = ("server.web",) if library != "aiohttp" else ("server.web", "server.protocol")
    assert refused(copy, library) == {package for package in packages(copy) if not package.startswith(rooms)}


def test_what_aiohttp_keeps_to_itself() -> None:
    """One module imports aiohttp's connection: what may change with any release of it is found there."""
    importing = {file.name for file in (ROOT / "server").rglob("*.py") if "aiohttp.web_protocol" in file.read_text()}
    assert importing == {"aiohttp_handler.py"}
