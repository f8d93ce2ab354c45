"""A course: one stream of questions, run through the real line under one policy or another."""

from __future__ import annotations

import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cacheproxy.evaluate.progress import progress
from cacheproxy.evaluate.replay import ReplayClock, answer_of, open_replay
from cacheproxy.evaluate.streamscore import NEVER, Case, Tally, Truth
from cacheproxy.evaluate.teaching import Teacher
from cacheproxy.evaluate.verdicts import ReplayVerifier
from cacheproxy.judging import most_telling
from cacheproxy.learn.budget import Budget
from cacheproxy.model import Bypass, Hit, Miss
from cacheproxy.policy.active import Policy
from cacheproxy.policy.pack import Category, Encoder, Pack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cacheproxy import settings
    from cacheproxy.evaluate.replay import Asked, KnownVectors, Replay
    from cacheproxy.evaluate.verdicts import Scorer
    from cacheproxy.journey import Journey
    from cacheproxy.model import Outcome

_PLAIN = "cosine"
_FAR = frozenset({"below_threshold", "document_missing"})
"""Why a candidate is refused before anything else is asked of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question of a stream; `at_s` is seconds since its start."""

    asked: Asked
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What came of one run: counts and evictions by category, and how many labels the error budget was told."""

    tallies: dict[str, Tally]
    evictions: dict[str, int]
    labels: int = 0

    @property
    def total(self) -> Tally:
        """The counts of all categories."""
        return Tally.total(self.tallies.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """A stream whose texts are all embedded, and the store's caps. `category` overrides the one that items name."""

    items: Sequence[Item]
    vectors: KnownVectors
    config: settings.Settings
    category: str | None = None

    async def run(
        self, policy: Policy, scorer: Scorer | None = None, labels: float | None = None, *, label: str = "replaying"
    ) -> Ran:
        """Ask every question in order. A policy that verifies needs a scorer; then the error budget holds, too.

        It learns of hits and doubtful misses at the rates of their categories, or at `labels`.
        """
        async with AsyncExitStack() as stack:
            teacher = budget = None
            if scorer is not None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cacheproxy-")))
                budget = Budget(folder / "budget.sqlite3", scorer.fingerprint, ReplayClock())
                teacher = Teacher(await stack.enter_async_context(budget), share=labels)
            verifier = ReplayVerifier(scorer) if scorer is not None else None
            opened = open_replay(lambda: policy, self.vectors, self.config, verifier=verifier, budget=budget)
            replay = await stack.enter_async_context(opened)
            tallies = await self._replay(replay, policy, teacher, label)
            evictions = replay.evictions
        return Ran(tallies=tallies, evictions=evictions, labels=teacher.labels if teacher else 0)

    async def plain(self, threshold: float, ttl_s: float) -> Ran:
        """Run it as plain cosine would at a threshold: one category, no verifier, entries that live so long."""
        rules = Category(semantic=True, ttl_s=ttl_s)
        encoder = Encoder(fingerprint=self.vectors.epoch, calibrated_on="", thresholds={_PLAIN: threshold})
        pack = Pack(
            schema=1,
            name=_PLAIN,
            description="",
            default_category=_PLAIN,
            categories={_PLAIN: rules},
            encoders={_PLAIN: encoder},
        )
        course = Course(items=self.items, vectors=self.vectors, config=self.config)
        return await course.run(Policy.of(pack), label=f"cosine {threshold:.2f}")

    async def _replay(self, replay: Replay, policy: Policy, teacher: Teacher | None, label: str) -> dict[str, Tally]:
        """Return the tallies by the category asked for, or the one that policy told."""
        truth, tallies, known = Truth(), dict[str, Tally](), policy.pack.categories
        with progress(label, len(self.items)) as advance:
            for item in self.items:
                asked = item.asked
                named = self.category or (asked.category if asked.category in known else "")
                journey, outcome = await replay.look_up(asked, item.at_s, named)
                positive, repeated = truth.positive(asked, item.at_s), truth.take(asked)
                case = await _case(replay, journey, outcome, asked)
                tally = tallies.setdefault(self.category or asked.category or outcome.category, Tally())
                stale = bool(case.served) and truth.superseded(case.served, asked.answer_id)
                tally.count(case, repeated=repeated, positive=positive, stale=stale)
                if teacher is not None:
                    await teacher.tell(replay, journey, outcome, asked)
                if isinstance(outcome, Miss):
                    kept = await replay.answer(journey, outcome, asked, item.at_s)
                    if kept is not None:
                        truth.kept(asked, await replay.expires_s(kept))
                advance(1)
        return tallies


async def _case(replay: Replay, journey: Journey, outcome: Outcome, asked: Asked) -> Case:
    if isinstance(outcome, Bypass):
        return Case(asked=asked, outcome=outcome)
    evidence = outcome.evidence
    if isinstance(outcome, Hit):
        answer, rank = answer_of(outcome.entry), evidence.probability or evidence.similarity or 1.0
        return Case(asked=asked, outcome=outcome, served=answer, nearest=answer, rank=rank)
    best = most_telling(evidence.judgements)
    if best is None:
        return Case(asked=asked, outcome=outcome)
    rank = 0.0 if journey.plan.verify else best.candidate.similarity
    if best.verified is not None and not best.verified.veto:
        rank = best.verified.probability
    told = {one.candidate.entry_id: await replay.told(one.candidate.entry_id) for one in evidence.judgements}
    return Case(
        asked=asked,
        outcome=outcome,
        nearest=told[best.candidate.entry_id],
        rank=max(rank, NEVER),
        refused=tuple(
            (one.reason, told[one.candidate.entry_id] != asked.answer_id)
            for one in evidence.judgements
            if one.reason not in _FAR
        ),
    )
