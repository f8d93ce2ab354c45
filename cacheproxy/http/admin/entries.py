"""Entries, looked at and removed one by one."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from litestar import Request, Response, delete, get
from litestar.params import FromPath, QueryParameter

from cacheproxy.errors import NotFound, VersionConflict
from cacheproxy.govern.condition import matches
from cacheproxy.http.admin.asked import actor_of, is_dry_run, refuse_unknown
from cacheproxy.http.admin.document import GUARDED, refusals
from cacheproxy.http.admin.purge import Purged, carry_out, previewed
from cacheproxy.model import Selector

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from cacheproxy.http.admin.house import Operated
    from cacheproxy.model import Entry

_MOST = 1000
_SHOWN_CHARS = 200
_PAGES_AT_ONCE = 32
"""Pages of the store looked through for one of ours: what is searched for may be rare."""
_ID = re.compile(r"[0-9a-f]{32}")
_ASKED = frozenset({"category", "q", "tag", "tenant", "namespace", "model", "user", "cursor", "limit"})
Word = Annotated[str, QueryParameter(max_length=1024)]
_DIALECTS = {
    "chat.completion": "chat",
    "text_completion": "completions",
    "response": "responses",
    "list": "embeddings",
}


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """One entry, without its answer. `text` is its question, at most 200 characters of it."""

    id: str
    tenant: str
    namespace: str
    category: str
    second: str
    model: str
    dialect: str
    created: float
    expires: float
    size_bytes: int
    tags: list[str]
    text: str
    has_vector: bool
    epoch: str
    user: str


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """Some entries, oldest first. `next` goes on as `cursor`; null at the end, and a page may hold fewer, or none."""

    entries: list[Listed]
    next: int | None


class Whole(msgspec.Struct, frozen=True, kw_only=True):
    """One entry with its whole question and its answer in canonical form."""

    entry: Listed
    text: str
    answer: dict[str, Any]
    fill_ms: float
    stale_until: float
    vary: list[str]
    compatibility: str
    origin: str
    """Where its answer is from: `backend`, `promoted`, `shared` or `warmed`."""
    answered_by: str
    """The model that gave the answer, as the answer says."""
    policy_version: int
    parents: list[str]
    """The entries that it was made from; the first one gave it its answer."""
    principals: list[str]
    """Of a shared entry: digests of the tenants that got this answer, or one that agrees."""


def handlers(house: Operated) -> list[HTTPRouteHandler]:
    """Return the routes of entries."""

    @get("/admin/v1/entries", responses=refusals(400, 401, 503), security=GUARDED)
    async def entries(
        request: Request[Any, Any, Any],
        category: Word = "",
        q: Word = "",
        tag: Word = "",
        tenant: Word = "",
        namespace: Word = "",
        model: Word = "",
        user: Word = "",
        cursor: Annotated[int, QueryParameter(ge=0, le=2**53)] = 0,
        limit: Annotated[int, QueryParameter(ge=1, le=_MOST)] = 100,
    ) -> Listing:
        refuse_unknown(request, _ASKED)
        selector = Selector(
            category=category,
            text=q,
            tag=tag,
            tenant=house.names.tenant(tenant) if tenant else "",
            namespace=namespace,
            model=model,
            user=house.names.user(user) if user else "",
        )
        found: list[Entry] = []
        after: int | None = cursor
        for _ in range(_PAGES_AT_ONCE):
            if after is None or len(found) >= limit:
                break
            page = await house.catalogue.page(selector, after=after, limit=limit - len(found))
            found += page.entries
            after = page.after
        return Listing(entries=[_listed(entry) for entry in found], next=after)

    @get("/admin/v1/entries/{entry_id:str}", responses=refusals(401, 404, 503), security=GUARDED)
    async def entry(entry_id: FromPath[str]) -> Response[Whole]:
        found = await _find(house, entry_id)
        whole = Whole(
            entry=_listed(found),
            text=_sayable(found.text),
            answer=dict(found.reply.body),
            fill_ms=found.fill_ms,
            stale_until=found.stale_until_s,
            vary=list(found.vary),
            compatibility=found.partition.compatibility.hex(),
            origin=found.origin,
            answered_by=_sayable(str(found.reply.body.get("model") or "")),
            policy_version=found.policy,
            parents=list(found.parents),
            principals=list(found.principals),
        )
        return Response(whole, headers={"etag": _etag(found)})

    @delete(
        "/admin/v1/entries/{entry_id:str}",
        status_code=200,
        responses=refusals(400, 401, 404, 412, 503),
        security=GUARDED,
    )
    async def delete_entry(request: Request[Any, Any, Any], entry_id: FromPath[str]) -> Response[Purged]:
        refuse_unknown(request, {"dry_run"})
        found = await _find(house, entry_id)
        if not matches(request.headers.get("if-match"), _etag(found)):
            raise VersionConflict("this entry was answered anew meanwhile; look at it again")
        selector = Selector(ids=(found.id,))
        if is_dry_run(request):
            return previewed([found.id])
        return await carry_out(house, selector, actor_of(request), everywhere=False)

    return [entries, entry, delete_entry]


async def _find(house: Operated, entry_id: str) -> Entry:
    found = await house.pipeline.parts.store.get(entry_id) if _ID.fullmatch(entry_id) else None
    if found is None:
        raise NotFound("no entry has this id: it may have expired, or gone for room")
    return found


def _listed(entry: Entry) -> Listed:
    return Listed(
        id=entry.id,
        tenant=entry.tenant,
        namespace=entry.namespace,
        category=entry.partition.category,
        second=entry.second,
        model=entry.model,
        dialect=_DIALECTS.get(str(entry.reply.body.get("object")), ""),
        created=entry.created_s,
        expires=entry.expires_s,
        size_bytes=len(msgspec.json.encode(entry.reply.body)),
        tags=list(entry.tags),
        text=_sayable(entry.text[:_SHOWN_CHARS]),
        has_vector=entry.vector is not None,
        epoch=entry.partition.epoch,
        user=entry.user,
    )


def _sayable(text: str) -> str:
    """Return a text as JSON can hold it: a question may hold half a surrogate pair."""
    return text.encode("utf-8", "replace").decode()


def _etag(entry: Entry) -> str:
    told = f"{entry.id}:{entry.created_s!r}:{entry.expires_s!r}"
    return f'"{hashlib.sha256(told.encode()).hexdigest()[:16]}"'
