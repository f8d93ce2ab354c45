"""Augmenting: who answers a question that no kept answer may, and by what prompt. The rules are pure (augment/)."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING, Any, cast

import msgspec

from cacheproxy.augment.arms import Arm, Situation
from cacheproxy.augment.augmentable import answer_tokens, why_not
from cacheproxy.augment.constraint import constrained
from cacheproxy.augment.helpful import features
from cacheproxy.augment.prompt import augmented, frame_tokens, prompt_chars, prompt_tokens
from cacheproxy.augment.select import NOTHING, Room, select
from cacheproxy.augment.tokens import budget, room
from cacheproxy.errors import LookupTooSlow, PartUnavailable
from cacheproxy.model import Offload

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from cacheproxy.augment.arms import Choice
    from cacheproxy.augment.example import Example
    from cacheproxy.augment.prompt import Dialect as Told
    from cacheproxy.augment.select import Selection
    from cacheproxy.augment.state import AugmentState
    from cacheproxy.examples import Examples, Refused
    from cacheproxy.journey import Journey
    from cacheproxy.model import Augmenting as Allowed
    from cacheproxy.parts import Parts
    from cacheproxy.policy.pack import Pack
    from cacheproxy.ports import Call, Dialect, SmallModel

_ANSWER_TOKENS = 256
"""Left for an answer whose length its caller does not limit."""
_LONGEST_S = 0.5
"""Longest wait for a choice: after that, the large model answers."""
_CHARS_A_TOKEN = 16
"""No text has more, on average: one that would not fit even so is not counted."""
_AT_ONCE_CHARS = 2_000
"""What is longer is counted in a thread: a tokenizer takes milliseconds for it."""
_MOST_KNOWN = 10_000
_KNOWN_S = 3_600.0
"""How long the large model's having answered somebody tells that it knows the key still."""
_ALL_HELPFUL = 0.05
"""Share of the questions at which every example counts as helpful, to find out whether those left out are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """Who is to answer a question, and what spoke for it."""

    choice: Choice
    situation: Situation
    selection: Selection
    """The examples that the small model gets, or would have got."""
    rows: tuple[tuple[str, NDArray[Any]], ...]
    """Of each example its entry's id and its features, as `Helpfulness.learn` takes them."""
    body: Mapping[str, Any] = field(repr=False)
    """What the small model is asked; of no use where the large one answers."""
    model: str

    @property
    def arm(self) -> Arm:
        """Who is to answer."""
        return self.choice.arm

    @property
    def offload(self) -> Offload:
        """How it is told to the caller."""
        examples = self.selection.examples if self.arm is Arm.AUGMENTED else ()
        return Offload(
            arm=self.arm.value,
            examples=tuple(one.entry_id for one in examples),
            reason=self.choice.reason.value,
            model=self.model,
        )


@dataclass(slots=True, kw_only=True)
class Trail:
    """What is looked at on the way to a choice, for who wants to see it."""

    near: list[Example] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    question_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Considered:
    """What would become of a question, but for what is drawn by chance; nothing is counted or learnt of it."""

    attempt: Attempt | None
    reason: str
    """Why only the model that was asked for may answer; "" where that is for the arms to say."""
    near: tuple[tuple[Example, float], ...]
    """What may be an example, nearest first, and how helpful it is thought to be."""
    refused: tuple[Refused, ...]
    """What is near, and may not be one."""
    theta: float
    """Mean helpfulness above which a set of examples is used."""
    explored: float
    """Share of the questions at which an arm is tried that is not known."""


class _Unmoved(Random):
    """Chance that is never in favour: nothing is tried for its own sake."""

    def random(self) -> float:
        return math.nextafter(1.0, 0.0)


_UNMOVED = _Unmoved()


