"""Examples: what is known of past answers in the small model's prompts; pinned and quarantined one by one."""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import re
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from litestar import Request, Response, get, patch
from litestar.params import FromPath, QueryParameter

from cacheproxy.augment.worth import faded
from cacheproxy.errors import InvalidRequest, NotFound, PartUnavailable, VersionConflict
from cacheproxy.govern.condition import matches
from cacheproxy.http.admin.asked import actor_of, body_of, is_dry_run, refuse_unknown
from cacheproxy.http.admin.document import GUARDED, refusals, told
from cacheproxy.http.admin.routing import NO_SMALL_MODEL
from cacheproxy.model import Scope
from cacheproxy.policy.agreement import told as words_of

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from cacheproxy.augment.worth import Standing
    from cacheproxy.http.admin.house import Operated
    from cacheproxy.model import Entry
    from cacheproxy.small import Small

_PATH = "/admin/v1/examples/{entry_id:str}"
_MOST = 500
_SHOWN_CHARS = 200
_ID = re.compile(r"[0-9a-f]{32}")
_ASKED = frozenset({"category", "tenant", "cursor", "limit"})
Word = Annotated[str, QueryParameter(max_length=1024)]


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an example as of now. What fades counts less by a tenth every hour."""

    entry: str
    tenant: str
    category: str
    user: str
    tokens: int
    """What it takes in the small model's prompt."""
    since: float
    """When its answer was given, or the one that is pinned."""
    quality: float
    """Moving average of what was said of its answer, 0 to 1; 0.5 before anything was."""
    words: float
    """Weight of what was said."""
    offloads: float
    """Questions that it helped to answer without the large model, faded; 1 of a new one."""
    uses: float
    """Prompts that it was in, faded."""
    loss: float
    """What its lack of quality costs a use, in answers of the large model."""
    replays: int
    """Times the large model was asked again."""
    pinned: bool
    quarantined: bool
    text: str | None
    """Its question, at most 200 characters; null when the entry is gone."""
    answer: str | None
    """Its answer, the same."""


class KnownBody(msgspec.Struct, frozen=True, kw_only=True):
    """One example. `refusal` says why it may not be one to its own tenant now, "" where it may.

    `recorded`: whether anything is kept of it; an entry that was never an example shows what would be known first.
    """

    example: Known
    refusal: str
    recorded: bool


class KnownPage(msgspec.Struct, frozen=True, kw_only=True):
    """Some examples, by the ids of their entries. `next` goes on as `cursor`; null at the end."""

    examples: list[Known]
    next: str | None


