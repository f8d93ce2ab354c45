"""Near misses: looked at, and promoted one by one."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import msgspec
from litestar import Request, get, post
from litestar.params import FromPath, FromQuery

from cacheproxy.errors import InvalidRequest, NotFound, PartUnavailable
from cacheproxy.http.admin.asked import actor_of, is_dry_run, refuse_unknown
from cacheproxy.http.admin.document import GUARDED, refusals
from cacheproxy.promote import promote, promotion

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from cacheproxy.http.admin.house import Operated
    from cacheproxy.learn.nearmisses import NearMiss

_MOST = 500
_SHOWN_CHARS = 200


class NearMissBody(msgspec.Struct, frozen=True, kw_only=True):
    """A question that `entry` nearly answered; `entry_text` is that entry's own question, null when it is gone.

    Where a verifier decides, `probability` is what it said and `min_probability` what was asked; else both are null.
    """

    id: str
    at_s: float
    times: int
    category: str
    tenant: str
    namespace: str
    model: str
    similarity: float | None
    threshold: float | None
    probability: float | None
    min_probability: float | None
    text: str
    entry: str
    entry_text: str | None


class NearMissesBody(msgspec.Struct, frozen=True, kw_only=True):
    """Some near misses, the latest first. `next` goes on as `cursor`; null at the end."""

    near_misses: list[NearMissBody]
    next: str | None


class Promoted(msgspec.Struct, frozen=True, kw_only=True):
    """What a promotion did: the question's own entry, which answers as `source` does, until it expires."""

    near_miss: str
    entry: str
    source: str
    expires_s: float
    replaced: bool
    """Whether the question had an entry already, whose answer it lost."""
    dry_run: bool


def handlers(house: Operated) -> list[HTTPRouteHandler]:
    """Return the routes of near misses."""

    @get("/admin/v1/near-misses", responses=refusals(400, 401), security=GUARDED)
    async def near_misses(
        category: FromQuery[str] = "", cursor: FromQuery[str] = "", limit: FromQuery[int] = 100
    ) -> NearMissesBody:
        if not 1 <= limit <= _MOST:
            raise InvalidRequest(f"limit must be 1 to {_MOST}", param="limit")
        if cursor and not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
            raise InvalidRequest("cursor must be the `next` of a page before", param="cursor")
        found = house.lookups.near_misses(category)
        if cursor:
            found = [one for one in found if one.serial < int(cursor)]
        page = found[:limit]
        return NearMissesBody(
            near_misses=[await _told(house, one) for one in page],
            next=str(page[-1].serial) if len(found) > limit else None,
        )

    @post(
        "/admin/v1/near-misses/{near_miss_id:str}/promote",
        status_code=200,
        responses=refusals(400, 401, 404, 409, 503),
        security=GUARDED,
    )
    async def promote_near_miss(request: Request[Any, Any, Any], near_miss_id: FromPath[str]) -> Promoted:
        refuse_unknown(request, {"dry_run"})
        parts, dry_run = house.pipeline.parts, is_dry_run(request)
        fence = parts.store.fence  # before anything is read: an erasure from now on wins
        near_miss = _find(house, near_miss_id)
        made = await promotion(parts, house.pipeline.policy(), near_miss)
        if not dry_run:
            after = {"entry": made.entry.id, "source": made.source.id, "category": near_miss.looked.category}
            await house.audit.record(actor_of(request), "near_misses.promote", near_miss.id, after=after)
            near_miss = _find(house, near_miss_id)  # it may have been forgotten meanwhile, or policy changed
            made = await promote(parts, house.pipeline.policy(), near_miss, fence)
            house.lookups.promoted(near_miss)
        return Promoted(
            near_miss=near_miss.id,
            entry=made.entry.id,
            source=made.source.id,
            expires_s=made.entry.expires_s,
            replaced=made.replaces,
            dry_run=dry_run,
        )

    return [near_misses, promote_near_miss]


def _find(house: Operated, near_miss_id: str) -> NearMiss:
    found = house.lookups.near_miss(near_miss_id)
    if found is None:
        raise NotFound("no near miss has this id; it was promoted, erased, or pushed out by later ones")
    return found


async def _told(house: Operated, near_miss: NearMiss) -> NearMissBody:
    looked, entry = near_miss.looked, None
    with contextlib.suppress(PartUnavailable):
        entry = await house.pipeline.parts.store.get(looked.entry_id)
    return NearMissBody(
        id=near_miss.id,
        at_s=looked.at_s,
        times=near_miss.times,
        category=looked.category,
        tenant=looked.tenant,
        namespace=looked.namespace,
        model=looked.model,
        similarity=looked.similarity,
        threshold=looked.threshold,
        probability=looked.probability,
        min_probability=looked.min_probability,
        text=_sayable(looked.text),
        entry=looked.entry_id,
        entry_text=_sayable(entry.text[:_SHOWN_CHARS]) if entry is not None else None,
    )


def _sayable(text: str) -> str:
    """Return a text as JSON can hold it: a question may hold half a surrogate pair."""
    return text.encode("utf-8", "replace").decode()
