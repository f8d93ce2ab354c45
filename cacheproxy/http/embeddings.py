"""The embeddings route: a list of inputs answered from the cache, by the backend, or partly by each."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from cacheproxy.batch.fill import BatchFill, Landed
from cacheproxy.batch.keeping import Keeping
from cacheproxy.batch.lookup import BatchLookup, nothing_found, whole
from cacheproxy.batch.merge import merge
from cacheproxy.dialect.embeddings import LARGEST_ANSWER_BYTES, renewed, written
from cacheproxy.errors import CacheProxyError, NotCached, RateLimited, UpstreamError
from cacheproxy.http.headers import forwarded_headers, lacks, outcome_headers, shareable
from cacheproxy.http.route import LARGE_BYTES, NO_SNIFF, PRIVATE, Route
from cacheproxy.model import Bypass, Hit, Miss, Tier
from cacheproxy.policy.price import saved_usd
from cacheproxy.query.embeddings import Asked, read_embeddings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from concurrent.futures import Executor

    from cacheproxy import settings
    from cacheproxy.batch.lookup import Found
    from cacheproxy.http.exchange import Exchange
    from cacheproxy.http.headers import Headers
    from cacheproxy.http.route import Understood
    from cacheproxy.joining import Flown
    from cacheproxy.journey import Journey
    from cacheproxy.pipeline import Pipeline
    from cacheproxy.query.embeddings import Input

_WHOLE_BYTES = 128 * 1024
"""An answer up to this is sent when it is whole, and tells whether it is kept; a longer one is sent as it comes."""
_PIECE_BYTES = 256 * 1024
_LANDING_S = 60.0
"""Longest wait for an answer to be taken apart."""
_OF_THESE_BYTES = frozenset({"content-length", "etag", "content-md5", "digest", "content-digest", "repr-digest"})
"""Headers that are true only of the backend's own body."""


class EmbeddingsRoute(Route[Asked]):
    """`POST /v1/embeddings`. `threads` understands large bodies and converts many vectors."""

    def __init__(self, pipeline: Pipeline, config: settings.Settings, secret: bytes, threads: Executor) -> None:
        super().__init__(pipeline, config, secret, read_embeddings, threads)
        keeping, budget_s = Keeping(), config.server.lookup_timeout_ms / 1000
        self._lookup = BatchLookup(pipeline, threads, keeping, lookup_timeout_s=budget_s)
        self._fill = BatchFill(
            pipeline,
            threads,
            keeping,
            whole_bytes=min(_WHOLE_BYTES, config.flight.window_bytes),
            max_entry_bytes=config.store.max_entry_bytes,
        )

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one request. Raises CallerGone; every error of ours is answered here, with the cache's headers."""
        try:
            understood = await self._understand(exchange)
            journey = await self._set_out(exchange, understood)
        except CacheProxyError as exc:
            await self.refuse(exchange, exc)
            return
        plan = journey.plan
        if not (plan.lookup or plan.store):
            bypass = Bypass(category=plan.category, reason=plan.reason)
            await self._leave_alone(exchange, journey, bypass, understood)
            return
        found = await self._lookup.look_up(journey, understood.query)
        self._pipeline.note(journey, found.outcome)
        if isinstance(found.outcome, Hit):
            await self._replay(exchange, journey, understood.query, found, found.outcome)
        elif plan.only_if_cached or not (plan.store or found.items):
            await self._leave_alone(exchange, journey, found.outcome, understood)
        elif not await exchange.while_caller_stays(self._fill_up(exchange, journey, understood, found, found.outcome)):
            await self._forward(exchange, journey, replace(found.outcome, reason="not_mergeable"), understood)

    async def _set_out(self, exchange: Exchange, understood: Understood[Asked]) -> Journey:
        """Plan the request: rules look through all its texts. Raises InvalidRequest as `Pipeline.set_out`."""
        plan = partial(self._pipeline.set_out, understood.query.query, exchange.headers, understood.user)
        return await self._aside(plan) if len(understood.raw) > LARGE_BYTES else plan()

    async def _leave_alone(
        self, exchange: Exchange, journey: Journey, outcome: Miss | Bypass, understood: Understood[Asked]
    ) -> None:
        """Answer where nothing is served and nothing may be kept."""
        if journey.plan.only_if_cached:
            error = NotCached(f"only-if-cached: nothing may be served ({outcome.reason})")
            await self._refuse(exchange, error, outcome, journey.query.model)
        else:
            await self._forward(exchange, journey, outcome, understood)

    async def _replay(self, exchange: Exchange, journey: Journey, asked: Asked, found: Found, hit: Hit) -> None:
        now_s, body = self._pipeline.parts.clock.now(), hit.entry.reply.body
        saved = saved_usd(hit, journey.policy.price(str(body.get("model") or "")))
        self._telemetry.saved_usd.inc(saved)
        self._count(hit)
        headers = _noted(outcome_headers(hit, now_s, saved), asked, f"items={len(asked.inputs)}")
        headers += [PRIVATE, NO_SNIFF, (b"content-type", b"application/json")]
        items = (found.items[one.fingerprint] for one in asked.inputs)
        await _send(exchange, headers, written(renewed(body, hit.entry.id, now_s), items, None, _PIECE_BYTES))

    async def _fill_up(
        self, exchange: Exchange, journey: Journey, understood: Understood[Asked], found: Found, miss: Miss
    ) -> bool:
        """Have the backend answer for what is missing, and send the whole. False when nothing was sent.

        An answer that cannot be joined to what was found is forgotten, and the whole list asked for as if nothing had
        been found: the caller gets what the backend says to his own request.
        """
        if await self._answer(exchange, journey, understood, found, miss):
            return True
        if not found.items:
            return False
        miss = replace(miss, reason="not_mergeable")
        return await self._answer(exchange, journey, understood, nothing_found(understood.query, miss), miss)

    async def _answer(
        self, exchange: Exchange, journey: Journey, understood: Understood[Asked], found: Found, miss: Miss
    ) -> bool:
        asked, missing = understood.query, found.missing
        as_it_came = len(missing) == len(asked.inputs)
        try:
            body = understood.raw if as_it_came else _asking(understood, missing)
            call = self._call(exchange, journey.query, body, max_answer_bytes=LARGEST_ANSWER_BYTES)
            flown = await self._fill.fly(journey, asked, missing, miss, call)
        except (UpstreamError, RateLimited) as exc:
            self._count(miss)
            await self._refuse(exchange, exc, miss, journey.query.model)
            return True
        try:
            if as_it_came or flown.head.failed:
                self._count(miss)
                await self._send_flown(exchange, journey, flown)
                return True
            return await self._join(exchange, journey, asked, found, flown)
        finally:
            flown.reader.leave()

    async def _join(self, exchange: Exchange, journey: Journey, asked: Asked, found: Found, flown: Flown) -> bool:
        try:
            landed = await _landed(flown)
        except UpstreamError as exc:
            self._count(flown.outcome)
            await self._refuse(exchange, exc, flown.outcome, journey.query.model)
            return True
        merged = merge(asked, found, landed.batch) if landed.batch is not None else None
        if merged is None:
            return False
        self._count(flown.outcome)
        saved = self._save(journey, asked, found, flown.outcome)
        told = outcome_headers(flown.outcome, 0) + forwarded_headers(
            flown.outcome,
            status=flown.head.status,
            model=journey.query.model,
            settlement=landed,
            coalesced=flown.coalesced,
        )
        told = [(name, b"%.6f" % saved if name == b"x-cacheproxy-saved-usd" else value) for name, value in told]
        headers = _of_any_bytes(flown) + _noted(told, asked, f"items={len(asked.inputs)};cached={merged.cached}")
        await _send(exchange, headers, written(merged.envelope, merged.items, merged.usage, _PIECE_BYTES))
        return True

    def _save(self, journey: Journey, asked: Asked, found: Found, miss: Miss) -> float:
        """Return the price of the part that came from the cache, and count it."""
        entries = [found.entries[one.fingerprint] for one in asked.inputs if one.fingerprint in found.entries]
        if not entries:
            return 0.0
        part = Hit(entry=whole(entries), tier=Tier.EXACT, category=miss.category, reason=miss.reason)
        saved = saved_usd(part, journey.policy.price(str(part.entry.reply.body.get("model") or "")))
        self._telemetry.saved_usd.inc(saved)
        return saved


