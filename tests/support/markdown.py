"""Documents as their readers see them: code, tables and links, for tests that hold the documents to their word."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_RULE = re.compile(r"\|(\s*:?-+:?\s*\|)+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One Markdown file."""

    path: Path
    text: str

    @property
    def name(self) -> str:
        """The path from the root."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def prose(self) -> str:
        """The text without its code blocks."""
        return _FENCE.sub("", self.text)

    @property
    def spans(self) -> list[str]:
        """Inline code."""
        return _SPAN.findall(self.prose)

    @property
    def links(self) -> list[str]:
        """Targets of links, as written."""
        return _LINK.findall(_SPAN.sub("", self.prose))

    def blocks(self, language: str | None = None) -> list[str]:
        """Return the code blocks of a language ("" for those that name none), or all."""
        return [found["code"] for found in _FENCE.finditer(self.text) if language in (None, found["language"])]

    def table(self, *head: str) -> list[tuple[str, ...]]:
        """Return the rows of the one table with this head line."""
        lines = self.text.splitlines()
        [at] = [number for number, line in enumerate(lines) if _cells(line) == head]
        assert _RULE.fullmatch(lines[at + 1])
        rows = []
        for line in lines[at + 2 :]:
            if not line.startswith("|"):
                break
            rows.append(_cells(line))
        assert {len(row) for row in rows} == {len(head)}
        return rows


def read(name: str) -> Document:
    """Read a document by its path from the root."""
    path = ROOT / name
    return Document(path=path, text=path.read_text(encoding="utf-8"))


def documents(*patterns: str) -> list[Document]:
    """Read every document of ours that matches, in a fixed order."""
    found = (path for pattern in patterns for path in sorted(ROOT.glob(pattern)))
    return [read(path.relative_to(ROOT).as_posix()) for path in found if "node_modules" not in path.parts]


def _cells(line: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in line.strip().strip("|").split("|")) if line.startswith("|") else ()
