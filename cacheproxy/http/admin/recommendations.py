"""Recommendations: what the log of lookups speaks for, and applying it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from litestar import Request, Response, get, post
from litestar.params import FromPath

from cacheproxy.errors import NotFound
from cacheproxy.govern.book import Order
from cacheproxy.http.admin.asked import actor_of, is_dry_run, refuse_unknown
from cacheproxy.http.admin.document import GUARDED, refusals
from cacheproxy.policy.edit import Difference, merged
from cacheproxy.policy.loader import pack_tree

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from cacheproxy.http.admin.house import Operated
    from cacheproxy.policy.pack import Pack
    from cacheproxy.policy.recommend import Recommendation

_GONE = "nothing of this id is recommended now: the log or the policy has changed; read the recommendations again"


class Recommended(msgspec.Struct, frozen=True, kw_only=True):
    """One change: why, what speaks for it, what to expect of it, and the patch of the pack (RFC 7396) that it is."""

    id: str
    kind: str
    category: str
    why: str
    evidence: dict[str, float | None]
    expected: dict[str, float | None]
    patch: dict[str, Any]


class RecommendationsBody(msgspec.Struct, frozen=True, kw_only=True):
    """All of now, for the policy version told; most often none."""

    policy_version: int
    recommendations: list[Recommended]


class Applied(msgspec.Struct, frozen=True, kw_only=True):
    """What applying did: the version in force now, and the keys that changed."""

    recommendation: Recommended
    version: int
    differences: list[Difference]
    dropped: list[str]
    """Categories whose entries go."""
    dry_run: bool


def handlers(house: Operated) -> list[HTTPRouteHandler]:
    """Return the routes of recommendations."""

    @get("/admin/v1/recommendations", sync_to_thread=False, responses=refusals(401), security=GUARDED)
    def recommendations() -> Response[RecommendationsBody]:
        policy = house.pipeline.policy()
        found = [_told(one) for one in house.stats.recommendations(policy.pack)]
        body = RecommendationsBody(policy_version=policy.version, recommendations=found)
        return Response(body, headers={"etag": policy.etag})

    @post(
        "/admin/v1/recommendations/{recommendation_id:str}/apply",
        status_code=200,
        responses=refusals(400, 401, 404, 412, 503),
        security=GUARDED,
    )
    async def apply(request: Request[Any, Any, Any], recommendation_id: FromPath[str]) -> Response[Applied]:
        refuse_unknown(request, {"dry_run"})

        def edit(pack: Pack) -> dict[str, Any]:
            tree: dict[str, Any] = merged(pack_tree(pack), _find(house, pack, recommendation_id).patch)
            return tree

        found = _find(house, house.pipeline.policy().pack, recommendation_id)
        dry_run = is_dry_run(request)
        order = Order(
            actor=actor_of(request),
            action="recommendations.apply",
            target=found.category,
            reason=f"{found.kind} ({found.id}): {found.why}",
            if_match=request.headers.get("if-match"),
            dry_run=dry_run,
        )
        change = await house.book.change(edit, order)
        body = Applied(
            recommendation=_told(found),
            version=change.policy.version,
            differences=list(change.differences),
            dropped=list(change.dropped),
            dry_run=dry_run,
        )
        return Response(body, headers={"etag": house.pipeline.policy().etag})

    return [recommendations, apply]


def _find(house: Operated, pack: Pack, recommendation_id: str) -> Recommendation:
    found = next((one for one in house.stats.recommendations(pack) if one.id == recommendation_id), None)
    if found is None:
        raise NotFound(_GONE)
    return found


def _told(one: Recommendation) -> Recommended:
    return Recommended(
        id=one.id,
        kind=one.kind,
        category=one.category,
        why=one.why,
        evidence=dict(one.evidence),
        expected=dict(one.expected),
        patch=dict(one.patch),
    )
