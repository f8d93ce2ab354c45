"""The straight line: which tier answers, and what a fault of a part comes to."""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from cacheproxy.errors import InvalidRequest, Overloaded, UpstreamBroken, UpstreamError
from cacheproxy.joining import Flown
from cacheproxy.learn.lookups import LookupLog
from cacheproxy.model import Bypass, Controls, Hit, Miss, Scope, Tier, entry_id
from cacheproxy.policy.active import Policy
from tests.support.backend import Told
from tests.support.encoders import HashEncoder
from tests.support.house import OTHER, PACK, QUESTION, REPHRASED, TENANT, UNRELATED, House, content, opened, told
from tests.support.openai_wire import completion, encode
from tests.support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cacheproxy.model import Entry


@pytest_asyncio.fixture
async def house() -> AsyncIterator[House]:
    async with opened() as house:
        yield house


# Tiers


async def test_a_miss_is_answered_by_the_backend_and_then_from_the_cache(house: House) -> None:
    assert content(await house.answer()) == "Answer."
    _, again = await house.look_up()
    assert isinstance(again, Hit)
    assert (again.tier, again.category, again.entry.reply.source) == (Tier.EXACT, "default", "body")
    _, similar = await house.look_up(REPHRASED)
    assert isinstance(similar, Hit)
    assert (similar.tier, similar.reason) == (Tier.SEMANTIC, "similar")
    assert similar.evidence.threshold == 0.8
    assert similar.evidence.similarity is not None
    assert 0.8 <= similar.evidence.similarity < 1.0
    assert len(house.backend.calls) == 1


async def test_a_decision_is_noted_under_the_epoch_that_it_was_planned_for(house: House) -> None:
    """Not under the one that serves by then: another head may have taken its place meanwhile."""
    lookups = LookupLog(lambda: Policy.of(PACK), house.telemetry, house.clock, HashEncoder.fingerprint)
    house.pipeline.parts = replace(house.pipeline.parts, lookups=lookups)
    journey, outcome = await house.look_up()
    journey.plan = replace(journey.plan, epoch="planned/for")
    house.pipeline.note(journey, outcome)
    assert journey.looked is not None
    assert journey.looked.epoch == "planned/for" != house.pipeline.parts.epoch


@pytest.mark.parametrize("text", [QUESTION, REPHRASED])
async def test_what_is_purged_after_it_was_read_and_before_it_is_served_is_a_miss(house: House, text: str) -> None:
    await house.answer()
    kept, get = house.store, house.store.get
    _, before = await house.look_up(text)
    assert isinstance(before, Hit)

    async def read_and_purged(entry_id: str) -> Entry | None:
        entry = await get(entry_id)
        await kept.purge([entry_id])
        return entry

    kept.get = read_and_purged  # type: ignore[method-assign]  # the purge comes right after the read
    _, outcome = await house.look_up(text)
    assert isinstance(outcome, Miss)
    assert outcome.reason in {"no_entry", "document_missing"}  # where the search finds it still


async def test_an_exact_hit_never_embeds(house: House) -> None:
    await house.answer()
    before = len(house.encoder.calls)
    assert (await house.answer()).startswith("hit")
    assert len(house.encoder.calls) == before == 1


async def test_an_unrelated_question_tells_how_near_it_came(house: House) -> None:
    await house.answer()
    _, outcome = await house.look_up(UNRELATED)
    assert isinstance(outcome, Miss)
    assert outcome.reason == "below_threshold"
    assert outcome.evidence.similarity is not None
    assert [judgement.served for judgement in outcome.evidence.judgements] == [False]


async def test_candidates_are_read_together(house: House) -> None:
    """A store that hangs costs one deadline then, not one for each."""
    await house.answer()
    await house.answer(REPHRASED, controls=Controls(no_cache=True))
    house.store.watched = True
    _, similar = await house.look_up(REPHRASED + " Now.")
    assert isinstance(similar, Hit)
    assert house.store.most_reading == 2


async def test_an_empty_cache_has_no_candidate(house: House) -> None:
    _, outcome = await house.look_up()
    assert isinstance(outcome, Miss)
    assert outcome == Miss(category="default", reason="no_candidate", evidence=outcome.evidence)


