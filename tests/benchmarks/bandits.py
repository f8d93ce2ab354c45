"""Which rule should choose arms: Thompson sampling, LinUCB or none of both, by regret. Simulated, all of it.

`python -m tests.benchmarks.bandits` prints the tables of docs/decisions/0039-routing.md. The router is the real one;
what a question is like, how good each arm's answer is, who says so and how loaded the backend is are made up, by seed.

*Regret* of a question: the score of the best arm by its true quality, less that of the arm which was chosen, prices
included. A world is drawn anew for each seed: how good the models are and how much examples help differ, as they do
between categories; the linear model is wrong about all of them, since the help of examples is a sigmoid.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
from collections import deque
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING

from scipy.stats import t as student

from cacheproxy.augment.arms import Arm, Router, Situation, Terms, optimistic

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cacheproxy.augment.arms import Index

CATEGORY = "simulated"
TERMS = Terms(explore=0.05, alarm=math.inf)
"""Explored more than by default, since runs are short; the alarm is compared by itself."""
WORLDS = ("stationary", "drifting", "load")


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Where questions come from, and what answers to them are worth."""

    kind: str
    large: float
    small: float
    help: float
    """What the best examples add to the small model's quality."""

    def situation(self, at: float, random: Random) -> Situation:
        """Return a question at a moment of the run, from 0 to 1."""
        examples = random.choice((0, 1, 2, 3, 4, 5, 5, 5))
        load = 0.75 + 0.55 * math.sin(at * 6 * math.pi) if self.kind == "load" else 0.3
        similarity = 0.5 + 0.5 * random.betavariate(3, 2) if examples else 0.0
        return Situation(
            max_similarity=similarity,
            mean_helpfulness=min(1.0, max(0.0, random.gauss(similarity - 0.2, 0.15))) if examples else 0.0,
            examples=examples,
            question_tokens=int(random.lognormvariate(3.7, 0.8)) + 1,
            load=load,
        )

    def quality(self, arm: Arm, asked: Situation, at: float) -> float:
        """Return how probable a good answer is. In the drifting world examples do not help in the middle of the run."""
        long = (math.log(asked.question_tokens) - 3.7) / 0.8
        if arm is Arm.LARGE:
            return _clip(self.large - 0.02 * long)
        alone = self.small - 0.05 * long
        if arm is Arm.SMALL or not asked.examples:
            return _clip(alone)
        helped = self.help / (1 + math.exp(-8 * (asked.mean_helpfulness - 0.45)))
        if self.kind == "drifting" and 1 / 3 <= at < 2 / 3:
            helped = -0.1
        return _clip(alone + helped)


