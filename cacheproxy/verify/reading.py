"""What rules and features need of one text, read once: its words, amounts, names, negations, and what it asks for.

Reading is linear in the text and never raises; of a long text only both ends are read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from cacheproxy.verify import asking, lexicon
from cacheproxy.verify.quantities import Quantity, find
from cacheproxy.verify.signs import Signs, see
from cacheproxy.verify.tokens import Tokens, split
from cacheproxy.verify.vocabulary import (
    EMPTY_BEFORE,
    FUNCTION,
    NEGATORS,
    PARTICLES,
    PHRASAL,
    QUALIFIERS,
    STOP,
    WEAK_NEGATORS,
)

_MOST_QUANTITIES = 32

ALSO_WORDS = frozenset("us turkey china polish jordan chad jersey guinea scotch french japan maine".split())
"""Names of places that mean something else in lower case."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """One text as the rules see it. Compared by identity: a reading is made once for a text."""

    text: str = field(repr=False)
    signs: Signs = field(repr=False)
    """What its very characters say; no feature is made of them."""
    tokens: tuple[str, ...] = field(repr=False)
    """Lower-case words in order, contractions opened, without punctuation."""
    cased: tuple[str, ...] = field(repr=False)
    """The same as written."""
    lemmas: tuple[str, ...] = field(repr=False)
    """The same in base form; without a negating prefix ("unhappy" is "happy" and one negation)."""
    content: tuple[str, ...] = field(repr=False)
    """Base forms of the words that carry content, in order."""
    places: tuple[int, ...] = field(repr=False)
    """Where in `tokens` each word of `content` stands."""
    lemma_set: frozenset[str] = field(repr=False)
    content_set: frozenset[str] = field(repr=False)
    marked: frozenset[str] = field(repr=False)
    """What is quoted, and the words of `content` that are not of letters alone."""
    quantities: tuple[Quantity, ...] = ()
    dates: frozenset[str] = frozenset()
    periods: frozenset[str] = frozenset()
    negated: tuple[tuple[str, ...], ...] = ()
    """What is denied: for each negator the next two words of content, for each negating prefix its word's base form.

    Polite and empty negators do not count.
    """
    weak: frozenset[str] = frozenset()
    """Words that may negate without a negator: fail, stop, avoid."""
    qualifiers: frozenset[str] = frozenset()
    entities: frozenset[str] = frozenset()
    """Base forms of names, acronyms and words that no dictionary has."""
    code: frozenset[str] = frozenset()
    quoted: frozenset[str] = frozenset()
    regions: frozenset[str] = frozenset()
    question: str = ""
    """how, what, why, when, where, who, which, yesno, amount, span, command, ..., "" for a statement."""
    tenses: frozenset[str] = frozenset()
    person: str = ""
    """Who acts after the first auxiliary verb: i, you, he, they, "" for nobody named by a pronoun."""
    language: str = ""
    """Of its script or its commonest words; "" when they do not tell."""


class _Known(NamedTuple):
    """What is known of a word by itself, whatever stands around it."""

    lemma: str
    """Its base form; without a negating prefix."""
    flipped: bool
    """Whether it had one."""
    speaks: bool
    """Whether it carries content, as far as it can tell by itself."""
    name: bool
    """Whether it may be a name: it begins with a letter and is no stop word."""
    strange: bool
    """Whether no dictionary has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gist:
    """What a part of a text speaks of. The fields are those of its `Reading`."""

    text: str
    tokens: tuple[str, ...]
    content: tuple[str, ...]
    code: frozenset[str]


def gist(text: str) -> Gist:
    """Read a text as `read` does, but no more than a gist; never raises for any string."""
    words = split(text)
    tokens = tuple(words.tokens)
    content, _ = _content(tokens, [_known(token) for token in tokens], find(tokens, words.cased).taken)
    return Gist(text=words.text, tokens=tokens, content=content, code=frozenset(words.code))


def read(text: str) -> Reading:
    """Read a text of any length; never raises for any string."""
    words = split(text)
    tokens = tuple(words.tokens)
    found = find(tokens, words.cased)
    known = [_known(token) for token in tokens]
    lemmas = tuple(one.lemma for one in known)
    content, places = _content(tokens, known, found.taken)
    negators, rhetorical = _negators(tokens)
    denied = [_scope(at, content, places) for at in negators]
    turned = [_turned(at, one.lemma, content, places) for at, one in enumerate(known) if one.flipped]
    return Reading(
        text=words.text,
        signs=see(text, tokens, code=bool(words.code)),
        tokens=tokens,
        cased=tuple(words.cased),
        lemmas=lemmas,
        content=content,
        places=places,
        lemma_set=frozenset(lemmas),
        content_set=frozenset(content),
        marked=frozenset(word for word in content if not word.isalpha()) | words.quoted,
        quantities=tuple(found.quantities[:_MOST_QUANTITIES]),
        dates=frozenset(found.dates),
        periods=frozenset(found.periods),
        negated=(*denied, *turned),
        weak=WEAK_NEGATORS.intersection(lemmas) | ({"not"} if rhetorical else set()),
        qualifiers=frozenset(QUALIFIERS[token] for token in tokens if token in QUALIFIERS),
        entities=_entities(words, known),
        code=frozenset(words.code),
        quoted=frozenset(words.quoted),
        regions=_regions(tokens, words.cased),
        question=asking.question(tokens, words.text),
        tenses=asking.tenses(tokens),
        person=asking.person(tokens),
        language=asking.language(words.text, tokens),
    )


