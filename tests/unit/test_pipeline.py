from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import pytest_asyncio

from cacheproxy import settings
from cacheproxy.dialect.chat import ChatDialect
from cacheproxy.embed.batcher import MicroBatcher
from cacheproxy.errors import InvalidRequest, StoreUnavailable, UpstreamBroken, UpstreamError
from cacheproxy.flight import Flights
from cacheproxy.index.partitioned import PartitionedIndex
from cacheproxy.joining import Flown
from cacheproxy.learn.lookups import LookupLog
from cacheproxy.model import Bypass, Controls, Hit, Miss, Scope, Tier, entry_id
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
from tests.support.openai_wire import completion, encode, events
from tests.support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from cacheproxy.journey import Journey
    from cacheproxy.model import Entry, Query

QUESTION = "How do I reset the password of my account?"
REPHRASED = "How do I reset the password of my account please?"
UNRELATED = "Who painted the ceiling of the Sistine Chapel in Rome?"
TENANT, OTHER = Scope(tenant="t" * 64), Scope(tenant="u" * 64)
STREAM = (("content-type", "text/event-stream"),)

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


def told(content: str = "Answer.", *, before: Any = (), status: int = 200) -> Told:
    return Told(before=before, status=status, steps=[encode(completion(content))])


def streamed(content: str = "Answer.", *, before: Any = ()) -> Told:
    return Told(before=before, headers=STREAM, steps=events(content, include_usage=True))


def content(body: str) -> str:
    return str(msgspec.json.decode(body)["choices"][0]["message"]["content"])


@pytest_asyncio.fixture
async def house() -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        built = House()
        for part in (built.store, built.embedder, built.index, built.supervisor):
            await stack.enter_async_context(part)
        yield built


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


# Flights


async def test_a_thousand_equal_misses_make_one_call(house: House) -> None:
    release = asyncio.Event()
    house.backend.always(told(before=[release]))
    asking = [asyncio.ensure_future(house.answer()) for _ in range(1000)]
    await eventually(lambda: len(house.backend.calls) == 1, "the call")
    release.set()
    assert {content(body) for body in await asyncio.gather(*asking)} == {"Answer."}
    assert len(house.backend.calls) == 1


async def test_equal_misses_that_embed_longer_than_the_backend_answers_make_one_call(house: House) -> None:
    house.encoder.gate.clear()
    asking = [asyncio.ensure_future(house.answer()) for _ in range(100)]
    await eventually(lambda: len(house.encoder.calls) > 0, "the embedding")
    house.encoder.gate.set()
    answers = await asyncio.gather(*asking)
    assert len(answers) == 100
    assert len(house.backend.calls) == 1


async def test_whoever_comes_while_the_answer_is_being_stored_does_not_ask_again(house: House) -> None:
    late_journey, late_miss = await house.look_up()
    assert isinstance(late_miss, Miss)
    house.store.gate.clear()
    first = await house.ask()
    looking = asyncio.ensure_future(house.look_up())
    joined = await house.fly(late_journey, late_miss)
    assert isinstance(joined, Flown)
    assert joined.coalesced
    assert joined.body == (first.body if isinstance(first, Flown) else None)
    assert not looking.done()
    house.store.gate.set()
    _, outcome = await looking
    assert isinstance(outcome, Hit)
    assert len(house.backend.calls) == 1


async def test_whoever_can_join_does_not_embed(house: House) -> None:
    house.backend.always(told(before=[asyncio.Event()]))
    leading = asyncio.ensure_future(house.ask())
    await eventually(lambda: len(house.backend.calls) == 1, "the call")
    _, outcome = await house.look_up()
    assert isinstance(outcome, Miss)
    assert outcome.reason == "no_entry"  # the semantic tier would say no_candidate
    leading.cancel()


async def test_a_caller_who_wants_another_form_gets_the_stored_answer(house: House) -> None:
    release = asyncio.Event()
    house.backend.play(streamed(before=[release]))
    streaming = asyncio.ensure_future(house.answer(stream=True))
    await eventually(lambda: len(house.backend.calls) == 1, "the call")
    whole = asyncio.ensure_future(house.answer())
    release.set()
    assert (await streaming).endswith("data: [DONE]\n\n")
    assert await whole == "hit: Answer."
    assert len(house.backend.calls) == 1


async def test_followers_of_a_stream_get_its_first_bytes_before_it_ends(house: House) -> None:
    first, *rest = events("one two", include_usage=True)
    release = asyncio.Event()
    house.backend.play(Told(headers=STREAM, steps=[first, release, *rest]))
    leader, follower = await asyncio.gather(house.ask(stream=True), house.ask(stream=True))
    assert isinstance(leader, Flown)
    assert isinstance(follower, Flown)
    assert follower.coalesced != leader.coalesced
    early = [await anext(flown.reader.chunks()) for flown in (leader, follower)]
    assert early[0] == early[1]
    release.set()
    assert (await follower.reader.body()).endswith(b"data: [DONE]\n\n")


