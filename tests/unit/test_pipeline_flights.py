"""The straight line: one exchange with the backend, shared by all who ask the same at once."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from cacheproxy.errors import UpstreamBroken
from cacheproxy.joining import Flown
from cacheproxy.model import Controls, Hit, Miss
from tests.support.backend import Told
from tests.support.house import STREAM, House, content, opened, told
from tests.support.openai_wire import events
from tests.support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def streamed(content: str = "Answer.", *, before: Any = ()) -> Told:
    return Told(before=before, headers=STREAM, steps=events(content, include_usage=True))


@pytest_asyncio.fixture
async def house() -> AsyncIterator[House]:
    async with opened() as house:
        yield house


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
