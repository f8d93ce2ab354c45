"""Routing: who answers misses, and what is known of everybody who may."""

from __future__ import annotations

from typing import TYPE_CHECKING

from litestar import get

from cacheproxy.errors import NotFound
from cacheproxy.http.admin.document import GUARDED, refusals
from cacheproxy.stats.offloads import RoutingBody

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from cacheproxy.http.admin.house import Operated

NO_SMALL_MODEL = "there is no small model, so nothing is routed; name one with small.url (`--small-upstream`)"


def handlers(house: Operated) -> list[HTTPRouteHandler]:
    """Return `routing`."""

    @get("/admin/v1/routing", sync_to_thread=False, responses=refusals(401, 404), security=GUARDED)
    def routing() -> RoutingBody:
        found = house.stats.routing()
        if found is None:
            raise NotFound(NO_SMALL_MODEL)
        return found

    return [routing]
