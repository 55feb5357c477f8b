"""The documents point to what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / ".github").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)[^)]*\)")
PATH = re.compile(r"`((?:server|tests|docs|sql|templates)/[\w./-]+\w/?)`")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_paths_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    assert [link for link in LINK.findall(text) if not (document.parent / link).exists()] == []
    assert [path for path in PATH.findall(text) if not (ROOT / path).exists()] == []


def test_the_readme_has_every_document() -> None:
    named = {(ROOT / link).resolve() for link in LINK.findall(DOCUMENTS[0].read_text())}
    assert set(DOCUMENTS[1:]) - named == set()
