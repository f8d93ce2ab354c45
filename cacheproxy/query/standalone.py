"""Standalone: a question of a conversation told so that it needs no conversation, as far as rules can tell. Pure.

Two questions: whether one question restates another one of the very same conversation, with its references spelled
out ("When did they disband?", "When did the Mothers of Invention disband?"), and what a question is about when it
only refers. No model is asked; what the rules cannot tell is left as it is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from difflib import SequenceMatcher
from enum import IntEnum
from itertools import pairwise
from typing import TYPE_CHECKING

from cacheproxy.query.words import (
    ASKING,
    COMMON,
    EMPTY,
    EXCLUDING,
    LIGHT,
    LINKING,
    OPEN,
    PERSONAL,
    POINTING,
    asked_by,
    begins_with_name,
    negations,
    words,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cacheproxy.query.words import Word

_LONGEST_CHARS = 400
"""A longer question is no follow-up of few words; comparing it would cost more than it tells."""
_LONGEST_TURN = 2_000
"""Characters of an earlier turn that are looked at."""
_MOST_SPELLED = 16
"""Most words that spelling references out may add."""
_FEW = 3
_AUXILIARIES = frozenset({"is", "was", "do", "did", "has", "had", "will", "would", "can", "could", "should"})
_MOST_TOPIC = 6


class Spelled(IntEnum):
    """How surely one question restates another; more is surer."""

    NO = 0
    GUESSED = 1
    """As LIKELY, with a name that the conversation never says in place of "he" or "it", although that may mean somebody
    whom it does name."""
    LIKELY = 2
    """A question that only refers has all its telling words in the other one, which spells out what is not told
    before, and asks for nothing else: so do 1 in 100 of the next questions of a dialog."""
    OUTER = 3
    """References are spelled out by a name that the conversation never says, while it speaks of nothing but "he", "she"
    or "it" from its first question on: what it is about was named before."""
    INNER = 4
    """All that is spelled out is in the conversation."""


def asking(text: str) -> str:
    """Return the word that a text asks by ("when"), "" for one that asks by the order of its words, or not at all."""
    return asked_by(words(text))


def restates(short: str, long: str, chain: Sequence[str]) -> Spelled:
    """Return how surely `long` is `short` with references spelled out, both asked after this very chain.

    Nothing may be lost but words that refer, and nothing be new but what the conversation names. Numbers, negations
    and words that mean something of their own are never taken for granted.
    """
    if not chain or max(len(short), len(long)) > _LONGEST_CHARS:
        return Spelled.NO
    said, spelled = words(short), words(long)
    if not said or negations(said) != negations(spelled) or asked_by(said) != asked_by(spelled):
        return Spelled.NO
    telling = {word.stem for word in said if _tells(word)}
    if 2 * len(telling.intersection(word.stem for word in spelled)) < len(telling):
        return Spelled.NO
    context = _Context.of(chain, said)
    matcher = SequenceMatcher(None, [word.stem for word in said], [word.stem for word in spelled], autojunk=False)
    found, added = Spelled.INNER, 0
    for kind, i, j, k, m in matcher.get_opcodes():
        if kind != "equal":
            added += m - k
            found = min(found, context.spells(said[i:j], spelled, k, m))
    if added > _MOST_SPELLED:
        return Spelled.NO
    return found if found is not Spelled.NO else context.likely(said, spelled)


def standalone(text: str, chain: Sequence[str]) -> str:
    """Return a question with what it is about, where it only refers; as it is where it stands alone or is long.

    What it is about is what the user named last: the names of an earlier question, or its telling words.
    """
    if len(text) > _LONGEST_CHARS or not chain:
        return text
    told = words(text)
    refers = any(word.text in PERSONAL or word.text in POINTING for word in told)
    content = [word for word in told if word.text not in LIGHT and word.stem not in ASKING]
    if any(word.name for word in told) or not (refers or len(content) < _FEW):
        return text
    own = {word.stem for word in told}
    asked = [words(turn[:_LONGEST_CHARS]) for turn in reversed(chain[::2]) if turn.strip()]
    topics = ([word for word in turn if word.name] for turn in asked)
    topic = next(filter(None, topics), None) or next(filter(None, map(_telling, asked)), [])
    about = " ".join(dict.fromkeys(word.text for word in topic if word.stem not in own))
    return f"{text} ({about})" if about else text


def _telling(told: Sequence[Word]) -> list[Word]:
    return [word for word in told if word.text not in COMMON][:_MOST_TOPIC]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Context:
    """A conversation as what is spelled out is held against it."""

    before: frozenset[str]
    known: frozenset[str]
    """With the question's own words."""
    latest: frozenset[str]
    """Of its last question and answer."""
    full: frozenset[str]
    """Names that it tells in full: with another first name somebody else is meant."""
    open: bool
    """Whether the question asks for something else than what was said."""
    meant: frozenset[str]
    """The kinds of pronouns of which it tells whom they mean; of all others it never named that."""
    nameless: bool
    """Whether no question names anything, and no answer begins with a name."""

    @classmethod
    def of(cls, chain: Sequence[str], said: Sequence[Word]) -> _Context:
        turns = [words(text[:_LONGEST_TURN]) for text in chain]
        known, latest = _stems(turns), _stems(turns[-2:])
        own = frozenset(word.stem for word in said)
        begun = [begins_with_name(text[:_LONGEST_TURN]) for text in chain[1::2]]
        return cls(
            before=known,
            known=known | own,
            latest=latest | own,
            full=_full_names(turns),
            open=not {word.text for word in said}.isdisjoint(OPEN),
            meant=_meant(turns[::2], begun),
            nameless=not any(begun) and not any(word.name for turn in turns[::2] for word in turn),
        )

    def spells(self, lost: Sequence[Word], spelled: Sequence[Word], start: int, end: int) -> Spelled:
        """Return how surely the words from `start` to `end` only spell out the lost ones, or what was meant anyway."""
        new = spelled[start:end]
        content = [word for word in new if word.text not in LIGHT]
        strange = [word for word in content if word.stem not in self.known]
        slots = {PERSONAL[word.text] for word in lost if word.text in PERSONAL}
        rest = [word for word in lost if word.text not in PERSONAL and word.text not in EMPTY]
        if (rest and not self._pointed(rest, content)) or _turns(lost, new, slots):
            return Spelled.NO
        if any(word.text in EXCLUDING for word in new):
            return Spelled.INNER if self.open and 2 * len(strange) <= len(content) else Spelled.NO
        if not strange:
            return Spelled.INNER
        if any(word.text.isdigit() for word in strange):
            return Spelled.NO
        tied = self.nameless and not rest and bool(lost or new[0].text == "of")
        outer = bool(slots - self.meant) or len(rest) > 1 or tied
        if not self._headed(spelled, start, end):
            return Spelled.OUTER if outer and len(content) <= _FEW else Spelled.NO
        names = [place for place in range(start, end) if spelled[place].name and spelled[place] in strange]
        if all(self._completes(spelled, place) for place in names):
            return Spelled.INNER
        return Spelled.OUTER if outer else Spelled.NO

    def likely(self, said: Sequence[Word], spelled: Sequence[Word]) -> Spelled:
        """Return LIKELY, or GUESSED, where all that a referring question tells is in the other one."""
        told, other = (Counter(word.stem for word in side if _tells(word)) for side in (said, spelled))
        places = [at for at, word in enumerate(spelled) if _tells(word) and word.stem not in self.known]
        strange = [spelled[at] for at in places if not (spelled[at].name and self._completes(spelled, at))]
        refers = any(word.text in PERSONAL or word.text in POINTING or word.text in OPEN for word in said)
        if (
            not (told and told < other and told.keys() < other.keys())
            or not refers
            or any(word.text.isdigit() for word in strange)
        ):
            return Spelled.NO
        if not _pronouns(spelled) <= _pronouns(said) or _tenses(said) != _tenses(spelled):
            return Spelled.NO
        somebody = any(word.name for word in strange) and not _pronouns(said).isdisjoint(self.meant)
        return Spelled.GUESSED if somebody else Spelled.LIKELY

    def _headed(self, spelled: Sequence[Word], start: int, end: int) -> bool:
        """Whether no new word but a name is unknown, save one that follows what is known ("the Cranfield project")."""
        places = [
            place
            for place in range(start, end)
            if not spelled[place].name and spelled[place].stem not in self.known and spelled[place].text not in LIGHT
        ]
        if len(places) > 1 or start in places:
            return not places
        before = (spelled[place - 1] for place in places)
        return all(word.name or (word.text not in LIGHT and word.stem in self.known) for word in before)

    def _pointed(self, rest: Sequence[Word], content: Sequence[Word]) -> bool:
        """Whether lost words only point at something ("the band"), and what came for them was spoken of last."""
        if rest[0].text not in POINTING or len(rest) > 2 or any(word.name for word in rest):
            return False
        if len(rest) == 1:
            return True
        if not content or not all(word.name for word in content):
            return False
        strange = all(word.stem not in self.known for word in content)
        return (strange and rest[-1].stem in self.before) or all(word.stem in self.latest for word in content)

    def _completes(self, spelled: Sequence[Word], at: int) -> bool:
        """Whether a new word only completes the name after it, which is known without: "Kohli", "Virat Kohli"."""
        for word in spelled[at + 1 :]:
            if not word.name:
                return False
            if word.stem in self.known:
                return word.stem not in self.full
        return False


