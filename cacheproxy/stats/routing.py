"""The reader of what the small model does: read from what was learnt and counted, when it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cacheproxy.augment.arms import Arm
from cacheproxy.augment.outlook import outlooks, together
from cacheproxy.stats.offloads import CategoryRouting, Offloads, arm_of, gain_of, quality_of

if TYPE_CHECKING:
    from cacheproxy.augment.ledger import Ledger
    from cacheproxy.augment.outlook import Outlook
    from cacheproxy.augment.state import AugmentState
    from cacheproxy.ports import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """What is known of who answers misses."""

    state: AugmentState
    ledger: Ledger
    model: str
    """The small one's name."""
    clock: Clock

    def category(self, name: str, load: float, *, allowed: bool) -> CategoryRouting:
        """Return how a category is routed while the large model's backends have this load."""
        state, now_s = self.state, self.clock.now()
        pressure, estimates = state.router.pressure(load), state.observed.estimates(name, now_s)
        known = outlooks(state.router, name, now_s)
        return CategoryRouting(
            category=name,
            allowed=allowed,
            load=load,
            pressure=pressure,
            theta=state.gains.threshold(name),
            gains=[gain_of(one) for one in state.gains.known(name)],
            arms=[arm_of(one, estimates.get(one.arm), pressure) for one in known],
            offloads=self._offloads(name, known),
        )

    def offloads(self, name: str) -> Offloads:
        """Return what the small model did in a category."""
        return self._offloads(name, outlooks(self.state.router, name, self.clock.now()))

    def qualities(self, name: str) -> dict[str, float]:
        """Return the expected quality of every arm that something was said of, at the category's typical question."""
        known = outlooks(self.state.router, name, self.clock.now())
        return {one.arm.value: one.typical.estimate for one in known if one.typical.rewards > 0}

    @property
    def explored(self) -> float:
        """Share of the questions at which an arm that is not known is tried."""
        return self.state.router.terms.explore

    def _offloads(self, name: str, known: tuple[Outlook, ...]) -> Offloads:
        page = self.ledger.page(name)
        small = together(one.given for one in known if one.arm is not Arm.LARGE)
        large = together(one.given for one in known if one.arm is Arm.LARGE)
        return Offloads(
            answers={arm.value: count for arm, count in page.answers.items()},
            offloaded=page.offloaded,
            ratio=page.ratio,
            reasons=dict(page.reasons),
            failures=dict(page.failures),
            quality=None if small is None else quality_of(small),
            large_quality=None if large is None else quality_of(large),
            regret=page.regret,
            saved_s=page.saved_s,
            saved_usd=page.saved_usd,
            examples=self.state.counts().get(name, 0),
        )
