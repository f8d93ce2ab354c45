from __future__ import annotations

import hashlib
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from litestar import Request

from cacheproxy import settings
from cacheproxy.embed.batcher import MicroBatcher
from cacheproxy.errors import NotFound, NotPromoted
from cacheproxy.govern.audit import AuditLog
from cacheproxy.http.admin.near_misses import handlers
from cacheproxy.index.partitioned import PartitionedIndex
from cacheproxy.learn.feedback import Feedback, Said
from cacheproxy.learn.lookups import LookupLog
from cacheproxy.learn.nearmisses import NearMiss
from cacheproxy.learn.serves import Serve
from cacheproxy.learn.verdicts import Verdicts, Word
from cacheproxy.model import Embedding, Entry, Looked, Partition, Reply, Selector, entry_id
from cacheproxy.parts import Parts
from cacheproxy.policy.active import Policy
from cacheproxy.policy.pack import Category, Encoder, Pack
from cacheproxy.promote import promote, promotion
from cacheproxy.store.memory import MemoryStore
from cacheproxy.telemetry import Telemetry
from tests.support.backend import Backend
from tests.support.clock import FakeClock
from tests.support.encoders import HashEncoder

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection
    from pathlib import Path

    from cacheproxy.govern.audit import Deed

TENANT = "t" * 64
COMPATIBILITY = b"c" * 32
QUESTION = hashlib.sha256(b"nearly").digest()
SOURCE = hashlib.sha256(b"source").digest()
BODY: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": "42"}, "finish_reason": "stop"}]}


def policy(**rules: Any) -> Policy:
    return Policy.of(
        Pack(
            schema=1,
            name="test",
            description="",
            default_category="support",
            categories={"support": Category(semantic=True, **rules), "other": Category(semantic=True)},
            encoders={
                "h": Encoder(fingerprint=HashEncoder.fingerprint, calibrated_on="x", thresholds={"support": 0.8})
            },
        )
    )


class Names:
    """A gate that finds a name in whatever holds one."""

    async def find(self, texts: object, kinds: Collection[str]) -> frozenset[str]:
        return frozenset(kinds) if "Ada" in str(texts) else frozenset()


class World:
    """A store with one entry, and a near miss of it."""

    def __init__(self) -> None:
        self.clock, encoder = FakeClock(), HashEncoder()
        self.store = MemoryStore(settings.Store(max_entries=10), self.clock)
        self.epoch = encoder.fingerprint
        self.vector = np.eye(encoder.dim, dtype=np.float32)[0]
        self.parts = Parts(
            store=self.store,
            index=PartitionedIndex(settings.Index(), dim=encoder.dim, epoch=encoder.fingerprint),
            embedder=MicroBatcher(encoder, settings.Encoder()),
            upstream=Backend(),
            clock=self.clock,
            telemetry=Telemetry(),
            make_room=lambda: None,
            pii=Names(),
        )
        self.source = Entry(
            id=entry_id(SOURCE),
            fingerprint=SOURCE,
            partition=Partition(category="support", compatibility=COMPATIBILITY, epoch=self.epoch),
            tenant=TENANT,
            text="source",
            reply=Reply(body=BODY, source="body"),
            created_s=self.clock.now() - 100,
            expires_s=self.clock.now() + 500,
            fill_ms=300.0,
            tags=("faq", "alias-of:" + "9" * 32),
            vector=self.vector,
        )
        self.near = near_miss(self.vector)

    async def keep(self, **changed: Any) -> None:
        self.source = replace(self.source, **changed)
        await self.store.put(self.source, self.store.fence)


def near_miss(vector: np.ndarray[Any, np.dtype[np.float32]], **changed: Any) -> NearMiss:
    looked = Looked(
        at_s=0.0,
        tenant=TENANT,
        namespace="",
        category="support",
        model="m",
        outcome="miss",
        tier="",
        reason="below_threshold",
        question=QUESTION,
        text="nearly",
        similarity=0.78,
        threshold=0.8,
        entry_id=entry_id(SOURCE),
        lookup_ms=1.0,
        load=0.0,
        embedding=Embedding(vector=vector, unseen=b"u"),
        compatibility=COMPATIBILITY,
    )
    return NearMiss(id="n", serial=1, times=1, looked=replace(looked, **changed))


