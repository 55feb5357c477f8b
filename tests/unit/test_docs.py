"""What the documents name is there: links, files, tests, settings, metrics, and the whole of the HTTP contract."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from server.config import PREFIX, Config
from server.protocol.replies import describe_poll
from server.waiting.waiters import Reason
from server.web.openapi.schemas import problem_types
from server.web.routes import ROUTES

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob(".github/*.md")])
TEXTS = {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in DOCUMENTS}
SETTINGS = {
    f"{section.name}.{key.name}"
    for section in dataclasses.fields(Config)
    for key in dataclasses.fields(getattr(Config(), section.name))
}
each_document = pytest.mark.parametrize("document", TEXTS)


def prose(text: str) -> str:
    """The text without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def quoted(text: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`\n]+)`", prose(text))


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to the headings."""
    headings = re.findall(r"^#+ (.+)$", prose(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def source(*suffixes: str, folders: tuple[str, ...] = ("server", "sql")) -> str:
    """All the code of these folders."""
    files = [file for folder in folders for file in (ROOT / folder).rglob("*") if file.suffix in suffixes]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


@each_document
def test_links_lead_somewhere(document: str) -> None:
    """To a file of this repository, and to a heading of it if one is named."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(TEXTS[document])):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = ((ROOT / document).parent / path).resolve() if path else ROOT / document
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), target


@each_document
def test_files_that_are_named_exist(document: str) -> None:
    """A path below one of the project's folders, from the project's root."""
    for name in quoted(TEXTS[document]):
        if re.fullmatch(r"(server|tests|sql|templates|docs|\.ci|\.github)/[\w./-]*", name):
            assert (ROOT / name).exists(), name


@each_document
def test_tests_that_are_named_exist(document: str) -> None:
    """By the name of the function, wherever it stands."""
    known = set(re.findall(r"def (test_\w+)", source(".py", folders=("tests",))))
    assert {name for name in quoted(TEXTS[document]) if re.fullmatch(r"test_\w+", name)} <= known


@each_document
def test_settings_that_are_named_exist(document: str) -> None:
    """As `section.key`, or as the environment variable."""
    text = TEXTS[document]
    sections = "|".join({name.partition(".")[0] for name in SETTINGS})
    named = {name for name in quoted(text) if re.fullmatch(rf"({sections})\.[a-z_]+", name)}
    named |= {f"{section}.{key}".lower() for section, key in re.findall(rf"\b{PREFIX}([A-Z]+)__([A-Z_]+)\b", text)}
    assert {name for name in named if not name.endswith((".py", ".js", ".toml"))} <= SETTINGS


@each_document
def test_metrics_that_are_named_exist(document: str) -> None:
    """Prometheus adds `_total` to a counter's name."""
    known = set(re.findall(r"\blongpoll_\w+", source(".py", ".sql")))
    for name in re.findall(r"\blongpoll_\w+", prose(TEXTS[document])):
        assert {name, name.removesuffix("_total")} & known, name


def test_the_readme_leads_to_every_document() -> None:
    """So that a newcomer finds all of them."""
    named = {(ROOT / target).resolve() for target in re.findall(r"\]\(([^)#\s]+)", TEXTS["README.md"])}
    assert set(DOCUMENTS) - named == {ROOT / "README.md"}


def test_every_route_is_in_the_contract() -> None:
    """With its method, and nothing else is."""
    named = re.findall(r"`(GET|POST|PUT|DELETE) (/[^`?\s]*)[^`]*`", TEXTS["docs/contract.md"])
    assert set(named) == {(route.method, route.path) for route in ROUTES}


def test_every_kind_of_error_is_in_the_contract() -> None:
    """In the table of errors: a status, and the codes that it may have."""
    rows = re.findall(r"^\| (\d{3}) \| (.+) \|$", TEXTS["docs/contract.md"], flags=re.MULTILINE)
    told = {(int(status), code) for status, codes in rows for code in re.findall(r"`([a-z]+(?:_[a-z]+)*)`", codes)}
    assert told == {(kind.status, kind.code) for kind in problem_types()}


def test_every_reason_is_in_the_contract() -> None:
    """But the one for which no state is told, and each member that goes with it."""
    text = TEXTS["docs/contract.md"]
    reasons = re.findall(r"^\| `(\w+)` \|", text.partition("| `poll.reason` |")[2].partition("\n\n")[0], re.MULTILINE)
    assert set(reasons) == set(Reason) - {Reason.REVOKED}
    members = describe_poll(Reason.CHANGE, changed=True, held_seconds=0.0, finished=False)
    assert [name for name in members if f'"{name}"' not in text] == []
