"""Which content words of two texts stand for each other, and which are left over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cacheproxy.verify import lexicon

if TYPE_CHECKING:
    from cacheproxy.verify.reading import Reading

_MOST_LEFT = 24
"""Words left over that are still compared one by one; beyond that the texts are not alike anyway."""


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

    def overlap(self, *, without: int = 0) -> float:
        """Return the share of content words that are matched, in [0, 1], `without` so many left-over pairs."""
        rest = len(self.left) + len(self.right) - 2 * without
        both = 2 * self.matched + max(rest, 0)
        return 2 * self.matched / both if both else 1.0


def align(asked: Reading, kept: Reading) -> Alignment:
    """Match equal words first, then synonyms, derived forms and slips of the pen; linear but for a bounded rest."""
    spare, lacking = _rests(asked.content, kept.content)
    said, heard = set(asked.content), set(kept.content)
    left = [word for word in spare if word not in heard]
    right = [word for word in lacking if word not in said]
    matched = len(said & heard)
    opposed: list[tuple[str, str]] = []
    rival: list[tuple[str, str]] = []
    if spare and lacking and len(spare) <= _MOST_LEFT and len(lacking) <= _MOST_LEFT:
        opposed = [(one, other) for one in spare for other in lacking if lexicon.kin(one, other).opposite]
        spoken = {word for pair in opposed for word in pair}
        for one in tuple(left):
            if one in spoken:
                continue
            for other in right:
                if other not in spoken and alike(one, other):
                    left.remove(one)
                    right.remove(other)
                    matched += 1
                    break
        rival = [(one, other) for one in left for other in right if lexicon.rivals(one, other)]
    return Alignment(
        asked=asked,
        kept=kept,
        left=tuple(left),
        right=tuple(right),
        matched=matched,
        opposed=tuple(opposed),
        rival=tuple(rival),
    )


def _rests(asked: tuple[str, ...], kept: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Return the words of each side that the other one lacks, repeated words counted once for each time."""
    if asked == kept:
        return [], []
    counts: dict[str, int] = {}
    for word in kept:
        counts[word] = counts.get(word, 0) + 1
    left = []
    for word in asked:
        if counts.get(word, 0):
            counts[word] -= 1
        elif word not in left:
            left.append(word)
    right = []
    for word in reversed(kept):
        if counts.get(word, 0):
            counts[word] -= 1
            if word not in right:
                right.append(word)
    right.reverse()
    return left, right


def alike(one: str, other: str) -> bool:
    """Whether two lemmas say the same: synonyms, one made of the other, or one slip of the pen."""
    if lexicon.kin(one, other).synonym:
        return True
    short, long = (one, other) if len(one) <= len(other) else (other, one)
    if len(short) >= 4 and long.startswith(short[: max(4, len(short) - 2)]) and _derived(short, long):
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


def _derived(short: str, long: str) -> bool:
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
