"""Joining: how a caller gets its answer out of a flight that is in the air, or out of one that it leads."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cacheproxy.errors import UpstreamError
from cacheproxy.model import Augment
from cacheproxy.policy.admit import vary_names
from cacheproxy.policy.freshness import prefers_stale
from cacheproxy.query.variant import variant, variant_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from cacheproxy.flight import Flight, Flights, Head, Reader
    from cacheproxy.journey import Journey
    from cacheproxy.model import Miss, Offload, Query
    from cacheproxy.telemetry import Telemetry

_MOST_WAITS = 2
_MOST_FAILURES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Flown:
    """An answer from the backend through a flight; the receiver must leave `reader`.

    `body` is the whole body, or None for an event stream, or a long body of a list, that is still coming.
    """

    outcome: Miss
    reader: Reader
    head: Head
    body: bytes | None
    coalesced: bool


class Joining:
    """Finds callers the flight that suits them; `timeout_s` is the longest wait for a leader's answer."""

    def __init__(self, flights: Flights, telemetry: Telemetry, *, timeout_s: float) -> None:
        self._flights = flights
        self._telemetry = telemetry
        self._timeout_s = timeout_s

    def flight_for(self, journey: Journey) -> Flight | None:
        """Return the flight that this caller may join now, or None."""
        plan = journey.plan
        if not (plan.exact and plan.store) or plan.only_if_cached:
            return None
        flight = self._flights.find(journey.key)
        if flight is None or flight.form != journey.query.wire:
            return None
        return flight if plan.augmented or not flight.may_offload else None

    async def join_or_lead(
        self, journey: Journey, outcome: Miss, lead: Callable[[bytes | None], Reader], whole_bytes: int | None = None
    ) -> Flown:
        """Join or lead, or go alone where one exchange cannot serve two.

        A follower whose leader fails before giving it a byte tries once more, leading or following. Of those who waited
        long enough for a leader one becomes the next, and the others follow him; who waited twice goes alone. A body
        beyond `whole_bytes` is not waited for. Raises UpstreamError when the backend fails before he has a byte.
        """
        key = journey.key if journey.plan.exact else None
        failures = waits = 0
        while (flight := self.flight_for(journey)) is not None:
            try:
                flown = await self._first_bytes(flight.attach(), outcome, whole_bytes, coalesced=True, started=True)
            except TimeoutError:
                waits += 1
                if self._flights.find(journey.key) is flight:
                    self._flights.ground(flight)  # and the next flight begins below, before anybody else wakes
                    break
                if waits == _MOST_WAITS:
                    key = None
                    break
                continue
            except UpstreamError:
                failures += 1
                if failures == _MOST_FAILURES:
                    raise
                continue
            apart = _told_apart(flown, journey.query)
            if apart is not None:
                flown.reader.leave()
                if apart in (b"", journey.variant_key):
                    key = None
                    break
                journey.variant_key = key = apart
                continue
            failures += flown.head.failed
            if not flown.head.failed or failures == _MOST_FAILURES:
                self._telemetry.coalesced.inc()
                return flown
            flown.reader.leave()
        stands_in = prefers_stale(journey.plan)
        return await self._first_bytes(lead(key), outcome, whole_bytes, coalesced=False, started=stands_in)

    async def _first_bytes(
        self, reader: Reader, outcome: Miss, whole_bytes: int | None, *, coalesced: bool, started: bool
    ) -> Flown:
        """Wait for the head, and for the whole body of what is no stream; of a stream for the first byte if `started`.

        Whatever fails until then has shown the caller nothing yet.
        """
        try:
            async with asyncio.timeout(self._timeout_s if coalesced else None):
                head = await reader.head()
                streams = head.streams
                if streams and started:
                    await reader.started()
            if whole_bytes is not None and not streams:
                streams = not await reader.ends_within(whole_bytes)
            body = None if streams else await reader.body()
        except BaseException:
            reader.leave()
            raise
        told = _offloaded(outcome, reader.flight.offload)
        return Flown(outcome=told, reader=reader, head=head, body=body, coalesced=coalesced)


def _offloaded(outcome: Miss, by: Offload | None) -> Miss:
    if by is None:
        return outcome
    return Augment(
        category=outcome.category,
        reason=outcome.reason,
        evidence=outcome.evidence,
        asked_otherwise=outcome.asked_otherwise,
        by=by,
    )


def _told_apart(flown: Flown, query: Query) -> bytes | None:
    """Return None when a shared answer suits this request, else the key of the request's own variant.

    It does not suit when it was chosen by headers (`Vary`) that differ from the leader's; b"" when nothing can tell.
    """
    names, leader = vary_names(flown.head.headers), flown.reader.flight.query
    if names == ():
        return None
    if names is None or leader is None:
        return b""
    digest = variant(query, names)
    return None if digest == variant(leader, names) else variant_key(query, digest)
