"""Fetching: one exchange with the backend, passed on to its flight, folded beside, and kept if it may be."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, TypeVar

from cacheproxy.augment.arms import Arm
from cacheproxy.errors import AnsweredElsewhere, UpstreamError
from cacheproxy.flight import Head, Settlement
from cacheproxy.model import Reply
from cacheproxy.offloading import as_offloaded
from cacheproxy.policy.admit import Keep, Refuse, admit
from cacheproxy.ports import Answered, Turn
from cacheproxy.refusals import Refusals
from cacheproxy.relay import Relayed, pass_on
from cacheproxy.rewarding import Came

if TYPE_CHECKING:
    from collections.abc import Callable

    from cacheproxy.flight import Flight, Flights, Reader
    from cacheproxy.journey import Journey
    from cacheproxy.offloading import Offloading
    from cacheproxy.parts import Parts
    from cacheproxy.ports import Call, Dialect, Fold
    from cacheproxy.tiers import Tiers

F = TypeVar("F", bound="Fold")

_KNOWN_BY = frozenset({200, 401, 403})
"""What the large model answers those whom it knows, or will have nothing to do with."""


class Fetching:
    """Has the backend answer, or the small model where `offloading` finds it good enough.

    `still_kept` tells whether the policy in force by now lets a journey's answer be kept.
    """

    def __init__(
        self,
        parts: Parts,
        flights: Flights,
        tiers: Tiers,
        still_kept: Callable[[Journey], bool],
        offloading: Offloading | None = None,
    ) -> None:
        self._parts = parts
        self._flights = flights
        self._tiers = tiers
        self._still_kept = still_kept
        self._offloading = offloading
        self._refusals = Refusals(parts.clock)

    def open(self, journey: Journey, key: bytes | None, call: Call, dialect: Dialect) -> Reader:
        """Start the exchange for a query as the leader of a flight, found by others under `key`; None: by nobody."""
        reader = self._flights.open(
            key, journey.query.wire, lambda flight: self._exchange(flight, journey, call, dialect), journey.query
        )
        reader.flight.may_offload = self._offloading is not None and journey.body is not None
        if journey.settled:
            reader.flight.told, reader.flight.policy = journey.told, journey.policy
        return reader

    async def relay(
        self, flight: Flight, call: Call, start_fold: Callable[[tuple[tuple[str, str], ...], bool], F]
    ) -> Relayed[F]:
        """Pass the backend's answer on to the flight, up to its clean end, and fold it. Raises UpstreamError.

        `start_fold` is told the headers, and whether the backend took the call's `body` rather than its `plain_body`.
        """
        parts = self._parts
        started_s = parts.clock.monotonic()
        try:
            head, fold = await self._passed_on(flight, call, start_fold)
        except UpstreamError as exc:
            parts.telemetry.upstream_errors.labels(exc.code).inc()
            raise
        fill_s = parts.clock.monotonic() - started_s
        parts.telemetry.upstream_seconds.observe(fill_s)
        return Relayed(head=head, fold=fold, fill_ms=fill_s * 1000)

    async def _passed_on(
        self, flight: Flight, call: Call, start_fold: Callable[[tuple[tuple[str, str], ...], bool], F]
    ) -> tuple[Head, F]:
        answer, altered = await self._refusals.send(self._parts.upstream, call)
        async with answer:
            head = Head(status=answer.status, headers=answer.headers)
            if head.failed:
                self._flights.ground(flight)
            fold = start_fold(head.headers, altered)
            flight.begin(head)
            await pass_on(answer.chunks(), fold, flight)
        return head, fold

    async def _exchange(self, flight: Flight, journey: Journey, call: Call, dialect: Dialect) -> None:
        elsewhere = self._parts.elsewhere
        if elsewhere is None or flight.key is None or not journey.plan.store:
            await self._fetch(flight, journey, call, dialect)
            return
        match await elsewhere.turn(flight.key, self._wait_s(journey)):
            case Turn.LOOK:
                raise AnsweredElsewhere("another replica is done with it")
            case Turn.ALONE:
                await self._fetch(flight, journey, call, dialect)
            case Turn.LEAD:
                try:
                    await self._fetch(flight, journey, call, dialect)
                finally:
                    await elsewhere.release(flight.key, kept=bool(flight.settlement.stored))

    def _wait_s(self, journey: Journey) -> float:
        """Return how long this query may still wait for other replicas."""
        parts, now_s = self._parts, self._parts.clock.monotonic()
        if journey.waits_until_s is None:
            journey.waits_until_s = now_s + (parts.stream_wait_s if journey.query.wire.stream else parts.flight_wait_s)
        return max(0.0, journey.waits_until_s - now_s)

    async def _fetch(self, flight: Flight, journey: Journey, call: Call, dialect: Dialect) -> None:
        parts, fence, offloading = self._parts, self._parts.store.fence, self._offloading
        attempt = await offloading.attempt(journey) if offloading is not None else None
        offloaded: Relayed[Fold] | None = None
        if offloading is not None and attempt is not None:
            offloaded = await offloading.answer(flight, journey, attempt, call, dialect)
        flight.may_offload = offloaded is not None
        relayed = offloaded or await self.relay(
            flight, call, lambda headers, altered: dialect.fold(journey.query.wire, headers, altered=altered)
        )
        filed = journey if offloaded is None else as_offloaded(journey)
        head, reply, now_s = relayed.head, relayed.fold.reply(), parts.clock.now()
        if parts.lookups is not None and offloaded is None and not head.failed:
            parts.lookups.filled(journey.plan.category, journey.query.model, relayed.fill_ms)
        match admit(journey.query.dialect, head.status, head.headers, reply, filed.plan, now_s=now_s):
            case Refuse(reason=reason):
                settlement = Settlement(stored=False, reason=reason)
            case Keep() if not self._still_kept(journey):
                settlement = Settlement(stored=False, reason="policy_changed")
            case Keep() if offloaded is not None and await self._tiers.holds(journey):
                settlement = Settlement(stored=False, reason="kept_already")
            case Keep() as kept:
                began_s = perf_counter()
                settlement = await self._tiers.keep(filed, kept, fence=fence, fill_ms=relayed.fill_ms)
                parts.telemetry.stages.keep.since(began_s)
        parts.telemetry.admissions.labels(str(settlement.stored).lower(), settlement.reason).inc()
        flight.settle(settlement)
        if offloading is not None and offloaded is None and head.status in _KNOWN_BY:
            offloading.known(journey.query.scope.tenant, answered=head.status == 200)
        if offloading is not None and attempt is not None and head.status == 200 and isinstance(reply, Reply):
            offloading.answered(
                Came(
                    journey=journey,
                    attempt=attempt,
                    arm=attempt.arm if offloaded is not None else Arm.LARGE,
                    reply=reply,
                    fill_ms=relayed.fill_ms,
                    entry_id=settlement.entry_id if settlement.stored else "",
                    call=call,
                    dialect=dialect,
                )
            )
        if parts.learning is not None and journey.missed is not None and offloaded is None:
            whole = reply if settlement.stored and isinstance(reply, Reply) else None
            parts.learning.answered(
                Answered(
                    query=journey.query,
                    plan=journey.plan,
                    miss=journey.missed,
                    reply=whole,
                    call=call,
                    looked=journey.looked,
                )
            )
