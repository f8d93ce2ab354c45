"""Answers: whether two conversations were told the same, as far as what follows depends on it. Pure."""

from __future__ import annotations

import re

_WORD = re.compile(r"(?<!\w)-(?=\d)|[^\W_]+|[^\w\s.,;:!?\"'*#()\[\]-]", re.UNICODE)
_TELLING_WORDS = 12
_MOST_CHARS = 32_768
_SKIPPED = frozenset({"a", "an", "the", "that", "which", "also"})


def agrees(one: str, other: str) -> bool:
    """Whether two answers say the same: word by word, in their order, but for articles, letter case and punctuation.

    What follows from an answer may hang on any of its words; who shares a cache is told the same ones anyway.
    """
    if one == other:
        return True
    if not one.strip() or not other.strip() or max(len(one), len(other)) > _MOST_CHARS:
        return False
    return _words(one) == _words(other)


def telling(answer: str) -> bool:
    """Whether an answer says enough to tell what the talk is of: twelve words. "I don't know." does not."""
    return len(_WORD.findall(answer[:_MOST_CHARS])) >= _TELLING_WORDS


def _words(text: str) -> list[str]:
    return [word for word in map(str.lower, _WORD.findall(text)) if word not in _SKIPPED]
