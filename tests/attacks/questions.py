"""The questions of the suite: each with ways to ask the same, and near ones with other answers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Block:
    """A question; `alike` ask the same, `traps` (family, text) do not."""

    question: str
    alike: tuple[str, ...]
    traps: tuple[tuple[str, str], ...]


@cache
def blocks() -> tuple[Block, ...]:
    """Return all of them, in the file's order."""
    text = (Path(__file__).parent / "questions.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    parts = [part.splitlines() for part in "\n".join(lines).strip().split("\n\n")]
    return tuple(_block(part) for part in parts)


def _block(lines: list[str]) -> Block:
    question, *rest = lines
    alike = tuple(line.removeprefix("= ") for line in rest if line.startswith("= "))
    traps = [line.removeprefix("!").split(" ", 1) for line in rest if line.startswith("!")]
    assert len(alike) + len(traps) == len(rest), question
    return Block(question, alike, tuple((family, text) for family, text in traps))
