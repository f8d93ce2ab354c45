"""The line with a small model beside the large one: real parts around two backends that do as they are told."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from cacheproxy import settings
from cacheproxy.augment.arms import Arm, Situation
from cacheproxy.augment.state import AugmentState
from cacheproxy.augment.tokens import Estimated
from cacheproxy.dialect.chat import ChatDialect
from cacheproxy.embed.batcher import MicroBatcher
from cacheproxy.flight import Flights
from cacheproxy.index.partitioned import PartitionedIndex
from cacheproxy.model import Augment, Controls, Embedding, Entry, Hit, Miss, Partition, Reply, Scope, entry_id
from cacheproxy.parts import Parts
from cacheproxy.pipeline import Pipeline
from cacheproxy.policy.active import Policy
from cacheproxy.policy.pack import Category, Encoder, Pack
from cacheproxy.ports import Call, SmallModel
from cacheproxy.query.chat import read_chat
from cacheproxy.replaying import Traffic
from cacheproxy.small import Around, made_of
from cacheproxy.store.memory import MemoryStore
from cacheproxy.supervise import Supervisor
from cacheproxy.telemetry import Telemetry
from tests.support.backend import Backend, Told
from tests.support.clock import FakeClock
from tests.support.encoders import HashEncoder
from tests.support.openai_wire import completion, encode

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Self

    from cacheproxy.joining import Flown
    from cacheproxy.journey import Journey
    from cacheproxy.model import Query

SMALL = "tiny-1"
TENANT, OTHER = "t" * 64, "u" * 64
FIRST = "How do I reset the password of my account?"
SECOND = "How do I reset the password of my account please?"
CATEGORY = Category(semantic=True, ttl_s=1000.0, augment="auto", augment_ttl_s=60.0, augment_judge_rate=0.0)
_NEVER_ALIKE = 0.9999


class Line:
    """A pipeline whose misses the small model may have. Use it as an async context manager."""

    def __init__(
        self,
        folder: Path,
        *,
        categories: Mapping[str, Category] | None = None,
        checked: bool = True,
        learn: settings.Learn | None = None,
        max_entries: int = 1_000_000,
        context_tokens: int = 4096,
        capacity_tokens: int = 10_000_000,
    ) -> None:
        known = dict(categories or {"default": CATEGORY})
        self.pack = Pack(
            schema=1,
            name="test",
            description="",
            default_category="default",
            categories=known,
            encoders={
                "hash": Encoder(
                    fingerprint=HashEncoder.fingerprint,
                    calibrated_on="x",
                    thresholds=dict.fromkeys(known, _NEVER_ALIKE),
                )
            },
        )
        self.policy = Policy.of(self.pack)
        self.clock, self.large, self.little = FakeClock(), Backend(), Backend()
        self.large.always(words("large"))
        self.little.always(words("small", model=SMALL))
        self.encoder, self.telemetry, self.supervisor = HashEncoder(), Telemetry(), Supervisor()
        self.store = MemoryStore(settings.Store(max_entries=max_entries), self.clock)
        self.index = PartitionedIndex(settings.Index(), dim=self.encoder.dim, epoch=self.encoder.fingerprint)
        self.embedder = MicroBatcher(self.encoder, settings.Encoder(timeout_ms=60_000))
        self.dialect = ChatDialect(max_reply_bytes=100_000, ask_stream_usage=True)
        self.small = SmallModel(
            upstream=self.little,
            model=SMALL,
            context_tokens=context_tokens,
            form="block",
            counter=Estimated(),
            first_words_s=5.0,
            whole_answer_s=5.0,
        )
        self.parts = Parts(
            store=self.store,
            index=self.index,
            embedder=self.embedder,
            upstream=self.large,
            clock=self.clock,
            telemetry=self.telemetry,
            make_room=lambda: None,
            small=self.small,
        )
        self.state = AugmentState(folder / "augment.sqlite3", "tiny|hash")
        self.traffic, self.own_key = Traffic(load=0.0, running=0, waiting=0, limit=8), True
        around = Around(
            learn=learn or settings.Learn(shadow=False),
            capacity_tokens=capacity_tokens,
            policy=lambda: self.policy,
            traffic=lambda model: self.traffic,
            own_key=lambda model: self.own_key,
            spawn=self.supervisor.spawn,
            checked=checked,
        )
        self.made = made_of(self.state, self.small, self.parts, around)
        self.flights = Flights(self.supervisor.spawn, window_bytes=1000, keep_bytes=100_000)
        self.pipeline = Pipeline(
            self.parts,
            lambda: self.policy,
            self.flights,
            lookup_timeout_s=1000.0,
            coalesce_timeout_s=1000.0,
            offloading=self.made.offloading,
        )
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for part in (self.embedder, self.index, self.state, self.supervisor):
            await self._stack.enter_async_context(part)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    def teach(self, arm: Arm, category: str = "default") -> None:
        """Have the router know that this arm is good and the others are not."""
        for examples in (0, 1, 3):
            known = Situation(
                max_similarity=0.8 * bool(examples),
                mean_helpfulness=0.6 * bool(examples),
                examples=examples,
                question_tokens=30,
            )
            for _ in range(40):
                for other in Arm:
                    self.state.router.reward(category, other, known, 1.0 if other is arm else 0.0)

    def query(
        self,
        text: str,
        tenant: str = TENANT,
        *,
        namespace: str = "",
        controls: Controls | None = None,
        **fields: Any,
    ) -> Query:
        body = {"model": "m", "messages": [{"role": "user", "content": text}], **fields}
        return read_chat(body, Scope(tenant=tenant, namespace=namespace), controls or Controls())

    def journey(self, text: str = SECOND, tenant: str = TENANT, **asked: Any) -> Journey:
        """Return a question on its way, with the place that its text has."""
        headers = asked.pop("headers", ())
        known = {name: asked[name] for name in asked if name not in ("namespace", "controls")}
        journey = self.pipeline.set_out(self.query(text, tenant, **asked), headers)
        journey.body = {"model": "m", "messages": [{"role": "user", "content": text}], **known}
        journey.placed = Embedding(vector=self.vector(text))
        return journey

    def vector(self, text: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return where a text lies."""
        return np.asarray(self.encoder.encode([text])[0][0], dtype=np.float32)

    async def keep(self, text: str, said: str, tenant: str = TENANT, /, **changed: Any) -> Entry:
        """Keep an answer of the large model, as the line does."""
        query = self.query(text, tenant, **{name: changed.pop(name) for name in ("namespace",) if name in changed})
        category = changed.pop("category", "default")
        vector = self.vector(text)
        told: dict[str, Any] = {
            "id": entry_id(query.fingerprint),
            "fingerprint": query.fingerprint,
            "partition": Partition(category=category, compatibility=query.compatibility, epoch=HashEncoder.fingerprint),
            "tenant": tenant,
            "text": text,
            "reply": Reply(body=completion(said), source="body"),
            "created_s": self.clock.now(),
            "expires_s": self.clock.now() + 1000.0,
            "fill_ms": 10.0,
            "vector": vector,
            "namespace": query.scope.namespace,
            "model": query.model,
        }
        entry = Entry(**(told | changed))
        assert await self.store.put(entry, self.store.fence)
        self.index.add(entry.partition, entry.id, vector)
        return entry

    async def look_up(self, text: str = SECOND, tenant: str = TENANT, **asked: Any) -> tuple[Journey, Hit | Miss]:
        journey = self.journey(text, tenant, **asked)
        outcome = await self.pipeline.look_up(journey)
        assert isinstance(outcome, Hit | Miss)
        assert not isinstance(outcome, Augment)
        return journey, outcome

    async def fly(self, journey: Journey, miss: Miss) -> Hit | Flown:
        call = Call(method="POST", target="/v1/chat/completions", headers=(), body=b"{}", tenant=TENANT)
        return await self.pipeline.fly(journey, miss, call, self.dialect)

    async def ask(self, text: str = SECOND, tenant: str = TENANT, **asked: Any) -> tuple[str, str]:
        """Ask, wait for all of the answer, and return who gave it and what was said."""
        journey, outcome = await self.look_up(text, tenant, **asked)
        found = outcome if isinstance(outcome, Hit) else await self.fly(journey, outcome)
        if isinstance(found, Hit):
            return "hit", said_in(found.entry.reply.body)
        body = found.body if found.body is not None else await found.reader.body()
        await self.pipeline.settlement(found)
        found.reader.leave()
        by = getattr(found.outcome, "by", None)
        return (by.arm if by else "large"), body.decode()

    def counted(self, name: str) -> float:
        """Return the sum of a counter over its labels."""
        rows = (row.partition(b" ") for row in self.telemetry.render().splitlines() if row.startswith(name.encode()))
        return sum(float(value) for _, _, value in rows)


def body_of(call: Call) -> bytes:
    """Return the body of a call."""
    assert isinstance(call.body, bytes)
    return call.body


def words(content: str | None, *, model: str = "m", **made: Any) -> Told:
    """Return a backend's script: a whole chat answer."""
    return Told(steps=[encode(completion(content, model=model, **made))])


def said_in(body: Mapping[str, Any]) -> str:
    """Return the text of a chat answer."""
    return str(body["choices"][0]["message"]["content"])
