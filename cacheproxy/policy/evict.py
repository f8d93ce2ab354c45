"""Eviction: how a store's room is divided, and who goes when it is needed. Pure.

What is gone goes first. Above a cap, whoever borrowed most for its priority gives back first: a category that holds no
more than its quota is never touched while another holds more. Within a category, a tenant above its share gives way
first, and none that holds no more than an even part of the quota is ever touched. Only then worth decides.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from cacheproxy.model import Quota

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cacheproxy.policy.pack import Pack

SAMPLE = 64
"""Entries that are looked at, the least recently used first, to find the worthless among them."""
TAKEN = 16
"""Most of a sample that goes."""
_RANKED = 64
_FRESH_S = 10.0
_UNTIMED_MS = 1000.0
"""Taken for the backend's time where nobody measured it (a warmed answer): an estimate, as of a short answer."""

Room = tuple[int, int]
"""Entries and bytes."""

_NOTHING = Quota(entries=0, size_bytes=0)


class Cause(StrEnum):
    """Why an entry was removed."""

    EXPIRED = "expired"
    OVER_QUOTA = "over_quota"
    """Its category had borrowed."""
    TENANT_SHARE = "tenant_share"
    """Its tenant held more than its share of the category."""
    CAPACITY = "capacity"
    """The store is full, and no other category has a part in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """What eviction knows of an entry; `hits` is its decayed count of this moment."""

    entry_id: str
    tenant: str
    size_bytes: int
    hits: float
    used_s: float
    expires_s: float
    fill_ms: float


class Held(Protocol):
    """What a store holds, counted as entries come and go."""

    @property
    def totals(self) -> Room:
        """Of all."""
        ...

    @property
    def categories(self) -> Mapping[str, Room]:
        """By category; those with nothing may be missing."""
        ...

    def tenants(self, category: str) -> Mapping[str, Room]:
        """By tenant, of one category."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Where entries must go from: one category, of `tenant` where it names one.

    No tenant may be left with less than `floor` by the loss of more than one entry.
    """

    category: str
    tenant: str | None
    floor: float
    excess: float
    """How much should go, in bytes or entries."""
    by_bytes: bool
    cause: Cause


def quotas(pack: Pack, max_entries: int, max_bytes: int) -> dict[str, Quota]:
    """Return each category's part of a store: floor(quota * capacity), and even parts of the rest for those without.

    Quotas that add up to more than the whole are scaled down. A category that may not be cached gets nothing.
    """
    kept = {name: rules for name, rules in pack.categories.items() if rules.allow_caching}
    given = sum(rules.quota for rules in kept.values())
    sharing = sum(rules.quota == 0 for rules in kept.values())
    scale = min(1.0, 1 / given) if given else 1.0
    rest = max(0.0, 1.0 - given) / sharing if sharing else 0.0

    def part(name: str) -> float:
        return (kept[name].quota * scale or rest) if name in kept else 0.0

    return {
        name: Quota(
            entries=int(part(name) * max_entries + 1e-9),
            size_bytes=int(part(name) * max_bytes + 1e-9),
            priority=rules.priority,
            tenant_share=rules.tenant_share,
        )
        for name, rules in pack.categories.items()
    }


def worth(entry: Resident, now_s: float, *, by_bytes: bool) -> float:
    """Return what keeping an entry is worth for the room it takes: how soon it may be asked for, times what that saves.

    (hits + 1) * sqrt(fill_ms / size) / (idle + 10 s), nothing past its expiry. Without the idle time valuable entries
    stay that nobody asks for any more, and with the whole cost instead of its root long answers crowd out the asked-for
    ones: docs/benchmarks.md, "Eviction", against what is usual. Where entries are scarce, size does not count.
    A fill that nobody timed counts as a second.
    """
    if now_s >= entry.expires_s:
        return 0.0
    fill_ms = entry.fill_ms if entry.fill_ms > 0 else _UNTIMED_MS
    saving = fill_ms / max(1, entry.size_bytes) if by_bytes else fill_ms
    return (entry.hits + 1.0) * math.sqrt(saving) / (max(0.0, now_s - entry.used_s) + _FRESH_S)


class Reclaim:
    """One sweep's way through a store that is above `room`: tells where to take from until it is not.

    `held` is read anew each time, `quotas` that add up to more than the room are scaled down to it: so somebody holds
    more than his part whenever the whole holds more than the room.
    """

    def __init__(self, held: Held, quotas: Mapping[str, Quota], room: Room) -> None:
        self._held = held
        self._quotas = quotas
        self._room = room
        given = [sum(_parts(quota)[unit] for quota in quotas.values()) for unit in (0, 1)]
        self._scales = [min(1.0, most / total) if total else 1.0 for most, total in zip(room, given, strict=True)]
        self._alone = sum(1 for quota in quotas.values() if any(_parts(quota))) < 2
        self._ranked: dict[tuple[str, int], list[str]] = {}

    def claim(self) -> Claim | None:
        """Return where entries must go from now, or None when there is room."""
        over = [total - most for total, most in zip(self._held.totals, self._room, strict=True)]
        unit = 0 if over[0] > 0 else 1
        if over[unit] <= 0:
            return None
        borrowed = {name: held[unit] - self._guaranteed(name, unit) for name, held in self._held.categories.items()}
        name = max(borrowed, key=lambda name: (borrowed[name] / self._quota(name).priority, name), default="")
        if not borrowed or borrowed[name] <= 0:
            return None
        return self._within(name, unit, min(borrowed[name], over[unit]))

    def narrowed(self, claim: Claim) -> Claim:
        """Return the same claim on the tenant who holds most: it may always lose something."""
        return replace(claim, tenant=self._richest(claim.category, int(claim.by_bytes)))

    def _within(self, name: str, unit: int, excess: float) -> Claim | None:
        tenants, total = self._held.tenants(name), self._held.categories[name][unit]
        richest = self._richest(name, unit)
        claim = Claim(
            category=name,
            tenant=None,
            floor=self._guaranteed(name, unit) / len(tenants),
            excess=excess,
            by_bytes=unit == 1,
            cause=Cause.CAPACITY if self._alone else Cause.OVER_QUOTA,
        )
        surplus = tenants[richest][unit] - self._quota(name).tenant_share * total
        if len(tenants) == 1 or surplus <= 0:
            return claim
        return replace(claim, tenant=richest, excess=min(excess, surplus), cause=Cause.TENANT_SHARE)

    def _richest(self, name: str, unit: int) -> str:
        """Return the tenant that holds most, or nearly: all are looked through about once a sweep."""
        tenants = self._held.tenants(name)
        even = self._held.categories[name][unit] / len(tenants)
        known = [tenant for tenant in self._ranked.get((name, unit), ()) if tenant in tenants]
        best = max(known, key=lambda tenant: tenants[tenant][unit], default=None)
        if best is None or tenants[best][unit] < even:  # it never asked, or all whom it knew have given back
            most = heapq.nlargest(_RANKED, tenants.items(), key=lambda one: one[1][unit])
            self._ranked[name, unit] = [tenant for tenant, _ in most]
            best = most[0][0]
        return best

    def _guaranteed(self, name: str, unit: int) -> float:
        return _parts(self._quota(name))[unit] * self._scales[unit]

    def _quota(self, name: str) -> Quota:
        return self._quotas.get(name, _NOTHING)


def victims(claim: Claim, sample: Iterable[Resident], tenants: Mapping[str, Room], now_s: float) -> list[Resident]:
    """Return who of a sample goes, the worthless first: as many as are claimed, and of no tenant more than it may lose.

    `tenants` tells what each holds of the category.
    """
    unit, excess = int(claim.by_bytes), claim.excess
    left: dict[str, float] = {}
    gone: list[Resident] = []
    for entry in sorted(sample, key=lambda entry: (worth(entry, now_s, by_bytes=claim.by_bytes), entry.used_s)):
        if len(gone) == TAKEN or excess <= 0:
            break
        held = left.get(entry.tenant, tenants.get(entry.tenant, (0, 0))[unit])
        if held > claim.floor:
            size = entry.size_bytes if claim.by_bytes else 1
            left[entry.tenant] = held - size
            excess -= size
            gone.append(entry)
    return gone


def _parts(quota: Quota) -> Room:
    return quota.entries, quota.size_bytes