async def test_a_near_miss_gets_the_answer_as_an_entry_of_its_own() -> None:
    world = World()
    await world.keep()
    made = await promote(world.parts, policy(ttl_s=1000.0), world.near, world.store.fence)
    found = await world.store.get(entry_id(QUESTION))
    assert found is not None
    assert (found.id, found.fingerprint, found.text) == (made.entry.id, QUESTION, "nearly")
    assert (found.reply.body, found.unseen, found.tenant) == (BODY, b"u", TENANT)
    assert (found.created_s, found.expires_s) == (world.source.created_s, world.source.expires_s)
    assert found.tags == ("faq", f"alias-of:{world.source.id}")
    [candidate] = await world.parts.index.search(found.partition, world.vector, 1)
    assert candidate.entry_id == found.id
    assert not made.replaces


async def test_looking_at_a_promotion_changes_nothing() -> None:
    world = World()
    await world.keep()
    await promotion(world.parts, policy(), world.near)
    assert await world.store.get(entry_id(QUESTION)) is None


async def test_it_lives_no_longer_than_its_category_lets_an_answer_live() -> None:
    world = World()
    await world.keep()
    made = await promotion(world.parts, policy(ttl_s=60.0), world.near)
    assert made.entry.expires_s == world.clock.now() + 60.0


@pytest.mark.parametrize(
    ("entry", "rules", "looked", "why"),
    [
        ({"expires_s": 1.0, "stale_until_s": 4e9}, {}, {}, "expired"),
        ({}, {"allow_caching": False}, {}, "not cached"),
        ({}, {}, {"category": "gone"}, "not cached"),
        ({"vary": ("accept-language",)}, {}, {}, "headers"),
        ({"tenant": "o" * 64}, {}, {}, "another scope"),
        ({}, {}, {"compatibility": b"d" * 32}, "another scope"),
        ({}, {}, {"embedding": None}, "another encoder"),
        ({}, {"pii": ("PERSON",)}, {"text": "is this Ada?"}, "personal data"),
        (
            {"reply": Reply(body={"choices": [{"message": {"tool_calls": [{}]}}]}, source="body")},
            {},
            {},
            "calls tools",
        ),
    ],
)
async def test_what_speaks_against_it_is_told(
    entry: dict[str, Any], rules: dict[str, Any], looked: dict[str, Any], why: str
) -> None:
    world = World()
    await world.keep(**entry)
    with pytest.raises(NotPromoted, match=why) as refused:
        await promote(world.parts, policy(**rules), near_miss(world.vector, **looked), world.store.fence)
    assert "nearly" not in refused.value.message.removeprefix("this near miss")
    assert await world.store.get(entry_id(QUESTION)) is None


async def test_an_entry_that_is_gone_answers_nothing_any_more() -> None:
    world = World()
    with pytest.raises(NotFound):
        await promote(world.parts, policy(), world.near, world.store.fence)


async def test_what_a_caller_called_wrong_is_not_promoted(tmp_path: Path) -> None:
    world = World()
    await world.keep()
    async with Verdicts(tmp_path / "verdicts.sqlite3") as verdicts:
        feedback = Feedback(verdicts, world.clock)
        serve = Serve(
            tenant=TENANT, entry_id=world.source.id, question=QUESTION, text="", category="support", similarity=0.9
        )
        await feedback.judge(Said(tenant=TENANT, given_id="x", word=Word.BAD), serve, world.source)
        with pytest.raises(NotPromoted, match="wrong for this question"):
            await promote(replace(world.parts, feedback=feedback), policy(), world.near, world.store.fence)


class PurgedMeanwhile(MemoryStore):
    """A store whose source entry is purged just after it was read."""

    async def put(self, entry: Entry, fence: int) -> bool:
        await self.purge([entry_id(SOURCE)])
        return await super().put(entry, fence)


