"""The real line over a store in memory, with a clock that is told the time and an oracle in place of a backend."""

from __future__ import annotations

import math
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import msgspec

from cacheproxy.dialect.chat import ChatDialect
from cacheproxy.errors import EmbedderUnavailable
from cacheproxy.flight import Flights
from cacheproxy.index.partitioned import PartitionedIndex
from cacheproxy.model import Controls, Hit, Scope
from cacheproxy.parts import Parts
from cacheproxy.pipeline import Pipeline
from cacheproxy.policy.evict import Cause, quotas
from cacheproxy.ports import Call
from cacheproxy.query.chat import read_chat
from cacheproxy.store.memory import MemoryStore
from cacheproxy.supervise import Supervisor
from cacheproxy.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from cacheproxy import settings
    from cacheproxy.flight import Settlement
    from cacheproxy.journey import Journey
    from cacheproxy.model import Embedding, Entry, Miss, Outcome
    from cacheproxy.policy.active import Policy
    from cacheproxy.ports import Budget, Verifier

_START_S = 1_700_000_000.0
_TARGET = "/v1/chat/completions"
_MODEL = "oracle"
_ANSWER_ID = "answer-id"
_CALLER = Scope(tenant="replay")
_NEVER_S = 3600.0
"""Real time that nothing here takes: deadlines would make a replay depend on the machine."""
_SWEEP_INTERVAL_S = 1.0
"""Of the replay's time, as of the proxy's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question and what names its right answer; an empty category lets the policy tell."""

    text: str = field(repr=False)
    answer_id: str
    category: str = ""


class ReplayClock:
    """Both clocks, at a moment that only goes forward."""

    def __init__(self) -> None:
        self._passed_s = 0.0

    def to(self, passed_s: float) -> None:
        """Let time pass until so many seconds after the start."""
        self._passed_s = max(self._passed_s, passed_s)

    def now(self) -> float:
        """Wall clock, seconds since the epoch."""
        return _START_S + self._passed_s

    def monotonic(self) -> float:
        """Seconds that never go backwards."""
        return self._passed_s


class KnownVectors:
    """An Embedder that looks vectors up: every text was embedded by the real encoder before."""

    def __init__(self, known: Mapping[str, Embedding], epoch: str) -> None:
        self._known = known
        self.epoch = epoch
        self.dim = len(next(iter(known.values())).vector)

    async def embed(self, text: str, *, scope: str = "") -> Embedding:
        """Return the vector of a text. Raises EmbedderUnavailable for one that is not known."""
        try:
            return self._known[text]
        except KeyError:
            raise EmbedderUnavailable("the text was not embedded before the replay") from None

    def drop(self, text: str, *, scope: str = "") -> None:
        """Keep it: a replay is no caller."""

    def health(self) -> str:
        """Return "": looking up always works."""
        return ""


class Oracle:
    """An Upstream that is no model: it answers every call with the id of the right answer, which the call names."""

    def __init__(self) -> None:
        self.calls = 0

    async def send(self, call: Call) -> OracleAnswer:
        """Answer at once."""
        self.calls += 1
        return OracleAnswer(dict(call.headers)[_ANSWER_ID])


class OracleAnswer:
    """A whole chat completion whose text is an answer's id."""

    status = 200
    headers = (("content-type", "application/json"),)

    def __init__(self, answer_id: str) -> None:
        self._answer_id = answer_id

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body."""
        message = {"role": "assistant", "content": _PREFIX + self._answer_id}
        yield msgspec.json.encode(
            {
                "id": "chatcmpl-oracle",
                "object": "chat.completion",
                "created": int(_START_S),
                "model": _MODEL,
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
            }
        )

    async def __aenter__(self) -> Self:
        """Enter."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Leave."""


_PREFIX = "answer "


def answer_of(entry: Entry) -> str:
    """Return the id of the answer that an entry of a replay holds."""
    text: str = entry.reply.body["choices"][0]["message"]["content"]
    return text.removeprefix(_PREFIX)


