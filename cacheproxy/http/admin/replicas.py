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
    """One replica. `syncing` reads everything again, or cannot yet; `gone` was not heard of for longer than its lease.

    It may serve for `lease_s` more without another heartbeat; what it has applied of the logs (`applied`: the last
    message of each) is `behind_s` older than what the farthest replica has. It was heard of `heard_s` ago, and has been
    there for `up_s`; null where it is of a version that does not tell.
    """

    replica: str
    state: Literal["serving", "syncing", "gone"]
    lease_s: float
    behind_s: float
    heard_s: float
    up_s: float | None
    applied: dict[str, str]


class Members(msgspec.Struct, frozen=True, kw_only=True):
    """All replicas that were heard of in the last ten minutes. Of an embedded store there are none.

    `lag_s` is how far this one is behind, `lease_s` for how long it may serve without hearing from the engine again,
    `degraded` why it serves nothing that is kept, or keeps nothing more, and what to do.
    """

    replica: str
    degraded: str
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
            degraded=known.ails(),
            lag_s=round(known.lag_s(), 3),
            lease_s=round(known.lease_s(), 3),
            members=[
                Member(
                    replica=one.replica,
                    state=_state(one.state),
                    lease_s=round(one.lease_s, 3),
                    behind_s=round(one.behind_s, 3),
                    heard_s=round(one.heard_s, 3),
                    up_s=None if one.up_s is None else round(one.up_s, 3),
                    applied=dict(one.applied),
                )
                for one in await known.listed()
            ],
        )

    return [replicas]


def _state(told: str) -> Literal["serving", "syncing", "gone"]:
    return "serving" if told == "serving" else "gone" if told == "gone" else "syncing"
