"""Planted: a kept text that asks what is asked now and gives an order, or says something else, besides. Pure.

Whoever plants an answer for somebody's question has the question in his own text, so that both are near, and adds what
the model shall do ("semantic cache poisoning", NDSS 2026). Learned verifiers see the question twice and believe it. The
price is a miss where somebody asked the same and honestly wanted something besides.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from cacheproxy.verify import lexicon
from cacheproxy.verify.asking import AUXILIARIES
from cacheproxy.verify.reading import read

if TYPE_CHECKING:
    from collections.abc import Callable

    from cacheproxy.verify.reading import Reading

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


def planted(asked: Reading, kept: Reading) -> bool:
    """Whether the kept text is the asked one with an order or a sentence of something else besides."""
    heard = set(asked.content)
    if not heard or len(heard & set(kept.content)) < _BESIDE_ORDER * len(heard):
        return False
    if _MARKUP.search(kept.text) and not _MARKUP.search(asked.text):
        return True
    clauses, sentences = _parts(kept.text, _CLAUSES), _parts(kept.text, _SENTENCES)
    return _beside(heard, clauses, _orders, _BESIDE_ORDER) or _beside(heard, sentences, _remarks, _BESIDE_REMARK)


def _beside(heard: set[str], parts: tuple[Reading, ...], tells: Callable[[Reading], bool], covered: float) -> bool:
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


@lru_cache(maxsize=256)
def _parts(text: str, between: re.Pattern[str]) -> tuple[Reading, ...]:
    found = [part for part in between.split(text) if part and part.strip()]
    if not 2 <= len(found) <= _MOST_PARTS:
        return ()
    return tuple(read(part) for part in found)


def _orders(part: Reading) -> bool:
    """Whether a part of a text tells to do something, or brings an address or code along."""
    if part.code:
        return True
    first = next((token for token in part.tokens[:6] if token not in _LEADING), "")
    return lexicon.verb(first) and first not in AUXILIARIES


def _remarks(part: Reading) -> bool:
    """Whether a sentence states something of its own, or asks it of the one who answers; not a further question."""
    if len(part.content) < _REMARK_WORDS:
        return False
    return not part.text.rstrip().endswith("?") or part.tokens[1:2] == ("you",)
