"""What the admin port asks of the assembled proxy: the house, seen by its operators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from cacheproxy.access.names import Names
    from cacheproxy.erasure import Erasure
    from cacheproxy.explain import ExplainRequest, Explanation
    from cacheproxy.govern.audit import AuditLog
    from cacheproxy.govern.book import PolicyBook
    from cacheproxy.learn.lookups import LookupLog
    from cacheproxy.pipeline import Pipeline
    from cacheproxy.ports import EntryCatalogue, Heads, Replicas
    from cacheproxy.settings import Settings
    from cacheproxy.sharing import Sharing
    from cacheproxy.small import Small
    from cacheproxy.stats.reader import Stats
    from cacheproxy.warming import Warming


class Operated(Protocol):
    """What an operator can ask of an assembled proxy."""

    @property
    def settings(self) -> Settings:
        """What it was started with."""
        ...

    @property
    def book(self) -> PolicyBook:
        """The policy in force, and its versions."""
        ...

    @property
    def pipeline(self) -> Pipeline:
        """The line."""
        ...

    @property
    def names(self) -> Names:
        """How operators name tenants and end users."""
        ...

    @property
    def catalogue(self) -> EntryCatalogue:
        """The store, seen by operators."""
        ...

    @property
    def erasure(self) -> Erasure:
        """What removes entries, and all that is remembered of somebody."""
        ...

    @property
    def warming(self) -> Warming:
        """What keeps answers that an operator already has."""
        ...

    @property
    def audit(self) -> AuditLog:
        """Who changed what."""
        ...

    @property
    def lookups(self) -> LookupLog:
        """What was decided."""
        ...

    @property
    def sharing(self) -> Sharing:
        """What lets answers go beyond their tenant."""
        ...

    @property
    def stats(self) -> Stats:
        """The figures of every category and backend, and what they recommend."""
        ...

    @property
    def heads(self) -> Heads:
        """What changes similarity heads."""
        ...

    @property
    def replicas(self) -> Replicas:
        """Who shares the store."""
        ...

    @property
    def small(self) -> Small | None:
        """What lets the small model answer; None without one."""
        ...

    def readiness(self) -> dict[str, str]:
        """Return every part with "" or what is wrong with it."""
        ...

    async def explain(self, request: ExplainRequest) -> Explanation:
        """Show every step of one decision."""
        ...
