"""The vetoes: those of the rules, and checks beside them of what neither trees nor cross-encoder can see.

A check forbids or it does not; no feature depends on it, so that checks may be added without training again. Checks are
cheap and pure; most look at two texts only where they differ in nothing else.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rapidfuzz.distance import OSA

from cacheproxy.verify import lexicon, signs
from cacheproxy.verify.alignment import align, derived
from cacheproxy.verify.foreign import unreadable
from cacheproxy.verify.reading import ALSO_WORDS
from cacheproxy.verify.roles import swapped
from cacheproxy.verify.rules import RULES, weigh
from cacheproxy.verify.supplement import TERMS, UNITS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cacheproxy.verify.alignment import Alignment
    from cacheproxy.verify.reading import Reading
    from cacheproxy.verify.signs import Signs, Words

_SOME = 0.6
"""Share of content words that must be matched before operators or amounts can be of the same thing."""
_ALIKE = 3
"""Letters that two words must begin with to be mistaken for each other; two unknown ones need one less."""
_OTHER_NAME, _OTHER_WORD = 2, 3
"""Letters in which two unknown names, or an unknown and a known word, must differ to be no slip of the pen."""
_SALT = re.compile(r"(nitr|sul(?:f|ph)|chlor|phosph|brom|iod|carb|arsen)(?:ate|ite|ide|ic|ous)s?\Z")
_SHORT = 3
"""Characters up to which a code is not taken for a word in capitals."""
_LOANS = frozenset(
    """cafe cafes naive naively fiance fiancee cliche cliches facade jalapeno jalapenos pinata creme brulee crepe crepes
    decor deja vu voila touche a la carte entree saute smorgasbord uber souffle puree senor soiree protege debut
    regime""".split()
)
"""English words that are written with and without accents."""
_SQL = ("join ", "select ")
_ROMAN = re.compile(r"(?:\b[A-Z][a-z]+ |\bWW)(I{1,3}|IV|VI{0,3}|IX|XI{0,3}|XIV|XVI?)\b(?! [a-z]+ing\b|'[a-z])")
"""A Roman numeral after a name. A lone I after a word in capitals may be its writer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that forbids a hit."""

    name: str
    forbids: Callable[[Alignment], bool]

    def __call__(self, asked: Reading, kept: Reading) -> bool:
        """Whether serving one's answer to the other is forbidden."""
        return self.forbids(align(asked, kept))


def _foreign(pair: Alignment) -> bool:
    """Forbid what differs in its words where one text, or one of these words, is in a language unknown here."""
    one, other = pair.asked.signs, pair.kept.signs
    known = not (one.foreign or other.foreign)
    if known and one.text.isascii() and other.text.isascii():
        return False
    words, others = signs.words(one.text).folded, signs.words(other.text).folded
    if words == others:
        return False
    return not known or unreadable(set(words).symmetric_difference(others))


def _letters(pair: Alignment) -> bool:
    """Forbid another case where it says something: -o and -O, mW and MW, Polish and polish."""
    one, other = pair.asked.signs, pair.kept.signs
    if one.strict and any(_other_case(forms, other.strict.get(word)) for word, forms in one.strict.items()):
        return True
    if one.text == other.text or pair.asked.tokens != pair.kept.tokens:
        return False
    words, others = signs.words(one.text), signs.words(other.text)
    if words.written == others.written or words.folded != others.folded:
        return False
    typed = {signs.typing(words.written), signs.typing(others.written)} - {""}
    if not typed and signs.quotes(one.text) != signs.quotes(other.text):
        return True
    forms = Counter(folded for folded, _ in {*_forms(words), *_forms(others)})
    apart = [at for at, word in enumerate(words.written) if word != others.written[at]]
    begun = words.starts | others.starts
    inside = [(words.written[at], others.written[at]) for at in apart if at not in begun]
    if _names_in_lower(inside) or _names_in_lower([(other, one) for one, other in inside]):
        apart = [at for at in apart if at in begun]
    return not all(
        _same_letters(words.written[at], others.written[at], first=at in begun, typed=typed, forms=forms)
        for at in apart
    )


def _names_in_lower(apart: Sequence[tuple[str, str]]) -> bool:
    """Whether the first of each two is the other in lower case, a name: someone who types no capitals for any name."""
    return len(apart) > 1 and all(
        len(one) >= _SHORT and one.isalpha() and other == one.capitalize() and one not in ALSO_WORDS
        for one, other in apart
    )


def _other_case(forms: frozenset[str], others: frozenset[str] | None) -> bool:
    """Whether both texts have a code in another case; one that is a word in capitals is the same in small letters."""
    if others is None or not forms.isdisjoint(others):
        return False
    return not all(len(form) > _SHORT and form in {form.upper(), form.lower()} for form in (*forms, *others))


