"""Several backends: who is chosen, who is out or cooling down, and what is told of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import msgspec
import pytest

from cacheproxy.errors import (
    ConnectTimeout,
    UpstreamBusy,
    UpstreamUnreachable,
)
from cacheproxy.upstream.backend import retry_after_s
from tests.support.backend import Told
from tests.support.clock import FakeClock
from tests.support.upstream_pool import (
    CLOSED,
    HANGS,
    NONSENSE,
    OK,
    REFUSED,
    World,
    ask,
    assert_idle,
    call,
    status,
    world,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LATE_CONNECT = Told(before=[ConnectTimeout("late")])


# Choosing


async def test_shares_follow_the_weights_and_take_turns() -> None:
    here = world({"a": 3, "b": 1})
    order = []
    for _ in range(8):
        before = here.calls()
        await ask(here, call())
        order.append(next(name for name, count in here.calls().items() if count != before.get(name, 0)))
    assert order == ["a", "a", "b", "a"] * 2


async def test_other_models_go_to_the_default_backend() -> None:
    here = world()
    await ask(here, call("gpt-4o"))
    await ask(here, call("", body=b""))
    assert here.calls() == {"default": 2}


async def test_a_body_in_hand_tells_the_model_that_the_call_does_not() -> None:
    here = world({"a": 1})
    await ask(here, call("", body=b'{"model": "m1"}', target="/v1/moderations"))
    await ask(here, call("", method="GET", body=b"", target="/v1/models/m2"))
    await ask(here, call("", body=b"--b\r\n\r\nmodel"))
    assert here.calls() == {"a": 2, "default": 1}


async def test_a_streamed_body_without_a_model_goes_to_the_default_backend_untouched() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b'{"model": "m"}'

    here, streamed = world(), body()
    await ask(here, call("", body=streamed))
    assert here.backends["default"].calls[0].body is streamed


async def test_an_alias_becomes_the_model_it_stands_for_and_nothing_else_changes() -> None:
    here = world({"a": 1}, aliases={"fast": "m-1"})
    body = (
        b'{ "messages" : [{"content":"h\\u00e9 \\ud83d\\ude00"}], "model": "fast","x":1e2, "big":12345678901234567890 }'
    )
    await ask(here, call("fast", body=body))
    [sent] = here.backends["a"].calls
    assert sent.body == (
        b'{"messages":[{"content":"h\\u00e9 \\ud83d\\ude00"}],"model":"m-1","x":1e2,"big":12345678901234567890}'
    )
    await ask(here, call("", method="GET", body=b"", target="/v1/models/fast?x=1"))
    assert here.backends["a"].calls[1].target == "/v1/models/m-1?x=1"


async def test_a_body_that_is_no_object_is_sent_as_it_is_under_an_alias() -> None:
    here = world({"a": 1}, aliases={"fast": "m-1"})
    for body in (b"[1]", b"{", b"", b'{"no": "model"}'):
        await ask(here, call("fast", body=body))
    assert [one.body for one in here.backends["a"].calls] == [b"[1]", b"{", b"", b'{"no": "model"}']


async def test_a_backend_without_room_is_passed_over() -> None:
    here = world({"a": 100, "b": 1}, running=1)
    first, second = await here.pool.send(call()), await here.pool.send(call())
    assert here.calls() == {"a": 1, "b": 1}
    for answer in (first, second):
        async with answer:
            pass
    assert_idle(here)


# Health


async def test_five_failures_in_a_row_take_a_backend_out_and_a_trial_brings_it_back() -> None:
    here = world()
    here.backends["a"].always(status(500))
    answers = Counter([await ask(here, call()) for _ in range(60)])
    assert answers == {500: 5, 200: 55}
    assert next(state.state for state in here.pool.states() if state.name == "a") == "ejected"
    here.clock.advance(30)
    answers = Counter([await ask(here, call()) for _ in range(20)])
    assert answers == {500: 1, 200: 19}
    here.clock.advance(59)
    assert {await ask(here, call()) for _ in range(10)} == {200}
    here.backends["a"].always(OK)
    here.clock.advance(1)
    before = here.calls()["a"]
    await asyncio.gather(*(ask(here, call()) for _ in range(10)))
    assert here.calls()["a"] > before
    assert {state.state for state in here.pool.states()} == {"ok"}


@pytest.mark.parametrize("failure", [HANGS, CLOSED, NONSENSE, status(503)])
async def test_every_kind_of_failure_before_the_first_byte_counts(failure: Told) -> None:
    here = world()
    here.backends["a"].always(failure)
    for _ in range(30):
        await ask(here, call())
    assert here.asked["a"].ejection.opened == 1


@pytest.mark.parametrize("code", [200, 302, 400, 401, 404, 422, 429])
async def test_an_answer_that_blames_the_caller_is_no_failure(code: int) -> None:
    here = world()
    here.backends["a"].always(status(code))
    for _ in range(60):
        await ask(here, call())
    assert here.asked["a"].ejection.opened == 0


async def test_a_caller_whose_own_body_breaks_off_takes_nobody_out() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"half"

    here = world()
    for backend in here.backends.values():
        backend.always(CLOSED)
    for _ in range(30):
        await ask(here, call(body=body()))
    assert {one.ejection.opened for one in here.asked.values()} == {0}


async def test_when_all_are_out_the_one_closest_to_its_return_is_asked_anyway() -> None:
    here = world()
    here.backends["a"].always(status(500))
    for _ in range(10):
        await ask(here, call())
    here.clock.advance(10)
    here.backends["b"].always(status(500))
    for _ in range(5):
        await ask(here, call())
    assert all(here.asked[name].out(here.clock.monotonic(), "") for name in "ab")
    here.backends["a"].always(OK)
    before = here.calls()["b"]
    assert [await ask(here, call()) for _ in range(10)] == [200] * 10
    assert here.calls()["b"] == before


async def test_a_lone_backend_is_never_taken_out_by_what_it_answers() -> None:
    here = world({"a": 1})
    here.backends["a"].always(status(500))
    assert {await ask(here, call()) for _ in range(50)} == {500}
    here.backends["a"].always(REFUSED)
    assert {await ask(here, call()) for _ in range(50)} == {UpstreamUnreachable}
    here.backends["a"].always(status(429, retry_after="30"))
    assert {await ask(here, call()) for _ in range(5)} == {429}


async def test_connections_that_time_out_open_the_breaker_of_a_lone_backend() -> None:
    here = world({"a": 1})
    here.backends["a"].always(LATE_CONNECT)
    assert [await ask(here, call()) for _ in range(5)] == [ConnectTimeout] * 5
    with pytest.raises(UpstreamBusy) as refusal:
        await here.pool.send(call())
    assert (refusal.value.status, refusal.value.retry_after_s) == (503, 1)
    assert here.calls() == {"a": 5}
    here.clock.advance(1)
    assert [await ask(here, call()) for _ in range(3)] == [ConnectTimeout, UpstreamBusy, UpstreamBusy]
    here.clock.advance(2)
    here.backends["a"].always(OK)
    assert [await ask(here, call()) for _ in range(3)] == [200] * 3


async def test_refused_connections_open_no_breaker() -> None:
    here = world({"a": 1})
    here.backends["a"].play(*[LATE_CONNECT, REFUSED] * 20)
    assert UpstreamBusy not in {await ask(here, call()) for _ in range(40)}


# Cool-down


async def test_a_rate_limited_backend_is_left_alone_for_as_long_as_it_asks() -> None:
    here = world()
    here.backends["a"].play(status(429, retry_after_ms="1500", retry_after="2"))
    assert await ask(here, call()) == 429
    assert [await ask(here, call()) for _ in range(5)] == [200] * 5
    assert here.calls() == {"a": 1, "b": 5}
    here.clock.advance(1.5)
    await ask(here, call())
    await ask(here, call())
    assert here.calls()["a"] == 2


async def test_a_cool_down_is_capped_at_a_minute() -> None:
    here = world()
    here.backends["a"].play(status(429, retry_after="86400"))
    await ask(here, call())
    here.clock.advance(60)
    for _ in range(2):
        await ask(here, call())
    assert here.calls()["a"] == 2


async def test_the_limit_on_one_callers_key_moves_nobody_elses_requests() -> None:
    here = world(per_caller=True)
    here.backends["a"].play(status(429, retry_after="30"))
    await ask(here, call(tenant="greedy"))
    for _ in range(4):
        await ask(here, call(tenant="greedy"))
    assert here.calls() == {"a": 1, "b": 4}
    for _ in range(4):
        await ask(here, call(tenant="other"))
    assert here.calls()["a"] >= 3


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"Retry-After": " 7 "}, 7),
        ({"retry-after": "7", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "Fri, 15 Jan 2027 08:00:30 GMT"}, 30),
        ({"retry-after": "Fri, 15 Jan 2027 07:00:00 GMT"}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "\u00b2"}, None),
        ({"retry-after": "9" * 400}, 999999999),
        ({"retry-after-ms": "nan"}, None),
        ({}, None),
    ],
)
def test_what_an_answer_asks_for_is_read_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers.items(), FakeClock().now()) == seconds


# The list of models


def listing(*models: str) -> Told:
    data = ",".join(f'{{"id":"{model}","object":"model","owned_by":"x"}}' for model in models)
    return Told(
        headers=(("content-type", "application/json"), ("content-length", "1"), ("x-request-id", "r")),
        steps=[f'{{"object":"list","data":[{data}],"extra":1}}'.encode()],
    )


LIST = call("", method="GET", body=b"", target="/v1/models?limit=5")


async def listed(here: World) -> tuple[int, list[str], tuple[tuple[str, str], ...]]:
    answer = await here.pool.send(LIST)
    async with answer:
        body = msgspec.json.decode(b"".join([chunk async for chunk in answer.chunks()]))
    return answer.status, [entry["id"] for entry in body["data"]], answer.headers


async def test_the_list_of_models_is_what_callers_can_ask_for() -> None:
    here = world(aliases={"fast": "m-1", "plain": "gpt-4o"})
    here.backends["default"].play(listing("gpt-4o", "m-1"))
    here.backends["a"].play(listing("m-1", "m-2", "foreign"))
    here.backends["b"].play(listing("m-2", "m-3"))
    code, models, headers = await listed(here)
    assert (code, models) == (200, ["gpt-4o", "m-1", "m-2", "m-3", "fast", "plain"])
    assert headers == (("content-type", "application/json"), ("x-request-id", "r"))
    assert_idle(here)


@pytest.mark.parametrize("failure", [REFUSED, HANGS, status(500), Told(steps=[b"<html>"]), Told(steps=[b"[]"])])
async def test_a_backend_that_fails_is_left_out_of_the_list(failure: Told) -> None:
    here = world()
    here.backends["default"].play(listing("gpt-4o"))
    here.backends["a"].play(failure)
    here.backends["b"].play(listing("m-2"))
    assert (await listed(here))[1] == ["gpt-4o", "m-2"]


async def test_what_the_default_backend_refuses_is_refused() -> None:
    here = world()
    here.backends["default"].play(status(401, x_why="key"))
    answer = await here.pool.send(LIST)
    async with answer:
        assert (answer.status, answer.headers) == (401, (("x-why", "key"),))
        assert [chunk async for chunk in answer.chunks()] == [b"401"]
    here.backends["default"].play(REFUSED)
    with pytest.raises(UpstreamUnreachable):
        await here.pool.send(LIST)


async def test_with_one_backend_the_list_passes_through_untouched() -> None:
    here = world({})
    here.backends["default"].play(Told(steps=[b'{ "data" : 1 }']))
    answer = await here.pool.send(LIST)
    async with answer:
        assert [chunk async for chunk in answer.chunks()] == [b'{ "data" : 1 }']
    assert here.backends["default"].calls == [LIST]


# Telling how busy they are


async def test_a_backend_that_is_out_is_not_among_those_that_may_be_asked() -> None:
    here = world()
    assert here.pool.backends("m1") == ("a", "b")
    assert here.pool.backends("other") == ("default",)
    here.backends["a"].always(status(429, retry_after="5"))
    await asyncio.gather(*(ask(here, call()) for _ in range(2)))
    assert here.pool.backends("m1") == ("b",)
    here.backends["b"].always(status(429, retry_after="5"))
    await ask(here, call())
    assert here.pool.backends("m1") == ("a", "b")  # all are out: whoever is asked, it is one of them


async def test_recent_latency_is_told_once_enough_answers_came_and_only_for_half_a_minute() -> None:
    here = world({"a": 1})
    for _ in range(7):
        assert await ask(here, call()) == 200
    assert {state.name: state.p95_ms for state in here.pool.states()}["a"] == 0.0
    slow = asyncio.Event()
    here.backends["a"].play(Told(before=[slow], status=200, steps=[b"{}"]))
    waiting = asyncio.create_task(ask(here, call()))
    await asyncio.sleep(0)
    here.clock.advance(3.0)
    slow.set()
    assert await waiting == 200
    found = {state.name: state for state in here.pool.states()}["a"]
    assert found.p95_ms == pytest.approx(3000.0)
    assert found.limit == 100
    here.clock.advance(31.0)
    assert {state.name: state.p95_ms for state in here.pool.states()}["a"] == 0.0


async def test_a_model_has_no_place_left_once_all_its_backends_would_turn_a_tenant_away() -> None:
    here = world(running=1, waiting=0)
    permits = []
    for name in here.pool.backends("m1"):
        assert not here.pool.full("m1", "t")
        permits.append(await here.asked[name].queue.acquire("t"))
    assert here.pool.full("m1", "t")
    assert not here.pool.full("other", "t")
    permits[0].release()
    assert not here.pool.full("m1", "t")
    permits[1].release()


async def test_the_place_of_a_lookup_is_kept_at_the_backend_that_has_most_to_spare() -> None:
    here = world(running=1, waiting=0)
    first, second = (here.asked[name].queue for name in here.pool.backends("m1"))
    permit = await first.acquire("t")
    known = [here.pool.expect("m1", "t") for _ in range(2)]
    assert (first.load, second.load) == (1.0, 2.0)
    for one in known:
        one(False)
    permit.release()
    assert (first.load, second.load) == (0.0, 0.0)
