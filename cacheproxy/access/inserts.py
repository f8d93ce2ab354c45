"""How many answers a tenant may have kept a minute: who floods the store cannot own it. In memory, and bounded."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from cacheproxy.access.limits import Bucket

if TYPE_CHECKING:
    from cacheproxy.ports import Clock

_MOST_TENANTS = 10_000


class InsertRate:
    """A bucket for each tenant that had something kept lately; a tenant that is forgotten begins with a full one."""

    def __init__(self, per_minute: int, clock: Clock) -> None:
        """`per_minute` 0 is no limit."""
        self._per_minute = per_minute
        self._clock = clock
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def __call__(self, tenant: str) -> bool:
        """Take one of a tenant's answers a minute; False when there is none left."""
        if not self._per_minute:
            return True
        now_s = self._clock.monotonic()
        bucket = self._buckets.pop(tenant, None) or Bucket(self._per_minute, now_s)
        self._buckets[tenant] = bucket
        if len(self._buckets) > _MOST_TENANTS:
            self._buckets.popitem(last=False)
        if bucket.level(now_s) < 1:
            return False
        bucket.charge(1, now_s)
        return True