def world(kind: str, random: Random) -> World:
    """Draw a world."""
    return World(
        kind=kind, large=random.uniform(0.86, 0.96), small=random.uniform(0.4, 0.8), help=random.uniform(0.0, 0.5)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """How answers are judged: which share of them, and how many questions later."""

    share: float
    late: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where, how long, and by what an arm is chosen. Without a `world`, one is drawn by seed."""

    kind: str = "stationary"
    words: Words = Words(share=1.0, late=0)
    questions: int = 4000
    terms: Terms = TERMS
    world: World | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What chooses: the router by an index, with features or without, or one arm always."""

    name: str
    index: Index | None = None
    always: Arm | None = None
    blind: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What came of a run: sums over its questions."""

    regret: float
    late_regret: float
    """Of the last third."""
    quality: float
    small: float
    """Share of the questions that the large model did not answer."""


def thompson(width: float) -> Index:
    """Thompson sampling (1933): one draw from what is believed, made so much wider."""
    return lambda mean, spread, random: random.gauss(mean, width * spread)


RULES = (
    Rule(name="LinUCB, 0.5", index=optimistic(0.5)),
    Rule(name="LinUCB, 1", index=optimistic(1.0)),
    Rule(name="LinUCB, 2", index=optimistic(2.0)),
    Rule(name="Thompson, 0.5", index=thompson(0.5)),
    Rule(name="Thompson, 1", index=thompson(1.0)),
    Rule(name="greedy", index=optimistic(0.0)),
    Rule(name="LinUCB, 0.5, no features", index=optimistic(0.5), blind=True),
    Rule(name="always large", always=Arm.LARGE),
    Rule(name="always augmented", always=Arm.AUGMENTED),
)
"""The first one is ours."""


def run(rule: Rule, setting: Setting, seed: int) -> Ran:
    """Let a rule choose for a run of questions; equal seeds ask equal questions of equal worlds."""
    questions, words, terms = setting.questions, setting.words, setting.terms
    asking, luck, own = Random(seed), Random(seed + 10_000), Random(seed + 20_000)
    drawn = world(setting.kind, asking)
    place = setting.world or drawn
    router = Router(replace(terms, index=rule.index) if rule.index else terms)
    owed: deque[tuple[int, Arm, Situation, float]] = deque()
    regret = late = quality = 0.0
    small = 0
    for number in range(questions):
        at = number / questions
        asked = place.situation(at, asking)
        while owed and owed[0][0] <= number:
            _, arm, situation, value = owed.popleft()
            router.reward(CATEGORY, arm, situation, value)
        seen = _blind(asked) if rule.blind else asked
        judged = luck.random() < words.share
        if rule.always is None:
            choice = router.choose(CATEGORY, seen, own, 0.0)
            arm, judged = choice.arm, judged or choice.judge
        else:
            arm = rule.always if asked.examples else Arm.LARGE
        worth = {one: place.quality(one, asked, at) for one in Arm}
        price = router.pressure(asked.load)
        open_arms = [one for one in Arm if one is not Arm.AUGMENTED or asked.examples]
        scores = {one: worth[one] - price * terms.costs[one] for one in open_arms}
        lost = max(scores.values()) - scores[arm]
        regret += lost
        late += lost if at >= 2 / 3 else 0.0
        quality += worth[arm]
        small += arm is not Arm.LARGE
        good = float(luck.random() < worth[arm])
        if judged and rule.always is None:
            owed.append((number + 1 + words.late, arm, seen, good))
    third = questions / 3
    return Ran(
        regret=regret / questions, late_regret=late / third, quality=quality / questions, small=small / questions
    )


def interval(values: Iterable[float]) -> tuple[float, float]:
    """Return the mean, and half the width of its 95 % interval over seeds (Student)."""
    found = list(values)
    half = student.ppf(0.975, len(found) - 1) * statistics.stdev(found) / math.sqrt(len(found))
    return statistics.mean(found), float(half)


def _row(name: str, runs: list[Ran], ours: list[Ran]) -> str:
    told = [interval(getattr(one, field) for one in runs) for field in Ran.__slots__]
    (regret, half), (late, late_half), (quality, _), (small, _) = told
    figures = f"{1000 * regret:.1f} ± {1000 * half:.1f} | {1000 * late:.1f} ± {1000 * late_half:.1f}"
    more, more_half = interval(one.regret - our.regret for one, our in zip(runs, ours, strict=True))
    paired = f"{1000 * more:+.1f} ± {1000 * more_half:.1f}" if runs is not ours else ""
    return f"| {name} | {figures} | {paired} | {quality:.3f} | {small:.0%} |"


_HEAD = "| {} | regret x 1000 | of the last third | more than ours, by seed | quality | not large |"
_LINE = "|---|---|---|---|---|---|"


def table(setting: Setting, seeds: int) -> str:
    """Run every rule in one world, and return the lines of a table."""
    words = setting.words
    lines = [f"\n{setting.kind}, {words.share:.0%} of the answers judged, {words.late} questions later\n"]
    lines += [_HEAD.format("rule"), _LINE]
    ours: list[Ran] = []
    for rule in RULES:
        runs = [run(rule, setting, seed) for seed in range(seeds)]
        ours = ours or runs
        lines.append(_row(rule.name, runs, ours))
        sys.stderr.write(lines[-1] + "\n")
    return "\n".join(lines)


def knobs(questions: int, seeds: int) -> str:
    """Run the rule that we use with other terms."""
    others: dict[str, Terms] = {
        "these": TERMS,
        "explore 0.02": replace(TERMS, explore=0.02),
        "explore 0.1": replace(TERMS, explore=0.1),
        "enough 10": replace(TERMS, enough=10.0),
        "enough 40": replace(TERMS, enough=40.0),
        "memory 300": replace(TERMS, memory=300.0),
        "memory 3000": replace(TERMS, memory=3000.0),
        "alarm 4": replace(TERMS, alarm=4.0),
        "alarm 6": replace(TERMS, alarm=6.0),
        "alarm 8": replace(TERMS, alarm=8.0),
    }
    words, lines = Words(share=0.05, late=200), []
    for kind in WORLDS[:2]:
        lines += [f"\n{kind}\n", _HEAD.format("terms"), _LINE]
        ours: list[Ran] = []
        for name, terms in others.items():
            setting = Setting(kind=kind, words=words, questions=questions, terms=terms)
            runs = [run(RULES[0], setting, seed) for seed in range(seeds)]
            ours = ours or runs
            lines.append(_row(name, runs, ours))
            sys.stderr.write(lines[-1] + "\n")
    return "\n".join(lines)


def _blind(asked: Situation) -> Situation:
    """Return a situation whose features are all 0; but whether there are examples decides which arms there are."""
    examples = 3 if asked.examples else 0
    return replace(asked, max_similarity=0.75, mean_helpfulness=0.5, examples=examples, question_tokens=63)


def _clip(value: float) -> float:
    return min(0.99, max(0.01, value))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--knobs", action="store_true", help="vary the terms instead of the rule")
    given = parser.parse_args()
    if given.knobs:
        sys.stdout.write(knobs(given.questions, given.seeds) + "\n")
    else:
        for kind, words in itertools.product(WORLDS, (Words(share=1.0, late=0), Words(share=0.05, late=200))):
            sys.stdout.write(table(Setting(kind=kind, words=words, questions=given.questions), given.seeds) + "\n")