@pytest.mark.parametrize(
    "asked",
    [{"scope": OTHER}, {"scope": Scope(tenant=TENANT.tenant, namespace="n")}, {"model": "other"}, {"temperature": 0.5}],
    ids=["tenant", "namespace", "model", "temperature"],
)
@pytest.mark.parametrize("text", [QUESTION, REPHRASED])
async def test_nothing_crosses_a_scope_or_a_setting(house: House, asked: dict[str, Any], text: str) -> None:
    await house.answer()
    _, outcome = await house.look_up(text, **asked)
    assert isinstance(outcome, Miss)
    assert outcome.reason == "no_candidate"


async def test_an_answer_of_another_category_is_no_hit(house: House) -> None:
    await house.answer()
    journey, outcome = await house.look_up(controls=Controls(category="code"))
    assert isinstance(outcome, Miss)
    await house.fly(journey, outcome)
    with pytest.raises(InvalidRequest):
        await house.look_up(controls=Controls(category="unheard-of"))


async def test_a_request_with_tools_is_kept_for_its_equal_only(house: House) -> None:
    await house.answer(tools=[{"type": "function"}])
    _, equal = await house.look_up(tools=[{"type": "function"}])
    assert isinstance(equal, Hit)
    assert equal.entry.vector is None
    _, similar = await house.look_up(REPHRASED, tools=[{"type": "function"}])
    assert isinstance(similar, Miss)
    assert similar.reason == "tools"
    assert house.encoder.calls == []


async def test_a_bypass_asks_no_part(house: House) -> None:
    house.store.broken = True
    _, outcome = await house.look_up(scope=Scope(tenant=""))
    assert outcome == Bypass(category="default", reason="anonymous")
    assert house.encoder.calls == []
    assert house.counted("cacheproxy_part_failures_total") == 0


async def test_no_cache_asks_the_backend_and_replaces_the_entry(house: House) -> None:
    await house.answer()
    house.backend.always(told("Newer."))
    assert content(await house.answer(controls=Controls(no_cache=True))) == "Newer."
    assert await house.answer() == "hit: Newer."
    assert await house.answer(REPHRASED) == "hit: Newer."


async def test_only_if_cached_looks_and_says_why_there_is_no_hit(house: House) -> None:
    _, unknown = await house.look_up(controls=Controls(only_if_cached=True))
    _, nobody = await house.look_up(scope=Scope(tenant=""), controls=Controls(only_if_cached=True))
    assert (unknown.reason, nobody.reason) == ("no_candidate", "anonymous")
    await house.answer()
    assert (await house.answer(controls=Controls(only_if_cached=True))).startswith("hit")
    assert len(house.backend.calls) == 1


async def test_an_entry_is_served_until_it_expires(house: House) -> None:
    await house.answer()
    house.clock.advance(99)
    assert isinstance((await house.look_up())[1], Hit)
    _, picky = await house.look_up(controls=Controls(max_age_s=50))
    assert isinstance(picky, Miss)
    house.clock.advance(1)
    for text in (QUESTION, REPHRASED):
        assert isinstance((await house.look_up(text))[1], Miss)


# Faults


async def test_a_hint_without_a_document_is_a_miss_and_is_repaired(house: House) -> None:
    await house.answer()
    await house.store.purge([entry_id(house.query().fingerprint)])
    assert len(house.index) == 1
    _, outcome = await house.look_up(REPHRASED)
    assert isinstance(outcome, Miss)
    assert outcome.reason == "document_missing"
    assert len(house.index) == 0
    assert house.counted("cacheproxy_index_repairs_total") == 1


@pytest.mark.parametrize("swap", [{"tenant": "u" * 64}, {"fingerprint": b"x" * 32}], ids=["tenant", "fingerprint"])
async def test_a_foreign_document_under_our_id_is_refused_and_counted(house: House, swap: dict[str, Any]) -> None:
    await house.answer()
    mine = await house.store.get(entry_id(house.query().fingerprint))
    assert mine is not None
    await house.store.put(dataclasses.replace(mine, **swap), house.store.fence)
    journey = house.pipeline.set_out(house.query(controls=Controls(tiers=frozenset({Tier.EXACT}))))
    outcome = await house.pipeline.look_up(journey)
    assert isinstance(outcome, Miss)
    assert outcome.reason == "scope_violation"
    assert house.counted("cacheproxy_scope_violations_total") == 1


