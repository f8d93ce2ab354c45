"""The audit log, read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
from litestar import get
from litestar.params import QueryParameter

from cacheproxy.govern.audit import Deed
from cacheproxy.http.admin.document import GUARDED, refusals

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from cacheproxy.http.admin.house import Operated

_MOST = 1000


class Deeds(msgspec.Struct, frozen=True, kw_only=True):
    """What was done, newest first; `cursor` asks for what was done before, null at the end."""

    deeds: list[Deed]
    cursor: int | None


def handlers(house: Operated) -> list[HTTPRouteHandler]:
    """Return `audit`."""

    @get("/admin/v1/audit", responses=refusals(400, 401, 503), security=GUARDED)
    async def audit(
        cursor: Annotated[int | None, QueryParameter(ge=1, le=2**53)] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=_MOST)] = 100,
    ) -> Deeds:
        deeds, more = await house.audit.page(before=cursor, limit=limit)
        return Deeds(deeds=deeds, cursor=more)

    return [audit]