async def _landed(flown: Flown) -> Landed:
    """Wait for the end of an answer and for what it was taken apart into. Raises UpstreamError where it broke off."""
    async for _ in flown.reader.chunks():
        pass
    settlement = await flown.reader.flight.settled(_LANDING_S)
    return settlement if isinstance(settlement, Landed) else Landed(stored=False, reason=settlement.reason)


def _asking(understood: Understood[Asked], missing: Sequence[Input]) -> bytes:
    """Return the caller's body with only the missing inputs, each once; a list stays a list."""
    return msgspec.json.encode({**understood.body, "input": [one.value for one in missing]})


def _of_any_bytes(flown: Flown) -> Headers:
    """Return the headers of a live answer that are true of its part in a merged one, too."""
    told = shareable(flown.head.headers) if flown.coalesced else flown.head.headers
    headers = [
        (name.encode("latin-1"), value.encode("latin-1")) for name, value in told if name.lower() not in _OF_THESE_BYTES
    ]
    return [*headers, PRIVATE] if lacks(flown.head.headers, "cache-control") else headers


def _noted(headers: Headers, asked: Asked, note: str) -> Headers:
    """Return the headers of an answer to a list: its `Cache-Status` says how many, and no entry stands for all."""
    if len(asked.inputs) == 1:
        return headers
    return [
        (name, _with_detail(value, note.encode()) if name == b"cache-status" else value)
        for name, value in headers
        if name != b"x-cacheproxy-entry"
    ]


def _with_detail(member: bytes, note: bytes) -> bytes:
    before, mark, after = member.partition(b'detail="')
    if not mark:
        return member + b'; detail="' + note + b'"'
    detail, _, rest = after.partition(b'"')
    return before + mark + detail + b";" + note + b'"' + rest


async def _send(exchange: Exchange, headers: Headers, pieces: Iterator[bytes]) -> None:
    """Send an answer at once when it is one piece, else a piece at a time."""
    first, second = next(pieces), next(pieces, None)
    if second is None:
        await exchange.send_whole(200, headers, first)
        return

    async def chunks() -> AsyncIterator[bytes]:
        yield first
        yield second
        for piece in pieces:
            yield piece

    await exchange.send_stream(200, headers, chunks())
