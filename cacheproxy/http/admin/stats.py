"""Figures: of every category, of every backend, and of what another threshold would have done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from litestar import Request, Response, get, post

from cacheproxy.errors import InvalidRequest
from cacheproxy.http.admin.asked import body_of
from cacheproxy.http.admin.document import GUARDED, refusals, told
from cacheproxy.stats.told import BackendsBody, StatsBody, SweepBody

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from cacheproxy.http.admin.house import Operated

Threshold = Annotated[float, msgspec.Meta(gt=0.0, le=1.0)]


class SweepRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which category; and up to a hundred thresholds, where a verifier decides least probabilities, or both."""

    category: str
    thresholds: Annotated[list[Threshold], msgspec.Meta(max_length=100)] = []
    probabilities: Annotated[list[Threshold], msgspec.Meta(max_length=100)] = []


def handlers(house: Operated) -> list[HTTPRouteHandler]:
    """Return the routes of figures."""

    @get("/admin/v1/stats", sync_to_thread=False, responses=refusals(401), security=GUARDED)
    def stats() -> Response[StatsBody]:
        policy = house.pipeline.policy()
        body = StatsBody(
            now_s=house.pipeline.parts.clock.now(),
            policy_version=policy.version,
            degraded=house.replicas.ails(),
            categories=house.stats.categories(),
        )
        return Response(body)

    @get("/admin/v1/upstreams", sync_to_thread=False, responses=refusals(401), security=GUARDED)
    def upstreams() -> BackendsBody:
        return BackendsBody(upstreams=house.stats.backends())

    @post(
        "/admin/v1/sweep",
        status_code=200,
        responses=refusals(400, 401, 413),
        security=GUARDED,
        operation_class=told(SweepRequest),
    )
    async def sweep(request: Request[Any, Any, Any]) -> SweepBody:
        asked = body_of(await request.body(), SweepRequest, "sweep")
        pack = house.pipeline.policy().pack
        if asked.category not in pack.categories:
            known = ", ".join(sorted(pack.categories))
            raise InvalidRequest(f"unknown category; this pack has: {known}", param="category")
        if not asked.thresholds and not asked.probabilities:
            raise InvalidRequest("nothing to sweep: give thresholds, probabilities, or both", param="thresholds")
        lookups, swept = house.stats.sweep(asked.category, asked.thresholds, asked.probabilities)
        threshold, least = house.stats.in_force(asked.category)
        return SweepBody(
            category=asked.category, threshold=threshold, min_probability=least, lookups=lookups, swept=swept
        )

    return [stats, upstreams, sweep]
