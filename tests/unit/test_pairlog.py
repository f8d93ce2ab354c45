"""Which labels become training pairs, and which never do."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from msgspec import structs

from cacheproxy import settings
from cacheproxy.embed.batcher import MicroBatcher
from cacheproxy.errors import PiiUnavailable
from cacheproxy.learn.pairfile import FILE, PairRows, read_pairs
from cacheproxy.learn.pairlog import Lesson, Means, PairLog
from cacheproxy.learn.pairwriter import PairWriter
from cacheproxy.model import CONSENT_TAG, Classification, Selector
from cacheproxy.policy.active import Policy
from cacheproxy.policy.pack import Category, Rule
from cacheproxy.policy.rules import Rules
from cacheproxy.store.memory import MemoryStore
from cacheproxy.supervise import Supervisor
from cacheproxy.telemetry import Telemetry
from tests.support.clock import FakeClock
from tests.support.encoders import HashEncoder
from tests.support.entries import make_entry
from tests.support.house import PACK
from tests.support.pairs import held_in
from tests.support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection
    from pathlib import Path

    from cacheproxy.model import Entry

KEPT, ASKED = "How do I boil the canary kept?", "How do I boil the canary asked?"
PRIVATE = Category(allow_caching=False)


class Gate:
    """Finds personal data in what names Alice, where it can look at all."""

    def __init__(self) -> None:
        self.broken = False

    async def find(self, texts: object, kinds: Collection[str]) -> frozenset[str]:
        if self.broken:
            raise PiiUnavailable("the library is not there")
        return frozenset(kinds) if "Alice" in str(texts) else frozenset()


class World:
    """A log of pairs over the parts that it takes."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self.folder = folder
        self.clock, self.telemetry, self.gate = FakeClock(), Telemetry(), Gate()
        self.store = MemoryStore(settings.Store(), self.clock)
        self.encoder = HashEncoder()
        self.embedder = MicroBatcher(self.encoder, settings.Encoder())
        self.supervisor = Supervisor()
        self.policy = Policy.of(PACK)
        chosen = settings.Federated(**{"collect": "consenting", **config})
        self.writer = PairWriter(folder / FILE, chosen.max_pairs)
        means = Means(
            store=self.store,
            embedder=self.embedder,
            pii=self.gate,
            policy=lambda: self.policy,
            clock=self.clock,
            telemetry=self.telemetry,
        )
        self.log = PairLog(self.writer, means, chosen, self.supervisor.spawn)

    def entry(self, text: str = KEPT, **fields: Any) -> Entry:
        """Return an entry that a caller who consents asked for."""
        [vector], _ = self.encoder.encode([text])
        made = make_entry("kept", epoch=HashEncoder.fingerprint)
        told = {"text": text, "tenant": "t", "unseen": b"", "vector": vector, "tags": (CONSENT_TAG,), **fields}
        return replace(made, **told)

    async def heard(self, entry: Entry | None, **fields: Any) -> str:
        """Return what comes of a lesson about an entry: "" for a pair, else why there is none."""
        if entry is not None:
            await self.store.put(entry, self.store.fence)
        refused, made = self.refused(), self.made()
        told = {"source": "feedback", "tenant": "t", "category": "default", "question": b"q" * 32, "right": True}
        lesson = Lesson(**{"entry_id": make_entry("kept").id, "untaught": "", "text": ASKED, **told, **fields})
        self.log.hear(lesson)
        await eventually(lambda: not self.log.pending, "the lesson is learnt or not")
        [reason] = [reason for reason, count in self.refused().items() if count != refused.get(reason, 0)] or [""]
        assert (reason == "") == (self.made() == made + 1)
        return reason

    def refused(self) -> dict[str, float]:
        [family] = self.telemetry.training_pairs_refused.collect()
        return {one.labels["reason"]: one.value for one in family.samples if one.name.endswith("_total")}

    def made(self) -> float:
        [family] = self.telemetry.training_pairs.collect()
        return sum(one.value for one in family.samples if one.name.endswith("_total"))

    def pairs(self) -> PairRows:
        return read_pairs(self.folder / FILE, HashEncoder.fingerprint)


@asynccontextmanager
async def world(folder: Path, **config: Any) -> AsyncIterator[World]:
    made = World(folder, **config)
    async with AsyncExitStack() as stack:
        for part in (made.store, made.embedder, made.writer, made.supervisor):
            await stack.enter_async_context(part)
        yield made


def policy(**categories: Category) -> Policy:
    return Policy.of(structs.replace(PACK, categories={**PACK.categories, **categories}))


