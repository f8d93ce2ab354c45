"""Small: what lets the small model answer, opened and looked after together."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from cacheproxy.assessing import Assessing, Means
from cacheproxy.augment.arms import Terms
from cacheproxy.augment.state import AugmentState
from cacheproxy.augmenting import Augmenting
from cacheproxy.capacity import Capacity
from cacheproxy.examples import Examples
from cacheproxy.improving import Means as Improves
from cacheproxy.learn.meter import LearningMeter
from cacheproxy.offloading import Offloading
from cacheproxy.replaying import Replaying
from cacheproxy.rewarding import Rewarding

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine
    from contextlib import AsyncExitStack
    from pathlib import Path

    from cacheproxy import settings
    from cacheproxy.augment.worth import Standing
    from cacheproxy.model import Selector
    from cacheproxy.parts import Parts
    from cacheproxy.policy.active import Policy
    from cacheproxy.ports import SmallModel
    from cacheproxy.replaying import Traffic

FILE = "augment.sqlite3"
TERMS = Terms(load_from=0.0, gamma=2.0)
"""The load that a proxy tells begins at `load.low` and is 1 at `load.high`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Small:
    """What is learnt, and what learns it."""

    state: AugmentState
    examples: Examples
    rewarding: Rewarding
    offloading: Offloading
    capacity: Capacity
    replaying: Replaying | None
    """None where the proxy is to find out nothing beside the answers."""

    def gone(self, entry_ids: Collection[str]) -> None:
        """Forget examples whose entries are gone."""
        self.rewarding.gone(entry_ids)
        self.capacity.gone(entry_ids)
        if self.replaying is not None:
            self.replaying.gone(entry_ids)

    async def tend(self) -> None:
        """Write what was learnt. Raises AugmentUnavailable."""
        await self.state.tend()

    async def forget(self, selector: Selector, erased: Collection[str]) -> int:
        """Forget what an erasure means. Raises AugmentUnavailable while it is still in the file."""
        asked = 0 if self.replaying is None else self.replaying.forget(selector, erased)
        return (
            asked
            + self.rewarding.forget(selector, erased)
            + await self.state.forget(lambda one: _meant(selector, one), erased)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What it finds around it. `checked`: callers' keys are known to be good before anything is asked."""

    learn: settings.Learn
    capacity_tokens: int
    policy: Callable[[], Policy]
    traffic: Callable[[str], Traffic]
    own_key: Callable[[str], bool]
    spawn: Callable[[Coroutine[object, object, None]], object]
    checked: bool


async def open_state(small: SmallModel, epoch: str, folder: Path, stack: AsyncExitStack) -> AugmentState:
    """Open what was learnt with this small model and this encoder. Raises ConfigError."""
    return await stack.enter_async_context(AugmentState(folder / FILE, f"{small.model}|{epoch}", TERMS))


def made_of(state: AugmentState, small: SmallModel, parts: Parts, around: Around) -> Small:
    """Put it together."""
    random, rewarding, config = Random(), Rewarding(parts, state), around.learn
    capacity = Capacity(parts, state, around.capacity_tokens)
    examples = Examples(parts, small, state, capacity.rests)
    augmenting = Augmenting(parts, small, examples, state, random, checked=around.checked, compared=config.shadow)
    meter, replaying = LearningMeter(parts.clock), None
    if config.shadow:
        means = Improves(parts=parts, state=state, meter=meter, config=config, policy=around.policy)
        replaying = Replaying(means, around.traffic, around.own_key)
        rewarding.remember = replaying.answered
        rewarding.assess = Assessing(
            Means(
                parts=parts,
                small=small,
                augmenting=augmenting,
                rewarding=rewarding,
                meter=meter,
                config=config,
                random=random,
                spawn=around.spawn,
            )
        )
    return Small(
        state=state,
        examples=examples,
        rewarding=rewarding,
        offloading=Offloading(parts, small, augmenting, rewarding),
        capacity=capacity,
        replaying=replaying,
    )


def _meant(selector: Selector, one: Standing) -> bool:
    """Whether an erasure of somebody's traces means an example; those chosen by entry are told as erased."""
    of_entries = selector.ids or selector.parents or selector.tag or selector.text or selector.namespace
    return (
        bool(selector)
        and not (of_entries or selector.model)
        and selector.tenant in ("", one.tenant)
        and selector.user in ("", one.user)
        and selector.category in ("", one.category)
        and (selector.before_s is None or one.since_s < selector.before_s)
    )
