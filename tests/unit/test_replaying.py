"""Asking again: which questions, when, on whose account, and which of two answers is kept."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from cacheproxy import settings
from cacheproxy.augment.arms import Arm
from cacheproxy.augment.worth import MOST_REPLAYS, Standing
from cacheproxy.improving import weighed
from cacheproxy.model import Selector, entry_id
from cacheproxy.policy.active import Policy
from cacheproxy.replaying import Traffic
from tests.support.augmented import CATEGORY, FIRST, OTHER, TENANT, Line, said_in, words
from tests.support.backend import Told
from tests.support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path
    from typing import Self

    from cacheproxy.model import Entry
    from cacheproxy.rewarding import Came

JUDGED = msgspec.structs.replace(CATEGORY, ttl_s=10_000.0, augment_judge_rate=0.01)
CALM = Traffic(load=0.0, running=0, waiting=0, limit=8)
BUSY = {
    "loaded": replace(CALM, load=0.4),
    "running": replace(CALM, running=3),
    "waiting": replace(CALM, waiting=1),
}
OLD, NEW = "Click on the third tab.", "Open settings, then security, and choose a new password."


class Rig(Line):
    """The line, and what asks again."""

    def __init__(self, folder: Path, **made: Any) -> None:
        made.setdefault("categories", {"default": JUDGED})
        super().__init__(folder, learn=settings.Learn(timeout_s=5.0), **made)
        self.replaying = self.made.replaying
        assert self.replaying is not None
        self.replaying._watch_s = 0.01  # how often it looks is not what these claims are about
        self.made.rewarding.assess = None

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self.teach(Arm.LARGE)  # nothing is explored by chance
        return self

    async def example(self, text: str = FIRST, said: str = OLD, **known: Any) -> Entry:
        """Have the large model's answer kept, and be an example that is used a lot and said to be poor."""
        self.large.play(words(said))
        await self.ask(text)
        entry = await self.store.get(entry_id(self.query(text).fingerprint))
        assert entry is not None
        one = Standing(
            entry_id=entry.id,
            tenant=TENANT,
            category="default",
            tokens=10,
            since_s=entry.created_s,
            at_s=self.clock.now(),
            quality=0.1,
            uses=30.0,
            loss=0.9,
        )
        self.state.put(replace(one, **known))
        self.large.calls.clear()
        return entry

    def judged(self, *told: str) -> None:
        """Play the new answer, then what a judge says of the old one, and of the new."""
        self.large.play(words(NEW), *(words(word) for word in told))

    async def tend(self) -> None:
        assert self.replaying is not None
        await self.replaying.tend()

    async def served(self, entry: Entry) -> str:
        found = await self.store.get(entry.id)
        return "" if found is None else said_in(found.reply.body)

    def came(self) -> dict[str, float]:
        rows = (row for row in self.telemetry.render().decode().splitlines() if "example_replays_total{" in row)
        return {row.partition('came="')[2].partition('"')[0]: float(row.rpartition(" ")[2]) for row in rows}

    def known(self, entry: Entry) -> Standing:
        found = self.state.standing(entry.id)
        assert found is not None
        return found


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with Rig(tmp_path) as live:
        yield live


async def test_the_better_answer_takes_the_place_of_the_old_one(rig: Rig) -> None:
    old = await rig.example()
    rig.clock.advance(10)
    rig.judged("WRONG", "RIGHT")
    await rig.tend()
    new = await rig.store.get(old.id)
    assert new is not None
    assert said_in(new.reply.body) == NEW
    assert (new.origin, new.created_s, new.expires_s) == ("backend", rig.clock.now(), rig.clock.now() + 10_000.0)
    assert (new.partition, new.text, new.tags) == (old.partition, old.text, old.tags)
    standing = rig.known(old)
    assert standing.quality > 0.5
    assert (standing.replays, standing.since_s) == (1, new.created_s)
    assert rig.came() == {"better": 1.0}
    assert (await rig.ask(FIRST))[0] == "hit"