def _forms(words: Words) -> set[tuple[str, str]]:
    return set(zip(words.folded, words.written, strict=True))


def _same_letters(word: str, written: str, *, first: bool, typed: set[str], forms: Counter[str]) -> bool:
    """Whether two spellings of one word differ by typing alone."""
    folded = word.casefold()
    if folded == "i" or (first and word[1:] == written[1:] and word[:1].isalpha()) or signs.amount(folded):
        return True
    if forms[folded] > 2:  # one text has it in two forms
        return False
    if typed:
        if signs.short_code(word):
            return {word, written} <= {word.upper(), word.lower()} and folded[-2:] not in signs.BY_CASE
        return not (signs.case_tells(word) or signs.case_tells(written))
    if lexicon.region(folded):
        return folded not in ALSO_WORDS
    if not (word.isalpha() and len(word) > _SHORT and not _in_dictionary(folded)):
        return False
    # Github and github for GitHub are typed carelessly.
    careless = word.islower() or written.islower() or (word[0] == written[0] and word[0].isupper())
    return careless or word[1:] == written[1:]


def _in_dictionary(folded: str) -> bool:
    return lexicon.known(folded) or lexicon.known(lexicon.lemma(folded))


def _spacing(pair: Alignment) -> bool:
    """Forbid other lines and indentation, or another space in what is quoted, where all words are the same."""
    one, other = pair.asked.signs, pair.kept.signs
    if one.text == other.text or pair.asked.tokens != pair.kept.tokens:
        return False
    if signs.words(one.text).folded != signs.words(other.text).folded:
        return False
    if ("\n" in one.text or "\n" in other.text) and _differ(signs.layout, one, other):
        return True
    return ("  " in one.text or "  " in other.text) and _differ(signs.quotes, one, other)


def _differ(take: Callable[[str], list[str]], one: Signs, other: Signs) -> bool:
    return take(one.text.casefold()) != take(other.text.casefold())


def _operator(pair: Alignment) -> bool:
    """Forbid another operator, other brackets around it, or other operands on its sides."""
    one, other = pair.asked.signs, pair.kept.signs
    if one.text == other.text or not (one.operators or other.operators):
        return False
    words, others = signs.bare(one.text), signs.bare(other.text)
    if words != others:
        moved = len(words) == len(others) and sorted(words) == sorted(others)
        return (moved and _computes(one) and _computes(other)) or (pair.share >= _SOME and _contrary(one, other))
    if one.operators != other.operators:
        lone = one.operators or other.operators
        return bool(one.operators and other.operators) or not signs.STRONG.isdisjoint(lone)
    grouped = not signs.ARITHMETIC.isdisjoint(one.operators)
    return grouped and signs.brackets(one.text.casefold()) != signs.brackets(other.text.casefold())


def _computes(text: Signs) -> bool:
    return not signs.STRONG.isdisjoint(text.operators) or all(word in text.text.casefold() for word in _SQL)


def _contrary(one: Signs, other: Signs) -> bool:
    here, there = Counter(one.operators), Counter(other.operators)
    return bool(here - there) and bool(there - here)


def _measure(pair: Alignment) -> bool:
    """Forbid the same number of something else: 20 mcg and 20 mg, 37 C and 37 F, one sentence and one paragraph."""
    one, other = pair.asked.signs.measures, pair.kept.signs.measures
    if not (one and other):
        return False
    for number in {number for number, _ in one}.intersection(number for number, _ in other):
        if {unit for amount, unit in one if amount == number} != {unit for amount, unit in other if amount == number}:
            return True
    return False


def _accent(pair: Alignment) -> bool:
    """Forbid a word that differs by its accents alone, but for names and loans: year and anus in Spanish."""
    one, other = pair.asked.signs, pair.kept.signs
    if not (one.accented or other.accented):
        return False
    words, others = signs.words(one.text), signs.words(other.text)
    theirs = [(signs.without_accents(word), word) for word in set(others.folded).difference(words.folded)]
    plain = {bare for bare, _ in theirs}.difference(_LOANS)
    for word in set(words.folded).difference(others.folded):
        bare = signs.without_accents(word)
        found = [other for same, other in theirs if same == bare in plain]
        if not (_named(word, words) or all(_named(other, others) for other in found)):
            return True
    return False


def _named(folded: str, words: Words) -> bool:
    at = words.folded.index(folded)
    return at > 0 and words.written[at][:1].isupper() and not signs.typing(words.written)


def _name(pair: Alignment) -> bool:
    """Forbid two rare words of like spelling in the same place that are no slips of the pen: Celebrex, Celexa."""
    asked, kept = pair.asked, pair.kept
    if len(asked.content) != len(kept.content) or asked.content == kept.content:
        return False
    apart = [at for at, word in enumerate(asked.content) if word != kept.content[at]]
    if len(apart) != 1 or not _mistakable(asked.content[apart[0]], kept.content[apart[0]]):
        return False
    return _mistakable(asked.tokens[asked.places[apart[0]]], kept.tokens[kept.places[apart[0]]])


