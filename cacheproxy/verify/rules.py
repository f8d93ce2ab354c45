"""The rules: what makes the answer of one question wrong for another, each with its name, most of them cheap vetoes.

A rule gives 0 where the texts agree on what it looks at, 1 where they contradict each other, and something between
where one says more than the other. A rule with `veto` forbids the hit at 1. All are pure, and most need both texts
otherwise alike before they say 1: where the wording differs much, the learned part decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cacheproxy.verify import lexicon
from cacheproxy.verify.alignment import Alignment, align
from cacheproxy.verify.quantities import ORDER
from cacheproxy.verify.vocabulary import FUNCTION, OPPOSED_QUALIFIERS, QUALIFIERS, STOP

if TYPE_CHECKING:
    from collections.abc import Callable

    from cacheproxy.verify.quantities import Quantity
    from cacheproxy.verify.reading import Reading

_SOME = 0.6
"""Share of content words that must be matched before two numbers, dates or names can be of the same thing."""
_NEARLY = 0.9
"""Share of content words that must be matched before what only one text says makes it another question."""
_QUALIFIED = 0.85
"""The same before an opposed qualifier does."""
_LONG = 60
"""Words up to which the order of texts is compared."""
_CLOSE = 0.8
"""Share of content words that must be matched before a single "not" turns one question into the other."""
_ALIGNED = 0.67
"""Share of content words that must be matched before a contradiction of single words is one of the questions."""
_GOING = frozenset("from to into than".split())
"""Words that tell where something goes from or to."""
_SYMMETRIC = frozenset("and or & vs versus with between nor".split())
_EVEN_QUESTIONS = frozenset(
    """between distance differ difference compare comparison far relation relationship similar similarity same equal
    versus vs""".split()
)
_CLAUSES = frozenset("when if although though because while since that who and so after before".split())
"""Words that begin a clause: where only the text that says "not" has one, the "not" may be aside of the question."""
_PRECISE = frozenset("when where who amount why span rate distance age how".split())
_NEAR_QUESTIONS = frozenset(
    tuple(sorted(pair.split()) if " " in pair else ("", pair))
    for pair in """how what|how command|what command|what which|what who|command yesno|how yesno|what yesno|which who
    what|how|command|yesno""".replace("\n    ", "|").split("|")
)
"""Kinds of question that are often one question in other words; a single one is beside a text that asks nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One thing that two questions must agree on. `weigh` gives 0 (agree) to 1 (contradict) for two texts."""

    name: str
    veto: bool
    weigh: Callable[[Alignment], float]

    def __call__(self, asked: Reading, kept: Reading) -> float:
        """Return how much the two texts contradict each other here, in [0, 1]."""
        return self.weigh(align(asked, kept))


def _lacking(these: tuple[Quantity, ...], those: tuple[Quantity, ...]) -> list[Quantity]:
    return [one for one in these if not any(one.same(other) for other in those)]


def _number(pair: Alignment) -> float:
    """Weigh numbers that the other text has otherwise: top 5, top 10."""
    if not (pair.asked.quantities or pair.kept.quantities):
        return 0.0
    left = [one for one in _lacking(pair.asked.quantities, pair.kept.quantities) if not one.version]
    right = [one for one in _lacking(pair.kept.quantities, pair.asked.quantities) if not one.version]
    if left and right:
        return 1.0 if pair.share >= _SOME else 0.8
    if any(_rank(one) for one in (*left, *right)) and pair.share >= _NEARLY:
        return 1.0
    return 0.5 if left or right else 0.0


def _rank(one: Quantity) -> bool:
    """Whether this is a rank other than the first: the second largest is not the largest."""
    return one.unit == ORDER and one.value != "1"


def _unit(pair: Alignment) -> float:
    """Weigh the same number of something else (5 kg, 5 km), or another period (daily, monthly)."""
    for one in pair.asked.quantities:
        for other in pair.kept.quantities:
            if one.value == other.value and one.unit and other.unit and not one.same(other):
                return 1.0 if pair.share >= _ALIGNED else 0.8
    asked, kept = pair.asked.periods, pair.kept.periods
    if asked and kept and asked.isdisjoint(kept):
        return 1.0 if pair.share >= _ALIGNED else 0.8
    return 0.5 if bool(asked) != bool(kept) else 0.0


def _date(pair: Alignment) -> float:
    """Weigh another year, month, day, weekday or time of day."""
    asked, kept = pair.asked.dates, pair.kept.dates
    if asked == kept:
        return 0.0
    only, other = asked - kept, kept - asked
    kinds = {_kind(part) for part in only} & {_kind(part) for part in other}
    if kinds:
        return 1.0 if pair.share >= _SOME else 0.8
    return 0.5


def _kind(part: str) -> str:
    if part[1:2].isdigit():
        return part[0]
    return "day" if part in {"today", "yesterday", "tomorrow"} else "span" if " " in part else "season"


def _version(pair: Alignment) -> float:
    """Weigh another version or model of the same thing: Python 3.11, Python 3.12."""
    if not (pair.asked.quantities or pair.kept.quantities):
        return 0.0
    left = _lacking(pair.asked.quantities, pair.kept.quantities)
    right = _lacking(pair.kept.quantities, pair.asked.quantities)
    if not (any(one.version for one in left) or any(one.version for one in right)):
        return 0.0
    if not (left and right):
        return 0.5
    part = any(_within(one.value, other.value) for one in left for other in right)
    return 0.5 if part or pair.share < _SOME else 1.0


def _within(one: str, other: str) -> bool:
    return one.startswith(other + ".") or other.startswith(one + ".")


def _negation(pair: Alignment) -> float:
    """Weigh that one text says not and the other does not."""
    asked, kept = pair.asked, pair.kept
    if not (asked.negated or kept.negated):
        return 0.0
    left, right = _denied(asked, kept), _denied(kept, asked)
    if (left + right) % 2 == 0:
        return 0.3 if len(asked.negated) != len(kept.negated) else 0.0
    bare = kept if left > right else asked
    if bare.weak.difference((asked if bare is kept else kept).lemmas) or pair.opposed:
        return 0.4
    share = pair.share
    other = asked if bare is kept else kept
    if (asked.question != kept.question and share < 1.0) or _CLAUSES.intersection(other.tokens).difference(bare.tokens):
        return 0.6 * share
    return 1.0 if share >= _CLOSE else share


def _denied(text: Reading, other: Reading) -> int:
    """Count what the text denies of what the other one speaks of too."""
    spoken = {*other.content, *(word for words in other.negated for word in words)}
    return sum(not spoken.isdisjoint(words) for words in text.negated)


def _antonym(pair: Alignment) -> float:
    """Weigh a word that stands where the other text has its opposite: enable, disable."""
    if not pair.opposed:
        return 0.0
    if (len(pair.asked.negated) + len(pair.kept.negated)) % 2:
        return 0.2
    share = pair.share_without(1)
    return 1.0 if share >= _ALIGNED else 0.5 + share / 2


def _direction(pair: Alignment) -> float:
    """Weigh that one text goes from what the other goes to: from Paris to London, from London to Paris."""
    if pair.share < _ALIGNED or _GOING.isdisjoint(pair.asked.tokens) or _GOING.isdisjoint(pair.kept.tokens):
        return 0.0
    asked_from, asked_to = _ends(pair.asked)
    kept_from, kept_to = _ends(pair.kept)
    swapped = (asked_from & kept_to) - asked_to - kept_from, (asked_to & kept_from) - asked_from - kept_to
    if not (swapped[0] or swapped[1]):
        return 0.0
    even = not _EVEN_QUESTIONS.isdisjoint(pair.asked.lemmas)
    sure = (swapped[0] and swapped[1]) or pair.share >= _CLOSE
    return 1.0 if sure and not even else 0.5


def _ends(text: Reading) -> tuple[set[str], set[str]]:
    """Return the content words that something goes from, and those that it goes to; "A than B" goes from A to B."""
    starts: set[str] = set()
    goals: set[str] = set()
    content = dict(zip(text.places, text.content, strict=True))
    for at, token in enumerate(text.tokens):
        if token == "from":
            _next(content, at, starts)
        elif token in {"to", "into", "than"}:
            before = text.tokens[at - 1] if at else ""
            if before in STOP and token != "than":
                continue
            _next(content, at, goals)
            if at - 1 in content and token != "than":
                starts.add(content[at - 1])
    return starts, goals


def _next(content: dict[int, str], at: int, into: set[str]) -> None:
    for place in range(at + 1, at + 4):
        if place in content:
            into.add(content[place])
            return


def _order(pair: Alignment) -> float:
    """Weigh the same words with two of them in each other's place: dog bites man, man bites dog."""
    if _swapped(pair.asked.lemmas, pair.kept.lemmas, pair, edge=0):
        return 1.0
    return 1.0 if _swapped(pair.asked.content, pair.kept.content, pair, edge=1) else _loose_order(pair)


