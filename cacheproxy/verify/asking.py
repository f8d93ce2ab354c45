"""What a text asks for, and how: the kind of its question, who acts, its tense, its language."""

from __future__ import annotations

from itertools import pairwise

from cacheproxy.verify import lexicon
from cacheproxy.verify.vocabulary import LANGUAGE_WORDS, SCRIPTS, STOP

QUESTIONS = frozenset("what who whom whose where when why how which".split())
AUXILIARIES = frozenset(
    "is are was were am do does did can could will would shall should may might must has have had".split()
)
_HOW = {
    "much": "amount", "many": "amount", "long": "span", "often": "rate", "far": "distance", "old": "age",
    "big": "size", "large": "size", "tall": "size",
    "high": "size", "deep": "size", "fast": "speed", "good": "quality", "bad": "quality", "come": "why",
    "hard": "quality", "safe": "quality",
}  # fmt: skip
_NOUN_QUESTIONS = {
    "time": "when", "date": "when", "year": "when", "day": "when", "month": "when", "place": "where",
    "city": "what", "reason": "why", "cause": "why",
    "purpose": "why", "price": "amount", "cost": "amount", "number": "amount", "amount": "amount", "way": "how",
    "ways": "how", "steps": "how",
    "method": "how", "procedure": "how", "process": "how", "person": "who",
}  # fmt: skip
_PERSONS = {
    "i": "i",
    "we": "i",
    "you": "you",
    "one": "you",
    "he": "he",
    "she": "he",
    "they": "they",
    "people": "you",
    "someone": "you",
}

_LANGUAGES_OF: dict[str, tuple[str, ...]] = {
    word: tuple(name for name, words in LANGUAGE_WORDS.items() if word in words)
    for word in frozenset().union(*LANGUAGE_WORDS.values())
}


def question(tokens: tuple[str, ...], text: str) -> str:
    """Return what kind of answer is asked for."""
    for at, token in enumerate(tokens[:40]):
        if token not in QUESTIONS:
            continue
        after = tokens[at + 1] if at + 1 < len(tokens) else ""
        if token == "how":
            return _HOW.get(after, "how")
        if token in {"what", "which"}:
            for later in tokens[at + 1 : at + 5]:
                if later in _NOUN_QUESTIONS:
                    return _NOUN_QUESTIONS[later]
            return "what"
        if token in {"when", "where"} and at > 3 and tokens[0] in AUXILIARIES:
            continue
        return "who" if token in {"whom", "whose"} else token
    return _without_question_word(tokens, text)


def _without_question_word(tokens: tuple[str, ...], text: str) -> str:
    first = tokens[0] if tokens else ""
    for token in tokens[:6]:
        if token in {"ways", "way", "steps", "method", "procedure"}:
            return "how"
        if token in {"reason", "reasons"}:
            return "why"
    if first in AUXILIARIES:
        asking = tokens[1:2] in {("you",)} or (tokens[1:2] == ("someone",))
        return "command" if asking else "yesno"
    if first == "please" or lexicon.verb(first):
        return "command"
    return "yesno" if text.rstrip().endswith("?") else ""


def person(tokens: tuple[str, ...]) -> str:
    """Return who acts after the first auxiliary verb: i, you, he, they, "" where no pronoun says."""
    for before, token in pairwise(tokens):
        if before in AUXILIARIES and token in _PERSONS:
            return _PERSONS[token]
    return ""


def tenses(tokens: tuple[str, ...]) -> frozenset[str]:
    """Return which of past, present and future the auxiliary verbs tell."""
    found = set()
    for at, token in enumerate(tokens):
        if token in {"did", "was", "were", "had"}:
            found.add("past")
        elif token in {"will", "shall"} or (token == "going" and tokens[at + 1 : at + 2] == ("to",)):
            found.add("future")
        elif token in {"is", "are", "does", "do", "am"}:
            found.add("present")
    return frozenset(found)


def language(text: str, tokens: tuple[str, ...]) -> str:
    """Return a script other than Latin that most letters have, else the language with a clear vote, else ""."""
    if not text.isascii():
        seen: dict[str, int] = {}
        letters = 0
        for letter in text[:400]:
            code = ord(letter)
            letters += letter.isalpha()
            if code >= 0x370:
                for low, high, name in SCRIPTS:
                    if low <= code <= high:
                        seen[name] = seen.get(name, 0) + 1
                        break
        if seen and (most := max(seen.values())) * 2 > letters:
            return "kana" if seen.get("kana", 0) * 5 > most else max(seen, key=lambda name: seen[name])
    head = tokens[:60]
    counts: dict[str, int] = {}
    for token in head:
        for name in _LANGUAGES_OF.get(token, ()):
            counts[name] = counts.get(name, 0) + 1
    votes = sorted(((count, name) for name, count in counts.items()), reverse=True)
    best, name = votes[0] if votes else (0, "")
    if best < 2 or (len(votes) > 1 and best < 2 * votes[1][0]):
        return ""
    if name == "en":
        return name
    strange = sum(token.isalpha() and not lexicon.known(token) and token not in STOP for token in head)
    return name if strange > 0.4 * len(head) else ""
