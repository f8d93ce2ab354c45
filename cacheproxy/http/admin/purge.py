"""Purge: entries chosen by what they are, or all that is remembered of a tenant or an end user."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from litestar import Request, Response, post

from cacheproxy.erasure import ENTRIES, near
from cacheproxy.errors import InvalidRequest, NotChanged, PartUnavailable
from cacheproxy.http.admin.asked import actor_of, body_of, is_dry_run, refuse_unknown
from cacheproxy.http.admin.document import GUARDED, refusals, told
from cacheproxy.model import Selector

if TYPE_CHECKING:
    from collections.abc import Sequence

    from litestar.handlers import HTTPRouteHandler

    from cacheproxy.http.admin.house import Operated

_SHOWN = 100
_MOST_IDS = 10_000

Id = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class SimilarTo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Questions like this one. `radius` is a cosine distance: a cosine of at least 1 - radius is meant."""

    text: Annotated[str, msgspec.Meta(min_length=1, max_length=32_768)]
    radius: Annotated[float, msgspec.Meta(ge=0, le=1)]

    def __repr__(self) -> str:
        """Show no text."""
        return f"SimilarTo(radius={self.radius})"


class PurgeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which entries: those for which all that is given holds. Nothing given means a refusal, never all of them.

    `tenant` is a label of virtual keys, or hex; `user` is the name that bodies carry (`user`, `safety_identifier`);
    `older_than` counts seconds since the answer. With a tenant or a user, or with `erase`, everything else that is
    remembered of them goes, too: verdicts, logged lookups, near misses, index snapshots.
    """

    id: Id | None = None
    ids: Annotated[list[Id], msgspec.Meta(min_length=1, max_length=_MOST_IDS)] | None = None
    tag: Name | None = None
    category: Name | None = None
    namespace: Name | None = None
    tenant: Name | None = None
    user: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)] | None = None
    model: Name | None = None
    older_than: Annotated[float, msgspec.Meta(ge=0, le=1e10)] | None = None
    similar_to: SimilarTo | None = None
    descendants: bool = False
    """Also what was made of these entries: promoted and shared ones. With a tenant, a user or `erase` they always go.
    """
    erase: bool = False
    dry_run: bool = False

    def __repr__(self) -> str:
        """Show neither text nor names."""
        return "PurgeRequest(...)"


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """What one part removed. `pending` says why it is not done yet: it is tried again until it is."""

    part: str
    removed: int
    pending: str


class Purged(msgspec.Struct, frozen=True, kw_only=True):
    """How many entries went, and the first hundred of them; with a dry run, how many would."""

    purged: int
    ids: list[str]
    dry_run: bool
    parts: list[Part] = []
    acked: bool = True
    """Whether no replica will serve them any more."""
    laggards: list[str] = []
    """Replicas that have not said so."""
    until_s: float = 0.0
    """When the last of the laggards has stopped serving them at the latest, in seconds since the epoch; 0 without any.
    """


def handlers(house: Operated) -> list[HTTPRouteHandler]:
    """Return `purge`."""

    @post(
        "/admin/v1/purge",
        status_code=200,
        responses=refusals(400, 401, 413, 503),
        security=GUARDED,
        operation_class=told(PurgeRequest),
    )
    async def purge(request: Request[Any, Any, Any]) -> Response[Purged]:
        refuse_unknown(request, {"dry_run"})
        asked = body_of(await request.body(), PurgeRequest, "purge")
        dry_run = is_dry_run(request) or asked.dry_run
        selector = selector_of(house, asked)
        if not selector and asked.similar_to is None:
            raise InvalidRequest(
                "nothing to purge by: give id, ids, tag, category, namespace, tenant, user, model, older_than or "
                "similar_to"
            )
        if asked.similar_to is not None:
            if not dry_run:  # what is on its way now must not come after the search
                await house.catalogue.erase(Selector(before_s=0.0), scrub=False)
            ids = await _similar(house, asked.similar_to, selector)
            if not ids:
                return _answer(Purged(purged=0, ids=[], dry_run=dry_run))
            selector = replace(selector, ids=ids)
        everywhere = asked.erase or bool(selector.tenant or selector.user)
        descendants = asked.descendants or everywhere
        if dry_run:
            return previewed(await house.erasure.preview(selector, descendants=descendants))
        return await carry_out(house, selector, actor_of(request), everywhere=everywhere, descendants=descendants)

    return [purge]


def selector_of(house: Operated, asked: PurgeRequest) -> Selector:
    """Return what a body means, `similar_to` aside. Raises InvalidRequest."""
    if asked.id is not None and asked.ids is not None:
        raise InvalidRequest("give id or ids, not both", param="ids")
    now_s = house.pipeline.parts.clock.now()
    return Selector(
        ids=tuple(dict.fromkeys(asked.ids or ([asked.id] if asked.id else []))),
        tag=asked.tag or "",
        category=asked.category or "",
        namespace=asked.namespace or "",
        tenant=house.names.tenant(asked.tenant) if asked.tenant else "",
        user=house.names.user(asked.user) if asked.user else "",
        model=asked.model or "",
        before_s=None if asked.older_than is None else now_s - asked.older_than,
    )


async def _similar(house: Operated, asked: SimilarTo, selector: Selector) -> tuple[str, ...]:
    parts = house.pipeline.parts
    if parts.embedder is None:
        raise InvalidRequest("similar_to needs an encoder, and this proxy runs without one", param="similar_to")
    ids = await near(parts.store, parts.embedder, asked.text, asked.radius)
    return tuple(entry_id for entry_id in ids if not selector.ids or entry_id in selector.ids)


async def carry_out(
    house: Operated, selector: Selector, actor: str, *, everywhere: bool, descendants: bool = False
) -> Response[Purged]:
    """Remove what is meant; 202 while a part of it, or a replica, is behind. It is audited before and after."""
    action, meant = "erase" if everywhere else "purge", _meant(selector)
    if descendants:
        meant["descendants"] = True
    await house.audit.record(actor, action, "entries", before=meant, outcome="begun")
    asked = house.replicas.asked()
    try:
        erasure = house.erasure
        erased = await (erasure.erase(selector) if everywhere else erasure.purge(selector, descendants=descendants))
    except PartUnavailable:
        with contextlib.suppress(NotChanged):
            await house.audit.record(actor, action, "entries", before=meant, outcome="not begun")
        raise
    parts = [Part(part=one.part, removed=one.removed, pending=one.failed) for one in erased.parts]
    outcome = f"pending: {', '.join(erased.pending)}" if erased.pending else "done"
    told = {one.part: one.removed for one in parts}
    with contextlib.suppress(NotChanged):  # it is done, and its line of before says what
        await house.audit.record(actor, action, "entries", before=meant, after=told, outcome=outcome)
    heard = await house.replicas.acknowledged(asked)
    body = Purged(
        purged=len(erased.ids),
        ids=list(erased.ids[:_SHOWN]),
        dry_run=False,
        parts=parts,
        acked=heard.everybody and ENTRIES not in erased.pending,
        laggards=list(heard.laggards),
        until_s=house.pipeline.parts.clock.now() + heard.until_s if heard.laggards else 0.0,
    )
    return _answer(body, status=202 if erased.pending or not body.acked else 200)


def previewed(ids: Sequence[str]) -> Response[Purged]:
    """Return what a dry run tells."""
    return _answer(Purged(purged=len(ids), ids=list(ids[:_SHOWN]), dry_run=True))


def _answer(body: Purged, status: int = 200) -> Response[Purged]:
    return Response(body, status_code=status)


def _meant(selector: Selector) -> dict[str, Any]:
    """Return a selector for the audit log: digests of tenants and users, and of many ids the first."""
    told = {
        name: value for name in Selector.__slots__ if name not in ("ids", "text") and (value := getattr(selector, name))
    }
    if selector.ids:
        told |= {"ids": list(selector.ids[:_SHOWN]), "of": len(selector.ids)}
    return told
