"""Decisions, shown and not taken: `explain`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litestar import Request, post

from cacheproxy.explain import ExplainRequest, Explanation
from cacheproxy.http.admin.asked import body_of
from cacheproxy.http.admin.document import GUARDED, refusals, told

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from cacheproxy.http.admin.house import Operated


def handlers(house: Operated) -> list[HTTPRouteHandler]:
    """Return `explain`."""

    @post(
        "/admin/v1/explain",
        status_code=200,
        responses=refusals(400, 401, 413),
        security=GUARDED,
        operation_class=told(ExplainRequest),
    )
    async def explain(request: Request[Any, Any, Any]) -> Explanation:
        return await house.explain(body_of(await request.body(), ExplainRequest, "explain"))

    return [explain]