def _swapped(asked: tuple[str, ...], kept: tuple[str, ...], pair: Alignment, *, edge: int) -> bool:
    """Whether two parts changed places and nothing else did, with at least `edge` equal words before and after them."""
    if len(asked) != len(kept) or asked == kept or len(asked) > _LONG:
        return False
    start = 0
    while asked[start] == kept[start]:
        start += 1
    end = len(asked)
    while asked[end - 1] == kept[end - 1]:
        end -= 1
    fixed = start >= edge and len(asked) - end >= edge
    return fixed and _exchanged(asked[start:end], kept[start:end], pair)


def _exchanged(one: tuple[str, ...], other: tuple[str, ...], pair: Alignment) -> bool:
    """Whether `one` is X M Y and `other` is Y M X with something in the middle that is not even-handed."""
    if sorted(one) != sorted(other) or not _EVEN_QUESTIONS.isdisjoint(pair.asked.lemmas):
        return False
    for size in range(1, len(one) - 1):
        for tail in range(1, len(one) - size):
            first, middle, last = one[:size], one[size : len(one) - tail], one[len(one) - tail :]
            if other == last + middle + first and not all(word in _SYMMETRIC for word in middle):
                return any(word not in FUNCTION for word in first) and any(word not in FUNCTION for word in last)
    return False