async def test_an_entry_purged_meanwhile_leaves_no_copy() -> None:
    world = World()
    store = PurgedMeanwhile(settings.Store(max_entries=10), world.clock)
    await MemoryStore.put(store, world.source, store.fence)
    parts = replace(world.parts, store=store)
    with pytest.raises(NotFound, match="purged just now"):
        await promote(parts, policy(), world.near, store.fence)
    assert len(store) == 0


class PurgedItself(MemoryStore):
    """A store in which the near miss's question is purged while it is promoted."""

    async def put(self, entry: Entry, fence: int) -> bool:
        await self.purge([entry.id])
        return await super().put(entry, fence)


async def test_a_question_purged_meanwhile_gets_no_entry() -> None:
    world = World()
    store = PurgedItself(settings.Store(max_entries=10), world.clock)
    await MemoryStore.put(store, world.source, store.fence)
    with pytest.raises(NotPromoted, match="purged just now"):
        await promote(replace(world.parts, store=store), policy(), world.near, store.fence)
    assert len(store) == 1


class Changing(AuditLog):
    """An audit log that takes its time: meanwhile something else is done."""

    meanwhile: Callable[[], Awaitable[object]]

    async def record(self, actor: str, action: str, target: str, **told: Any) -> Deed:
        deed = await super().record(actor, action, target, **told)
        await self.meanwhile()
        return deed


class Shop:
    """What the route of promotions asks of a house, around a world."""

    def __init__(self, world: World, folder: Path) -> None:
        self.in_force = policy()
        self.lookups = LookupLog(lambda: self.in_force, world.parts.telemetry, world.clock, world.epoch)
        self.lookups.note(world.near.looked)
        self.audit = Changing(folder / "audit.jsonl", world.clock)
        self.pipeline = SimpleNamespace(parts=world.parts, policy=lambda: self.in_force)

    async def promote(self) -> None:
        [found] = self.lookups.near_misses()
        [route] = [one for one in handlers(cast("Any", self)) if "POST" in one.http_methods]
        scope: Any = {"type": "http", "headers": [], "query_string": b"", "client": ("127.0.0.1", 1)}
        await route.fn(Request(scope), found.id)


async def erased_whole(world: World, shop: Shop) -> None:
    selector = Selector(ids=(world.source.id, entry_id(QUESTION)))
    await world.store.erase(selector)
    shop.lookups.forget(selector, selector.ids)
    await world.keep()  # the same question was answered anew


async def entries_erased(world: World, shop: Shop) -> None:
    await world.store.erase(Selector(user="somebody else"))


async def forgotten(world: World, shop: Shop) -> None:
    shop.lookups.forget(Selector(tenant=TENANT))


async def made_stricter(world: World, shop: Shop) -> None:
    shop.in_force = policy(pii=("PERSON",))


@pytest.mark.parametrize("meanwhile", [erased_whole, entries_erased, forgotten, made_stricter])
async def test_what_happens_while_a_promotion_is_written_down_is_not_undone(
    tmp_path: Path, meanwhile: Callable[[World, Shop], Awaitable[None]]
) -> None:
    world = World()
    await world.keep(text="source, by Ada", reply=Reply(body={**BODY, "by": "Ada"}, source="body"))
    shop = Shop(world, tmp_path)
    shop.audit.meanwhile = lambda: meanwhile(world, shop)
    with pytest.raises((NotFound, NotPromoted)):
        await shop.promote()
    assert await world.store.get(entry_id(QUESTION)) is None


async def test_a_promotion_goes_by_the_policy_of_when_it_is_done(tmp_path: Path) -> None:
    world = World()
    await world.keep()
    shop = Shop(world, tmp_path)

    async def shorten() -> None:
        shop.in_force = policy(ttl_s=10.0)

    shop.audit.meanwhile = shorten
    await shop.promote()
    found = await world.store.get(entry_id(QUESTION))
    assert found is not None
    assert found.expires_s == world.clock.now() + 10.0