class Replay:
    """Questions through the line in the order they are asked, one at a time. `open_replay` makes one."""

    def __init__(self, pipeline: Pipeline, clock: ReplayClock, store: MemoryStore, index: PartitionedIndex) -> None:
        self._pipeline = pipeline
        self._clock = clock
        self._store = store
        self._index = index
        self._dialect = ChatDialect(max_reply_bytes=1_000_000, ask_stream_usage=False)
        self._swept_s = 0.0

    @property
    def evictions(self) -> dict[str, int]:
        """How many entries had to go before their time, by category."""
        counts: dict[str, int] = {}
        for (category, cause), count in self._store.evictions.items():
            if cause is not Cause.EXPIRED:
                counts[category] = counts.get(category, 0) + count
        return counts

    async def look_up(self, asked: Asked, at_s: float, category: str | None = None) -> tuple[Journey, Outcome]:
        """Decide on a question at a moment: seconds since the start, never before the last one.

        `category`, "" for none, overrides the question's own.
        """
        await self._pass_time(at_s)
        named = asked.category if category is None else category
        body = {"model": _MODEL, "messages": [{"role": "user", "content": asked.text}]}
        journey = self._pipeline.set_out(read_chat(body, _CALLER, Controls(category=named or None)))
        return journey, await self._pipeline.look_up(journey)

    async def expires_s(self, settlement: Settlement) -> float:
        """Return when what was kept expires, in seconds since the start; minus infinity where nothing was kept."""
        entry = await self._store.get(settlement.entry_id) if settlement.stored else None
        return entry.expires_s - _START_S if entry is not None else -math.inf

    async def told(self, entry_id: str) -> str:
        """Return the id of the answer that an entry holds; "" where there is none any more."""
        entry = await self._store.get(entry_id) if entry_id else None
        return answer_of(entry) if entry is not None else ""

    async def answer(self, journey: Journey, miss: Miss, asked: Asked, at_s: float) -> Settlement | None:
        """Have the oracle answer a miss, at a moment as for `look_up`, and keep its answer as the proxy would.

        None where nothing of it may be kept.
        """
        await self._pass_time(at_s)
        if not journey.plan.store:
            return None
        call = Call(method="POST", target=_TARGET, headers=((_ANSWER_ID, asked.answer_id),), body=b"{}", model=_MODEL)
        flown = await self._pipeline.fly(journey, miss, call, self._dialect)
        if isinstance(flown, Hit):
            return None
        try:
            settlement = await self._pipeline.settlement(flown)
        finally:
            flown.reader.leave()
        if self._store.over_cap:
            await self._sweep()
        return settlement

    async def _pass_time(self, at_s: float) -> None:
        self._clock.to(at_s)
        if self._clock.monotonic() - self._swept_s >= _SWEEP_INTERVAL_S:
            await self._sweep()

    async def _sweep(self) -> None:
        self._swept_s = self._clock.monotonic()
        while removed := await self._store.sweep():
            self._index.remove(removed)


@asynccontextmanager
async def open_replay(
    policy: Callable[[], Policy],
    vectors: KnownVectors,
    config: settings.Settings,
    load: Callable[[str], float] = lambda model: 0.0,
    *,
    verifier: Verifier | None = None,
    budget: Budget | None = None,
) -> AsyncIterator[Replay]:
    """Open a replay with the store's caps and the index's shape of these settings; nothing is written to disk.

    A policy that verifies needs the `verifier`.
    """
    async with AsyncExitStack() as stack:
        clock, room = ReplayClock(), (config.store.max_entries, config.store.max_bytes)
        store = MemoryStore(config.store, clock, quotas=lambda: quotas(policy().pack, *room))
        await stack.enter_async_context(store)
        index = await stack.enter_async_context(PartitionedIndex(config.index, dim=vectors.dim, epoch=vectors.epoch))
        supervisor = await stack.enter_async_context(Supervisor())
        parts = Parts(
            store=store,
            index=index,
            embedder=vectors,
            upstream=Oracle(),
            clock=clock,
            telemetry=Telemetry(),
            make_room=lambda: None,
            load=load,
            verifier=verifier,
            budget=budget,
        )
        flights = Flights(supervisor.spawn, window_bytes=config.flight.window_bytes, keep_bytes=1_000_000)
        pipeline = Pipeline(parts, policy, flights, lookup_timeout_s=_NEVER_S, coalesce_timeout_s=_NEVER_S)
        yield Replay(pipeline, clock, store, index)