def _loose_order(pair: Alignment) -> float:
    """Return how much of the matched content stands in another order, at most 0.6: clauses may change places."""
    asked, kept = pair.asked.content, pair.kept.content
    if asked == kept or len(asked) > _LONG or len(kept) > _LONG:
        return 0.0
    there = {word: at for at, word in enumerate(kept) if kept.count(word) == 1}
    places = [there[word] for word in asked if word in there and asked.count(word) == 1]
    if len(places) < 2:
        return 0.0
    pairs = len(places) * (len(places) - 1) // 2
    if places == sorted(places):
        return 0.0
    turned = sum(one > other for at, one in enumerate(places) for other in places[at + 1 :])
    return 0.6 * turned / pairs


def _language(pair: Alignment) -> float:
    """Weigh that the texts are in different languages, so that their answers are."""
    asked, kept = pair.asked.language, pair.kept.language
    return 1.0 if asked and kept and asked != kept else 0.0


def _code(pair: Alignment) -> float:
    """Weigh another identifier, flag, path, address or file."""
    if not (pair.asked.code or pair.kept.code):
        return 0.0
    left = pair.asked.code - pair.kept.code - set(pair.kept.tokens)
    right = pair.kept.code - pair.asked.code - set(pair.asked.tokens)
    if left and right:
        return 1.0 if pair.share_without(min(len(left), len(right))) >= _SOME else 0.8
    return 0.4 if left or right else 0.0


def _identifier(pair: Alignment) -> float:
    """Weigh quoted words or words with digits that the other text lacks."""
    left, right = pair.asked.marked - pair.kept.marked, pair.kept.marked - pair.asked.marked
    return 1.0 if left and right else 0.5 if left or right else 0.0


def _entity(pair: Alignment) -> float:
    """Weigh another name, acronym or word that no dictionary has."""
    left = pair.asked.entities.intersection(pair.left)
    right = pair.kept.entities.intersection(pair.right)
    return 1.0 if left and right else 0.6 if left or right else 0.0


def _region(pair: Alignment) -> float:
    """Weigh another country."""
    left, right = pair.asked.regions - pair.kept.regions, pair.kept.regions - pair.asked.regions
    if left and right:
        return 1.0 if pair.share_without(1) >= _SOME else 0.8
    return 0.5 if left or right else 0.0


