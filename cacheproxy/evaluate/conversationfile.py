"""Labelled pairs of conversations, one JSON object a line, plain or gzip."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from cacheproxy.errors import ConfigError
from cacheproxy.evaluate.lines import read_rows

if TYPE_CHECKING:
    from pathlib import Path

_FORM = '{"ctx_a": [text, ...], "q_a": text, "ctx_b": [text, ...], "q_b": text, "label": 0|1}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Talk:
    """A question and what was said before it: user and assistant in turns, or the user's turns alone."""

    context: tuple[str, ...] = field(repr=False)
    question: str = field(repr=False)

    def messages(self) -> list[dict[str, Any]]:
        """Return it as a chat request's messages. A context of odd length holds the user's turns only."""
        alone = len(self.context) % 2 == 1
        roles = ("user" if alone or place % 2 == 0 else "assistant" for place in range(len(self.context)))
        told = [{"role": role, "content": text} for role, text in zip(roles, self.context, strict=True)]
        return [*told, {"role": "user", "content": self.question}]


@dataclass(frozen=True, slots=True, kw_only=True)
class TalkPair:
    """May `b` be served `a`'s cached answer? `label` says so; an empty `category` or `kind` was not given."""

    a: Talk
    b: Talk
    label: bool
    category: str = ""
    kind: str = ""


class _Row(msgspec.Struct):
    ctx_a: list[str]
    q_a: str
    ctx_b: list[str]
    q_b: str
    label: bool | int
    category: str | None = None
    kind: str | None = None


def read_conversations(file: Path) -> list[TalkPair]:
    """Read every pair, at least one. Fields beyond these are ignored, and so are empty lines.

    Raises ConfigError as `file:line: what is wrong`, never quoting a text.
    """
    pairs = []
    for where, row in read_rows(file, _Row, _FORM):
        if row.label not in (0, 1):
            raise ConfigError(f"{where}: label must be 0 or 1")
        pairs.append(
            TalkPair(
                a=Talk(context=tuple(row.ctx_a), question=row.q_a),
                b=Talk(context=tuple(row.ctx_b), question=row.q_b),
                label=bool(row.label),
                category=row.category or "",
                kind=row.kind or "",
            )
        )
    if not pairs:
        raise ConfigError(f"{file}: holds no pair; each line must be {_FORM}")
    return pairs
