"""Share: whether an answer goes beyond its tenant, and who may then have it. Pure.

One tenant alone never reaches another one: what is shared was answered by the backend to several tenants alike, for
one and the same request, and who asks does not count among them (reliability.md section 2.1, G2).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cacheproxy.model import (
    ALIAS_TAG,
    COMMON_TAG,
    OPERATOR,
    PRINCIPAL_TAG,
    SHARED_TAG,
    Common,
    Partition,
    Scope,
    entry_id,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from cacheproxy.model import Entry, Query, Shared

MOST_PRINCIPALS = 64
"""Most principals that an entry names: more would tell nothing."""
_MANY = 1000
"""Shared entries of a category from which on a tenant's share of them counts."""
_MOST_TENANTS = 10_000


def principal(tenant: str) -> str:
    """Return what stands for a tenant in entries that others may be served."""
    return hashlib.sha256(b"principal:" + tenant.encode()).hexdigest()[:32]


def common_tag(common: Common) -> str:
    """Return the tag by which entries of one request, asked by several tenants, find each other."""
    return f"{COMMON_TAG}{common.compatibility.hex()}:{common.fingerprint.hex()}"


def common_in(entry: Entry, tenant: str) -> Common | None:
    """Return what an entry's request is in the scope `tenant` that tenants share; None where it may not be shared."""
    told = next((tag.removeprefix(COMMON_TAG) for tag in entry.tags if tag.startswith(COMMON_TAG)), "")
    compatibility, _, fingerprint = told.partition(":")
    if not (compatibility and fingerprint):
        return None
    return Common(tenant=tenant, compatibility=bytes.fromhex(compatibility), fingerprint=bytes.fromhex(fingerprint))


def in_common(query: Query) -> Query | None:
    """Return a query as it is in the scope that tenants share; None where nothing is shared.

    Every check of scope, compatibility and category then holds as it does in the caller's own scope.
    """
    common = query.common
    if common is None:
        return None
    scope = Scope(tenant=common.tenant, namespace=query.scope.namespace)
    return replace(query, scope=scope, compatibility=common.compatibility, fingerprint=common.fingerprint)


def visible(entry: Entry, tenant: str, terms: Shared) -> bool:
    """Whether a shared entry may be served to a tenant: an operator approved it, or enough others got its answer.

    Who asks is not counted, so that a hit tells nobody anything about fewer than `principals` others.
    """
    if OPERATOR in entry.principals:
        return True
    return terms.agreed and len({*entry.principals} - {principal(tenant)}) >= terms.principals


def agreeing(fresh: Entry, others: Iterable[Entry], agree: Callable[[Entry, Entry], bool]) -> list[Entry]:
    """Return `fresh` and one entry of each other tenant that answers the same request alike, found by `common_tag`.

    Of another text, category or encoder, or made of another entry, none counts.
    """
    found = {fresh.tenant: fresh}
    for one in others:
        same = (
            one.text == fresh.text
            and one.namespace == fresh.namespace
            and one.partition.category == fresh.partition.category
            and one.partition.epoch == fresh.partition.epoch
            and one.unseen == fresh.unseen
            and one.origin == "backend"
            and not (one.vary or one.chain or one.user)
        )
        if same and one.tenant not in found and agree(fresh, one):
            found[one.tenant] = one
    return list(found.values())


def shared_entry(common: Common, sources: Sequence[Entry], principals: Iterable[str], expires_s: float) -> Entry:
    """Return what is shared of entries that agree: the answer of the first. It lives no longer than any of them."""
    first = sources[0]
    named = tuple(dict.fromkeys(principals))[:MOST_PRINCIPALS]
    kept = (tag for tag in first.tags if not tag.startswith((ALIAS_TAG, COMMON_TAG, PRINCIPAL_TAG)))
    of_parents = (f"{ALIAS_TAG}{one.id}" for one in sources)
    of_principals = (f"{PRINCIPAL_TAG}{one}" for one in named)
    return replace(
        first,
        id=entry_id(common.fingerprint),
        fingerprint=common.fingerprint,
        tenant=common.tenant,
        partition=Partition(
            category=first.partition.category, compatibility=common.compatibility, epoch=first.partition.epoch
        ),
        created_s=min(one.created_s for one in sources),
        expires_s=min(expires_s, *(one.expires_s for one in sources)),
        stale_until_s=0.0,
        revalidate_s=0.0,
        on_error_s=0.0,
        tags=tuple(dict.fromkeys((*kept, SHARED_TAG, *of_parents, *of_principals))),
        origin="shared",
        principals=named,
    )


@dataclass(slots=True)
class Taken:
    """How many shared entries of each category each tenant took part in, since the start."""

    _taken: Counter[tuple[str, str]] = field(default_factory=Counter)
    _made: Counter[str] = field(default_factory=Counter)

    def within(self, category: str, tenant: str, most: float) -> bool:
        """Whether a tenant may take part in one more."""
        made = self._made[category]
        return made < _MANY or self._taken[category, principal(tenant)] + 1 <= most * (made + 1)

    def count(self, category: str, principals: Iterable[str]) -> None:
        """Count one more shared entry."""
        if len(self._taken) > _MOST_TENANTS:
            self._taken.clear()
            self._made.clear()
        self._made[category] += 1
        self._taken.update((category, one) for one in principals)
