"""Roles: who does it and to whom it is done, as the form of a question tells. Pure; English.

"Who fights Batman?" asks for the one who fights, "Who does Batman fight?" for the one who is fought. Both have the same
words, and nearly the same place in every embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cacheproxy.verify import lexicon

if TYPE_CHECKING:
    from cacheproxy.verify.reading import Reading

_ASKING = frozenset("who whom what which whose".split())
_DOING = frozenset("do does did".split())
_NOUNS = 3
"""Words that may stand between "which" and what follows: which football club did ..."""
_SUBJECT, _OBJECT = frozenset({"i", "we"}), frozenset({"me", "us"})
_HELPING = frozenset("is are was were am be been has have had will would can could may might must shall should".split())


def swapped(one: Reading, other: Reading) -> bool:
    """Whether both texts are of the same words and ask for opposite sides of one deed."""
    if one.content_set != other.content_set or one.content == other.content:
        return False
    return _sides(one, other) or _sides(other, one) or _me(one, other)


def _sides(one: Reading, other: Reading) -> bool:
    """Whether `one` asks who did it to X, and `other` to whom X did it."""
    does, done = _after_asking(one), _after_asking(other)
    if does is None or done is None or other.tokens[done] not in _DOING or one.tokens[does] in _DOING | _HELPING:
        return False
    heads = one.content[: _before(one, does)], other.content[: _before(other, done)]
    if heads[0] != heads[1]:
        return False
    here, there = one.content[len(heads[0]) :], other.content[len(heads[1]) :]
    if len(here) < 2 or len(here) != len(there) or not lexicon.verb(here[0]):
        return False
    at = next((at for at, word in enumerate(there) if word == here[0]), 0)
    return at > 0 and there[:at] == here[1 : at + 1] and there[at + 1 :] == here[at + 1 :]


def _after_asking(text: Reading) -> int | None:
    """Return the place of the verb or auxiliary that what is asked for goes with; None where nothing is asked so."""
    for at, token in enumerate(text.tokens[:4]):
        if token not in _ASKING:
            continue
        following = text.tokens[at + 1 : at + 2 + _NOUNS]
        for step, word in enumerate(following, at + 1):
            if word in _DOING:
                return step
        if token not in {"which", "whose"}:
            return at + 1 if at + 1 < len(text.tokens) else None
        for step, word in enumerate(following[1:], at + 2):
            if lexicon.verb(text.lemmas[step]) and word != text.lemmas[step]:
                return step
        return None
    return None


def _before(text: Reading, place: int) -> int:
    """Return how many words of content stand before a place."""
    return sum(at < place for at in text.places)


def _me(one: Reading, other: Reading) -> bool:
    """Whether I do it in one text and have it done to me in the other."""
    here, there = frozenset(one.tokens), frozenset(other.tokens)
    mine = (here & _SUBJECT, here & _OBJECT), (there & _SUBJECT, there & _OBJECT)
    if not (bool(mine[0][0]) != bool(mine[0][1]) and bool(mine[1][0]) != bool(mine[1][1])):
        return False
    return bool(mine[0][0]) != bool(mine[1][0])
