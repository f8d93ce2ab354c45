"""Sharing: an operator lets all tenants have one entry's answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from litestar import Request, post
from litestar.params import FromPath

from cacheproxy.http.admin.asked import actor_of, is_dry_run, refuse_unknown
from cacheproxy.http.admin.document import GUARDED, refusals

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from cacheproxy.http.admin.house import Operated


class SharedBody(msgspec.Struct, frozen=True, kw_only=True):
    """The entry that tenants share now, and the one that it has its answer from."""

    entry: str
    source: str
    expires_s: float
    dry_run: bool


def handlers(house: Operated) -> list[HTTPRouteHandler]:
    """Return `share`."""

    @post(
        "/admin/v1/entries/{entry_id:str}/share",
        status_code=200,
        responses=refusals(400, 401, 404, 409, 503),
        security=GUARDED,
    )
    async def share_entry(request: Request[Any, Any, Any], entry_id: FromPath[str]) -> SharedBody:
        refuse_unknown(request, {"dry_run"})
        dry_run = is_dry_run(request)
        made = await house.sharing.approve(entry_id, dry_run=True)
        if not dry_run:
            await house.audit.record(actor_of(request), "entries.share", entry_id, after={"entry": made.id})
            made = await house.sharing.approve(entry_id)
        return SharedBody(entry=made.id, source=entry_id, expires_s=made.expires_s, dry_run=dry_run)

    return [share_entry]