class Augmenting:
    """Chooses who answers. `state` learns of it (`rewarding.py`).

    Unless callers' keys are `checked` by us, the large model is who knows them: the small one answers nobody whom the
    large one has not answered. Unless two models' answers are `compared` beside the line, nothing is drawn for it.
    """

    def __init__(
        self,
        parts: Parts,
        small: SmallModel,
        examples: Examples,
        state: AugmentState,
        random: Random,
        *,
        checked: bool,
        compared: bool = True,
    ) -> None:
        self._compared = compared
        self._parts = parts
        self._small = small
        self._examples = examples
        self._state = state
        self._random = random
        self._known: OrderedDict[str, float] | None = None if checked else OrderedDict()
        self._frame = frame_tokens(small.counter, form=small.form)

    async def attempt(self, journey: Journey) -> Attempt | None:
        """Return who is to answer a miss; None where only the model that was asked for may. Never raises a failure."""
        allowed, body = journey.plan.augment, journey.body
        if allowed is None or body is None:
            return None
        started_s = self._parts.clock.monotonic()
        found = await self._found(journey, allowed, body)
        if isinstance(found, str):
            self._parts.telemetry.not_augmented.labels(found).inc()
            return None
        self._parts.telemetry.arm_seconds.observe(self._parts.clock.monotonic() - started_s)
        return found

    def known(self, tenant: str, *, answered: bool = True) -> None:
        """Take note that the large model answered somebody, or refused the key."""
        if self._known is not None:
            self._known[tenant] = self._parts.clock.monotonic() if answered else -math.inf
            self._known.move_to_end(tenant)
            if len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)

    def _knows(self, tenant: str, *, kept: bool) -> bool:
        """Whether the large model answered somebody of late; who has an answer of its own kept was known to it, too."""
        if self._known is None:
            return True
        answered_s = self._known.get(tenant)
        if answered_s is None:
            return kept
        return self._parts.clock.monotonic() - answered_s <= _KNOWN_S

    def call(self, attempt: Attempt, call: Call, journey: Journey, dialect: Dialect) -> Call:
        """Return the call that asks the small model in place of the large one; nobody's credentials go with it."""
        plain = msgspec.json.encode(attempt.body)
        asked = dialect.request(attempt.body, journey.query.wire)
        return replace(
            call,
            body=plain if asked is None else asked,
            plain_body=None if asked is None else plain,
            model=self._small.model,
            repeatable=False,
            elsewhere=False,
            upstream_key=None,
        )

    def otherwise(self, attempt: Attempt, arm: Arm, journey: Journey) -> Attempt:
        """Return what the small model would have been asked as another arm."""
        body = journey.body or {}
        given = attempt.selection if arm is Arm.AUGMENTED else NOTHING
        return replace(attempt, choice=replace(attempt.choice, arm=arm), body=self._made(body, given, journey))

    def _made(self, body: Mapping[str, Any], given: Selection, journey: Journey) -> dict[str, Any]:
        told = cast("Told", journey.query.dialect)
        return augmented(body, given, dialect=told, model=self._small.model, form=self._small.form)

    async def considered(self, journey: Journey) -> Considered:
        """Return what would become of a miss, and of what is near to it. Never raises a failure."""
        allowed, body, trail = journey.plan.augment, journey.body, Trail()
        if allowed is None or body is None:
            return self._consideration("not_allowed", journey, trail)
        return self._consideration(await self._found(journey, allowed, body, trail), journey, trail)

    async def _found(
        self, journey: Journey, allowed: Allowed, body: Mapping[str, Any], trail: Trail | None = None
    ) -> Attempt | str:
        """Return as `_attempt`, within its time; a part that fails is a reason, too."""
        reason = why_not(body, journey.query.dialect)
        if reason:
            return reason
        try:
            async with asyncio.timeout(_LONGEST_S):
                return await self._attempt(journey, allowed, body, trail)
        except PartUnavailable as exc:
            return self._parts.failed(exc)
        except TimeoutError:
            return self._parts.failed(LookupTooSlow("choosing who answers took longer than its budget"))

    def _consideration(self, found: Attempt | str, journey: Journey, trail: Trail) -> Considered:
        state, category = self._state, journey.plan.category
        return Considered(
            attempt=None if isinstance(found, str) else found,
            reason=found if isinstance(found, str) else "",
            near=tuple((one, state.helpfulness.score(one, trail.question_tokens, category)) for one in trail.near),
            refused=tuple(trail.refused),
            theta=state.gains.threshold(category),
            explored=state.router.terms.explore,
        )

    async def _attempt(
        self, journey: Journey, allowed: Allowed, body: Mapping[str, Any], trail: Trail | None = None
    ) -> Attempt | str:
        """Return who is to answer, or why nobody else may; with a `trail`, as if nothing were drawn by chance."""
        random = self._random if trail is None else _UNMOVED
        asked, answer = await self._counted(body, journey), answer_tokens(body) or _ANSWER_TOKENS
        if asked is None or room(self._small.context_tokens, asked, answer) < 0:
            return "too_long"
        category, now_s = journey.plan.category, self._parts.clock.now()
        tokens = budget(self._small.context_tokens, asked + self._frame, answer, allowed.tokens)
        near = await self._examples.near(journey, trail.refused if trail else None) if tokens else []
        if trail is not None:
            trail.near, trail.question_tokens = near, asked
        if not self._knows(journey.query.scope.tenant, kept=bool(near)):
            return "unknown_caller"
        selection = self._selected(near, category, asked, Room(tokens=tokens, most=allowed.most), random)
        situation = Situation(
            max_similarity=selection.max_similarity,
            mean_helpfulness=selection.mean_helpfulness,
            examples=len(selection.examples),
            question_tokens=asked,
            agreement=selection.agreement,
            small_cost=_relative(journey.policy.pack, self._small.model, journey.query.model),
            load=self._parts.load(journey.query.model),
            double_run=self._compared and allowed.double_run_usd_per_day > 0,
        )
        choice = self._state.router.choose(category, situation, random, now_s)
        choice = constrained(journey.limit, choice, self._state.observed.estimates(category, now_s))
        given = selection if choice.arm is Arm.AUGMENTED else NOTHING
        return Attempt(
            choice=choice,
            situation=situation,
            selection=selection,
            rows=tuple((one.entry_id, features(one, asked)) for one in selection.examples),
            body=self._made(body, given, journey),
            model=self._small.model,
        )

    async def _counted(self, body: Mapping[str, Any], journey: Journey) -> int | None:
        """Return what the caller's prompt takes in the small model; None where it is far too long for it."""
        told, counter = cast("Told", journey.query.dialect), self._small.counter
        chars = prompt_chars(body, dialect=told)
        if chars > _CHARS_A_TOKEN * self._small.context_tokens:
            return None
        if chars <= _AT_ONCE_CHARS:
            return prompt_tokens(body, counter, dialect=told)
        return await asyncio.to_thread(prompt_tokens, body, counter, dialect=told)

    def _selected(
        self, near: list[Example], category: str, asked_tokens: int, space: Room, random: Random
    ) -> Selection:
        if not near or space.most <= 0:
            return NOTHING
        threshold = self._state.gains.threshold(category)
        if random.random() < _ALL_HELPFUL:
            threshold = 0.0

        def helpful(example: Example) -> float:
            return self._state.helpfulness.score(example, asked_tokens, category)

        return select(near, proxy=helpful, threshold=threshold, room=space)


def _relative(pack: Pack, small: str, large: str) -> float | None:
    """Return what a small model's tokens cost, read and written alike, relative to a large one's; None if unknown."""
    one, other = pack.price(small), pack.price(large)
    if one is None or other is None:
        return None
    whole = other.input_usd_per_mtok + other.output_usd_per_mtok
    return (one.input_usd_per_mtok + one.output_usd_per_mtok) / whole if whole > 0 else None
