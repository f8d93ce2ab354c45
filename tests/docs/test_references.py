"""What the documents point at is there: links, files, targets, and each other."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.support.markdown import ROOT, Document, documents, read

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ALL = documents("*.md", "docs/**/*.md", "policies/**/*.md", "tests/**/*.md")
EACH = pytest.mark.parametrize("document", ALL, ids=lambda document: document.name)

FILE = re.compile(r"[\w.-]+(/[\w.-]+)*(\.(py|toml|txt|md)|/)")
PATH_IN_PROSE = re.compile(r"(?<![\w/<`-])(?:docs|tests|cacheproxy|policies)/[\w./-]*\w")


def heading_anchors(document: Document) -> set[str]:
    """The fragments that a forge gives a document's headings."""
    headings = re.findall(r"^#+ (.+)$", document.prose, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def named_files(document: Document) -> Iterator[str]:
    """Files and rooms that a document names, in code or in plain words; `<name>` stands for one still to be written."""
    yield from (span for span in document.spans if FILE.fullmatch(span))
    yield from PATH_IN_PROSE.findall(document.prose)


def places(name: str) -> list[Path]:
    """Where a reader looks for a file: from the root, and in the package, whose documents leave its name out."""
    return [ROOT / name, ROOT / "cacheproxy" / name]


def test_the_readme_is_short() -> None:
    assert len(read("README.md").text.splitlines()) < 200


@EACH
def test_every_relative_link_leads_somewhere(document: Document) -> None:
    broken = []
    for link in document.links:
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = (document.path.parent / target).resolve() if target else document.path
        found = path.exists() and path.is_relative_to(ROOT)
        if not found or (anchor and anchor not in heading_anchors(read(path.relative_to(ROOT).as_posix()))):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("name", ["docs/architecture.md", "CONTRIBUTING.md", "README.md"])
def test_every_file_and_room_that_is_named_exists(name: str) -> None:
    named = set(named_files(read(name)))
    assert named
    assert {file for file in named if not any(place.exists() for place in places(file))} == set()


@pytest.mark.parametrize("name", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_every_room_is_on_the_map(name: str) -> None:
    rooms = {path.parent.name for path in (ROOT / "cacheproxy").glob("*/__init__.py")}
    text = read(name).text
    assert {room for room in rooms if not re.search(rf"\b{room}\b", text)} == set()


def test_every_decision_is_listed_with_its_title() -> None:
    listed = re.findall(r"^- \[(.+)\]\((.+)\)$", read("docs/decisions/README.md").text, re.MULTILINE)
    pages = documents("docs/decisions/[0-9]*.md")
    assert sorted(listed) == [(page.text.splitlines()[0].removeprefix("# "), page.path.name) for page in pages]


@EACH
def test_every_make_target_that_is_named_exists(document: Document) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    code = [*document.spans, *(line for block in document.blocks("sh") for line in block.splitlines())]
    named = {found[1] for line in code if (found := re.match(r"make ([a-z-]+)", line))}
    assert named - targets == set()