def _mistakable(one: str, other: str) -> bool:
    """Whether two words are alike and yet not one word, as far as letters tell."""
    if min(len(one), len(other)) < 5 or not (one.isalpha() and other.isalpha()):
        return False
    size = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    salts = _SALT.match(one), _SALT.match(other)
    if salts[0] and salts[1]:
        return salts[0][1] == salts[1][1]
    known = lexicon.known(lexicon.lemma(one)) + lexicon.known(lexicon.lemma(other))
    if size < (_ALIKE if known else _ALIKE - 1) or size == min(len(one), len(other)) or derived(one, other):
        return False
    apart, longest = OSA.distance(one, other), max(len(one), len(other))
    if known == 2:
        return apart <= longest / 2 and lexicon.kin(lexicon.lemma(one), lexicon.lemma(other)).sibling
    return apart >= (_OTHER_WORD if known else _OTHER_NAME) and apart > known * longest / 3


def _other_name(pair: Alignment) -> bool:
    """Forbid that only a name differs, in more than half of its letters: Utrecht and Rotterdam, Netflix and Spotify.

    Names are what no dictionary has; an acronym may stand for the other name.
    """
    if not len(pair.left) == len(pair.right) == 1:
        return False
    one, other = pair.left[0], pair.right[0]
    if not (_is_name(one, pair.asked) and _is_name(other, pair.kept)) or one.startswith(other) or other.startswith(one):
        return False
    return OSA.distance(one, other) > max(len(one), len(other)) / 2


def _is_name(word: str, text: Reading) -> bool:
    plain = word.isalpha() and len(word) > _SHORT and not _in_dictionary(word)
    return plain and word in text.entities and word.upper() not in text.signs.text


def _roman(pair: Alignment) -> bool:
    """Forbid another Roman numeral after a name: World War I and World War II, WWI and WWII."""
    one, other = (set(_ROMAN.findall(side.signs.text)) for side in (pair.asked, pair.kept))
    return bool(one) and bool(other) and one.isdisjoint(other)


def _term(pair: Alignment) -> bool:
    """Forbid another term of art in the place of one: radius and diameter, milligrams and micrograms."""
    if max(len(pair.left), len(pair.right)) > 1:
        return False
    one = _terms(pair.asked.tokens)
    other = _terms(pair.kept.tokens) if one else one
    lost, new = one - other, other - one
    if not (len(lost) == len(new) == 1 and _terms(pair.left) <= lost and _terms(pair.right) <= new):
        return False
    alone = len(_terms(pair.left)) == len(pair.left) and len(_terms(pair.right)) == len(pair.right)
    return alone and not TERMS[next(iter(lost))].isdisjoint(new)


def _terms(tokens: Sequence[str]) -> set[str]:
    told = (UNITS.get(token) or (token if token in TERMS else lexicon.lemma(token)) for token in tokens)
    return {word for word in told if word in TERMS}


def _roles(pair: Alignment) -> bool:
    """Forbid that who does it in one text has it done to them in the other."""
    return swapped(pair.asked, pair.kept)


CHECKS: tuple[Check, ...] = (
    Check(name="foreign", forbids=_foreign),
    Check(name="letters", forbids=_letters),
    Check(name="spacing", forbids=_spacing),
    Check(name="operator", forbids=_operator),
    Check(name="measure", forbids=_measure),
    Check(name="accent", forbids=_accent),
    Check(name="name", forbids=_name),
    Check(name="other_name", forbids=_other_name),
    Check(name="term", forbids=_term),
    Check(name="roman", forbids=_roman),
    Check(name="roles", forbids=_roles),
)
_OF_WORDS = CHECKS[-5:]
"""Those that forbid anything where other words are plain ones."""
_RULES = tuple((at, rule.name) for at, rule in enumerate(RULES) if rule.veto)


def vetoed(asked: Reading, kept: Reading) -> str:
    """Return the name of the first rule or check that forbids serving one's answer to the other, "" for none."""
    pair = align(asked, kept)
    return veto_of(weigh(pair), pair)


def veto_of(values: Sequence[float], pair: Alignment) -> str:
    """Return what `vetoed` does of two texts side by side, of which `values` are what the rules say."""
    for at, name in _RULES:
        if values[at] >= 1.0:
            return name
    apart = pair.asked.signs.plain and pair.kept.signs.plain and pair.asked.tokens != pair.kept.tokens
    for check in _OF_WORDS if apart else CHECKS:
        if check.forbids(pair):
            return check.name
    return ""