class Marks(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator says of an example; what is left out stays.

    `pinned`: kept before all others, and its answer of now vouched for. `quarantined`: in no prompt until lifted.
    """

    pinned: bool | None = None
    quarantined: bool | None = None


class Marked(msgspec.Struct, frozen=True, kw_only=True):
    """What a change did."""

    entry: str
    pinned: bool
    quarantined: bool
    dry_run: bool


def handlers(house: Operated) -> list[HTTPRouteHandler]:
    """Return the routes of examples."""

    @get("/admin/v1/examples", responses=refusals(400, 401, 404), security=GUARDED)
    async def examples(
        request: Request[Any, Any, Any],
        category: Word = "",
        tenant: Word = "",
        cursor: Word = "",
        limit: Annotated[int, QueryParameter(ge=1, le=_MOST)] = 100,
    ) -> KnownPage:
        refuse_unknown(request, _ASKED)
        small, owner = _small(house), house.names.tenant(tenant) if tenant else ""
        found = heapq.nsmallest(
            limit + 1,
            (one for one in small.state.standings(category) if owner in ("", one.tenant) and one.entry_id > cursor),
            key=lambda one: one.entry_id,
        )
        page = found[:limit]
        return KnownPage(
            examples=[_known(one, await _entry(house, one.entry_id), _now(house)) for one in page],
            next=page[-1].entry_id if len(found) > limit else None,
        )

    @get(_PATH, responses=refusals(401, 404), security=GUARDED)
    async def example(entry_id: FromPath[str]) -> Response[KnownBody]:
        small = _small(house)
        one, entry = await _find(house, small, entry_id)
        body = KnownBody(
            example=_known(one, entry, _now(house)),
            refusal="entry_gone" if entry is None else await small.examples.refusal(entry, _scope(entry)),
            recorded=small.state.standing(entry_id) is not None,
        )
        return Response(body, headers={"etag": _etag(one, entry)})

    @patch(
        _PATH,
        responses=refusals(400, 401, 404, 412, 413, 503),
        security=GUARDED,
        operation_class=told(Marks),
    )
    async def mark_example(request: Request[Any, Any, Any], entry_id: FromPath[str]) -> Response[Marked]:
        refuse_unknown(request, {"dry_run"})
        dry_run, marks = is_dry_run(request), body_of(await request.body(), Marks, "examples")
        small = _small(house)
        one, entry = await _find(house, small, entry_id)
        _check(request, one, entry)
        changed = _marked(one, entry, marks)
        if not dry_run and changed != one:
            before, after = _marks_of(one), _marks_of(changed)
            await house.audit.record(actor_of(request), "examples.mark", entry_id, before=before, after=after)
            one, entry = await _find(house, small, entry_id)  # it may have been used, or erased, meanwhile
            _check(request, one, entry)
            changed = _marked(one, entry, marks)
            small.state.put(changed)
            await small.tend()
        body = Marked(entry=entry_id, pinned=changed.pinned, quarantined=changed.quarantined, dry_run=dry_run)
        return Response(body, headers={"etag": _etag(one if dry_run else changed, entry)})

    return [examples, example, mark_example]


def _small(house: Operated) -> Small:
    if house.small is None:
        raise NotFound(NO_SMALL_MODEL)
    return house.small


def _now(house: Operated) -> float:
    return house.pipeline.parts.clock.now()


async def _entry(house: Operated, entry_id: str) -> Entry | None:
    """Return the entry of an example; None where it is gone, or the store says nothing."""
    with contextlib.suppress(PartUnavailable):
        return await house.pipeline.parts.store.get(entry_id)
    return None


async def _find(house: Operated, small: Small, entry_id: str) -> tuple[Standing, Entry | None]:
    entry = await _entry(house, entry_id) if _ID.fullmatch(entry_id) else None
    known = small.state.standing(entry_id)
    if known is None and entry is not None:
        known = small.examples.standing(entry)
    if known is None:
        raise NotFound("no entry and no example has this id: it may have expired, or gone for room")
    return known, entry


def _check(request: Request[Any, Any, Any], one: Standing, entry: Entry | None) -> None:
    if not matches(request.headers.get("if-match"), _etag(one, entry)):
        raise VersionConflict("this example was marked, or answered anew, meanwhile; look at it again")


def _marked(one: Standing, entry: Entry | None, marks: Marks) -> Standing:
    """Return an example as an operator says. Raises InvalidRequest for what says nothing, or two things at once."""
    if marks.pinned is None and marks.quarantined is None:
        raise InvalidRequest("nothing to change: give pinned, quarantined, or both", param="pinned")
    pinned = one.pinned if marks.pinned is None else marks.pinned
    quarantined = one.quarantined if marks.quarantined is None else marks.quarantined
    if pinned and quarantined:
        raise InvalidRequest("what is quarantined is in no prompt; take the one mark away to set the other")
    # Who pins it has seen the answer of now.
    since_s = entry.created_s if marks.pinned and entry is not None else one.since_s
    return replace(one, pinned=pinned, quarantined=quarantined, since_s=since_s)


def _marks_of(one: Standing) -> dict[str, bool]:
    return {"pinned": one.pinned, "quarantined": one.quarantined}


def _known(one: Standing, entry: Entry | None, now_s: float) -> Known:
    told_of = asdict(faded(one, now_s))
    return Known(
        entry=one.entry_id,
        since=one.since_s,
        text=None if entry is None else _shown(entry.text),
        answer=None if entry is None else _shown(words_of(entry.reply.body)),
        **{name: told_of[name] for name in Known.__struct_fields__ if name in told_of},
    )


def _scope(entry: Entry) -> Scope:
    return Scope(tenant=entry.tenant, namespace=entry.namespace)


def _shown(text: str) -> str:
    """Return what is shown of a text, as JSON can hold it: a question may hold half a surrogate pair."""
    return text[:_SHOWN_CHARS].encode("utf-8", "replace").decode()


def _etag(one: Standing, entry: Entry | None) -> str:
    answered = None if entry is None else entry.created_s
    said = f"{one.entry_id}:{one.pinned}:{one.quarantined}:{answered!r}"
    return f'"{hashlib.sha256(said.encode()).hexdigest()[:16]}"'