@pytest.mark.parametrize("right", [True, False])
async def test_a_label_becomes_a_pair_of_vectors_without_texts(tmp_path: Path, right: bool) -> None:
    async with world(tmp_path) as w:
        assert await w.heard(w.entry(), right=right, source="shadow") == ""
        found = w.pairs()
        assert (found.right.tolist(), found.category, found.texts) == ([right], ("default",), None)
        vectors, _ = w.encoder.encode([KEPT, ASKED])
        assert np.allclose(np.concatenate([found.a, found.b]), vectors)
        counted = w.telemetry.render().decode()
        assert f'cacheproxy_training_pairs_total{{right="{str(right).lower()}",source="shadow"}} 1.0' in counted
    assert b"canary" not in held_in(tmp_path)


async def test_texts_are_kept_where_the_operator_says_so(tmp_path: Path) -> None:
    async with world(tmp_path, keep_texts=True) as w:
        await w.heard(w.entry())
        assert w.pairs().texts == ((KEPT, ASKED),)


@pytest.mark.parametrize(
    ("entry", "lesson", "reason"),
    [
        ({}, {"untaught": "no_store"}, "no_store"),
        ({}, {"untaught": "category"}, "category"),
        ({}, {"untaught": "conversation"}, "conversation"),
        ({}, {"untaught": "unknown"}, "unknown"),
        ({}, {"untaught": "no_consent"}, "no_consent"),
        ({"tags": ()}, {}, "no_consent"),
        ({}, {"text": ""}, "no_text"),
        ({}, {"text": "x" * 9000}, "too_long"),
        ({}, {"text": "x" * 5000}, "too_long"),
        ({"text": "x" * 9000}, {}, "too_long"),
        ({"unseen": b"x"}, {}, "too_long"),
        ({"chain": ("Hi", "Hello")}, {}, "conversation"),
        ({"tenant": "many"}, {}, "shared"),
        ({"vector": None}, {}, "encoder"),
        ({"second": "gone"}, {}, "category"),
        ({}, {"category": "gone"}, "category"),
        ({}, {"question": make_entry("kept").fingerprint}, "own_question"),
    ],
)
async def test_what_makes_no_pair_is_counted(
    tmp_path: Path, entry: dict[str, Any], lesson: dict[str, Any], reason: str
) -> None:
    async with world(tmp_path) as w:
        assert await w.heard(w.entry(**entry), **lesson) == reason
        assert len(w.pairs().a) == 0


