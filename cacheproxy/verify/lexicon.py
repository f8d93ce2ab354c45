"""Words and their opposites, synonyms and kinds: WordNet 3.0 in one compressed file, read once at first use.

Made by `lexicon_build.py`; WordNet's licence is in `data/LICENSE-WordNet.txt`. Looking up never fails: a word that
is not known has no opposites and is its own lemma.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from cacheproxy.errors import ConfigError
from cacheproxy.verify.supplement import KEPT, OPPOSITES, SAME, SPELLINGS
from cacheproxy.verify.vocabulary import CLASSES

if TYPE_CHECKING:
    from collections.abc import Iterable

DATA = Path(__file__).parent / "data" / "lexicon.bin"
MAGIC = b"cacheproxy lexicon 1\n"

_NOUN, _VERB, _ADJECTIVE, _ADVERB = 1, 2, 4, 8
_SUFFIXES = (
    (
        _NOUN,
        (
            ("ies", "y"),
            ("ses", "s"),
            ("xes", "x"),
            ("zes", "z"),
            ("ches", "ch"),
            ("shes", "sh"),
            ("men", "man"),
            ("s", ""),
        ),
    ),
    (
        _VERB,
        (
            ("ies", "y"),
            ("ied", "y"),
            ("es", "e"),
            ("es", ""),
            ("ed", "e"),
            ("ed", ""),
            ("ing", "e"),
            ("ing", ""),
            ("s", ""),
        ),
    ),
    (_ADJECTIVE, (("ier", "y"), ("iest", "y"), ("er", ""), ("est", ""), ("er", "e"), ("est", "e"))),
)
"""Endings of inflected forms, tried in this order (morphy(7WN))."""
_LONGEST = 32


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the file was made of, and the digest of what follows."""

    source: str
    version: str
    sha256: str


class Payload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The words. A word's bytes: parts of speech, number of synsets, synsets, kinds; as `<BB..I`."""

    words: dict[str, bytes]
    antonyms: list[tuple[str, str]]
    negated: dict[str, str]
    irregular: dict[str, str]
    regions: dict[str, str]


class _Loaded:
    """The payload, the table of opposites with the supplement's, and what names of regions begin with."""

    __slots__ = ("irregular", "negated", "opposites", "region_starts", "regions", "words")

    def __init__(self, payload: Payload) -> None:
        self.words = payload.words
        self.negated = payload.negated
        self.irregular = payload.irregular
        self.regions = payload.regions
        names = [name.split(" ") for name in payload.regions]
        self.region_starts = frozenset(" ".join(name[:size]) for name in names for size in range(1, len(name) + 1))
        self.opposites: dict[str, set[str]] = {}
        for left, right in (*payload.antonyms, *OPPOSITES):
            self.opposites.setdefault(left, set()).add(right)
            self.opposites.setdefault(right, set()).add(left)


@cache
def _load() -> _Loaded:
    """Read the data file. Raises ConfigError when it is missing or damaged."""
    try:
        data = DATA.read_bytes()
    except OSError as exc:
        raise ConfigError(f"{DATA}: cannot be read ({exc.strerror}); install cacheproxy again") from exc
    head, _, packed = data.removeprefix(MAGIC).partition(b"\n")
    try:
        header = msgspec.json.decode(head, type=Header)
        if hashlib.sha256(packed).hexdigest() != header.sha256:
            raise ConfigError(f"{DATA}: the checksum does not match; install cacheproxy again")
        return _Loaded(msgspec.msgpack.decode(zlib.decompress(packed), type=Payload))
    except (msgspec.DecodeError, zlib.error) as exc:
        raise ConfigError(f"{DATA}: is not a lexicon of this version; install cacheproxy again") from exc


def prepare() -> None:
    """Read the file now, so that no request pays for it. Raises ConfigError."""
    _load()


@lru_cache(maxsize=16_384)
def lemma(word: str) -> str:
    """Return the base form of a lower-case word: plural, tense and degree taken off, British spelling made American."""
    word = SPELLINGS.get(word, word)
    if len(word) < 3 or len(word) > _LONGEST:
        return word
    known = _load()
    if (base := known.irregular.get(word)) is not None and word not in KEPT:
        return base
    if (own := known.words.get(word)) is not None and not (word[-1] == "s" or word.endswith(("ed", "ing"))):
        return word
    for part, endings in _SUFFIXES:
        for ending, instead in endings:
            if word.endswith(ending) and len(word) - len(ending) > 1:
                stem = word[: -len(ending)] + instead
                found = known.words.get(stem)
                if (
                    found is None
                    and len(stem) > 3
                    and stem[-1] == stem[-2]
                    and instead == ""
                    and ending in {"ed", "ing", "er"}
                ):
                    stem = stem[:-1]
                    found = known.words.get(stem)
                if (
                    found is not None
                    and found[0] & part
                    and not (own is not None and ending == "s" and word.endswith("ss"))
                ):
                    return SPELLINGS.get(stem, stem)
    return word


