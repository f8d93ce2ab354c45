"""A journey: one query on its way along the line, with what is found out about it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cacheproxy.augment.constraint import NO_LIMIT
from cacheproxy.policy.plan import plan as plan_query

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from cacheproxy.augment.constraint import Limit
    from cacheproxy.model import Classification, Embedding, Looked, Miss, Plan, Query
    from cacheproxy.policy.active import Policy


@dataclass(slots=True, kw_only=True)
class Journey:
    """One query on its way, with its embedding and its variant's key once they are known."""

    query: Query
    plan: Plan
    """Of the category, or while that is not known, the least narrow that it may turn out to be."""
    policy: Policy
    """The one in force when the query came: it is decided by this one to its end."""
    started_s: float
    fence: int
    """The store's when the query came: what was purged since is not served."""
    told: Classification | None = None
    """Its category, as far as it is known."""
    settled: bool = True
    """Whether nothing that its text is near to can change the category any more."""
    load: float = 0.0
    seen: Classification | None = None
    """What its text turned out to be near to, where it was looked at."""
    embedding: Embedding | None = None
    placed: Embedding | None = None
    """The embedding in its conversation, where it has one: what it is looked for by, and kept under."""
    sought: tuple[str, NDArray[np.float32]] | None = None
    """The epoch that it is looked for in, and by which vector, where that epoch has an encoder of its own."""
    embeddable: bool = True
    """False once the embedder failed on it: the answer is then kept for exact matches, without trying again."""
    variant_key: bytes | None = None
    looked: Looked | None = None
    """The decision, as it was logged."""
    missed: Miss | None = None
    """What the backend was asked for."""
    body: Mapping[str, Any] | None = field(default=None, repr=False)
    """The request, where the small model may be asked in its place."""
    limit: Limit = NO_LIMIT
    """What its caller's key lets one answer take, where the small model may give it."""
    waits_until_s: float | None = None
    """Until when, by the monotonic clock, other replicas are waited for; None before any was."""
    origin: str = "backend"
    """Where the answer that is kept is from, as `Entry.origin`."""

    def settle(self, told: Classification, epoch: str | None) -> None:
        """Take a category for good, and the plan that goes with it."""
        self.plan = self.planned(told, epoch)
        self.told, self.settled = told, True

    def planned(self, told: Classification, epoch: str | None) -> Plan:
        """Return the plan that goes with a category; the journey keeps its own."""
        plan = plan_query(self.query, self.policy, epoch, told, self.load)
        return replace(plan, failed=True) if self.plan.failed else plan

    @property
    def key(self) -> bytes:
        """What two requests must share to be answered by one exchange with the backend."""
        return self.variant_key or self.query.fingerprint
