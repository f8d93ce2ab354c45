"""Worth: which past answers may be examples, which are kept as such, and which are asked again while it is quiet. Pure.

The numbers of an example are sums that fade by the hour (IC-Cache, section 4.3): what helped yesterday says little of
what is asked today. Costs are relative to one answer of the large model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cacheproxy.augment.orders import instruction_shaped

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cacheproxy.model import Entry, Scope

KEPT_AN_HOUR = 0.9
MOST_REPLAYS = 5
UNKNOWN_QUALITY = 0.5
_SAME_S = 1.0
"""Times of one answer that differ by less are rounded otherwise."""
_WORDS = 2.0
_LEAST_STEP = 0.1
"""Quality is a mean of what was said, as if two had said 0.5 before; later words never move it by less than a tenth."""
_BETTER = 0.3
"""Share of what is missing in an answer that asking again is expected to bring, before it was tried."""
_STEP = 0.5
_USE_STEP = 0.2
_OWN_ORIGINS = frozenset(("backend", "warmed"))
"""Answers of the large model and of an operator. Whatever else there is, or will be, must have been verified."""


# What may be an example at all


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What its entry does not tell of a past answer. `scope` is of who asks now."""

    scope: Scope
    verified: bool = False
    """Whether a judge, a checker or an operator found this very answer right."""
    visible: bool = False
    """Of an entry that tenants share: whether who asks now may be served from it (policy/share.py)."""
    quarantined: bool = False
    orders: bool | None = None
    """Whether its text gives orders, where that was looked at before."""


def admissible(entry: Entry, answer: str, facts: Facts, now_s: float) -> str:
    """Return why an entry may not be an example, "" where it may.

    `other_scope`, `quarantined`, `expired`, `unverified` (an answer of the small model, or one that was not
    given to this question), `empty` or `instructions` (its text gives orders).
    """
    if entry.origin == "shared":
        if not facts.visible:
            return "other_scope"
    elif entry.tenant != facts.scope.tenant:
        return "other_scope"
    if entry.namespace != facts.scope.namespace:
        return "other_scope"
    if facts.quarantined:
        return "quarantined"
    if now_s >= entry.expires_s:
        return "expired"
    if not facts.verified and (entry.parents or entry.origin not in (*_OWN_ORIGINS, "shared")):
        return "unverified"
    if not (entry.text.strip() and answer.strip()):
        return "empty"
    ordering = gives_orders(entry, answer) if facts.orders is None else facts.orders
    return "instructions" if ordering else ""


def gives_orders(entry: Entry, answer: str) -> bool:
    """Whether the text of an entry is shaped like orders."""
    return instruction_shaped(entry.text) or instruction_shaped(answer)


