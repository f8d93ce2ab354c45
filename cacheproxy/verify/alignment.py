"""Which content words of two texts stand for each other, and which are left over."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cacheproxy.verify import lexicon
from cacheproxy.verify.vocabulary import CLASSES

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from cacheproxy.verify.lexicon import Kin
    from cacheproxy.verify.reading import Reading

_MOST_LEFT = 24
"""Words left over that are still compared one by one; beyond that the texts are not alike anyway."""
MOST_RELATED = 400
"""Pairs of words that only one text has, up to which it is told how they are related."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """Two readings side by side.

    `left` is what of the asked text has no counterpart, `right` what of the kept one has none.
    """

    asked: Reading
    kept: Reading
    left: tuple[str, ...]
    right: tuple[str, ...]
    matched: int
    opposed: tuple[tuple[str, str], ...]
    """Pairs among what is left over that say opposite things."""
    rival: tuple[tuple[str, str], ...]
    """Pairs among what is left over that are alternatives of one kind."""
    related: Mapping[tuple[str, str], Kin] = field(repr=False)
    """How the words that the other text lacks are related, those of the asked one first; without strangers."""
    share: float
    """The share of content words that are matched, in [0, 1]."""

    def share_without(self, pairs: int) -> float:
        """Return the share of content words that are matched when so many left-over pairs do not count."""
        return _share(self.matched, len(self.left) + len(self.right) - 2 * pairs)


def _share(matched: int, rest: int) -> float:
    both = 2 * matched + max(rest, 0)
    return 2 * matched / both if both else 1.0


def align(asked: Reading, kept: Reading) -> Alignment:
    """Match equal words first, then synonyms, derived forms and slips of the pen; linear but for a bounded rest."""
    said, heard = asked.content_set, kept.content_set
    spare, lacking = _rests(asked, kept)
    left = [word for word in spare if word not in heard]
    right = [word for word in lacking if word not in said]
    matched = len(said & heard)
    opposed: list[tuple[str, str]] = []
    rival: list[tuple[str, str]] = []
    related: Mapping[tuple[str, str], Kin] = {}
    if len(spare) <= _MOST_LEFT and len(lacking) <= _MOST_LEFT:
        related = lexicon.related(spare, lacking)
        opposed = [pair for pair, kin in related.items() if kin.opposite]
        matched += _pair_off(left, right, related, {word for pair in opposed for word in pair})
        rival = [
            (one, other)
            for one in left
            for other in right
            if ((one, other) in related or one in CLASSES) and lexicon.rivals(one, other)
        ]
    elif len(left) * len(right) <= MOST_RELATED:
        related = lexicon.related(left, right)
    return Alignment(
        asked=asked,
        kept=kept,
        left=tuple(left),
        right=tuple(right),
        matched=matched,
        opposed=tuple(opposed),
        rival=tuple(rival),
        related=related,
        share=_share(matched, len(left) + len(right)),
    )


def _pair_off(
    left: list[str], right: list[str], related: Mapping[tuple[str, str], Kin], opposed: Collection[str]
) -> int:
    """Take the words that say the same off both lists; return how many pairs. What is opposed stays."""
    pairs = 0
    for one in tuple(left):
        if one in opposed:
            continue
        for other in right:
            if other in opposed:
                continue
            kin = related.get((one, other))
            if (kin is not None and kin.synonym) or _spelled_alike(one, other):
                left.remove(one)
                right.remove(other)
                pairs += 1
                break
    return pairs


def _rests(asked: Reading, kept: Reading) -> tuple[list[str], list[str]]:
    """Return the words of each side that the other one lacks, repeated words counted once for each time."""
    if asked.content == kept.content:
        return [], []
    if len(asked.content) == len(asked.content_set) and len(kept.content) == len(kept.content_set):
        left = [word for word in asked.content if word not in kept.content_set]
        return left, [word for word in kept.content if word not in asked.content_set]
    counts: dict[str, int] = {}
    for word in kept.content:
        counts[word] = counts.get(word, 0) + 1
    left = []
    for word in asked.content:
        if counts.get(word, 0):
            counts[word] -= 1
        elif word not in left:
            left.append(word)
    right = []
    for word in reversed(kept.content):
        if counts.get(word, 0):
            counts[word] -= 1
            if word not in right:
                right.append(word)
    right.reverse()
    return left, right


def _spelled_alike(one: str, other: str) -> bool:
    """Whether two lemmas are one by their letters: one made of the other, or a slip of the pen."""
    short, long = (one, other) if len(one) <= len(other) else (other, one)
    if len(short) >= 4 and long.startswith(short[: max(4, len(short) - 2)]) and derived(short, long):
        return True
    return (
        len(short) >= 5
        and len(long) - len(short) <= 1
        and not (lexicon.known(one) and lexicon.known(other))
        and _slip(short, long)
    )


_DERIVED = frozenset(
    """s es ed er or ing ion tion ation ment ness ity ty al ally ly able ible y ful ive ic ical ist ism ance ence ant
    ent ate ize ise age ry ery e ee ian ish ability ibility""".split()
)


def derived(short: str, long: str) -> bool:
    """Whether both are one stem with endings that make words of words (install, installation; create, creation)."""
    size = 0
    for a, b in zip(short, long, strict=False):
        if a != b:
            break
        size += 1
    one, other = short[size:], long[size:]
    return size >= 4 and (not one or one in _DERIVED) and (not other or other in _DERIVED) and not (one == other == "")


def _slip(short: str, long: str) -> bool:
    """Whether one letter was left out, doubled or changed, or two neighbours were swapped."""
    start = 0
    while start < len(short) and short[start] == long[start]:
        start += 1
    if len(short) == len(long):
        return short[start + 1 :] == long[start + 1 :] or (
            short[start + 2 :] == long[start + 2 :] and short[start : start + 2] == long[start : start + 2][::-1]
        )
    return short[start:] == long[start + 1 :]
