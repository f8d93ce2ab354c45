"""Chains: whether two questions of two conversations are one question. Pure; a scorer is asked pair by pair.

All that was said before must match turn by turn: what a user said be equal, or verified to ask the same; what the
assistant said be equal, or agree in everything decisive. Then the last question must be the same: in its own words, or
as it stands alone (query/standalone.py). See docs/decisions/0034-conversations.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from cacheproxy.model import Verification
from cacheproxy.query.chain import plain
from cacheproxy.query.standalone import Spelled, asking, restates, standalone
from cacheproxy.verify.answers import agrees, telling

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cacheproxy.model import Asking

MOST_PAIRS = 4
"""Most of the user's earlier turns that may differ: each one more is one more chance to be wrong."""
_RESTATED = {Spelled.INNER: 0.97, Spelled.OUTER: 0.92, Spelled.LIKELY: 0.78, Spelled.GUESSED: 0.65}
"""How probable it is that a question which restates another one after the very same words is the same
(docs/decisions/0034-conversations.md)."""
_SAME_TALK = 1.5
"""The power a probability is raised to: of two questions after the very same words, more are different ones than among
the pairs that a verifier was calibrated on."""
_ALIKE = frozenset({"what", "which", "whose"})
"""Words that ask for the same kind of thing."""
_SETTLED = 0.95
"""Least probability that two earlier questions are one where both got the very same answer of some length."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two texts to be verified, as asked and as kept.

    `settled`: the assistant answered both with the same words, so that only a veto or great distance speaks against it.
    """

    asked: str = field(repr=False)
    kept: str = field(repr=False)
    settled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What is left to be verified. All `ancestors` must be found the same, and one of `questions`.

    `veto` says what forbids it already. `probability` is that of the last ones being the same as far as rules can tell:
    with `questions` the verifier may find it higher, or forbid it.
    """

    veto: str = ""
    ancestors: tuple[Pair, ...] = ()
    questions: tuple[Pair, ...] = ()
    probability: float = 1.0

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Every pair to be verified."""
        return (*self.ancestors, *self.questions)


class PairScorer(Protocol):
    """What tells whether two questions are one."""

    def score(self, pairs: Sequence[tuple[str, str, float]]) -> list[Verification]:
        """Return a verification for each pair: the text asked, the text kept, the cosine of both."""
        ...


def compare(asked: Asking, kept: Asking) -> Comparison:
    """Return what must be verified for `kept`'s answer to be right for `asked`, or what forbids it."""
    if len(asked.chain) != len(kept.chain):
        return Comparison(veto="context_length")
    ancestors: list[Pair] = []
    for place in range(0, len(asked.chain), 2):
        one, other = asked.chain[place : place + 2], kept.chain[place : place + 2]
        if bool(one[0].strip()) != bool(other[0].strip()) or not agrees(one[1], other[1]):
            return Comparison(veto="context_answer")
        if plain(one[0]) != plain(other[0]):
            if not telling(one[1]) and asking(one[0]) != asking(other[0]):
                return Comparison(veto="context_question")
            ancestors.append(Pair(one[0], other[0], settled=telling(one[1]) and one[1] == other[1]))
    if len(ancestors) > MOST_PAIRS:
        return Comparison(veto="context_differs")
    questions, probability = _last(asked, kept, same=not ancestors)
    if questions and _asks_otherwise(asking(asked.text), asking(kept.text)):
        return Comparison(veto="asks_otherwise")
    return Comparison(ancestors=tuple(ancestors), questions=questions, probability=probability)


def conclude(comparison: Comparison, said: Mapping[Pair, tuple[Verification, float]], at_least: float) -> Verification:
    """Return the word on two conversations from what was said of each pair, with its cosine.

    Earlier turns below the cosine `at_least` are other ones.
    """
    if comparison.veto:
        return Verification(probability=0.0, veto=comparison.veto)
    probability, steps = 1.0, list[tuple[str, float]]()
    for pair in comparison.ancestors:
        verified, cosine = said[pair]
        steps.append(("ancestor", verified.probability))
        likely = verified.probability >= (_SETTLED if pair.settled else 0.0)
        if verified.veto or not (cosine >= at_least and likely):
            return Verification(probability=0.0, veto="context", steps=tuple(steps))
        probability *= 1.0 if pair.settled else verified.probability
    if not comparison.questions:
        steps.append(("same_question", comparison.probability))
        return Verification(probability=probability * comparison.probability, steps=tuple(steps))
    words = [said[pair][0] for pair in comparison.questions]
    free = [word for word in words if not word.veto]
    best = max(free or words, key=lambda word: word.probability if math.isfinite(word.probability) else -1.0)
    found = best.probability**_SAME_TALK if best.probability > 0.0 else 0.0
    steps.append(("same_question", comparison.probability))
    return Verification(
        probability=probability * max(comparison.probability, found), veto=best.veto, steps=(*steps, *best.steps)
    )


def verify_chains(
    asked: Asking,
    kept: Sequence[Asking],
    scorer: PairScorer,
    cosine: Callable[[str, str], float],
    at_least: float,
) -> list[Verification]:
    """Return the word on each kept conversation; `cosine` is of two texts. The same rules as live, all at once."""
    comparisons = [compare(asked, one) for one in kept]
    pairs = list(dict.fromkeys(pair for comparison in comparisons for pair in comparison.pairs))
    cosines = [cosine(pair.asked, pair.kept) for pair in pairs]
    words = scorer.score([(pair.asked, pair.kept, near) for pair, near in zip(pairs, cosines, strict=True)])
    said = {pair: (word, near) for pair, word, near in zip(pairs, words, cosines, strict=True)}
    return [conclude(comparison, said, at_least) for comparison in comparisons]


def _asks_otherwise(one: str, other: str) -> bool:
    """Whether two words that ask ask for different things; a question may do without one."""
    return bool(one and other) and one != other and not {one, other} <= _ALIKE


def _last(asked: Asking, kept: Asking, *, same: bool) -> tuple[tuple[Pair, ...], float]:
    """Return the pairs to verify, none where rules are sure, and the probability that the questions are one by rule."""
    if plain(asked.text) == plain(kept.text):
        return (), 1.0
    spelled = Spelled.NO
    if same:
        spelled = max(restates(asked.text, kept.text, kept.chain), restates(kept.text, asked.text, kept.chain))
        if spelled >= Spelled.OUTER:
            return (), _RESTATED[spelled]
    raw = Pair(asked.text, kept.text)
    alone = Pair(standalone(asked.text, asked.chain), standalone(kept.text, kept.chain))
    return tuple(dict.fromkeys((raw, alone))), _RESTATED.get(spelled, 0.0)
