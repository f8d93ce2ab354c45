"""Warm: a batch of answers to keep, each judged by itself."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from litestar import Request, Response, post

from cacheproxy.errors import BodyTooLarge
from cacheproxy.http.admin.asked import actor_of, body_of, is_dry_run, refuse_unknown
from cacheproxy.http.admin.document import GUARDED, refusals, told
from cacheproxy.shared import patience
from cacheproxy.warming import Warmed, WarmItem

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from cacheproxy.http.admin.house import Operated

MOST_ITEMS = 500
MAX_BODY_BYTES = 8 * 1024 * 1024
_LARGE_BYTES = 128 * 1024
_AT_ONCE = 16


class WarmRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Answers to keep. `tenant` or `key` count for items that name neither."""

    items: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]
    tenant: Annotated[str, msgspec.Meta(max_length=256)] = ""
    key: Annotated[str, msgspec.Meta(max_length=4096)] = ""
    dry_run: bool = False

    def __repr__(self) -> str:
        """Show neither text nor key."""
        return f"WarmRequest(items={len(self.items)})"


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What became of each item, in their order, and how many of each there were."""

    stored: int
    refused: int
    invalid: int
    failed: int
    dry_run: bool
    items: list[Warmed]


def handlers(house: Operated) -> list[HTTPRouteHandler]:
    """Return `warm`."""

    @post(
        "/admin/v1/warm",
        status_code=200,
        request_max_body_size=MAX_BODY_BYTES,
        responses=refusals(400, 401, 413, 503),
        security=GUARDED,
        operation_class=told(WarmRequest),
    )
    async def warm(request: Request[Any, Any, Any]) -> Response[Report]:
        patience.begin(patience.OPERATORS_S)
        refuse_unknown(request, {"dry_run"})
        raw = await request.body()
        read = partial(body_of, raw, WarmRequest, "warm")
        asked = await asyncio.to_thread(read) if len(raw) > _LARGE_BYTES else read()
        if len(asked.items) > MOST_ITEMS:
            raise BodyTooLarge(f"{len(asked.items)} items; send at most {MOST_ITEMS} at once. Nothing was kept")
        dry_run = is_dry_run(request) or asked.dry_run
        if not dry_run:
            count = {"items": len(asked.items)}
            await house.audit.record(actor_of(request), "warm", "entries", after=count, outcome="begun")
        permits = asyncio.Semaphore(_AT_ONCE)

        async def one(item: dict[str, Any]) -> Warmed:
            async with permits:
                return await _warmed(house, asked, item, dry_run=dry_run)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(item)) for item in asked.items]
        items = [task.result() for task in tasks]
        counts = Counter(item.outcome for item in items)
        report = Report(
            stored=counts["stored"],
            refused=counts["refused"],
            invalid=counts["invalid"],
            failed=counts["failed"],
            dry_run=dry_run,
            items=items,
        )
        return Response(report)

    return [warm]


async def _warmed(house: Operated, asked: WarmRequest, raw: dict[str, Any], *, dry_run: bool) -> Warmed:
    whose = {} if raw.get("tenant") or raw.get("key") else {"tenant": asked.tenant, "key": asked.key}
    try:
        item = msgspec.convert({**raw, **whose}, WarmItem)
    except msgspec.ValidationError as exc:
        return Warmed(outcome="invalid", reason=_why(exc))
    return await house.warming.warm(item, dry_run=dry_run)


def _why(exc: msgspec.ValidationError) -> str:
    # msgspec quotes the names of fields it does not know, as they were sent.
    return str(exc)[:200]
