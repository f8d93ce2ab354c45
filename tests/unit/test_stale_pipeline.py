"""Stale answers and variants through the whole line, where several callers and failures meet."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from cacheproxy.errors import UpstreamBroken, UpstreamError
from cacheproxy.model import Controls, Hit, Miss, Stale, Tier, entry_id
from cacheproxy.policy.active import Policy
from cacheproxy.ports import Call
from cacheproxy.store.codec import encode
from tests.support.backend import Told
from tests.support.house import PACK, QUESTION, REPHRASED, STREAM, House, content, told
from tests.support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cacheproxy.journey import Journey

ASKED_ON_ERROR = Controls(stale_if_error_s=50.0)


def pack(**keys: float) -> Any:
    category = PACK.categories["default"]
    rules = {name: getattr(category, name) for name in category.__struct_fields__} | {"max_stale_s": 60.0} | keys
    return lambda: Policy.of(_replaced(rules))


def _replaced(rules: dict[str, Any]) -> Any:
    fields = {name: getattr(PACK, name) for name in PACK.__struct_fields__}
    return type(PACK)(
        **fields | {"categories": {**PACK.categories, "default": type(PACK.categories["default"])(**rules)}}
    )


def varying(text: str, *before: Any, names: str = "x-a") -> Told:
    return replace(told(text, before=before), headers=(("content-type", "application/json"), ("vary", names)))


@pytest_asyncio.fixture
async def house() -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        built = House()
        built.pipeline.policy = pack()
        for part in (built.store, built.embedder, built.index, built.supervisor):
            await stack.enter_async_context(part)
        yield built


def call() -> Call:
    return Call(method="POST", target="/v1/chat/completions", headers=(), body=b"{}")


async def ask(house: House, value: str, text: str = QUESTION) -> str:
    """Ask with a header x-a of this value; return what the answer says, and whether it was a hit."""
    journey = house.pipeline.set_out(house.query(text), [(b"x-a", value.encode())])
    outcome = await house.pipeline.look_up(journey)
    found = outcome if isinstance(outcome, Hit) else await house.fly(journey, miss_of(outcome))
    if isinstance(found, Hit):
        return "hit: " + str(found.entry.reply.body["choices"][0]["message"]["content"])
    body = found.body or b""
    await house.pipeline.settlement(found)
    found.reader.leave()
    return content(body.decode())


def miss_of(outcome: object) -> Miss:
    assert isinstance(outcome, Miss)
    return outcome


# stale-while-revalidate


async def stale_journey(house: House) -> tuple[Journey, Hit]:
    journey, outcome = await house.look_up()
    assert isinstance(outcome, Hit)
    assert outcome.stale is Stale.REVALIDATING
    return journey, outcome


async def test_however_many_are_served_stale_one_refresh_is_made(house: House) -> None:
    house.pipeline.policy = pack(stale_while_revalidate_s=60.0)
    await house.answer()
    house.clock.advance(110)
    release = asyncio.Event()
    house.backend.always(told("Newer.", before=[release]))
    for _ in range(20):
        journey, _ = await stale_journey(house)
        house.pipeline.refresh(journey, call(), house.dialect)
    await eventually(lambda: len(house.backend.calls) == 2, "the refresh")
    assert house.pipeline.flights.unattended == 1
    release.set()
    await eventually(lambda: house.pipeline.flights.aloft == 0, "the refresh has landed")
    assert await house.answer() == "hit: Newer."
    assert len(house.backend.calls) == 2
    assert house.pipeline.flights.unattended == 0


async def test_who_must_wait_joins_the_refresh(house: House) -> None:
    house.pipeline.policy = pack(stale_while_revalidate_s=60.0)
    await house.answer()
    house.clock.advance(110)
    release = asyncio.Event()
    house.backend.always(told("Newer.", before=[release]))
    journey, _ = await stale_journey(house)
    house.pipeline.refresh(journey, call(), house.dialect)
    waiting = asyncio.ensure_future(house.answer(controls=Controls(min_fresh_s=1.0)))
    await eventually(lambda: len(house.backend.calls) == 2, "the refresh")
    release.set()
    assert content(await waiting) == "Newer."
    assert len(house.backend.calls) == 2


@pytest.mark.parametrize("failure", [told(status=500), told(before=[UpstreamBroken("cut")])], ids=["500", "no head"])
async def test_a_refresh_that_fails_changes_nothing(house: House, failure: Told) -> None:
    house.pipeline.policy = pack(stale_while_revalidate_s=60.0)
    await house.answer()
    house.clock.advance(110)
    house.backend.always(failure)
    journey, hit = await stale_journey(house)
    house.pipeline.refresh(journey, call(), house.dialect)
    await eventually(lambda: house.pipeline.flights.aloft == 0, "the refresh has failed")
    _, again = await stale_journey(house)
    assert again.entry == hit.entry or again.entry.created_s == hit.entry.created_s
    assert house.supervisor.failures == 0


async def test_refreshes_in_the_air_are_bounded(house: House) -> None:
    house.pipeline.policy = pack(stale_while_revalidate_s=60.0)
    house.backend.always(told(before=[asyncio.Event()]))
    for number in range(70):
        journey = house.pipeline.set_out(house.query(f"Question number {number}?"))
        house.pipeline.refresh(journey, call(), house.dialect)
    assert house.pipeline.flights.unattended == 64
    await eventually(lambda: len(house.backend.calls) == 64, "the refreshes")


async def test_a_purge_during_a_refresh_wins(house: House) -> None:
    house.pipeline.policy = pack(stale_while_revalidate_s=60.0)
    await house.answer()
    house.clock.advance(110)
    release = asyncio.Event()
    house.backend.always(told("Newer.", before=[release]))
    journey, hit = await stale_journey(house)
    house.pipeline.refresh(journey, call(), house.dialect)
    await eventually(lambda: len(house.backend.calls) == 2, "the refresh")
    await house.pipeline.forget([hit.entry.id])
    release.set()
    await eventually(lambda: house.pipeline.flights.aloft == 0, "the refresh has landed")
    assert len(house.store) == 0


# stale-if-error

FAILURES = {
    "no head": told(before=[UpstreamBroken("cut")]),
    "a body that breaks off": replace(told(), steps=[b"{", UpstreamBroken("cut")]),
    "503": told(status=503),
    "429": told(status=429),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
async def test_followers_of_a_failed_flight_are_served_stale_too(house: House, failure: Told) -> None:
    await house.answer()
    house.clock.advance(110)
    release = asyncio.Event()
    house.backend.always(replace(failure, before=[release, *failure.before]))
    asking = [asyncio.ensure_future(house.ask(controls=ASKED_ON_ERROR)) for _ in range(20)]
    await eventually(lambda: len(house.backend.calls) == 2, "the call")
    release.set()
    found = await asyncio.gather(*asking)
    assert {type(one) for one in found} == {Hit}
    assert {one.stale for one in found if isinstance(one, Hit)} == {Stale.ON_ERROR}
    assert len(house.backend.calls) <= 3  # the leader, and one follower who tried for the others
    assert house.pipeline.flights.aloft == 0


async def test_a_follower_is_served_a_similar_questions_stale_answer(house: House) -> None:
    await house.answer()
    house.clock.advance(110)
    release = asyncio.Event()
    house.backend.always(told(before=[release], status=503))
    leading = asyncio.ensure_future(house.ask(REPHRASED, controls=ASKED_ON_ERROR))
    await eventually(lambda: len(house.backend.calls) == 2, "the call")
    following = asyncio.ensure_future(house.ask(REPHRASED, controls=ASKED_ON_ERROR))
    await asyncio.sleep(0)
    release.set()
    for found in await asyncio.gather(leading, following):
        assert isinstance(found, Hit)
        assert (found.tier, found.stale, found.reason) == (Tier.SEMANTIC, Stale.ON_ERROR, "stale_if_error")


async def test_what_was_purged_meanwhile_does_not_stand_in(house: House) -> None:
    await house.answer()
    house.clock.advance(110)
    release = asyncio.Event()
    house.backend.always(told(before=[release, UpstreamBroken("cut")]))
    asking = asyncio.ensure_future(house.ask(controls=ASKED_ON_ERROR))
    await eventually(lambda: len(house.backend.calls) == 2, "the call")
    await house.pipeline.forget([entry_id(house.query().fingerprint)])
    release.set()
    with pytest.raises(UpstreamError):
        await asking


async def test_what_grew_too_stale_while_the_backend_failed_does_not_stand_in(house: House) -> None:
    await house.answer()
    house.clock.advance(110)
    release = asyncio.Event()
    house.backend.always(told(before=[release, UpstreamBroken("cut")]))
    asking = asyncio.ensure_future(house.ask(controls=ASKED_ON_ERROR))
    await eventually(lambda: len(house.backend.calls) == 2, "the call")
    house.clock.advance(41)
    release.set()
    with pytest.raises(UpstreamError):
        await asking


async def test_an_answer_that_came_meanwhile_goes_before_a_stale_one(house: House) -> None:
    await house.answer()
    house.clock.advance(110)
    release = asyncio.Event()
    house.backend.play(told(before=[release, UpstreamBroken("cut")]), told("Newer."))
    asking = asyncio.ensure_future(house.ask(controls=ASKED_ON_ERROR))
    await eventually(lambda: len(house.backend.calls) == 2, "the call")
    await house.answer(controls=Controls(no_cache=True))
    release.set()
    found = await asking
    assert isinstance(found, Hit)
    assert (found.stale, found.entry.reply.body["choices"][0]["message"]["content"]) == (Stale.NO, "Newer.")


async def test_a_broken_store_passes_the_failure_on(house: House) -> None:
    await house.answer()
    house.clock.advance(110)
    house.backend.always(told(before=[UpstreamBroken("cut")]))
    house.store.broken = True
    with pytest.raises(UpstreamError):
        await house.ask(controls=ASKED_ON_ERROR)


async def test_a_stream_that_breaks_off_before_its_first_byte_is_stood_in_for(house: House) -> None:
    await house.answer()
    house.clock.advance(110)
    house.backend.always(Told(headers=STREAM, steps=[UpstreamBroken("cut")]))
    found = await house.ask(stream=True, controls=ASKED_ON_ERROR)
    assert isinstance(found, Hit)
    assert found.stale is Stale.ON_ERROR


# Tiers


async def test_a_fresh_entry_goes_before_a_nearer_stale_one(house: House) -> None:
    near, far = "How do I reset the password of my account now?", "How do I reset the password of my old account now?"
    house.backend.play(told("Stale."), told("Fresh."))
    await house.answer(near)
    house.clock.advance(110)
    await house.answer(far)
    _, found = await house.look_up(controls=Controls(max_stale_s=60.0))
    assert isinstance(found, Hit)
    assert (found.stale, found.evidence.judgements[0].stale) == (Stale.NO, Stale.ASKED)
    assert found.entry.text == far
    assert found.evidence.similarity == found.evidence.judgements[1].candidate.similarity


# Vary


async def test_callers_whose_headers_differ_do_not_share_an_answer_chosen_by_them(house: House) -> None:
    release = asyncio.Event()
    house.backend.play(varying("One.", release), varying("Two."), varying("Three."))
    first = asyncio.ensure_future(ask(house, "1"))
    await eventually(lambda: len(house.backend.calls) == 1, "the call")
    others = [asyncio.ensure_future(ask(house, value)) for value in ("1", "2", "1")]
    await asyncio.sleep(0)
    release.set()
    answers = await asyncio.gather(first, *others)
    assert [answers[0], answers[1], answers[3]] == ["One."] * 3
    assert answers[2] != "One."
    assert len(house.backend.calls) == 2


async def test_of_those_told_apart_by_an_answer_each_variant_makes_one_call(house: House) -> None:
    release = asyncio.Event()
    house.backend.play(varying("One.", release))
    house.backend.always(varying("Other."))
    first = asyncio.ensure_future(ask(house, "1"))
    await eventually(lambda: len(house.backend.calls) == 1, "the call")
    others = [asyncio.ensure_future(ask(house, value)) for value in "2323232323"]
    await asyncio.sleep(0)
    release.set()
    assert await first == "One."
    assert {answer.removeprefix("hit: ") for answer in await asyncio.gather(*others)} == {"Other."}
    assert len(house.backend.calls) == 3


async def test_callers_share_an_answer_that_no_header_of_theirs_chose(house: House) -> None:
    release = asyncio.Event()
    house.backend.always(varying("One.", release, names="accept-encoding"))
    asking = [asyncio.ensure_future(ask(house, value)) for value in "123"]
    await eventually(lambda: len(house.backend.calls) == 1, "the call")
    release.set()
    assert await asyncio.gather(*asking) == ["One."] * 3
    assert len(house.backend.calls) == 1


async def test_an_answer_that_varies_by_everything_is_shared_with_nobody(house: House) -> None:
    release = asyncio.Event()
    house.backend.always(varying("One.", release, names="*"))
    asking = [asyncio.ensure_future(ask(house, "1")) for _ in range(3)]
    await eventually(lambda: len(house.backend.calls) == 1, "the call")
    release.set()
    await asyncio.gather(*asking)
    assert len(house.backend.calls) == 3


async def test_equal_variants_share_one_call_while_others_fly(house: House) -> None:
    house.backend.play(varying("One."))
    await ask(house, "1")
    release = asyncio.Event()
    house.backend.always(varying("Other.", release))
    asking = [asyncio.ensure_future(ask(house, value)) for value in ("2", "3", "2", "3", "2")]
    await eventually(lambda: len(house.backend.calls) == 3, "a call for each variant")
    release.set()
    assert await asyncio.gather(*asking) == ["Other."] * 5
    assert len(house.backend.calls) == 3
    assert [await ask(house, value) for value in "123"] == ["hit: One.", "hit: Other.", "hit: Other."]


async def test_a_variants_values_are_nowhere_in_what_is_kept(house: House) -> None:
    house.backend.always(varying("One."))
    await ask(house, "a-secret-value")
    entry = await house.store.get(entry_id(house.query().fingerprint))
    assert entry is not None
    assert entry.vary == ("x-a",)
    assert b"a-secret-value" not in encode(entry).record
    assert "a-secret-value" not in repr(house.pipeline.set_out(house.query(), [(b"x-a", b"a-secret-value")]))