async def test_an_entry_of_another_encoder_makes_no_pair(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        entry = w.entry()
        assert await w.heard(replace(entry, partition=replace(entry.partition, epoch="another"))) == "encoder"


async def test_what_is_gone_makes_no_pair(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        assert await w.heard(None) == "gone"


@pytest.mark.parametrize("reason", ["no_store", "category", "conversation"])
async def test_an_operator_who_answers_for_all_answers_for_consent_and_nothing_else(
    tmp_path: Path, reason: str
) -> None:
    async with world(tmp_path, collect="all") as w:
        assert await w.heard(w.entry(tags=()), untaught="no_consent") == ""
        assert await w.heard(w.entry(tags=()), untaught=reason) == reason


@pytest.mark.parametrize("which", ["category", "kept", "second"])
@pytest.mark.parametrize("rules", [PRIVATE, Category(semantic=True, train="never")])
async def test_the_policy_in_force_decides_for_either_question(tmp_path: Path, which: str, rules: Category) -> None:
    async with world(tmp_path) as w:
        w.policy = policy(closed=rules)
        entry = w.entry()
        if which == "kept":
            entry = replace(entry, partition=replace(entry.partition, category="closed"))
        elif which == "second":
            entry = replace(entry, second="closed")
        lesson = {"category": "closed"} if which == "category" else {}
        assert await w.heard(entry, **lesson) == "category"


@pytest.mark.parametrize("text", [KEPT, ASKED])
async def test_a_rule_that_claims_either_text_bars_the_pair(tmp_path: Path, text: str) -> None:
    async with world(tmp_path) as w:
        word = "kept" if text == KEPT else "asked"
        w.policy = policy(private=structs.replace(PRIVATE, rules=(Rule(text=f"canary {word}"),)))
        assert await w.heard(w.entry()) == "category"
        w.policy = policy(private=structs.replace(PRIVATE, rules=(Rule(text="patient"),)))
        assert await w.heard(w.entry()) == ""


@pytest.mark.parametrize("text", [KEPT, ASKED])
async def test_a_text_near_to_a_category_that_is_never_cached_bars_the_pair(tmp_path: Path, text: str) -> None:
    async with world(tmp_path) as w:
        [near], _ = w.encoder.encode([text])

        def classify(vector: Any) -> Classification:
            return Classification(category="default", second="private" if float(vector @ near) > 0.999 else "")

        pack = structs.replace(PACK, categories={**PACK.categories, "private": PRIVATE})
        w.policy = Policy(pack=pack, rules=Rules(pack.categories, str), classify=classify)
        assert await w.heard(w.entry()) == "category"


@pytest.mark.parametrize(("kept", "asked"), [(KEPT, "Where does Alice live?"), ("Who is Alice?", ASKED)])
async def test_where_personal_data_is_looked_for_either_question_may_hold_none(
    tmp_path: Path, kept: str, asked: str
) -> None:
    async with world(tmp_path) as w:
        assert await w.heard(w.entry(kept), text=asked) == ""
        w.policy = policy(default=structs.replace(PACK.categories["default"], pii=("PERSON",)))
        assert await w.heard(w.entry(kept), text=asked) == "pii"
        assert await w.heard(w.entry()) == ""
        w.gate.broken = True
        assert await w.heard(w.entry()) == "pii_failed"


async def test_what_is_erased_while_a_pair_is_being_made_does_not_come_back(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.store.put(w.entry(), w.store.fence)
        w.encoder.gate.clear()
        w.log.hear(
            Lesson(
                source="shadow", tenant="t", category="default", entry_id=make_entry("kept").id, question=b"q" * 32,
                right=True, untaught="", text=ASKED, user="u",
            )
        )  # fmt: skip
        await eventually(lambda: bool(w.embedder.running), "the question is being embedded")
        await w.log.forget(Selector(user="u"))
        w.encoder.gate.set()
        await eventually(lambda: not w.log.pending, "the lesson is learnt or not")
        assert w.refused() == {"erased": 1.0}
        assert len(w.pairs().a) == 0


async def test_more_lessons_than_can_be_learnt_at_a_time_are_let_go(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.store.put(w.entry(), w.store.fence)
        w.encoder.gate.clear()
        for number in range(70):
            w.log.hear(
                Lesson(
                    source="shadow", tenant="t", category="default", entry_id=make_entry("kept").id, right=True,
                    question=number.to_bytes(16), untaught="", text=f"{ASKED} {number}",
                )
            )  # fmt: skip
        assert w.refused() == {"busy": 6.0}
        w.encoder.gate.set()
        await eventually(lambda: not w.log.pending, "the rest is learnt")
        assert len(w.pairs().a) == 64


async def test_a_category_that_may_not_train_any_more_loses_its_pairs(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.heard(w.entry())
        before = w.policy
        await w.log.follow(before, policy(code=PRIVATE))
        assert len(w.pairs().a) == 1
        await w.log.follow(before, policy(default=structs.replace(PACK.categories["default"], train="never")))
        assert len(w.pairs().a) == 0


async def test_a_purge_takes_the_pairs_of_its_entries_and_no_others(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.heard(w.entry())
        assert await w.log.forget_entries(Selector(category="default"), ()) == 0
        assert await w.log.forget_entries(Selector(ids=("ff" * 16,)), ("ff" * 16,)) == 0
        assert await w.log.forget_entries(Selector(category="default"), (make_entry("kept").id,)) == 1
        await w.heard(w.entry())
        assert await w.log.forget_entries(Selector(ids=(make_entry("kept").id,)), ()) == 1


@pytest.mark.parametrize(
    ("selector", "since_s", "came"),
    [
        (Selector(user="u"), -1.0, "erased"),
        (Selector(user="u"), 0.0, "erased"),
        (Selector(user="u"), 1.0, ""),
        (Selector(user="of the kept one"), -1.0, "erased"),
        (Selector(user="another"), -1.0, ""),
    ],
)
async def test_what_was_erased_since_a_question_met_its_entry_makes_no_pair(
    tmp_path: Path, selector: Selector, since_s: float, came: str
) -> None:
    async with world(tmp_path) as w:
        since_s += w.clock.now()
        await w.log.forget(selector)
        w.clock.advance(5.0)
        assert await w.heard(w.entry(user="of the kept one"), user="u", since_s=since_s) == came


async def test_a_lesson_that_waits_for_its_turn_is_made_no_pair_after_an_erasure(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.store.put(w.entry(), w.store.fence)
        w.log.hear(
            Lesson(
                source="shadow", tenant="t", category="default", entry_id=make_entry("kept").id, question=b"q" * 32,
                right=True, untaught="", text=ASKED, user="u",
            )
        )  # fmt: skip
        await w.log.forget(Selector(user="u"))  # begun before the lesson's task is
        await eventually(lambda: not w.log.pending, "the lesson is learnt or not")
        assert len(w.pairs().a) == 0


async def test_a_category_that_the_question_asked_may_be_of_takes_its_pairs_along(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        [near], _ = w.encoder.encode([ASKED])

        def classify(vector: Any) -> Classification:
            return Classification(category="default", second="code" if float(vector @ near) > 0.999 else "")

        w.policy = Policy(pack=PACK, rules=Rules(PACK.categories, str), classify=classify)
        assert await w.heard(w.entry()) == ""
        await w.log.follow(w.policy, policy(code=PRIVATE))
        assert len(w.pairs().a) == 0
