"""One proxy, assembled: what stands between its parts and whoever listens for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from cacheproxy.augment.constraint import NO_LIMIT, Limit
from cacheproxy.explain import explain
from cacheproxy.http.openapi import DEGRADED

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

    from cacheproxy.access.keeper import Keeper
    from cacheproxy.access.names import Names
    from cacheproxy.erasure import Erasure
    from cacheproxy.explain import ExplainRequest, Explanation
    from cacheproxy.govern.audit import AuditLog
    from cacheproxy.govern.book import PolicyBook
    from cacheproxy.http.edge import Edge
    from cacheproxy.install import Claim
    from cacheproxy.learn.lookups import LookupLog
    from cacheproxy.model import Scope
    from cacheproxy.pipeline import Pipeline
    from cacheproxy.policy.adapt import LoadWatch
    from cacheproxy.ports import EntryCatalogue, Heads, Replicas
    from cacheproxy.settings import Settings
    from cacheproxy.sharing import Sharing
    from cacheproxy.small import Small
    from cacheproxy.stats.reader import Stats
    from cacheproxy.warming import Warming


class HasHealth(Protocol):
    """A part that can say how it is."""

    def health(self) -> str:
        """Return "" when able to serve, else what is wrong."""
        ...


class Readiness:
    """Every part's own word on whether it can serve."""

    def __init__(self, parts: Mapping[str, HasHealth], degraded: Mapping[str, Callable[[], str]] | None = None) -> None:
        """`degraded` parts say what is wrong, too, and are not needed for the backend's answers.

        One that is in both is told of as degraded only where it can serve.
        """
        self._parts = parts
        self._degraded = dict(degraded or {})
        self.draining = False

    def __call__(self) -> dict[str, str]:
        """Return every part with "" or what is wrong with it."""
        state = {name: part.health() for name, part in self._parts.items()}
        for name, told in self._degraded.items():
            why = told()
            state[name] = state.get(name) or (why and f"{DEGRADED}{why}")
        state["listener"] = "draining" if self.draining else ""
        return state


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """One proxy, assembled and ready to be listened to."""

    settings: Settings
    pipeline: Pipeline
    book: PolicyBook
    audit: AuditLog
    edge: Edge
    ready: Readiness
    claim: Claim
    identify: Callable[[list[tuple[bytes, bytes]]], Scope]
    """Says whose scope a request with these headers is in."""
    keeper: Keeper | None
    """Of the virtual keys, where callers need one."""
    names: Names
    """How operators name tenants and end users."""
    catalogue: EntryCatalogue
    """The store, seen by operators."""
    erasure: Erasure
    warming: Warming
    load: LoadWatch
    """How loaded each backend counts as."""
    lookups: LookupLog
    """What was decided."""
    sharing: Sharing
    """What lets answers go beyond their tenant."""
    stats: Stats
    """What operators see of it all."""
    small: Small | None
    """What lets the small model answer; None without one."""
    heads: Heads
    """What changes similarity heads."""
    replicas: Replicas
    """Who shares the store."""
    rejoin: asyncio.Event | None = None
    """Set where this process must start anew to join other replicas; None where there are none."""

    def readiness(self) -> dict[str, str]:
        """Return every part with "" or what is wrong with it."""
        return self.ready()

    async def explain(self, request: ExplainRequest) -> Explanation:
        """Show every step of one decision. Raises RequestError."""
        return await explain(self.pipeline, request, self.identify, self._limit)

    def _limit(self, headers: list[tuple[bytes, bytes]]) -> Limit:
        """Return what one answer should take by the key in these headers. Raises as `identify`."""
        if self.keeper is None:
            return NO_LIMIT
        caller = self.keeper.gate.admit(headers)
        return Limit(latency_s=caller.answer_s, usd=caller.answer_usd)
