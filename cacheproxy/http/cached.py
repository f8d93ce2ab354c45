"""A cached route: one request understood, answered from the cache or by the backend, and told what the cache did."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from cacheproxy.augment.constraint import Limit
from cacheproxy.dialect.bodies import larger_than
from cacheproxy.dialect.ids import new_tail
from cacheproxy.dialect.renaming import renamed
from cacheproxy.errors import CacheProxyError, NotCached, Overloaded, RateLimited, UpstreamError
from cacheproxy.http.headers import outcome_headers
from cacheproxy.http.route import LARGE_BYTES, NO_SNIFF, PRIVATE, Route, Understood
from cacheproxy.model import Hit, Miss, Stale, Tier
from cacheproxy.policy.price import saved_usd

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Executor

    from cacheproxy import settings
    from cacheproxy.http.aliases import Aliases
    from cacheproxy.http.exchange import Exchange
    from cacheproxy.journey import Journey
    from cacheproxy.model import Controls, Query, Scope
    from cacheproxy.pipeline import Pipeline
    from cacheproxy.ports import Call, Dialect


class CachedRoute(Route["Query"]):
    """`POST` to one cached API. `read` makes a Query of a body; `threads` understands large bodies."""

    def __init__(
        self,
        pipeline: Pipeline,
        config: settings.Settings,
        secret: bytes,
        dialect: Dialect,
        read: Callable[[Mapping[str, Any], Scope, Controls, bytes], Query],
        threads: Executor,
        aliases: Aliases,
    ) -> None:
        super().__init__(pipeline, config, secret, read, threads, pipeline.known)
        self._aliases = aliases
        self._max_answer_bytes = config.upstream.max_decoded_bytes
        self._dialect = dialect

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one request. Raises CallerGone; every error of ours is answered here, with the cache's headers."""
        began_s = perf_counter()
        try:
            understood = await self._understand(exchange)
            self._telemetry.stages.read.since(began_s)
            journey = self._pipeline.set_out(understood.query, exchange.headers, understood.user)
        except CacheProxyError as exc:
            await self.refuse(exchange, exc)
            return
        try:
            outcome = await self._pipeline.look_up(journey)
        except Overloaded as exc:
            await self.refuse(exchange, exc)
            return
        if isinstance(outcome, Miss) and journey.plan.judge == "inline":
            outcome = await self._approved(exchange, journey, outcome, understood) or outcome
        self._pipeline.note(journey, outcome)
        exact = isinstance(outcome, Hit) and outcome.tier is Tier.EXACT and not journey.query.controls.no_store
        self._remember(understood, journey.query, answered=exact)
        if isinstance(outcome, Hit):
            if outcome.stale is Stale.REVALIDATING:
                await self._refresh(exchange, journey, understood)
            await self._replay(exchange, journey, outcome)
            await self._shadow(exchange, journey, outcome, understood)
        elif journey.plan.only_if_cached:
            error = NotCached(f"only-if-cached: nothing may be served ({outcome.reason})")
            await self._refuse(exchange, error, outcome, journey.query.model)
        elif isinstance(outcome, Miss) and journey.plan.store:
            await exchange.while_caller_stays(self._fly(exchange, journey, outcome, understood))
        else:
            named = replace(understood, raw=await self._aliases.body(understood))
            await self._forward(exchange, journey, outcome, named)

    async def _replay(self, exchange: Exchange, journey: Journey, hit: Hit) -> None:
        now_s, reply = self._pipeline.parts.clock.now(), hit.entry.reply
        saved = saved_usd(hit, journey.policy.price(str(reply.body.get("model") or "")))
        self._telemetry.saved_usd.inc(saved)
        self._count(hit)
        question = journey.query.fingerprint if hit.tier is Tier.SEMANTIC else b""
        tail = new_tail(hit.entry.id, reply.body.get("id"), question)
        if hit.entry.origin == "augmented" and journey.plan.named_as_asked:
            reply = renamed(reply, journey.query.model)
        began_s = perf_counter()
        render = partial(self._dialect.render, reply, journey.query.wire, tail=tail, now_s=now_s)
        content_type, body = await self._aside(render) if larger_than(reply.body, LARGE_BYTES) else render()
        self._telemetry.stages.render.since(began_s)
        if self._pipeline.parts.feedback is not None:
            untaught = journey.looked.untaught if journey.looked is not None else "unknown"
            self._pipeline.parts.feedback.served(tail, journey.query, hit.entry, hit.evidence, untaught)
        headers = outcome_headers(hit, now_s, saved)
        headers += [PRIVATE, NO_SNIFF, (b"content-type", content_type)]
        await exchange.send_whole(200, headers, body)

    async def _refresh(self, exchange: Exchange, journey: Journey, understood: Understood[Query]) -> None:
        """Have a newer answer fetched behind a stale one; not where the caller's key has nothing left to spend."""
        with contextlib.suppress(RateLimited):
            self._pipeline.refresh(journey, await self._asking(exchange, journey, understood), self._dialect)

    async def _shadow(self, exchange: Exchange, journey: Journey, hit: Hit, understood: Understood[Query]) -> None:
        """Have this hit compared with a fresh answer, if it is drawn; its caller has its own answer by now.

        It is not charged to a virtual key: nobody asked for it.
        """
        learning = self._pipeline.parts.learning
        if learning is None or not learning.draws(journey.query, journey.plan, hit):
            return
        with contextlib.suppress(RateLimited):
            call = await self._asking(exchange, journey, understood)
            if call.repeatable:
                learning.fetch(journey.query, journey.plan, hit, replace(call, charge=None), self._dialect)

    async def _approved(
        self, exchange: Exchange, journey: Journey, miss: Miss, understood: Understood[Query]
    ) -> Hit | None:
        """Ask the judge about the grey zone before anything is sent; None where it does not approve."""
        learning = self._pipeline.parts.learning
        if learning is None or not journey.plan.store:
            return None
        with contextlib.suppress(RateLimited):
            call = replace(await self._asking(exchange, journey, understood), charge=None)
            entry_id = await learning.approves(journey.query, journey.plan, miss, call)
            return await self._pipeline.approved(journey, miss, entry_id) if entry_id else None
        return None

    async def _asking(self, exchange: Exchange, journey: Journey, understood: Understood[Query]) -> Call:
        write = partial(self._dialect.request, understood.body, journey.query.wire)
        asked = await self._aside(write) if len(understood.raw) > LARGE_BYTES else write()
        body = understood.raw if asked is None else asked
        call = self._call(exchange, journey.query, body, max_answer_bytes=self._max_answer_bytes)
        return replace(call, plain_body=None if asked is None else understood.raw)

    async def _fly(self, exchange: Exchange, journey: Journey, miss: Miss, understood: Understood[Query]) -> None:
        if journey.plan.augment is not None:
            journey.body = understood.body
            if exchange.caller is not None:
                journey.limit = Limit(latency_s=exchange.caller.answer_s, usd=exchange.caller.answer_usd)
        try:
            call = await self._asking(exchange, journey, understood)
            flown = await self._pipeline.fly(journey, miss, call, self._dialect)
        except (UpstreamError, RateLimited) as exc:
            self._count(miss)
            await self._refuse(exchange, exc, miss, journey.query.model)
            return
        if isinstance(flown, Hit):
            await self._replay(exchange, journey, flown)
            return
        self._count(flown.outcome)
        try:
            await self._send_flown(exchange, journey, flown)
        finally:
            flown.reader.leave()
