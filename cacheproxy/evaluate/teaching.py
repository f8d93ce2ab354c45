"""Teaching: what shadow samples and explorations would tell the error budget during a replay; the oracle knows it."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from cacheproxy.learn.budget import Label
from cacheproxy.model import Bypass, Hit, Stale, Tier
from cacheproxy.policy.sweep import DOUBTED

if TYPE_CHECKING:
    from cacheproxy.evaluate.replay import Asked, Replay
    from cacheproxy.journey import Journey
    from cacheproxy.learn.budget import Budget
    from cacheproxy.model import Judgement, Outcome


class Teacher:
    """Draws hits and doubtful misses at the rates of their category, and labels them at once and without error.

    `share` takes the place of both rates. The same `seed` draws the same questions of the same stream.
    """

    def __init__(self, budget: Budget, *, share: float | None = None, seed: int = 0) -> None:
        self._budget = budget
        self._share = share
        self._random = Random(seed)
        self.labels = 0

    async def tell(self, replay: Replay, journey: Journey, outcome: Outcome, asked: Asked) -> None:
        """Let the budget learn of one decision what the live proxy would have told it."""
        if isinstance(outcome, Bypass):
            return
        free = [one.verified for one in outcome.evidence.judgements if one.verified and not one.verified.veto]
        if free:
            self._budget.saw(journey.plan, max(free, key=lambda one: one.probability))
        told, rate, source = _told(outcome, journey)
        rate = rate if self._share is None else self._share
        if told is None or told.verified is None or self._random.random() >= rate:
            return
        right = await replay.told(told.candidate.entry_id) == asked.answer_id
        label = Label(
            source=source,
            tenant=journey.query.scope.tenant,
            category=journey.plan.category,
            entry_id=told.candidate.entry_id,
            question=journey.query.fingerprint,
            probability=told.verified.probability,
            right=right,
        )
        self.labels += self._budget.label(label, journey.plan)


def _told(outcome: Outcome, journey: Journey) -> tuple[Judgement | None, float, str]:
    """Return the candidate that would be compared with a fresh answer, how often, and as what."""
    plan = journey.plan
    if isinstance(outcome, Bypass):
        return None, 0.0, ""
    judgements = [one for one in outcome.evidence.judgements if one.verified is not None]
    if isinstance(outcome, Hit):
        similar = outcome.tier is Tier.SEMANTIC and outcome.stale is Stale.NO
        served = (one for one in judgements if one.candidate.entry_id == outcome.entry.id)
        return next(served, None) if similar else None, plan.shadow_rate, "shadow"
    doubted = [one for one in judgements if one.reason in DOUBTED]
    best = max(doubted, key=lambda one: one.verified.probability if one.verified else 0.0, default=None)
    return best, plan.explore_rate, "explored"