@pytest.mark.parametrize(
    ("judge", "came"),
    [
        (("RIGHT",), "kept"),
        (("WRONG", "WRONG"), "kept"),
        (("WRONG", "who knows"), "kept"),
        (("who knows",), "no_word"),
    ],
)
async def test_without_a_word_for_the_new_answer_the_old_one_stays(rig: Rig, judge: tuple[str, ...], came: str) -> None:
    old = await rig.example()
    rig.judged(*judge)
    await rig.tend()
    assert await rig.served(old) == OLD
    assert (rig.known(old).replays, rig.came()) == (1, {came: 1.0})


async def test_answers_that_agree_are_told_to_no_judge(rig: Rig) -> None:
    old = await rig.example(said="It is blue.")
    rig.large.play(words("it is blue"))
    await rig.tend()
    assert len(rig.large.calls) == 1
    assert (await rig.served(old), rig.came()) == ("It is blue.", {"no_word": 1.0})


async def test_one_is_asked_again_five_times_at_most_and_only_while_it_pays(rig: Rig) -> None:
    old = await rig.example(uses=10_000.0, quality=0.0, loss=1.0)
    for _ in range(MOST_REPLAYS + 3):
        rig.clock.advance(301)
        rig.judged("WRONG", "WRONG")
        await rig.tend()
    assert rig.known(old).replays == MOST_REPLAYS
    rig.state.put(replace(rig.known(old), replays=1, uses=2.0))
    rig.clock.advance(301)
    asked = len(rig.large.calls)
    await rig.tend()
    assert len(rig.large.calls) == asked


@pytest.mark.parametrize("traffic", BUSY.values(), ids=BUSY)
async def test_nothing_is_asked_again_where_there_is_something_else_to_do(rig: Rig, traffic: Traffic) -> None:
    await rig.example()
    rig.traffic = traffic
    await rig.tend()
    assert rig.large.calls == []


async def test_it_stops_as_soon_as_somebody_waits(rig: Rig) -> None:
    old = await rig.example()
    rig.large.play(Told(before=[asyncio.Event()]))
    asking = asyncio.create_task(rig.tend())
    await eventually(lambda: bool(rig.large.calls), "it is asked")
    rig.traffic = replace(CALM, running=1)  # itself
    await asyncio.sleep(0.05)
    assert not asking.done()
    rig.traffic = replace(CALM, running=1, waiting=1)
    await asyncio.wait_for(asking, 2)
    assert rig.came() == {"yielded": 1.0}
    assert rig.known(old).replays == 0
    rig.traffic = CALM
    await rig.tend()
    assert len(rig.large.calls) == 1  # not at once again


async def test_a_purge_in_between_wins(rig: Rig) -> None:
    old, judging = await rig.example(), asyncio.Event()
    rig.large.play(words(NEW), words("WRONG"), replace(words("RIGHT"), before=[judging]))
    asking = asyncio.create_task(rig.tend())
    await eventually(lambda: len(rig.large.calls) == 3, "the judge is asked")
    await rig.store.purge([old.id])
    judging.set()
    await asking
    assert (await rig.store.get(old.id), rig.came()) == (None, {"gone": 1.0})


