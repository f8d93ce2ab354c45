"""Select: which examples go into a prompt, in which order, and why the others do not. Pure.

`select` is what the proxy does; `select_nearest` and `select_random` are what it is measured against.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cacheproxy.augment.orders import instruction_shaped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from random import Random

    from cacheproxy.augment.example import Example

    Proxy = Callable[[Example], float]
    """Says how helpful an example is to the question asked now: a probability; anything else counts as 0."""

UNHELPFUL = "unhelpful"
SAME_QUESTION = "same_question"
INSTRUCTIONS = "instructions"
BUDGET = "budget"
MOST = "most"

_WORD = re.compile(r"\w+")
_COMPARED_CHARS = 250
"""Of each answer, when they are likened to one another."""
MU = 0.1
"""How much being like an example that was chosen takes from another one's helpfulness.

Of five examples of 2,000 (docs/decisions/0038), the right label is the most frequent as often at 0.1 as anywhere; at
0.3 fewer of them have it, and at 0 it is missing more often.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """How much a prompt takes: `most` examples, and `tokens` of the small model for all of them."""

    tokens: int
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What goes into a prompt: the best example last, where a model heeds it most.

    `left_out` has the id of each other candidate and why: `unhelpful` (with it, the set does not pay), `same_question`
    as a better one, `instructions` (its text gives orders), `budget` (too many tokens beside what was chosen), or
    `most`.
    """

    examples: tuple[Example, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    tokens: int = 0
    max_similarity: float = 0.0
    """Highest cosine of the question asked to one of the examples' questions; 0.0 without examples."""
    mean_helpfulness: float = 0.0
    """0.0 without examples."""
    agreement: float = 0.0
    """How alike their answers are, in [0, 1]; 0.0 with fewer than two (`agreement`)."""


NOTHING = Selection()
"""A prompt without examples."""


def select(examples: Sequence[Example], *, proxy: Proxy, threshold: float, room: Room, mu: float = MU) -> Selection:
    """Return the most helpful examples that do not repeat one another: as many as there is room for, and as pay.

    Each step takes the one with the highest helpfulness less `mu` times its likeness to the nearest that is taken
    already (maximal marginal relevance, Carbonell and Goldstein 1998); one that does not fit gives way to the next.
    What was tried is sets, so `threshold` is of a set: while the mean helpfulness is not above it, the least helpful
    one is left out again, until nothing is left.
    """
    choice = _Choice(room)
    scored = sorted(((_score(proxy, example), example) for example in examples), key=lambda pair: -pair[0])
    useful = [pair for pair in scored if pair[0] > 0.0]
    left = list(range(len(useful)))
    vectors = np.array([example.vector for _, example in useful])
    likeness = np.zeros(len(useful), dtype=np.float32)
    while left and not choice.full:
        best = max(left, key=lambda at: useful[at][0] - mu * float(likeness[at]))  # of equals, the more helpful one
        left.remove(best)
        score, taken = useful[best]
        if choice.take(taken, score):
            np.maximum(likeness, vectors @ taken.vector, out=likeness)
    for at in left:
        choice.leave(useful[at][1], MOST)
    choice.above(threshold)
    for _, example in scored[len(useful) :]:
        choice.leave(example, UNHELPFUL)
    return choice.selection()


def select_nearest(examples: Sequence[Example], *, proxy: Proxy, room: Room) -> Selection:
    """Return the examples nearest to the question, the nearest last: what can be done without anything learnt.

    `proxy` only says how helpful they are thought to be.
    """
    return _in_turn(sorted(examples, key=lambda example: -example.question_cosine), proxy, room)


def select_random(examples: Sequence[Example], *, proxy: Proxy, room: Room, random: Random) -> Selection:
    """Return examples drawn by chance."""
    return _in_turn(random.sample(examples, len(examples)), proxy, room)


def _in_turn(examples: Iterable[Example], proxy: Proxy, room: Room) -> Selection:
    choice = _Choice(room)
    for example in examples:
        choice.take(example, _score(proxy, example))
    return choice.selection()


class _Choice:
    """What was taken so far, the best first, and why the rest was not."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._taken: list[tuple[float, Example]] = []
        self._left_out: list[tuple[str, str]] = []
        self._questions: set[str] = set()
        self._tokens = 0

    @property
    def full(self) -> bool:
        return len(self._taken) >= self._room.most

    def take(self, example: Example, score: float) -> bool:
        """Take an example, or note why not."""
        question = " ".join(example.question.casefold().split())
        if self.full:
            self.leave(example, MOST)
        elif self._tokens + example.tokens > self._room.tokens:
            self.leave(example, BUDGET)
        elif question in self._questions:
            self.leave(example, SAME_QUESTION)
        elif instruction_shaped(example.question) or instruction_shaped(example.answer):
            self.leave(example, INSTRUCTIONS)
        else:
            self._taken.append((score, example))
            self._questions.add(question)
            self._tokens += example.tokens
            return True
        return False

    def above(self, threshold: float) -> None:
        """Leave out the least helpful, one by one, until the mean of those that stay is above a threshold."""
        while self._taken and sum(score for score, _ in self._taken) <= threshold * len(self._taken):
            least = min(self._taken, key=lambda pair: pair[0])
            self._taken.remove(least)
            self._tokens -= least[1].tokens
            self.leave(least[1], UNHELPFUL)

    def leave(self, example: Example, reason: str) -> None:
        """Note why an example is not taken."""
        self._left_out.append((example.entry_id, reason))

    def selection(self) -> Selection:
        """Return all of it, the best example last."""
        if not self._taken:
            return Selection(left_out=tuple(self._left_out))
        return Selection(
            examples=tuple(example for _, example in reversed(self._taken)),
            left_out=tuple(self._left_out),
            tokens=self._tokens,
            max_similarity=max(example.question_cosine for _, example in self._taken),
            mean_helpfulness=sum(score for score, _ in self._taken) / len(self._taken),
            agreement=agreement([example.answer for _, example in self._taken]),
        )


def agreement(answers: Sequence[str]) -> float:
    """Return how alike answers are, in [0, 1]: the share of words that two of them have in common, over all pairs.

    Dice's coefficient (1945) of the words they begin with, case aside; 0.0 of fewer than two answers.
    """
    words = [frozenset(_WORD.findall(one[:_COMPARED_CHARS].casefold())) for one in answers]
    pairs = list(itertools.combinations(words, 2))
    return sum(2 * len(a & b) / max(1, len(a) + len(b)) for a, b in pairs) / max(1, len(pairs))


def _score(proxy: Proxy, example: Example) -> float:
    score = proxy(example)
    return score if 0.0 <= score <= 1.0 else 0.0
