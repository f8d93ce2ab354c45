"""Considered: who would answer a question that no kept answer may, and with which examples, as `explain` tells it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from cacheproxy.augment.arms import Arm
from cacheproxy.model import Hit, Miss

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from cacheproxy.augmenting import Attempt, Considered
    from cacheproxy.journey import Journey
    from cacheproxy.model import Outcome
    from cacheproxy.pipeline import Pipeline


class NearExample(msgspec.Struct, frozen=True, kw_only=True):
    """A kept answer near enough to be an example. `left_out` says why it is none, "" for one that is in the prompt.

    `helpfulness` is the probability that an answer given with it is good; null for one that may not be one at all.
    """

    entry: str
    cosine: float
    helpfulness: float | None
    tokens: int | None
    left_out: str


class ArmExplained(msgspec.Struct, frozen=True, kw_only=True):
    """One arm that could be had, and what speaks for it: `score` is quality * reliability - price.

    `compared` is the score that decides, with what may be better than expected; `chance` that of being best.
    """

    arm: str
    known: bool
    quality: float
    spread: float
    reliability: float
    price: float
    score: float
    compared: float
    rewards: float
    chance: float | None


class Augmentation(msgspec.Struct, frozen=True, kw_only=True):
    """Who would answer, as if nothing were tried by chance.

    Without an `arm` only the model that was asked for may, and `reason` says why.
    """

    arm: str
    reason: str
    model: str
    """The small model, where one is asked for."""
    limit_s: float | None
    """What the caller's key says that one answer should take; who most probably keeps that is chosen."""
    limit_usd: float | None
    load: float | None
    question_tokens: int | None
    example_tokens: int
    mean_helpfulness: float | None
    agreement: float | None
    """How alike the examples' answers are, in [0, 1]."""
    theta: float | None
    """Mean helpfulness above which a set of examples is used."""
    explored: float
    """Share of such questions at which another arm is tried, by chance: one that is not known well enough."""
    examples: list[NearExample]
    """Those used first, the best one last, as in the prompt; then those left out, nearest first."""
    arms: list[ArmExplained]


async def augmentation(pipeline: Pipeline, journey: Journey, outcome: Outcome, body: Mapping[str, Any]) -> Augmentation:
    """Return who would answer, changing nothing."""
    reason = _why_not(journey, outcome)
    if reason:
        return _nobody(reason)
    journey.body, journey.missed = body, outcome if isinstance(outcome, Miss) else None
    considered = await pipeline.considered(journey)
    if considered is None:
        return _nobody("no_small_model")
    limit = journey.limit
    return msgspec.structs.replace(_told(considered), limit_s=limit.latency_s, limit_usd=limit.usd)


def lines(told: Augmentation) -> Iterator[str]:
    """Yield it as text, one step a line."""
    if not told.arm:
        if told.reason not in _SILENT:
            yield f"augment    no small model is asked: {told.reason}"
    else:
        yield f"augment    {_who(told)}"
    for one in told.examples:
        helpful = "" if one.helpfulness is None else f", helpful {one.helpfulness:.2f}"
        yield f"example    {one.cosine:.4f}  {one.entry}{helpful}: {one.left_out or 'used'}"
    for arm in told.arms:
        chance = "" if arm.chance is None else f", best with {arm.chance:.0%}"
        yield (
            f"arm        {arm.arm:<10} {arm.score:.3f} = quality {arm.quality:.3f} * reliability {arm.reliability:.3f}"
            f" - price {arm.price:.3f}; compared {arm.compared:.3f}{chance}"
            + ("" if arm.known else f"; not known yet ({arm.rewards:.1f} words)")
        )


_SILENT = frozenset({"served", "category", "no_small_model"})
"""Reasons that are the same for every question, or told already."""


def _who(told: Augmentation) -> str:
    used = sum(not one.left_out for one in told.examples)
    who = {
        Arm.AUGMENTED: f"{told.model} answers, with {used} {'example' if used == 1 else 'examples'}",
        Arm.SMALL: f"{told.model} answers, without examples",
        Arm.LARGE: "the model that was asked for answers",
    }[Arm(told.arm)]
    tried = f"; at {told.explored:.0%} of such questions another arm is tried" if told.explored else ""
    return f"{who}: {told.reason}{tried}"


def _why_not(journey: Journey, outcome: Outcome) -> str:
    """Return why no small model is thought of; "" where one may be."""
    if isinstance(outcome, Hit):
        return "served"
    if journey.plan.augment is not None and isinstance(outcome, Miss):
        return ""
    rules, controls = journey.policy.pack.categories.get(journey.plan.category), journey.query.controls
    if rules is None or rules.augment != "auto":
        return "category"
    if not controls.augment:
        return "asked_not_to"
    if controls.no_store or controls.no_cache or controls.only_if_cached:
        return "cache_control"
    return journey.plan.reason or "exact_only"


def _told(considered: Considered) -> Augmentation:
    attempt = considered.attempt
    left_out = [
        NearExample(entry=one.entry_id, cosine=one.cosine, helpfulness=None, tokens=None, left_out=one.reason)
        for one in considered.refused
    ]
    if attempt is None:
        return msgspec.structs.replace(_nobody(considered.reason), examples=[*_near(considered), *left_out])
    choice, chosen = attempt.choice, attempt.arm is not Arm.LARGE
    return Augmentation(
        arm=choice.arm.value,
        reason=choice.reason.value,
        model=attempt.model if chosen else "",
        limit_s=None,
        limit_usd=None,
        load=attempt.situation.load,
        question_tokens=attempt.situation.question_tokens,
        example_tokens=attempt.selection.tokens,
        mean_helpfulness=attempt.selection.mean_helpfulness if attempt.selection.examples else None,
        agreement=attempt.selection.agreement if len(attempt.selection.examples) > 1 else None,
        theta=considered.theta,
        explored=considered.explored if any(not one.known for one in choice.scores) else 0.0,
        examples=[*_near(considered), *left_out],
        arms=[
            ArmExplained(
                arm=one.arm.value,
                known=one.known,
                quality=one.quality,
                spread=one.spread,
                reliability=one.reliability,
                price=one.price,
                score=one.score,
                compared=one.index,
                rewards=one.rewards,
                chance=choice.chances.get(one.arm),
            )
            for one in choice.scores
        ],
    )


def _near(considered: Considered) -> list[NearExample]:
    """Return what may be an example: those of the prompt in its order, then the others, nearest first."""
    attempt: Attempt | None = considered.attempt
    order = {} if attempt is None else {one.entry_id: at for at, one in enumerate(attempt.selection.examples)}
    reasons = {} if attempt is None else dict(attempt.selection.left_out)
    ranked = sorted(considered.near, key=lambda one: order.get(one[0].entry_id, len(order)))
    return [
        NearExample(
            entry=example.entry_id,
            cosine=example.question_cosine,
            helpfulness=helpfulness,
            tokens=example.tokens,
            left_out="" if example.entry_id in order else reasons.get(example.entry_id, "not_asked"),
        )
        for example, helpfulness in ranked
    ]


def _nobody(reason: str) -> Augmentation:
    return Augmentation(
        arm="",
        reason=reason,
        model="",
        limit_s=None,
        limit_usd=None,
        load=None,
        question_tokens=None,
        example_tokens=0,
        mean_helpfulness=None,
        agreement=None,
        theta=None,
        explored=0.0,
        examples=[],
        arms=[],
    )
