"""What rules and features need of one text, read once: its words, amounts, names, negations, and what it asks for.

Reading is linear in the text and never raises; of a long text only both ends are read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from cacheproxy.verify import asking, lexicon
from cacheproxy.verify.quantities import Quantity, find
from cacheproxy.verify.vocabulary import (
    ASKING,
    CONTRACTIONS,
    EMPTY_BEFORE,
    ENDINGS,
    FUNCTION,
    NEGATORS,
    PARTICLES,
    PHRASAL,
    QUALIFIERS,
    SMALL,
    STOP,
    WEAK_NEGATORS,
)

_EDGE = 2_000
"""Characters read at each end of a text."""
_MOST_WORDS = 600
_MOST_QUANTITIES = 32

_TOKEN = re.compile(
    r"""
    (?P<plain>[A-Za-z]{1,60}(?=[\s?!,;]|\Z))
  | `(?P<tick>[^`\n]{1,200})`
  | (?P<url>(?:https?://|www\.)[^\s<>"']{1,300})
  | (?P<mail>[\w.+-]{1,64}@[\w-]{1,64}\.[\w.-]{1,64})
  | (?P<flag>(?<![\w-])--?[A-Za-z][\w-]{0,40})
  | (?P<path>(?<![\w/])(?:~|\.{1,2})?/[\w.@~-]{1,80}(?:/[\w.@~-]{0,80}){0,20})
  | (?P<call>[A-Za-z_]\w{0,60}(?:(?:\.|::|->)[A-Za-z_]\w{0,60}){0,8}\(\)?)
  | (?P<file>\.?[A-Za-z][\w-]{0,60}\.(?:py|js|ts|tsx|jsx|java|cpp|c|h|cs|go|rs|rb|php|sh|sql|json|ya?ml
      |toml|xml|csv|txt|md|html?|css|pdf|docx?|xlsx?|ini|cfg|conf|log|env|lock|exe|dll|so|jar|net|io|com|org)\b)
  | (?P<snake>[A-Za-z]\w{0,60}_\w{1,60}|_\w{1,60}|[a-z]{1,30}(?:::|->)\w{1,60}
      |[a-z_]\w{1,60}(?:\.[a-z_]\w{1,60}){1,8})
  | (?P<number>[$€£¥₹]?\d(?:[\d,.:/]|-(?=\d)){0,30}(?<![,.:/-])(?:%|[^\W\d_]{1,12}(?![\w]))?(?!\w))
  | (?P<dotted>\bU\.(?:S(?:\.A)?|K)\b\.?|(?<![^\W\d_])[aApP]\.[mM]\b\.?)
  | (?P<mixed>[^\W_]{1,40}\d[\w-]{0,40}|[Cc](?:\+\+|\#)|[Ff]\#|\.NET)
  | (?P<word>[^\W\d_]{1,60}(?:(?:['\u2019]|-(?=[^\W\d_]))[^\W\d_]{1,60}){0,6})
  | (?P<quote>["“”])
  | (?P<end>[?!.;:,]|->|→|\n)
    """,
    re.VERBOSE,
)
"""A `plain` word is nothing else, which spares most words the search for what else they may begin."""
_CODE = frozenset("tick url mail flag path call snake".split())
_BRANDS = re.compile(r"i[A-Z][a-z]+|e[A-Z][a-z]+|macOS|iOS|[A-Z]+s?|iCloud")
_CAMEL = re.compile(r"[a-z]+(?:[A-Z][a-z0-9]+)+\Z")

_ALSO_WORDS = frozenset("us turkey china polish jordan chad jersey guinea scotch french japan maine".split())
"""Names of places that mean something else in lower case."""
_DOTTED = {"u.s": "usa", "u.s.a": "usa", "u.k": "uk", "a.m": "am", "p.m": "pm"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """One text as the rules see it. Compared by identity: a reading is made once for a text."""

    text: str = field(repr=False)
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


@dataclass(slots=True)
class _Words:
    """The words of a text while it is read."""

    tokens: list[str]
    cased: list[str]
    starts: list[bool]
    code: set[str]
    quoted: set[str]
    ends: list[str]


def read(text: str) -> Reading:
    """Read a text of any length; never raises for any string."""
    if len(text) > 2 * _EDGE:
        text = text[:_EDGE] + "\n" + text[-_EDGE:]
    words = _split(text)
    tokens = tuple(words.tokens)
    found = find(tokens, words.cased)
    lemmas, flipped = _lemmas(tokens)
    content, places = _content(tokens, lemmas, found.taken)
    negators, rhetorical = _negators(tokens)
    denied = [_scope(at, content, places) for at in negators]
    titled = _titled(words)
    return Reading(
        text=text,
        tokens=tokens,
        cased=tuple(words.cased),
        lemmas=lemmas,
        content=content,
        places=places,
        quantities=tuple(found.quantities[:_MOST_QUANTITIES]),
        dates=frozenset(found.dates),
        periods=frozenset(found.periods),
        negated=(*denied, *(_turned(at, word, content, places) for at, word in flipped)),
        weak=frozenset(word for word in lemmas if word in WEAK_NEGATORS) | ({"not"} if rhetorical else set()),
        qualifiers=frozenset(QUALIFIERS[token] for token in tokens if token in QUALIFIERS),
        entities=_entities(words, lemmas, titled),
        code=frozenset(words.code),
        quoted=frozenset(words.quoted),
        regions=_regions(tokens, words.cased),
        question=asking.question(tokens, text),
        tenses=asking.tenses(tokens),
        person=asking.person(tokens),
        language=asking.language(text, tokens),
    )


def _split(text: str) -> _Words:
    words = _Words([], [], [], set(), set(), [])
    start, quote = True, -1
    for match in _TOKEN.finditer(text):
        kind, token = match.lastgroup or "", match[0]
        if kind == "end":
            start = start or token in {".", "?", "!", "\n", ":"}
            if token in {"->", "→"}:
                _add(words, "to", "to", start=False)
            continue
        if kind == "quote":
            if quote >= 0 and len(words.tokens) > quote:
                words.quoted.add(" ".join(words.tokens[quote:]))
            quote = len(words.tokens) if quote < 0 else -1
            continue
        if len(words.tokens) >= _MOST_WORDS:
            break
        if kind == "plain":
            _word(words, token, start=start)
        else:
            _take(words, kind, match[kind], start=start)
        start = False
    return words


def _take(words: _Words, kind: str, token: str, *, start: bool) -> None:
    if kind in _CODE:
        token = token.rstrip(".,;:!?")
        words.code.add(_plain(token))
        _add(words, token.rstrip("()").lower(), token, start=start)
    elif kind in {"word", "dotted"}:
        _word(words, token, start=start)
    else:
        if kind == "file":
            words.code.add(_plain(token))
        _add(words, token.lower().rstrip("-"), token, start=start)


def _plain(code: str) -> str:
    return code.rstrip("()").lower()


def _word(words: _Words, token: str, *, start: bool) -> None:
    low = token.lower().replace("\u2019", "'")
    low = "usa" if token == "US" else _DOTTED.get(low.rstrip("."), low)
    if (opened := CONTRACTIONS.get(low)) is not None:
        for part in opened:
            _add(words, part, part, start=start)
    elif low.endswith("n't"):
        _add(words, low[:-3], token[:-3], start=start)
        _add(words, "not", "not", start=False)
    elif "'" in low and (end := low[low.rindex("'") :]) in ENDINGS:
        stem = low[: -len(end)]
        _add(words, stem, token[: -len(end)], start=start)
        if end != "'s" or stem in ASKING:
            _add(words, ENDINGS[end], ENDINGS[end], start=False)
    elif _CAMEL.match(token) and not _BRANDS.match(token):
        words.code.add(_plain(token))
        _add(words, low, token, start=start)
    elif "-" in low and len(low) > 4 and _joined(low):
        for part, written in zip(low.split("-"), token.split("-"), strict=True):
            _add(words, part, written, start=start)
    else:
        _add(words, low, token, start=start)


def _joined(low: str) -> bool:
    """Whether a word with hyphens is several: no word of its own, or a number."""
    first = low.partition("-")[0]
    return first in SMALL or (first not in {"non", "e", "wi"} and not lexicon.known(low))


def _add(words: _Words, token: str, cased: str, *, start: bool) -> None:
    token = token.strip("'")
    if token:
        words.tokens.append(token)
        words.cased.append(cased or token)
        words.starts.append(start)


def _lemmas(tokens: tuple[str, ...]) -> tuple[tuple[str, ...], list[tuple[int, str]]]:
    lemmas: list[str] = []
    flipped: list[tuple[int, str]] = []
    for at, token in enumerate(tokens):
        base = token if token in FUNCTION or token in QUALIFIERS else lexicon.lemma(token)
        if (positive := lexicon.positive(base)) and not _undoes(token, base, positive):
            base = lexicon.lemma(positive)
            flipped.append((at, base))
        lemmas.append(base)
    return tuple(lemmas), flipped


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
    places, last, rhetorical = [], len(tokens) - 1, False
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


def _content(
    tokens: tuple[str, ...], lemmas: tuple[str, ...], taken: set[int]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    content, places = [], []
    for at, token in enumerate(tokens):
        if at in taken or token in NEGATORS:
            continue
        if token in PARTICLES:
            verbal = any(lemma in PHRASAL for lemma in lemmas[max(0, at - 3) : at])
            if not verbal or (token == "in" and lemmas[at - 1] not in PHRASAL):
                continue
        elif token in STOP or token in FUNCTION or (len(token) == 1 and not token.isalnum()):
            continue
        content.append(lemmas[at])
        places.append(at)
    return tuple(content), tuple(places)


def _titled(words: _Words) -> bool:
    """Whether capitals say nothing here: most longer words have one."""
    longer = [cased for cased in words.cased if len(cased) > 3 and cased[0].isalpha()]
    capital = sum(cased[0].isupper() for cased in longer)
    return capital > 2 and capital > 0.6 * len(longer)


def _entities(words: _Words, lemmas: tuple[str, ...], titled: bool) -> frozenset[str]:
    found = set()
    for token, cased, start, lemma in zip(words.tokens, words.cased, words.starts, lemmas, strict=True):
        if token in STOP or token in FUNCTION or not token[0].isalpha():
            continue
        strange = len(token) > 2 and not lexicon.known(lemma) and not lexicon.known(token)
        named = cased[0].isupper() and not start and not titled
        acronym = len(cased) > 1 and cased[:2].isupper() and not titled
        if strange or named or acronym or any(letter.isupper() for letter in cased[1:]):
            found.add(lemma)
    return frozenset(found)


def _regions(tokens: tuple[str, ...], cased: tuple[str, ...] | list[str]) -> frozenset[str]:
    found = set()
    for at, token in enumerate(tokens):
        if token in FUNCTION and token != "us":
            continue
        name = lexicon.region(token + " " + tokens[at + 1]) if at + 1 < len(tokens) else ""
        if not name and (token not in _ALSO_WORDS or cased[at][0].isupper()):
            name = lexicon.region(token)
        if name:
            found.add("uk" if name == "england" else name)
    return frozenset(found)
