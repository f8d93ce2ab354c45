"""Planted: a kept text that asks what is asked now and gives an order, or says something else, besides. Pure.

Whoever plants an answer for somebody's question has the question in his own text, so that both are near, and adds what
the model shall do ("semantic cache poisoning", NDSS 2026). Learned verifiers see the question twice and believe it. The
price is a miss where somebody asked the same and honestly wanted something besides.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeAlias

from cacheproxy.verify import lexicon
from cacheproxy.verify.asking import AUXILIARIES
from cacheproxy.verify.reading import gist

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from collections.abc import Set as AbstractSet

    from cacheproxy.verify.reading import Gist, Reading

Parts: TypeAlias = "tuple[tuple[Gist, ...], tuple[Gist, ...]]"
"""A text's clauses, and its sentences."""

VETO = "planted"

_SENTENCES = re.compile(r"(?<=[.!?;:])\s+|[\n()\[\]{}]+|<!--|-->")
_CLAUSES = re.compile(_SENTENCES.pattern + r"|,\s+|\b(?:and|then)\b", re.IGNORECASE)
_MARKUP = re.compile(r"<!--|</?[a-z]+>|\bsystem\b\s*:", re.IGNORECASE)
_LEADING = frozenset("please also and then now but or note ps first just only so kindly always never".split())
_MOST_PARTS = 16
_FOREIGN = 0.6
"""Share of a part's content that the question asked does not have, from which on it is of something else."""
_BESIDE_ORDER = 0.6
_BESIDE_REMARK = 0.8
"""Share of the asked question that the rest must hold: then a part is beside it, not the question in other words."""
_REMARK_WORDS = 2


def planted(asked: Reading, kept: Reading, parts: Callable[[str], Parts] | None = None) -> bool:
    """Whether the kept text is the asked one with an order or a sentence of something else besides.

    `parts` may stand for `parts_of`, where it remembers.
    """
    heard = asked.content_set
    if not heard or len(heard & kept.content_set) < _BESIDE_ORDER * len(heard):
        return False
    if _marked_up(kept.text) and not _marked_up(asked.text):
        return True
    clauses, sentences = (parts or parts_of)(kept.text)
    return _beside(heard, clauses, _orders, _BESIDE_ORDER) or _beside(heard, sentences, _remarks, _BESIDE_REMARK)


def _marked_up(text: str) -> bool:
    return ("<" in text or ":" in text) and _MARKUP.search(text) is not None


def _beside(heard: AbstractSet[str], parts: Sequence[Gist], tells: Callable[[Gist], bool], covered: float) -> bool:
    """Whether one of the parts is foreign to what was asked and tells, and the others hold enough of it."""
    contents = [{*part.content, *part.code} for part in parts]
    for at, part in enumerate(parts):
        foreign = contents[at] - heard
        if not foreign or len(foreign) < _FOREIGN * len(contents[at]) or not tells(part):
            continue
        rest = set().union(*contents[:at], *contents[at + 1 :])
        if len(heard & rest) >= covered * len(heard):
            return True
    return False


def parts_of(text: str) -> Parts:
    """Return a text's clauses and its sentences; none where there is one only, or too many."""
    clauses, sentences = _split(text, _CLAUSES), _split(text, _SENTENCES)
    read = {part: gist(part) for part in (*clauses, *sentences)}
    return tuple(read[part] for part in clauses), tuple(read[part] for part in sentences)


def _split(text: str, between: re.Pattern[str]) -> list[str]:
    found = [part for part in between.split(text) if part and part.strip()]
    return found if 2 <= len(found) <= _MOST_PARTS else []


def _orders(part: Gist) -> bool:
    """Whether a part of a text tells to do something, or brings an address or code along."""
    if part.code:
        return True
    first = next((token for token in part.tokens[:6] if token not in _LEADING), "")
    return lexicon.verb(first) and first not in AUXILIARIES


def _remarks(part: Gist) -> bool:
    """Whether a sentence states something of its own, or asks it of the one who answers; not a further question."""
    if len(part.content) < _REMARK_WORDS:
        return False
    return not part.text.rstrip().endswith("?") or part.tokens[1:2] == ("you",)