# What is known of one


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is known of an example at `at_s`, in numbers; whose it is, so that it can be erased."""

    entry_id: str
    tenant: str
    category: str
    user: str = ""
    tokens: int
    since_s: float
    """When its answer was given."""
    at_s: float
    quality: float = UNKNOWN_QUALITY
    words: float = 0.0
    """Weight of what was said of its quality."""
    offloads: float = 1.0
    """Questions that it helped to answer without the large model, faded. A new one counts as if it had helped once."""
    uses: float = 0.0
    """Prompts that it was in, faded: as many as are expected from now on, if it goes on like this."""
    loss: float = 0.0
    """Moving average over its uses of what its lack of quality costs: (1 - quality) * cost, the replay gain G."""
    replays: int = 0
    better: float = _BETTER
    """Share of what was missing that asking again brought, as far as it was tried."""
    pinned: bool = False
    """Kept before all others, by an operator, who vouches for the answer of `since_s` with it; see `vouched`."""
    quarantined: bool = False
    """Never in a prompt, by an operator, until that is lifted; not forgotten for want of room either."""


def vouched(one: Standing | None, answered_s: float) -> bool:
    """Whether an operator found the answer of this time right: a later one to the same question is not vouched for."""
    return one is not None and one.pinned and answered_s <= one.since_s + _SAME_S


def faded(one: Standing, now_s: float) -> Standing:
    """Return it as of now. Time never runs backwards."""
    if now_s <= one.at_s:
        return one
    kept = KEPT_AN_HOUR ** ((now_s - one.at_s) / 3600.0)
    return replace(one, offloads=one.offloads * kept, uses=one.uses * kept, at_s=now_s)


def used(one: Standing, cost: float, now_s: float) -> Standing:
    """Return it after it was in a prompt for a question that would have cost so much."""
    now, lost = faded(one, now_s), (1.0 - one.quality) * max(0.0, cost)
    loss = lost if one.uses == 0 and one.loss == 0 else now.loss + _USE_STEP * (lost - now.loss)
    return replace(now, uses=now.uses + 1.0, loss=loss)


def offloaded(one: Standing, share: float, now_s: float) -> Standing:
    """Return it after an answer of the small model was good: by its share of that, 1 where it was alone."""
    now = faded(one, now_s)
    return replace(now, offloads=now.offloads + min(1.0, max(0.0, share)))


def heard(one: Standing, value: float, weight: float) -> Standing:
    """Return it after a word on its own answer, in [0, 1]. What is no number counts as nothing."""
    if not (math.isfinite(value) and math.isfinite(weight) and weight > 0):
        return one
    told, counts = min(1.0, max(0.0, value)), min(1.0, weight)
    step = counts * max(_LEAST_STEP, 1.0 / (_WORDS + one.words + counts))
    return replace(one, quality=one.quality + step * (told - one.quality), words=one.words + counts)


# Replay


def replayed(one: Standing, quality: float) -> Standing:
    """Return it after the large model answered its question again; the better of both answers stays.

    `quality` is that of the new answer by the same measure.
    """
    missing = 1.0 - one.quality
    kept = max(one.quality, min(1.0, quality))
    brought = (kept - one.quality) / missing if missing > 0 else 0.0
    return replace(
        one,
        quality=kept,
        replays=one.replays + 1,
        better=one.better + _STEP * (brought - one.better),
        loss=one.loss * (1.0 - brought),
    )


def replay_pays(one: Standing, cost: float) -> bool:
    """Whether asking again is expected to save more than it costs, and was not tried too often."""
    return one.replays < MOST_REPLAYS and _saves(one) > cost


def replay_order(standings: Iterable[Standing], cost: float, most: int, now_s: float) -> list[Standing]:
    """Return which to ask again as of `now_s`, who saves most first: at most so many, and only those that pay.

    What is quarantined is not asked again.
    """
    paying = [now for one in standings if not one.quarantined and replay_pays(now := faded(one, now_s), cost)]
    return sorted(paying, key=lambda one: (-_saves(one), one.entry_id))[: max(0, most)]


def _saves(one: Standing) -> float:
    return one.better * one.loss * one.uses


# Capacity


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Which examples stay, by id, and which are dropped; `tokens` of those that stay."""

    stay: frozenset[str]
    dropped: tuple[str, ...]
    tokens: int


def keep(standings: Iterable[Standing], capacity_tokens: int, now_s: float) -> Kept:
    """Return which examples to keep within a capacity: pinned ones first, then who helps most for the tokens it takes.

    The greedy rule for a knapsack (Dantzig, 1957): what does not fit any more is passed over. Nothing exceeds it, even
    what is pinned. What is quarantined takes no room, and stays: forgotten, it might come back.
    """
    ranked = sorted((faded(one, now_s) for one in standings), key=_rank)
    stay, dropped, left = set(), [], max(0, capacity_tokens)
    for one in ranked:
        if one.quarantined:
            stay.add(one.entry_id)
        elif one.tokens <= left:
            stay.add(one.entry_id)
            left -= one.tokens
        else:
            dropped.append(one.entry_id)
    return Kept(stay=frozenset(stay), dropped=tuple(dropped), tokens=max(0, capacity_tokens) - left)


def _rank(one: Standing) -> tuple[bool, float, str]:
    return not one.pinned, -one.offloads / max(1, one.tokens), one.entry_id
