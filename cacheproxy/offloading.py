"""Offloading: the small model answers, or fails so early that nobody notices and the large one answers.

Nothing of its answer is passed on before there is some: of a stream the first words, of a body all of it.
"""

from __future__ import annotations

import asyncio
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING

from cacheproxy.augment.arms import Arm
from cacheproxy.dialect.renaming import Renamed
from cacheproxy.errors import AugmentUnavailable, UpstreamBroken, UpstreamError
from cacheproxy.flight import Head
from cacheproxy.model import Reply, Staleness
from cacheproxy.refusals import Refusals
from cacheproxy.relay import Relayed, pass_on
from cacheproxy.rewarding import shortcoming

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from cacheproxy.augmenting import Attempt, Augmenting, Considered
    from cacheproxy.flight import Flight
    from cacheproxy.journey import Journey
    from cacheproxy.model import Offload, Query
    from cacheproxy.parts import Parts
    from cacheproxy.ports import Call, Dialect, Fold, SmallModel
    from cacheproxy.rewarding import Came, Rewarding


class _Failed(Exception):
    """The small model gave no answer; nobody saw anything of it. The argument is the reason."""


class _Border:
    """Where any exception of augmentation ends: it is counted, and the large model answers.

    What it says is not logged, for it may quote a prompt. Where the flight's readers have some of the small model's
    answer already, UpstreamError is raised.
    """

    def __init__(self, parts: Parts, flight: Flight | None) -> None:
        self._parts = parts
        self._flight = flight

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(exc, Exception):
            return False
        begun = self._flight is not None and self._flight.offload is not None
        if begun and isinstance(exc, UpstreamError):
            return False
        at = traceback.extract_tb(trace)[-1]
        self._parts.failed(AugmentUnavailable(f"{type(exc).__name__} in {at.name}, line {at.lineno}"))
        if begun:
            raise UpstreamBroken("the small model's answer could not be passed on") from exc
        return True


class Offloading:
    """Has the small model answer where that is good enough, and learns of it."""

    def __init__(self, parts: Parts, small: SmallModel, augmenting: Augmenting, rewarding: Rewarding) -> None:
        self._parts = parts
        self._small = small
        self._augmenting = augmenting
        self._rewarding = rewarding
        self._refusals = Refusals(parts.clock)

    async def attempt(self, journey: Journey) -> Attempt | None:
        """Return who is to answer a miss, as `Augmenting.attempt`; None where that fails, whatever it is."""
        with _Border(self._parts, None):
            return await self._augmenting.attempt(journey)
        return None

    async def answer(
        self, flight: Flight, journey: Journey, attempt: Attempt, call: Call, dialect: Dialect
    ) -> Relayed[Fold] | None:
        """Pass the small model's answer on to the flight, to its clean end; None where the large one is to answer.

        That is chosen, or the small one gave no answer in time, and nobody saw anything of it. Raises UpstreamError
        where it breaks off after its first words.
        """
        if attempt.arm is Arm.LARGE:
            return None
        with _Border(self._parts, flight):
            return await self._answered(flight, journey, attempt, call, dialect)
        return None

    def answered(self, came: Came) -> None:
        """Learn of an answer that was given to its end, whoever gave it."""
        with _Border(self._parts, None):
            self._rewarding.answered(came)

    def known(self, tenant: str, *, answered: bool) -> None:
        """Take note that the large model answered somebody or not, as `Augmenting.known`."""
        self._augmenting.known(tenant, answered=answered)

    def heard(self, tenant: str, given_id: str, *, good: bool) -> bool:
        """Take a caller's word, as `Rewarding.heard`."""
        with _Border(self._parts, None):
            return self._rewarding.heard(tenant, given_id, good=good)
        return False

    def asked_again(self, query: Query) -> None:
        """Take it that a caller wants another answer, as `Rewarding.asked_again`."""
        with _Border(self._parts, None):
            self._rewarding.asked_again(query)

    async def considered(self, journey: Journey) -> Considered:
        """Return what would become of a miss, changing nothing, as `Augmenting.considered`."""
        return await self._augmenting.considered(journey)

    async def _answered(
        self, flight: Flight, journey: Journey, attempt: Attempt, call: Call, dialect: Dialect
    ) -> Relayed[Fold] | None:
        spent = list[int]()
        asking = replace(self._augmenting.call(attempt, call, journey, dialect), charge=spent.append)
        started_s = self._parts.clock.monotonic()
        try:
            async with asyncio.timeout(self._patience_s(journey)) as late:
                head, fold = await self._passed_on(flight, asking, dialect, journey, attempt.offload, late)
        except (_Failed, UpstreamError, TimeoutError) as exc:
            reason = "timeout" if isinstance(exc, TimeoutError) else getattr(exc, "code", "") or str(exc)
            self._rewarding.failed(journey, attempt, reason)
            if flight.offload is not None:
                raise
            return None
        finally:
            if call.charge is not None and flight.offload is not None:  # nobody pays for what he did not get
                call.charge(sum(spent))
        if not isinstance(fold.reply(), Reply):
            self._rewarding.failed(journey, attempt, "unfinished")  # its readers have all there is of it
        return Relayed(head=head, fold=fold, fill_ms=(self._parts.clock.monotonic() - started_s) * 1000)

    def _patience_s(self, journey: Journey) -> float:
        """Return how long to wait for the small model: no longer than its caller allows for all of an answer."""
        least = self._small.first_words_s if journey.query.wire.stream else self._small.whole_answer_s
        return least if journey.limit.latency_s is None else min(least, journey.limit.latency_s)

    async def _passed_on(
        self, flight: Flight, call: Call, dialect: Dialect, journey: Journey, offload: Offload, late: asyncio.Timeout
    ) -> tuple[Head, Fold]:
        answer, altered = await self._refusals.send(self._small.upstream, call)
        async with answer:
            head = Head(status=answer.status, headers=answer.headers)
            if head.status != 200:
                raise _Failed("refused")
            if head.streams is not journey.query.wire.stream:
                raise _Failed("wrong_form")
            fold, chunks = dialect.fold(journey.query.wire, head.headers, altered=altered), answer.chunks()
            if journey.plan.named_as_asked:
                fold = Renamed(fold, journey.query.model, head.headers)
            held, ended = await _first_words(fold, chunks)
            if ended and (lacking := shortcoming(journey, fold.reply())):
                raise _Failed(lacking)
            late.reschedule(None)
            flight.offload = offload
            flight.begin(head)
            await flight.write(held)
            if ended:
                flight.end()
            else:
                await pass_on(chunks, fold, flight)
        return head, fold


def as_offloaded(journey: Journey) -> Journey:
    """Return the journey by which the small model's answer is kept: for a shorter time, for the very same request."""
    plan, allowed = journey.plan, journey.plan.augment
    ttl_s = plan.ttl_s if allowed is None else min(plan.ttl_s, allowed.ttl_s)
    kept = replace(plan, ttl_s=ttl_s, embed=False, shared=None, stale=Staleness())
    return replace(journey, origin="augmented", plan=kept)


async def _first_words(fold: Fold, chunks: AsyncIterator[bytes]) -> tuple[bytes, bool]:
    """Read up to the first words of an answer; return what is to be passed on so far, and whether it ended."""
    held: list[bytes] = []
    async for chunk in chunks:
        held.append(fold.feed(chunk))
        if fold.spoken:
            return b"".join(held), False
    held.append(fold.flush())
    return b"".join(held), True
