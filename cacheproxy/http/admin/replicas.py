"""Replicas: who shares the store, and how far each has followed what changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec
from litestar import get

from cacheproxy.http.admin.document import GUARDED, refusals

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from cacheproxy.http.admin.house import Operated


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One replica. `heard_s` is how long ago it was heard of, `applied` the last message it applied of each log."""

    replica: str
    state: Literal["serving", "syncing", "gone"]
    heard_s: float
    applied: dict[str, str]


class Members(msgspec.Struct, frozen=True, kw_only=True):
    """All replicas that were heard of in the last ten minutes. Of an embedded store there are none.

    `lag_s` is how far this one is behind, `lease_s` for how long it may serve without hearing from the engine again.
    """

    replica: str
    lag_s: float
    lease_s: float
    members: list[Member]


def handlers(house: Operated) -> list[HTTPRouteHandler]:
    """Return `replicas`."""

    @get("/admin/v1/replicas", responses=refusals(401, 503), security=GUARDED)
    async def replicas() -> Members:
        known = house.replicas
        return Members(
            replica=known.own,
            lag_s=round(known.lag_s(), 3),
            lease_s=round(known.lease_s(), 3),
            members=[
                Member(
                    replica=one.replica,
                    state=_state(one.state),
                    heard_s=round(one.heard_s, 3),
                    applied=dict(one.applied),
                )
                for one in await known.listed()
            ],
        )

    return [replicas]


def _state(told: str) -> Literal["serving", "syncing", "gone"]:
    return "serving" if told == "serving" else "gone" if told == "gone" else "syncing"
