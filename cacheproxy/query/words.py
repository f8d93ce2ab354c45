"""Words of short texts, as two wordings are compared: stems, names, and the words that only refer or link. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def _set(told: str) -> frozenset[str]:
    return frozenset(told.split())


PERSONAL = {
    **dict.fromkeys(("he", "him", "his", "himself"), "he"),
    **dict.fromkeys(("she", "her", "hers", "herself"), "she"),
    **dict.fromkeys(("they", "them", "their", "theirs", "themselves"), "they"),
    **dict.fromkeys(("it", "its", "itself"), "it"),
}
"""Words that stand for somebody or something, by their kind."""
POINTING = _set("this that these those the such")
"""Words that point at something said."""
LINKING = _set("of for in on at with to about")
"""Words that tie what follows to what is before."""
EMPTY = LINKING | _set("a an s there then and")
"""Words whose loss alone changes nothing."""
EXCLUDING = _set("besides beside aside apart except addition than")
"""Words that leave out what they are said of."""
LIGHT = LINKING | EXCLUDING | _set(
    "a an the by from as and or into during over under between within s i e g also including other together like such "
    "when while where which who that it is are was were be been being do does did has have had having regarding "
    "concerning related compared called named known"
)  # fmt: skip
"""Words that may come along with what is spelled out."""
OPEN = _set("other else another more next further additional anything")
"""With these a question asks for what was not said yet, so that what was said may be left out by name."""
ASKING = _set("what who whom whose when where why how which")
NEGATING = _set("not no never none neither nor without cannot hardly nobody nothing nowhere")
COMMON = ASKING | LIGHT | POINTING | frozenset(PERSONAL) | _set(
    "can could would should will my your our you we but so if any anything anyone some after before tell give explain "
    "describe name list show there wow okay ok oh no yes interesting"
)  # fmt: skip
"""Words that are no names although a sentence begins with them."""

_AGREEING = {"are": "is", "were": "was", "does": "do", "have": "has", "an": "a"}
"""Forms that follow the number of what is spoken of. Tense counts."""
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)?", re.UNICODE)
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True, slots=True)
class Word:
    """A word in lower case, its stem, and whether it was written as a name or a number."""

    text: str = field(repr=False)
    stem: str = field(repr=False)
    name: bool


def words(text: str) -> tuple[Word, ...]:
    """Return the words of a text, possessive endings apart."""
    return tuple(_words(text))


def asked_by(told: Sequence[Word]) -> str:
    """Return the word that a question asks by ("when"), "" for one that asks by the order of its words."""
    return next((word.stem for word in told if word.text in ASKING), "")


def negations(told: Sequence[Word]) -> int:
    """Count the words that negate."""
    return sum(word.text in NEGATING or word.text.endswith("n't") for word in told)


def begins_with_name(text: str) -> bool:
    """Whether one of a text's sentences begins with a name."""
    for sentence in _SENTENCE.split(text):
        first = next(_words(sentence[:80]), None)
        if first is not None and first.name and not first.text.isdigit():
            return True
    return False


def _words(text: str) -> Iterator[Word]:
    for found in _WORD.finditer(text):
        raw = found.group()
        before = text[max(found.start() - 8, 0) : found.start()].rstrip()[-1:]
        begins = not before or before in '.?!:;"\u201c('
        lower = raw.lower().replace("\u2019", "'")
        name = raw[0].isdigit() or (raw[0].isupper() and lower not in (COMMON if begins else PERSONAL))
        for part in (lower[:-2], "s") if lower.endswith("'s") else (lower,):
            yield Word(part, _stem(part), name and part != "s")


def _stem(word: str) -> str:
    """Return a word without the endings that number and agreement give it."""
    word = _AGREEING.get(word, word)
    for ending in ("ing", "ed"):
        if len(word) > len(ending) + 3 and word.endswith(ending):
            word = word.removesuffix(ending)
            return (word[:-1] if word[-1] == word[-2] and word[-1] not in "ls" else word).removesuffix("e")
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-3] + "y" if word.endswith("ies") and len(word) > 4 else word[:-1]
    return word.removesuffix("e") if len(word) > 4 else word