async def test_a_broken_store_means_a_miss_that_is_answered(house: House) -> None:
    house.store.broken = True
    found = await house.ask()
    assert isinstance(found, Flown)
    assert found.outcome.reason in ("store_unavailable", "no_candidate")
    settlement = await house.pipeline.settlement(found)
    assert (settlement.stored, settlement.reason) == (False, "store_unavailable")
    assert len(house.index) == 0
    assert house.counted("cacheproxy_part_failures_total") == 2


async def test_a_broken_embedder_means_a_miss_whose_answer_is_kept_for_its_equal(house: House) -> None:
    await house.embedder.__aexit__(None, None, None)
    assert content(await house.answer()) == "Answer."
    assert await house.answer() == "hit: Answer."
    _, similar = await house.look_up(REPHRASED)
    assert isinstance(similar, Miss)
    assert similar.reason == "embedder_unavailable"


async def test_what_the_backend_has_no_place_for_does_not_wait_for_a_swamped_encoder(house: House) -> None:
    assert content(await house.answer()) == "Answer."
    house.pipeline = house.line(swamped=lambda query: query.scope == TENANT)
    house.encoder.gate.clear()  # whoever asks the encoder waits without end
    journey, outcome = await house.look_up(REPHRASED)
    assert isinstance(outcome, Miss)
    assert (outcome.reason, journey.embeddable) == ("overloaded", False)
    assert await house.answer() == "hit: Answer."  # what needs neither is served as ever
    house.encoder.gate.set()


async def test_nobody_joins_those_who_have_waited_for_the_encoder_for_too_long(house: House) -> None:
    assert content(await house.answer()) == "Answer."
    house.pipeline = house.line(behind=lambda: True)
    house.encoder.gate.clear()
    journey, outcome = await house.look_up(REPHRASED)
    assert isinstance(outcome, Miss)
    assert (outcome.reason, journey.embeddable) == ("overloaded", False)
    assert await house.answer() == "hit: Answer."
    house.encoder.gate.set()


async def test_who_is_turned_away_as_a_miss_is_served_what_is_kept_word_for_word(house: House) -> None:
    assert content(await house.answer()) == "Answer."

    def none() -> None:
        raise Overloaded("none")

    house.pipeline = house.line(admit_miss=none)
    with pytest.raises(Overloaded):
        await house.look_up(REPHRASED)
    assert await house.answer() == "hit: Answer."
    explained = await house.pipeline.look_up(house.pipeline.set_out(house.query(REPHRASED)), remember=False)
    assert isinstance(explained, Hit), "an operator is told of overload what he would be told without"