def _tenses(told: Sequence[Word]) -> frozenset[str]:
    return frozenset(word.stem for word in told if word.stem in _AUXILIARIES)


def _tells(word: Word) -> bool:
    return word.text not in LIGHT and word.text not in PERSONAL and word.text not in POINTING and word.text != "s"


def _turns(lost: Sequence[Word], new: Sequence[Word], slots: set[str]) -> bool:
    """Whether new words make another question of it: "they" for "he", or "an injury for" put before the ACL."""
    if slots and any(word.text in PERSONAL and PERSONAL[word.text] not in slots for word in new):
        return True
    return not lost and bool(new) and new[-1].text in LINKING and new[0].text not in LIGHT


def _full_names(turns: Iterable[Sequence[Word]]) -> frozenset[str]:
    """Return the names that are told with another name before them."""
    return frozenset(
        word.stem
        for told in turns
        for before, word in pairwise(told)
        if before.name and word.name and not before.text.isdigit()
    )


def _unnamed(asked: Iterable[Sequence[Word]]) -> frozenset[str]:
    """Return the pronouns that questions use before any of them named something."""
    found: set[str] = set()
    for told in asked:
        if any(word.name and not word.text.isdigit() for word in told):
            break
        found |= _pronouns(told)
    return frozenset(found)


def _meant(asked: Sequence[Sequence[Word]], begun: Iterable[bool]) -> frozenset[str]:
    """Return the pronouns of which a talk tells whom they mean, and those used only after a name.

    `begun` says of each answer whether it begins with a name.
    """
    told = frozenset().union(*(_pronouns(question) for question, named in zip(asked, begun, strict=False) if named))
    return (frozenset(PERSONAL.values()) - _unnamed(asked)) | told


def _pronouns(told: Iterable[Word]) -> frozenset[str]:
    return frozenset(PERSONAL[word.text] for word in told if word.text in PERSONAL)


def _stems(turns: Iterable[Sequence[Word]]) -> frozenset[str]:
    return frozenset(word.stem for told in turns for word in told)