@lru_cache(maxsize=16_384)
def _known(token: str) -> _Known:
    bare = token in STOP or token in FUNCTION
    silent = bare or (len(token) == 1 and not token.isalnum())
    base = token if token in FUNCTION or token in QUALIFIERS else lexicon.lemma(token)
    flipped = bool(positive := lexicon.positive(base)) and not _undoes(token, base, positive)
    if flipped:
        base = lexicon.lemma(positive)
    strange = len(token) > 2 and not lexicon.known(base) and not lexicon.known(token)
    return _Known(
        lemma=base,
        flipped=flipped,
        speaks=token not in NEGATORS and (token in PARTICLES or not silent),
        name=not bare and token[0].isalpha(),
        strange=strange,
    )


def forget() -> None:
    """Remember no word that was read."""
    _known.cache_clear()
    lexicon.forget()


def _undoes(token: str, base: str, positive: str) -> bool:
    """Whether a prefixed word is a deed (unlock, disconnect): the opposite of another deed, not its absence."""
    return lexicon.verb(base) or (
        lexicon.verb(positive) and not lexicon.known(base) and not token.endswith(("ed", "ing", "able"))
    )


def _turned(at: int, word: str, content: tuple[str, ...], places: tuple[int, ...]) -> tuple[str, ...]:
    """Return what a negating prefix denies: its word, or what follows where that says nothing (unable, impossible)."""
    return _scope(at, content, places) if word in STOP else (word,)


def _scope(at: int, content: tuple[str, ...], places: tuple[int, ...]) -> tuple[str, ...]:
    """Return the words of content that a negator at this place denies: the next two, if they are near."""
    return tuple(word for word, place in zip(content, places, strict=True) if at < place <= at + 6)[:2]


def _negators(tokens: tuple[str, ...]) -> tuple[list[int], bool]:
    """Return the places of what negates.

    Without what only sounds so: "isn't it?", "whether or not", "I don't know how". The second value says whether there
    is a "why not" or an "or not", which may mean either.
    """
    places: list[int] = []
    if NEGATORS.isdisjoint(tokens) and "but" not in tokens:
        return places, False
    last, rhetorical = len(tokens) - 1, False
    for at, token in enumerate(tokens):
        if token not in NEGATORS:
            if token == "but" and at and tokens[at - 1] in {"anything", "everything", "everyone", "all"}:
                places.append(at)
            continue
        before = tokens[at - 1] if at else ""
        after = tokens[at + 1] if at < last else ""
        polite = (
            at == 1
            and before in asking.AUXILIARIES
            and (before != "do" or after in {"you", "i", "we", "there", "they", "these", "those", "people"})
        )
        tag = (
            at >= 2
            and at >= last - 1
            and before in asking.AUXILIARIES
            and (after in {"it", "he", "she", "they", "you", "i", "we"})
        )
        either = token == "not" and before in {"or", "why", "if"}
        aside = token == "not" and after in {"only", "just", "sure"}
        if token in {"no", "nor", "nobody", "none", "nothing"}:
            aside = (
                after in {"matter", "but"}
                or (at == 0 and token == "no" and after in FUNCTION)
                or (token == "nor" and "neither" in tokens[:at])
            )
        rhetorical = rhetorical or either
        empty = any(
            word in EMPTY_BEFORE and _asks(tokens, step + 1)
            for step, word in enumerate(tokens[at + 1 : at + 4], at + 1)
        )
        if not (polite or tag or either or aside or empty):
            places.append(at)
    return places, rhetorical


def _asks(tokens: tuple[str, ...], at: int) -> bool:
    return any(token in asking.QUESTIONS or token in {"if", "whether"} for token in tokens[at : at + 3])


def _content(tokens: tuple[str, ...], known: list[_Known], taken: set[int]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    content, places = [], []
    for at, (token, word) in enumerate(zip(tokens, known, strict=True)):
        if not word.speaks or at in taken:
            continue
        if token in PARTICLES:
            verbal = any(one.lemma in PHRASAL for one in known[max(0, at - 3) : at])
            if not verbal or (token == "in" and known[at - 1].lemma not in PHRASAL):
                continue
        content.append(word.lemma)
        places.append(at)
    return tuple(content), tuple(places)


def _titled(words: Tokens) -> bool:
    """Whether capitals say nothing here: most longer words have one."""
    longer = [cased for cased in words.cased if len(cased) > 3 and cased[0].isalpha()]
    capital = sum(cased[0].isupper() for cased in longer)
    return capital > 2 and capital > 0.6 * len(longer)


def _entities(words: Tokens, known: list[_Known]) -> frozenset[str]:
    found = {word.lemma for word in known if word.strange and word.name}
    capital = [at for at, cased in enumerate(words.cased) if known[at].name and not cased.islower()]
    if capital:
        titled = _titled(words)
        found.update(
            known[at].lemma for at in capital if _named(words.cased[at], start=words.starts[at], titled=titled)
        )
    return frozenset(found)


def _named(cased: str, *, start: bool, titled: bool) -> bool:
    """Whether its capitals make a word a name or an acronym."""
    capital = cased[0].isupper() and not start and not titled
    acronym = len(cased) > 1 and cased[:2].isupper() and not titled
    return capital or acronym or any(letter.isupper() for letter in cased[1:])


def _regions(tokens: tuple[str, ...], cased: tuple[str, ...] | list[str]) -> frozenset[str]:
    starts = lexicon.region_starts()
    if starts.isdisjoint(tokens):
        return frozenset()
    found = set()
    for at, token in enumerate(tokens):
        if token not in starts or (token in FUNCTION and token != "us"):
            continue
        name = lexicon.region(token + " " + tokens[at + 1]) if at + 1 < len(tokens) else ""
        if not name and (token not in ALSO_WORDS or cased[at][0].isupper()):
            name = lexicon.region(token)
        if name:
            found.add("uk" if name == "england" else name)
    return frozenset(found)