async def test_a_lookup_that_breaks_is_a_miss_and_never_a_failed_answer(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert content(await house.answer()) == "Answer."

    async def broken(*told: object) -> None:
        raise ValueError("nobody foresaw this")

    monkeypatch.setattr(house.index, "search", broken)
    found = await house.ask(REPHRASED)
    assert isinstance(found, Flown)
    assert found.outcome.reason == "lookup_unavailable"


async def test_a_lookup_over_its_budget_is_a_miss_whose_answer_is_kept_for_its_equal(house: House) -> None:
    house.pipeline = house.line(lookup_timeout_s=0.01)
    house.encoder.gate.clear()
    found = await house.ask()
    assert isinstance(found, Flown)
    assert found.outcome.reason == "lookup_unavailable"
    assert (await house.pipeline.settlement(found)).stored  # and the slow embedder was not asked again
    house.encoder.gate.set()
    assert await house.answer() == "hit: Answer."
    assert len(house.index) == 0


async def test_a_broken_index_means_a_miss_whose_answer_is_kept_for_its_equal(house: House) -> None:
    await house.index.aclose()
    found = await house.ask()
    assert isinstance(found, Flown)
    assert found.outcome.reason == "index_unavailable"
    settlement = await house.pipeline.settlement(found)
    assert (settlement.stored, settlement.reason) == (True, "index_unavailable")
    assert await house.answer() == "hit: Answer."


@pytest.mark.parametrize("own", [True, False], ids=["its entry", "another entry"])
async def test_a_purge_during_the_exchange_wins_over_fills_of_what_it_purged_and_no_others(
    house: House, own: bool
) -> None:
    release = asyncio.Event()
    house.backend.always(told(before=[release]))
    asking = asyncio.ensure_future(house.ask())
    await eventually(lambda: len(house.backend.calls) == 1, "the call")
    await house.pipeline.forget([entry_id(house.query().fingerprint if own else house.query(UNRELATED).fingerprint)])
    release.set()
    found = await asking
    assert isinstance(found, Flown)
    assert (await house.pipeline.settlement(found)).reason == ("purged_meanwhile" if own else "kept")
    assert isinstance((await house.look_up())[1], Miss if own else Hit)


async def test_room_is_asked_for_when_the_store_is_above_its_caps(house: House) -> None:
    for number in range(10):
        await house.answer(f"{QUESTION} {number}", temperature=number / 100)
    assert not house.crowded.is_set()
    await house.answer(UNRELATED)
    assert house.crowded.is_set()


async def test_an_answer_that_is_not_whole_is_passed_on_and_forgotten(house: House) -> None:
    house.backend.always(Told(steps=[encode(completion("Cut", finish="length"))]))
    found = await house.ask()
    assert isinstance(found, Flown)
    assert (await house.pipeline.settlement(found)).reason == "finish_length"
    assert len(house.store) == len(house.index) == 0


async def test_a_failed_exchange_is_counted_once_however_many_wait(house: House) -> None:
    house.backend.always(told(before=[UpstreamBroken("cut")]))
    found = await asyncio.gather(*(house.ask() for _ in range(5)), return_exceptions=True)
    assert all(isinstance(one, UpstreamBroken) for one in found)
    assert len(house.backend.calls) == 2  # everybody once, then one follower for all the others
    assert house.counted("cacheproxy_upstream_errors_total") == 2


# Small print


async def test_every_failure_is_an_upstream_error(house: House) -> None:
    house.backend.always(told(before=[UpstreamBroken("cut")]))
    with pytest.raises(UpstreamError):
        await house.ask()
    assert house.pipeline.flights.aloft == 0


async def two_answers(house: House) -> tuple[Entry, Entry]:
    """Keep the answers of two questions that are not alike."""
    await house.answer(UNRELATED)
    source = await house.store.get(entry_id(house.query(UNRELATED).fingerprint))
    await house.answer()
    own = await house.store.get(entry_id(house.query().fingerprint))
    assert source is not None
    assert own is not None
    return source, own


async def test_an_entry_that_repeats_another_goes_with_it(house: House) -> None:
    source, own = await two_answers(house)
    alias = replace(own, reply=source.reply, tags=(f"alias-of:{source.id}",))
    await house.store.put(alias, house.store.fence)
    for question in (QUESTION, REPHRASED):
        assert isinstance((await house.look_up(question))[1], Hit)
    await house.pipeline.forget([source.id])
    for question in (QUESTION, REPHRASED):
        assert isinstance((await house.look_up(question))[1], Miss)


async def test_an_entry_that_repeats_a_purged_answer_stays_a_miss_once_that_was_asked_for_anew(house: House) -> None:
    """Also one that repeats an entry that repeats it."""
    source, own = await two_answers(house)
    first = replace(own, id="f" * 32, reply=source.reply, tags=(f"alias-of:{source.id}",))
    await house.store.put(first, house.store.fence)
    for parent in (source.id, first.id):
        await house.store.put(
            replace(own, reply=source.reply, tags=(f"alias-of:{parent}",)),
            house.store.fence,
        )
        assert isinstance((await house.look_up(QUESTION))[1], Hit)
    await house.pipeline.forget([source.id])
    assert isinstance((await house.look_up(QUESTION))[1], Miss)
    again = {**source.reply.body, "id": "another"}
    await house.store.put(replace(source, reply=replace(source.reply, body=again)), house.store.fence)
    assert isinstance((await house.look_up(UNRELATED))[1], Hit)
    assert isinstance((await house.look_up(QUESTION))[1], Miss)