def _qualifier(pair: Alignment) -> float:
    """Weigh another bound, rank or exception: only, except, all, first, at least."""
    left, right = pair.asked.qualifiers - pair.kept.qualifiers, pair.kept.qualifiers - pair.asked.qualifiers
    if any(frozenset((one, other)) in OPPOSED_QUALIFIERS for one in left for other in right):
        spare = 1 if not QUALIFIERS.keys().isdisjoint(pair.left) and not QUALIFIERS.keys().isdisjoint(pair.right) else 0
        return 1.0 if pair.share_without(spare) >= _QUALIFIED else 0.8
    return min(0.25 * (len(left) + len(right)), 0.75)


def _question(pair: Alignment) -> float:
    """Weigh another kind of answer: when, where, why, how much."""
    asked, kept = pair.asked.question, pair.kept.question
    if asked == kept:
        return 0.0
    if frozenset((asked, kept)) <= _PRECISE and pair.share >= _NEARLY:
        return 1.0
    return 0.3 if tuple(sorted((asked, kept))) in _NEAR_QUESTIONS else 0.9


def _tense(pair: Alignment) -> float:
    """Weigh another time: what was, what is, what will be."""
    asked, kept = pair.asked.tenses, pair.kept.tenses
    if asked and kept and asked.isdisjoint(kept):
        return 1.0
    return 0.0 if asked == kept else 0.3


def _rival(pair: Alignment) -> float:
    """Weigh an alternative of the same kind in a word's place: credit, prepaid; silver, gold."""
    return pair.share_without(1) if pair.rival else 0.0


def _rest(pair: Alignment) -> float:
    """Weigh content words without a counterpart in the other text."""
    return 1.0 - pair.share


def _swap(pair: Alignment) -> float:
    """Weigh that exactly one word of each has no counterpart: the same asked about something else."""
    if len(pair.left) != 1 or len(pair.right) != 1 or not pair.matched:
        return 0.0
    both = lexicon.known(pair.left[0]) and lexicon.known(pair.right[0])
    return pair.share_without(1) * (1.0 if both else 0.8)


def _scope(pair: Alignment) -> float:
    """Weigh that one text says all that the other one says and more: its question is narrower."""
    left, right = len(pair.left), len(pair.right)
    return min((left + right) / 3, 1.0) if (left == 0) != (right == 0) else 0.0


def _person(pair: Alignment) -> float:
    """Weigh who acts: can I, can you, can they."""
    asked, kept = pair.asked.person, pair.kept.person
    return 1.0 if asked and kept and asked != kept else 0.0


RULES: tuple[Rule, ...] = (
    Rule(name="number", veto=True, weigh=_number),
    Rule(name="unit", veto=True, weigh=_unit),
    Rule(name="date", veto=True, weigh=_date),
    Rule(name="version", veto=True, weigh=_version),
    Rule(name="negation", veto=True, weigh=_negation),
    Rule(name="antonym", veto=True, weigh=_antonym),
    Rule(name="direction", veto=True, weigh=_direction),
    Rule(name="order", veto=True, weigh=_order),
    Rule(name="language", veto=True, weigh=_language),
    Rule(name="code", veto=True, weigh=_code),
    Rule(name="identifier", veto=False, weigh=_identifier),
    Rule(name="entity", veto=False, weigh=_entity),
    Rule(name="region", veto=True, weigh=_region),
    Rule(name="qualifier", veto=True, weigh=_qualifier),
    Rule(name="question", veto=False, weigh=_question),
    Rule(name="tense", veto=False, weigh=_tense),
    Rule(name="rival", veto=False, weigh=_rival),
    Rule(name="rest", veto=False, weigh=_rest),
    Rule(name="swap", veto=False, weigh=_swap),
    Rule(name="scope", veto=False, weigh=_scope),
    Rule(name="person", veto=False, weigh=_person),
)
"""Every rule in the order of `rule_values`. The order is part of every trained artefact: add at the end."""


def rule_values(asked: Reading, kept: Reading) -> list[float]:
    """Return what each rule says, in the order of RULES."""
    return weigh(align(asked, kept))


def weigh(pair: Alignment) -> list[float]:
    """Return what each rule says of two texts side by side, in the order of RULES."""
    return [rule.weigh(pair) for rule in RULES]
