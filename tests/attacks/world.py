"""Several tenants before one cache: the line itself, with a backend that says what the attack needs.

The attacker is as strong as can be: thresholds serve almost anything, no verifier asks, and the backend answers the
attacker's requests with poison. What is left is what must hold against other principals: scopes, and k of them (G2).
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from cacheproxy import settings
from cacheproxy.dialect.chat import ChatDialect
from cacheproxy.embed.batcher import MicroBatcher
from cacheproxy.flight import Flights
from cacheproxy.index.partitioned import PartitionedIndex
from cacheproxy.model import Bypass, Controls, Hit, Scope
from cacheproxy.parts import Parts
from cacheproxy.pipeline import Pipeline
from cacheproxy.policy.active import Policy
from cacheproxy.policy.evict import quotas
from cacheproxy.policy.pack import Category, Encoder, Pack
from cacheproxy.ports import Call
from cacheproxy.query.chat import read_chat
from cacheproxy.sharing import Sharing, SharingMeans
from cacheproxy.store.memory import MemoryStore
from cacheproxy.supervise import Supervisor
from cacheproxy.telemetry import Telemetry
from tests.support.backend import Backend, Told
from tests.support.clock import FakeClock
from tests.support.encoders import HashEncoder
from tests.support.openai_wire import completion, encode

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from typing import Literal, Self

POISON = "Send your password to help@evil dot example and wait."
COMMON = "c" * 64
_LAX = 0.3
"""A cosine that nearly everything reaches: scopes must hold without any help of thresholds."""


class NobodyNamed:
    """A gate that finds nothing: sharing is to be as willing as it ever is."""

    async def find(self, texts: object, kinds: Collection[str]) -> frozenset[str]:
        """Find nothing."""
        return frozenset()


class World:
    """One cache with tenants that the operator vouches for, sharing on or off. Use it as an async context manager."""

    def __init__(
        self,
        share: Literal["never", "approved", "agreed"],
        *,
        max_entries: int = 1_000_000,
        tenant_share: float = 0.5,
        principals: int = 2,
    ) -> None:
        category = Category(
            semantic=True,
            ttl_s=3600.0,
            verify=False,
            share=share,
            share_principals=principals,
            tenant_share=tenant_share,
        )
        pack = Pack(
            schema=1,
            name="lax",
            description="",
            default_category="default",
            categories={"default": category},
            encoders={
                "hash": Encoder(fingerprint=HashEncoder.fingerprint, calibrated_on="x", thresholds={"default": _LAX})
            },
        )
        self._policy = Policy.of(pack)
        self.clock, self.backend, encoder = FakeClock(), Backend(), HashEncoder()
        caps = settings.Store(max_entries=max_entries)
        self.store = MemoryStore(caps, self.clock, quotas=lambda: quotas(pack, max_entries, caps.max_bytes))
        self._dialect = ChatDialect(max_reply_bytes=100_000, ask_stream_usage=True)
        self._supervisor, telemetry = Supervisor(), Telemetry()
        self.telemetry = telemetry
        self._embedder = MicroBatcher(encoder, settings.Encoder(timeout_ms=60_000))
        self._index = PartitionedIndex(settings.Index(), dim=encoder.dim, epoch=encoder.fingerprint)
        sharing = Sharing(
            SharingMeans(
                store=self.store,
                catalogue=self.store,
                index=self._index,
                pii=NobodyNamed(),
                feedback=None,
                clock=self.clock,
                telemetry=telemetry,
                common=COMMON,
                spawn=self._supervisor.spawn,
            )
        )
        parts = Parts(
            store=self.store,
            index=self._index,
            embedder=self._embedder,
            upstream=self.backend,
            clock=self.clock,
            telemetry=telemetry,
            make_room=lambda: None,
            sharing=sharing,
        )
        flights = Flights(self._supervisor.spawn, window_bytes=1000, keep_bytes=100_000)
        self._line = Pipeline(parts, lambda: self._policy, flights, lookup_timeout_s=1000.0, coalesce_timeout_s=1000.0)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for part in (self._embedder, self._index, self._supervisor):
            await self._stack.enter_async_context(part)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def ask(self, tenant: str, text: str, backend_says: str, *, fresh: bool = False) -> str:
        """Ask as a tenant; return the answer, from the cache or from the backend."""
        scope = Scope(tenant=tenant, common=COMMON)
        body = {"model": "m", "messages": [{"role": "user", "content": text}]}
        journey = self._line.set_out(read_chat(body, scope, Controls(no_cache=fresh), b""))
        outcome = await self._line.look_up(journey)
        assert not isinstance(outcome, Bypass)
        if isinstance(outcome, Hit):
            return _said(outcome)
        self.backend.play(Told(steps=[encode(completion(backend_says))]))
        call = Call(method="POST", target="/v1/chat/completions", headers=(), body=b"{}")
        flown = await self._line.fly(journey, outcome, call, self._dialect)
        if isinstance(flown, Hit):
            return _said(flown)
        await self._line.settlement(flown)
        flown.reader.leave()
        return backend_says

    async def quiet(self) -> None:
        """Return once nothing is compared any more."""
        for _ in range(10_000):
            if not len(self._supervisor):
                return
            await asyncio.sleep(0)
        raise AssertionError("answers are still compared")

    async def sweep(self) -> None:
        """Make room as long as there is any to make."""
        while await self.store.sweep():
            pass


def _said(hit: Hit) -> str:
    choices: Sequence[dict[str, dict[str, str]]] = hit.entry.reply.body["choices"]
    return choices[0]["message"]["content"]
