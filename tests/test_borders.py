"""The import borders of pyproject.toml hold for modules that nobody has thought of yet."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


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


@pytest.mark.parametrize("library", ["psycopg2", "aiopg"])
def test_a_new_module_may_not_import(copy: Path, library: str) -> None:
    """Wherever it stands: each package of the server gets one."""
    everywhere = packages(copy)
    for package in everywhere:
        (copy / package.replace(".", "/") / "newcomer.py").write_text(f"import {library}\n")
    checked = check(copy)
    assert checked.returncode == 1
    refused = set(re.findall(rf"(server[\w.]*)\.newcomer -> {library}", checked.stdout))
    assert refused == set(everywhere)
