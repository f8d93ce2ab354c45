"""What a sweep removes: whatever is gone, then, above the caps, what policy says is to go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from cacheproxy.policy.evict import SAMPLE, Cause, Reclaim, victims
from cacheproxy.store.caps import SWEEP_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cacheproxy.model import Quota
    from cacheproxy.policy.evict import Resident
    from cacheproxy.store.caps import Caps
    from cacheproxy.store.tally import Tally


class Evicted(NamedTuple):
    """An entry that a sweep removed, and why."""

    entry_id: str
    category: str
    cause: Cause


class Rows(Protocol):
    """A store's entries, as a sweep reads and removes them; every read is bounded by `limit`."""

    @property
    def tally(self) -> Tally:
        """What is held, by whom."""
        ...

    def gone(self, now_s: float, limit: int) -> list[tuple[str, str]]:
        """Return id and category of those that nobody may be served from any more, the longest gone first."""
        ...

    def least_recently_used(self, limit: int) -> list[tuple[str, str]]:
        """Return id and category of those of all categories, the longest unused first."""
        ...

    def sample(self, category: str, tenant: str | None, limit: int, now_s: float) -> list[Resident]:
        """Return the longest unused of a category, or of one tenant of it."""
        ...

    def delete(self, entry_id: str) -> bool:
        """Remove an entry; return whether it was there."""
        ...


def plain() -> Mapping[str, Quota]:
    """Return no quotas: the store has one part, and what was used least recently goes."""
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweeper:
    """Removes at most SWEEP_LIMIT entries a call; `quotas` are asked for each time."""

    caps: Caps
    quotas: Callable[[], Mapping[str, Quota]]

    def sweep(self, rows: Rows, now_s: float) -> list[Evicted]:
        """Remove what is gone, then what is too much; return what was removed."""
        removed = [
            Evicted(entry_id, category, Cause.EXPIRED)
            for entry_id, category in rows.gone(now_s, SWEEP_LIMIT)
            if rows.delete(entry_id)
        ]
        if self.caps.over(*rows.tally.totals):
            quotas, most = self.quotas(), SWEEP_LIMIT - len(removed)
            removed += self._reclaim(rows, quotas, most, now_s) if quotas else self._oldest(rows, most)
        return removed

    def _oldest(self, rows: Rows, most: int) -> list[Evicted]:
        removed: list[Evicted] = []
        for entry_id, category in rows.least_recently_used(most):
            if not self.caps.above_target(*rows.tally.totals):
                break
            if rows.delete(entry_id):
                removed.append(Evicted(entry_id, category, Cause.CAPACITY))
        return removed

    def _reclaim(self, rows: Rows, quotas: Mapping[str, Quota], most: int, now_s: float) -> list[Evicted]:
        reclaim, removed = Reclaim(rows.tally, quotas, self.caps.target), list[Evicted]()
        while len(removed) < most and (claim := reclaim.claim()):
            tenants = rows.tally.tenants(claim.category)
            chosen = victims(claim, rows.sample(claim.category, claim.tenant, SAMPLE, now_s), tenants, now_s)
            if not chosen:  # the longest unused are all of tenants who may lose nothing
                claim = reclaim.narrowed(claim)
                chosen = victims(claim, rows.sample(claim.category, claim.tenant, SAMPLE, now_s), tenants, now_s)
            gone = [entry.entry_id for entry in chosen[: most - len(removed)] if rows.delete(entry.entry_id)]
            if not gone:  # the count is not what the rows are; the next start counts anew
                break
            removed += [Evicted(entry_id, claim.category, claim.cause) for entry_id in gone]
        return removed