async def test_a_purge_after_the_last_look_wins_by_its_fence(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    old = await rig.example()
    rig.judged("WRONG", "RIGHT")
    put = rig.store.put

    async def purged_first(entry: Entry, fence: int) -> bool:
        await rig.store.purge([old.id])
        return await put(entry, fence)

    monkeypatch.setattr(rig.store, "put", purged_first)  # the moment that no test can hit otherwise
    await rig.tend()
    assert (await rig.store.get(old.id), rig.came()) == (None, {"gone": 1.0})


async def test_what_was_erased_is_told_to_no_judge_and_not_asked_again(rig: Rig) -> None:
    old, answering = await rig.example(), asyncio.Event()
    rig.large.play(replace(words(NEW), before=[answering]))
    asking = asyncio.create_task(rig.tend())
    await eventually(lambda: bool(rig.large.calls), "it is asked")
    assert rig.replaying is not None
    assert await rig.made.forget(Selector(tenant=TENANT), [old.id]) >= 1
    answering.set()
    await asking
    assert (len(rig.replaying), len(rig.large.calls), rig.state.standing(old.id)) == (0, 1, None)


async def test_an_erasure_of_somebody_else_forgets_nothing(rig: Rig) -> None:
    await rig.example()
    assert rig.replaying is not None
    rig.replaying.forget(Selector(tenant=OTHER), [])
    assert len(rig.replaying) == 1


async def test_an_answer_given_meanwhile_to_somebody_who_asked_stays(rig: Rig) -> None:
    old, judging = await rig.example(), asyncio.Event()
    rig.large.play(words(NEW), words("WRONG"), replace(words("RIGHT"), before=[judging]))
    asking = asyncio.create_task(rig.tend())
    await eventually(lambda: len(rig.large.calls) == 3, "the judge is asked")
    rig.clock.advance(1)
    await rig.keep(FIRST, "newer")
    judging.set()
    await asking
    assert await rig.served(old) == "newer"


@pytest.mark.parametrize(
    "answer",
    [
        words(
            "cut", choices=[{"index": 0, "message": {"role": "assistant", "content": NEW}, "finish_reason": "length"}]
        ),
        replace(words(NEW), headers=(("content-type", "application/json"), ("cache-control", "no-store"))),
        replace(words(NEW), headers=(("content-type", "application/json"), ("vary", "x-country"))),
        Told(steps=[b"no json"]),
        words(""),
    ],
    ids=["cut short", "no-store", "vary", "malformed", "empty"],
)
async def test_what_may_not_be_kept_is_not_kept_for_being_asked_again(rig: Rig, answer: Told) -> None:
    old = await rig.example()
    rig.large.play(answer, words("WRONG"), words("RIGHT"))
    await rig.tend()
    assert (await rig.served(old), len(rig.large.calls), rig.known(old).replays) == (OLD, 1, 1)


@pytest.mark.parametrize("status", [401, 429, 500])
async def test_a_backend_that_fails_is_left_alone_for_a_while(rig: Rig, status: int) -> None:
    old = await rig.example()
    rig.large.play(Told(status=status))
    await rig.tend()
    await rig.tend()
    assert (len(rig.large.calls), rig.known(old).replays, rig.came()) == (1, 0, {"no_answer": 1.0})


async def test_nothing_of_the_caller_goes_along(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        charged: list[int] = []
        headers = (
            ("authorization", "Bearer sk-caller"),
            ("openai-organization", "org"),
            ("cookie", "a=b"),
            ("idempotency-key", "1"),
            ("content-type", "application/json"),
        )
        came = await _came(rig, headers=headers, charge=charged.append, repeatable=True)
        _remember(rig, came)
        rig.judged("WRONG", "RIGHT")
        await rig.tend()
        assert len(rig.large.calls) == 3
        for call in rig.large.calls:
            assert "sk-caller" not in repr(call.headers) + str(call.body)
            assert {name for name, _ in call.headers} <= {"content-type", "accept"}
            assert (call.tenant, call.charge, call.upstream_key, call.repeatable) == ("", None, None, False)


@pytest.mark.parametrize(
    "changed",
    [
        {"arm": Arm.SMALL},
        {"entry_id": ""},
        {"call": {"upstream_key": settings.Secret("sk-of-a-key")}},
        {"call": {"body": b"x" * 70_000}},
        {"own_key": False},
        {"judge_rate": 0.0},
    ],
    ids=["small", "not kept", "key of a virtual key", "large", "callers' keys", "no judge"],
)
async def test_what_may_not_be_asked_again_is_not_remembered(tmp_path: Path, changed: dict[str, Any]) -> None:
    rated = msgspec.structs.replace(JUDGED, augment_judge_rate=changed.pop("judge_rate", 0.01))
    async with Rig(tmp_path, categories={"default": rated}) as rig:
        rig.own_key = changed.pop("own_key", True)
        came = await _came(rig, **changed.pop("call", {}))
        assert rig.replaying is not None
        rig.replaying.gone([came.entry_id])
        rig.replaying.answered(replace(came, **changed))
        assert len(rig.replaying) == 0


async def test_few_are_remembered_for_an_hour_and_examples_before_others(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        first = await rig.example()
        assert rig.replaying is not None
        came = await _came(rig, "another question")
        for number in range(300):
            query = replace(came.journey.query, fingerprint=number.to_bytes(32, "little"))
            journey = replace(came.journey, query=query)
            rig.replaying.answered(replace(came, journey=journey, entry_id=entry_id(query.fingerprint)))
        assert len(rig.replaying) == 256
        assert first.id in rig.replaying._asked
        rig.clock.advance(3601)
        await rig.tend()
        assert (len(rig.replaying), rig.large.calls) == (0, [])


async def test_a_change_of_policy_ends_it(rig: Rig) -> None:
    await rig.example()
    rig.policy = Policy.of(rig.pack)
    await rig.tend()
    assert rig.large.calls == []


@pytest.mark.parametrize("marked", [{"pinned": True}, {"quarantined": True}])
async def test_what_an_operator_decided_stays(rig: Rig, marked: dict[str, Any]) -> None:
    await rig.example(**marked)
    await rig.tend()
    assert rig.large.calls == []


async def test_it_costs_no_more_than_the_categorys_learning_may(tmp_path: Path) -> None:
    async with Rig(tmp_path, categories={"default": msgspec.structs.replace(JUDGED, learning_calls_per_hour=2)}) as rig:
        old = await rig.example()
        rig.judged("WRONG", "RIGHT")
        await rig.tend()
        assert len(rig.large.calls) == 2  # nobody is asked about the new answer: no word
        assert await rig.served(old) == OLD


async def test_personal_data_in_the_new_answer_forbids_keeping_it(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        old = await rig.example()
        assert rig.replaying is not None
        asked = rig.replaying._asked[old.id]
        asked.journey = replace(asked.journey, plan=replace(asked.journey.plan, check_pii=("EMAIL_ADDRESS",)))
        rig.judged("WRONG", "RIGHT")
        await rig.tend()  # there is no gate: what cannot be looked through is not kept
        assert (await rig.served(old), len(rig.large.calls)) == (OLD, 1)


def test_the_quality_of_the_better_answer_is_what_was_said_of_it() -> None:
    one = Standing(entry_id="e", tenant="t", category="c", tokens=1, since_s=0.0, at_s=0.0, quality=0.4, words=3.0)
    better = weighed(one, right=False, better=True, since_s=9.0)
    assert better.quality > 0.6
    assert (better.words, better.since_s, better.replays) == (1.0, 9.0, 1)
    kept = weighed(one, right=True, better=False, since_s=9.0)
    assert kept.quality > one.quality
    assert (kept.since_s, kept.replays) == (0.0, 1)
    assert weighed(one, right=False, better=False, since_s=9.0).quality < one.quality
    assert weighed(one, right=None, better=False, since_s=9.0).quality == one.quality


async def test_what_brought_nothing_is_expected_to_bring_less_next_time(rig: Rig) -> None:
    old = await rig.example()
    rig.judged("RIGHT")
    await rig.tend()
    assert rig.known(old).better < 0.2


async def _came(rig: Rig, text: str = FIRST, **call: Any) -> Came:
    """Ask, and return what the line told of the answer."""
    told: list[Came] = []
    assert rig.replaying is not None
    rig.made.rewarding.remember = told.append
    await rig.ask(text)
    (came,) = told
    rig.large.calls.clear()
    return replace(came, call=replace(came.call, **call))


def _remember(rig: Rig, came: Came) -> None:
    assert rig.replaying is not None
    rig.replaying.answered(came)
    rig.state.put(
        Standing(
            entry_id=came.entry_id,
            tenant=TENANT,
            category="default",
            tokens=10,
            since_s=rig.clock.now(),
            at_s=rig.clock.now(),
            quality=0.1,
            uses=30.0,
            loss=0.9,
        )
    )
