"""A pipeline with parts of this process: stores and an index in memory, a scripted backend, a clock that is told."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from cacheproxy import settings
from cacheproxy.dialect.chat import ChatDialect
from cacheproxy.embed.batcher import MicroBatcher
from cacheproxy.errors import StoreUnavailable
from cacheproxy.flight import Flights
from cacheproxy.index.partitioned import PartitionedIndex
from cacheproxy.model import Bypass, Controls, Hit, Miss, Scope
from cacheproxy.parts import Parts
from cacheproxy.pipeline import Pipeline
from cacheproxy.policy.active import Policy
from cacheproxy.policy.pack import Category, Encoder, Pack
from cacheproxy.ports import Call
from cacheproxy.query.chat import read_chat
from cacheproxy.store.memory import MemoryStore
from cacheproxy.supervise import Supervisor
from cacheproxy.telemetry import Telemetry
from tests.support.backend import Backend, Told
from tests.support.clock import FakeClock
from tests.support.encoders import HashEncoder
from tests.support.openai_wire import completion, encode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from cacheproxy.joining import Flown
    from cacheproxy.journey import Journey
    from cacheproxy.model import Entry, Query

QUESTION = "How do I reset the password of my account?"
REPHRASED = "How do I reset the password of my account please?"
UNRELATED = "Who painted the ceiling of the Sistine Chapel in Rome?"
STREAM = (("content-type", "text/event-stream"),)
TENANT, OTHER = Scope(tenant="t" * 64), Scope(tenant="u" * 64)

PACK = Pack(
    schema=1,
    name="test",
    description="",
    default_category="default",
    categories={"default": Category(semantic=True, ttl_s=100.0), "code": Category(semantic=True, ttl_s=100.0)},
    encoders={
        "hash": Encoder(
            fingerprint=HashEncoder.fingerprint, calibrated_on="x", thresholds={"default": 0.8, "code": 0.8}
        )
    },
)


class SlowStore(MemoryStore):
    """A store that fails or waits when told to; otherwise a MemoryStore."""

    broken = False
    watched = False

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(settings.Store(max_entries=10), clock)
        self.gate = asyncio.Event()
        self.gate.set()
        self.reading = self.most_reading = 0

    async def get(self, entry_id: str) -> Entry | None:
        if self.broken:
            raise StoreUnavailable("told to")
        if self.watched:
            self.reading += 1
            self.most_reading = max(self.most_reading, self.reading)
            await asyncio.sleep(0)
            self.reading -= 1
        return await super().get(entry_id)

    async def put(self, entry: Entry, fence: int) -> bool:
        await self.gate.wait()
        if self.broken:
            raise StoreUnavailable("told to")
        return await super().put(entry, fence)


class House:
    """A pipeline over real parts, a backend that does as told, and a clock that stands still."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.backend = Backend()
        self.backend.always(told())
        self.encoder = HashEncoder()
        self.store = SlowStore(self.clock)
        self.telemetry = Telemetry()
        self.dialect = ChatDialect(max_reply_bytes=100_000, ask_stream_usage=True)
        self.supervisor = Supervisor()
        self.crowded = asyncio.Event()
        self.embedder = MicroBatcher(self.encoder, settings.Encoder(timeout_ms=60_000))
        self.index = PartitionedIndex(settings.Index(), dim=self.encoder.dim, epoch=self.encoder.fingerprint)
        self.pipeline = self.line()

    def line(
        self,
        *,
        lookup_timeout_s: float = 1000.0,
        coalesce_timeout_s: float = 1000.0,
        swamped: Callable[[Query], bool] = lambda query: False,
        behind: Callable[[], bool] = lambda: False,
        admit_miss: Callable[[], None] = lambda: None,
    ) -> Pipeline:
        parts = Parts(
            store=self.store,
            index=self.index,
            embedder=self.embedder,
            upstream=self.backend,
            clock=self.clock,
            telemetry=self.telemetry,
            make_room=self.crowded.set,
            swamped=swamped,
            behind=behind,
            admit_miss=admit_miss,
        )
        flights = Flights(self.supervisor.spawn, window_bytes=1000, keep_bytes=100_000)
        return Pipeline(
            parts,
            lambda: Policy.of(PACK),
            flights,
            lookup_timeout_s=lookup_timeout_s,
            coalesce_timeout_s=coalesce_timeout_s,
        )

    def query(
        self, text: str = QUESTION, *, scope: Scope = TENANT, controls: Controls | None = None, **fields: Any
    ) -> Query:
        body = {"model": "m", "messages": [{"role": "user", "content": text}], **fields}
        return read_chat(body, scope, controls or Controls())

    async def look_up(self, text: str = QUESTION, **asked: Any) -> tuple[Journey, Hit | Miss | Bypass]:
        journey = self.pipeline.set_out(self.query(text, **asked))
        return journey, await self.pipeline.look_up(journey)

    async def fly(self, journey: Journey, miss: Miss) -> Hit | Flown:
        call = Call(method="POST", target="/v1/chat/completions", headers=(), body=b"{}")
        return await self.pipeline.fly(journey, miss, call, self.dialect)

    async def ask(self, text: str = QUESTION, **asked: Any) -> Hit | Flown:
        """Do what the edge does, up to the first bytes of an answer."""
        journey, outcome = await self.look_up(text, **asked)
        assert not isinstance(outcome, Bypass)
        return outcome if isinstance(outcome, Hit) else await self.fly(journey, outcome)

    async def answer(self, text: str = QUESTION, **asked: Any) -> str:
        """Ask, read the answer to its end, and wait until it is settled."""
        found = await self.ask(text, **asked)
        if isinstance(found, Hit):
            return "hit: " + str(found.entry.reply.body["choices"][0]["message"]["content"])
        body = found.body if found.body is not None else await found.reader.body()
        await self.pipeline.settlement(found)
        found.reader.leave()
        return body.decode()

    def counted(self, name: str) -> float:
        """Return the sum of a counter over its labels."""
        lines = (
            line.partition(b" ") for line in self.telemetry.render().splitlines() if line.startswith(name.encode())
        )
        return sum(float(value) for _, _, value in lines)


@asynccontextmanager
async def opened() -> AsyncIterator[House]:
    """Run one until the block ends."""
    async with AsyncExitStack() as stack:
        house = House()
        for part in (house.store, house.embedder, house.index, house.supervisor):
            await stack.enter_async_context(part)
        yield house


def told(content: str = "Answer.", *, before: Any = (), status: int = 200) -> Told:
    return Told(before=before, status=status, steps=[encode(completion(content))])


def content(body: str) -> str:
    return str(msgspec.json.decode(body)["choices"][0]["message"]["content"])