@lru_cache(maxsize=16_384)
def _senses(word: str) -> tuple[frozenset[int], frozenset[int]]:
    """Return a lemma's synsets and the kinds that its nouns and verbs belong to."""
    packed = _load().words.get(word)
    if packed is None:
        return frozenset(), frozenset()
    numbers = struct.unpack_from(f"<{(len(packed) - 2) // 4}I", packed, 2)
    return frozenset(numbers[: packed[1]]), frozenset(numbers[packed[1] :])


def antonyms(left: str, right: str) -> bool:
    """Whether two lemmas say opposite things (lock, unlock; cheap, expensive)."""
    return right in _load().opposites.get(left, ()) or (
        left != right and (positive(left) == right or positive(right) == left)
    )


class Kin(NamedTuple):
    """How two lemmas are related: what `antonyms`, `siblings` and `synonyms` say."""

    opposite: bool
    sibling: bool
    synonym: bool


_STRANGERS = Kin(opposite=False, sibling=False, synonym=False)


@lru_cache(maxsize=16_384)
def kin(left: str, right: str) -> Kin:
    """Return how two lemmas are related."""
    if left == right:
        return Kin(antonyms(left, right), sibling=False, synonym=True)
    opposite = antonyms(left, right)
    (meanings, kinds), (others, other_kinds) = _senses(left), _senses(right)
    synonym = SAME.get(left, left) == SAME.get(right, right) or not (opposite or meanings.isdisjoint(others))
    sibling = not (synonym or kinds.isdisjoint(other_kinds))
    return Kin(opposite, sibling, synonym) if opposite or sibling or synonym else _STRANGERS


@lru_cache(maxsize=8_192)
def _ties(word: str) -> frozenset[int | str]:
    """Return what two lemmas must have in common to be related at all: a meaning, a kind, or one of these words."""
    meanings, kinds = _senses(word)
    named = {word, SAME.get(word, word), positive(word) or word, *_load().opposites.get(word, ())}
    return frozenset((*meanings, *(-1 - kind for kind in kinds), *named))


def related(words: Iterable[str], others: Iterable[str]) -> dict[tuple[str, str], Kin]:
    """Return what `kin` says of each of `words` with each of `others`, in this order; strangers are left out."""
    tied = [(other, _ties(other)) for other in others]
    found = {}
    for word in words:
        ties = _ties(word)
        for other, others_ties in tied:
            if not ties.isdisjoint(others_ties) and (how := kin(word, other)) is not _STRANGERS:
                found[word, other] = how
    return found


def opposites(word: str) -> list[str]:
    """Return the opposites of a lemma, in a fixed order."""
    return sorted(_load().opposites.get(word, ()))


def synonyms(left: str, right: str) -> bool:
    """Whether two lemmas share a meaning (buy, purchase); never for opposites."""
    if left == right or SAME.get(left, left) == SAME.get(right, right):
        return True
    return not _senses(left)[0].isdisjoint(_senses(right)[0]) and not antonyms(left, right)


def siblings(left: str, right: str) -> bool:
    """Whether two lemmas are different things of the same near kind (cat, dog; March, April), not synonyms."""
    return left != right and not _senses(left)[1].isdisjoint(_senses(right)[1]) and not synonyms(left, right)


def known(word: str) -> bool:
    """Whether the lexicon has this lemma."""
    return word in _load().words


def verb(word: str) -> bool:
    """Whether this lemma can be a verb."""
    packed = _load().words.get(word)
    return packed is not None and bool(packed[0] & _VERB)


@lru_cache(maxsize=16_384)
def positive(word: str) -> str:
    """Return the word that a prefix turns round in this lemma (unhappy: happy), "" where none does."""
    loaded = _load()
    if (base := loaded.negated.get(word)) is not None:
        return base
    if word in loaded.words or len(word) > _LONGEST:
        return ""
    for prefix in ("non-", "non", "un"):
        rest = lemma(word[len(prefix) :]) if word.startswith(prefix) and len(word) - len(prefix) > 2 else ""
        if rest and (rest in loaded.words or prefix == "non-"):
            return rest
    return ""


def region(words: str) -> str:
    """Return the country that a lower-case name or adjective stands for, "" for none."""
    return _load().regions.get(words, "")


def forget() -> None:
    """Remember no word that was looked up."""
    for remembering in (lemma, positive, kin, _senses, _ties):
        remembering.cache_clear()


def region_starts() -> frozenset[str]:
    """Return every name that `region` knows, and every word or words that one of them begins with."""
    return _load().region_starts


def source() -> str:
    """Say what the words come from."""
    return DATA.read_bytes()[len(MAGIC) :].partition(b"\n")[0].decode()


def rivals(left: str, right: str) -> bool:
    """Whether two lemmas are alternatives: of one kind, in WordNet or in CLASSES (iPhone, iPad)."""
    kind = CLASSES.get(left)
    return (kind is not None and kind == CLASSES.get(right) and left != right) or kin(left, right).sibling