FAILURES = {
    "no head": told(before=[UpstreamBroken("cut")]),
    "a body that breaks off": Told(steps=[b"{", UpstreamBroken("cut")]),
    "a stream that breaks off before its first byte": Told(headers=STREAM, steps=[UpstreamBroken("cut")]),
    "500": told(status=500),
    "429": told(status=429),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
async def test_a_failed_leader_hands_over_to_exactly_one_follower(house: House, failure: Told) -> None:
    release = asyncio.Event()
    house.backend.play(dataclasses.replace(failure, before=[release, *failure.before]))
    asking = [asyncio.ensure_future(house.ask()) for _ in range(20)]
    await eventually(lambda: len(house.backend.calls) == 1, "the call")
    await eventually(lambda: house.pipeline.flights.aloft == 1, "the flight")
    release.set()
    found = await asyncio.gather(*asking, return_exceptions=True)
    good = [one for one in found if isinstance(one, Flown) and one.head.status == 200 and one.body]
    assert len(good) >= 19
    assert len(house.backend.calls) == 2


async def test_an_error_answer_is_not_joined_and_not_held_on_to(house: House) -> None:
    error = Told(status=503, headers=STREAM, steps=[b"data: {}\n\n", asyncio.Event()])
    house.backend.play(error)
    leader = await house.ask(stream=True)
    assert isinstance(leader, Flown)
    assert leader.head.status == 503
    house.backend.play(streamed())
    later = await house.ask(stream=True)
    assert isinstance(later, Flown)
    assert (later.head.status, later.coalesced) == (200, False)
    leader.reader.leave()
    await eventually(lambda: house.backend.left_early == 1, "the error's exchange is given up")


async def test_a_follower_of_an_error_answer_lets_go_of_it(house: House) -> None:
    release = asyncio.Event()
    error = Told(before=[release], status=503, headers=STREAM, steps=[b"data: {}\n\n", asyncio.Event()])
    house.backend.play(error, streamed())
    leading = asyncio.ensure_future(house.ask(stream=True))
    await eventually(lambda: len(house.backend.calls) == 1, "the call")
    following = asyncio.ensure_future(house.ask(stream=True))
    await asyncio.sleep(0)
    release.set()
    leader, follower = await leading, await following
    assert isinstance(leader, Flown)
    assert isinstance(follower, Flown)
    assert (leader.head.status, follower.head.status) == (503, 200)
    leader.reader.leave()
    await eventually(lambda: house.backend.left_early == 1, "the error's exchange is given up")


@pytest.mark.parametrize("end", [[], [UpstreamBroken("cut")]], ids=["clean end", "cut"])
async def test_the_bytes_of_an_unfinished_event_are_passed_on(house: House, end: list[UpstreamBroken]) -> None:
    house.backend.play(Told(headers=STREAM, steps=[b"data: {}\n\ndata: unfin", *end]))
    found = await house.ask(stream=True)
    assert isinstance(found, Flown)
    got = b""
    with contextlib.suppress(UpstreamBroken):
        async for chunk in found.reader.chunks():
            got += chunk
    assert got == b"data: {}\n\ndata: unfin"
    assert len(house.store) == 0


async def test_of_those_who_waited_long_enough_one_leads_and_the_others_follow_him(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.pipeline = house.line(coalesce_timeout_s=1000.0)
    release, loop = asyncio.Event(), asyncio.get_running_loop()
    house.backend.play(told(before=[asyncio.Event()]), told("Second.", before=[release]))
    stuck = asyncio.ensure_future(house.ask())
    await eventually(lambda: len(house.backend.calls) == 1, "the call")
    flight = house.pipeline.flights.find(house.query().fingerprint)
    assert flight is not None
    waiting = [asyncio.ensure_future(house.answer()) for _ in range(20)]
    await eventually(lambda: len(flight._readers) == 21, "all wait for the first")
    real, skipped_s = loop.time, 1001.0
    monkeypatch.setattr(loop, "time", lambda: real() + skipped_s)  # all have waited long enough, once
    await eventually(lambda: len(house.backend.calls) == 2, "the second call")
    assert house.pipeline.flights.find(house.query().fingerprint) not in (None, flight)
    release.set()
    assert {content(body) for body in await asyncio.gather(*waiting)} == {"Second."}
    assert len(house.backend.calls) == 2
    stuck.cancel()


async def test_whoever_waited_for_two_leaders_goes_alone(house: House) -> None:
    house.pipeline = house.line(coalesce_timeout_s=0.05)
    house.backend.play(told(before=[asyncio.Event()]), told(before=[asyncio.Event()]))
    stuck = asyncio.ensure_future(house.ask())
    await eventually(lambda: len(house.backend.calls) == 1, "the call")
    waiting = [asyncio.ensure_future(house.answer()) for _ in range(3)]
    await eventually(lambda: sum(one.done() for one in waiting) == 2, "the second leader still waits")
    assert len(house.backend.calls) <= 4
    for one in (stuck, *waiting):
        one.cancel()


async def test_a_follower_of_a_failed_and_then_of_a_silent_leader_goes_alone(house: House) -> None:
    house.pipeline = house.line(coalesce_timeout_s=0.05)
    release = asyncio.Event()
    house.backend.play(told(before=[release, UpstreamBroken("cut")]), told(before=[asyncio.Event()]))
    asking = [asyncio.ensure_future(house.ask()) for _ in range(3)]
    await eventually(lambda: len(house.backend.calls) == 1, "the call")
    release.set()
    await eventually(lambda: sum(one.done() for one in asking) == 2, "one is told, one goes alone, one leads and waits")
    ended = [one.exception() or one.result() for one in asking if one.done()]
    assert sorted(type(one).__name__ for one in ended) == ["Flown", "UpstreamBroken"]
    assert len(house.backend.calls) == 3
    for one in asking:
        one.cancel()


async def test_a_caller_who_leaves_takes_nothing_from_the_others(house: House) -> None:
    release = asyncio.Event()
    house.backend.always(told(before=[release]))
    leader = asyncio.ensure_future(house.ask())
    await eventually(lambda: len(house.backend.calls) == 1, "the call")
    follower = asyncio.ensure_future(house.answer())
    await eventually(lambda: house.encoder.calls != [], "the lookups")
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    release.set()
    assert content(await follower) == "Answer."
    assert len(house.backend.calls) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_when_everybody_leaves_the_exchange_ends_and_nothing_is_kept(house: House, stream: bool) -> None:
    first, *_ = events("one two")
    house.backend.always(Told(headers=STREAM if stream else (), steps=[first, asyncio.Event()]))
    asking = [asyncio.ensure_future(house.ask(stream=stream)) for _ in range(3)]
    await eventually(lambda: house.backend.open == 1, "the answer has begun")
    for one in asking:
        if stream:
            flown = await one
            assert isinstance(flown, Flown)
            flown.reader.leave()
        one.cancel()
    await eventually(lambda: house.backend.left_early == 1, "the exchange is given up")
    await eventually(lambda: house.pipeline.flights.aloft == 0, "the flight has landed")
    assert house.backend.open == len(house.store) == len(house.index) == 0


async def test_a_refresh_is_nobodys_business_but_its_own(house: House) -> None:
    release = asyncio.Event()
    house.backend.play(told(before=[release]))
    refreshing = asyncio.ensure_future(house.answer(controls=Controls(no_cache=True)))
    await eventually(lambda: len(house.backend.calls) == 1, "the refresh")
    assert content(await house.answer()) == "Answer."
    assert len(house.backend.calls) == 2
    release.set()
    await refreshing


async def test_a_refresh_joins_nobody(house: House) -> None:
    house.backend.play(told(before=[asyncio.Event()]), told("Fresh."))
    leading = asyncio.ensure_future(house.answer())
    await eventually(lambda: len(house.backend.calls) == 1, "the call")
    assert content(await house.answer(controls=Controls(no_cache=True))) == "Fresh."
    leading.cancel()


# Small print


async def test_every_failure_is_an_upstream_error(house: House) -> None:
    house.backend.always(told(before=[UpstreamBroken("cut")]))
    with pytest.raises(UpstreamError):
        await house.ask()
    assert house.pipeline.flights.aloft == 0


async def test_an_entry_that_repeats_another_goes_with_it(house: House) -> None:
    await house.answer(UNRELATED)
    source = await house.store.get(entry_id(house.query(UNRELATED).fingerprint))
    await house.answer()
    own = await house.store.get(entry_id(house.query().fingerprint))
    assert source is not None
    assert own is not None
    await house.store.put(replace(own, tags=(f"alias-of:{source.id}",)), house.store.fence)
    for question in (QUESTION, REPHRASED):
        assert isinstance((await house.look_up(question))[1], Hit)
    await house.pipeline.forget([source.id])
    for question in (QUESTION, REPHRASED):
        assert isinstance((await house.look_up(question))[1], Miss)
