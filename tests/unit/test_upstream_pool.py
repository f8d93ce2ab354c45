"""The pool's decisions: who is asked, who is asked next, and when nobody is. Backends in this process, a fake clock."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from cacheproxy.configure import load
from cacheproxy.errors import (
    ConnectTimeout,
    UpstreamBroken,
    UpstreamBusy,
    UpstreamClosed,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from cacheproxy.ports import Call
from cacheproxy.upstream.backend import Backend, retry_after_s
from cacheproxy.upstream.budget import RetryBudget
from cacheproxy.upstream.pool import UpstreamPool
from cacheproxy.upstream.queue import FairQueue, Limits
from cacheproxy.upstream.route import Routes
from tests.support import backend as inprocess
from tests.support.backend import Told
from tests.support.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REFUSED = Told(before=[UpstreamUnreachable("refused")])
LATE_CONNECT = Told(before=[ConnectTimeout("late")])
CLOSED = Told(before=[UpstreamClosed("closed")])
HANGS = Told(before=[UpstreamTimeout("hangs")])
NONSENSE = Told(before=[UpstreamBroken("nonsense")])
OK = Told(steps=[b"ok"])


def status(code: int, **headers: str) -> Told:
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Told(status=code, headers=named, steps=[b"%d" % code])


@dataclass
class World:
    """A pool over backends that do as they are told."""

    pool: UpstreamPool
    clock: FakeClock
    backends: dict[str, inprocess.Backend]
    asked: dict[str, Backend]
    pauses: list[float] = field(default_factory=list)

    def calls(self) -> dict[str, int]:
        return {name: len(backend.calls) for name, backend in self.backends.items() if backend.calls}

    def earn(self, retries: int) -> None:
        for _ in range(10 * retries):
            self.pool._budget.earn()


def world(
    weights: dict[str, int] | None = None,
    *,
    running: int = 100,
    waiting: int = 100,
    per_caller: bool = False,
    aliases: dict[str, str] | None = None,
) -> World:
    names = weights if weights is not None else {"a": 1, "b": 1}
    tables = {name: {"url": "http://x/v1", "models": ["m*"], "weight": weight} for name, weight in names.items()}
    routes = Routes(load(None, environ={}, flags={"upstreams": tables, "aliases": aliases or {}}))
    clock = FakeClock()
    backends = {name: inprocess.Backend() for name in ("default", *names)}
    limits = Limits(running=running, waiting=waiting, wait_s=10)
    asked = {
        name: Backend(
            name, backend, FairQueue(limits, clock), clock, shared=name in routes.shared, per_caller=per_caller
        )
        for name, backend in backends.items()
    }
    for backend in backends.values():
        backend.always(OK)
    return World(
        pool=UpstreamPool(routes, asked, clock, RetryBudget(), pause_s=lambda: 0.0),
        clock=clock,
        backends=backends,
        asked=asked,
    )


def call(model: str = "m", **fields: Any) -> Call:
    given: dict[str, Any] = {"method": "POST", "target": "/v1/chat/completions", "headers": (), "body": b"{}", **fields}
    return Call(model=model, **given)


def repeatable(model: str = "m", **fields: Any) -> Call:
    return call(model, repeatable=True, **fields)


async def ask(here: World, one: Call) -> int | type[UpstreamError]:
    """Ask and read; return the status, or the class of the error."""
    try:
        answer = await here.pool.send(one)
    except UpstreamError as exc:
        return type(exc)
    async with answer:
        async for _ in answer.chunks():
            pass
        return answer.status


def assert_idle(here: World) -> None:
    assert {state.running for state in here.pool.states()} == {0}
    assert {backend.open for backend in here.backends.values()} == {0}


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


# A second attempt


@pytest.mark.parametrize("failure", [CLOSED, *map(status, (500, 502, 503, 504, 529))])
async def test_a_repeatable_call_is_tried_once_more_elsewhere_within_the_budget(failure: Told) -> None:
    here = world()
    here.earn(1)
    here.backends["a"].always(failure)
    here.backends["b"].always(OK)
    assert await ask(here, repeatable()) == 200
    assert here.calls() == {"a": 1, "b": 1}
    assert_idle(here)


@pytest.mark.parametrize(
    ("one", "failure"),
    [
        (call(), status(500)),
        (call(), CLOSED),
        (repeatable(), HANGS),
        (repeatable(), NONSENSE),
        (repeatable(), status(501)),
        (repeatable(), status(400)),
        (call(method="PUT"), status(503)),
    ],
)
async def test_what_may_have_had_an_effect_or_cannot_help_is_not_repeated(one: Call, failure: Told) -> None:
    here = world()
    here.earn(10)
    here.backends["a"].always(failure)
    await ask(here, one)
    assert here.calls() == {"a": 1}
    assert_idle(here)


async def test_reading_calls_are_repeated() -> None:
    here = world()
    here.earn(1)
    here.backends["a"].always(status(503))
    assert await ask(here, call(method="GET", body=b"")) == 200


async def test_a_streamed_body_is_never_sent_twice() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"x"

    here = world()
    here.earn(10)
    for failure in (REFUSED, CLOSED, status(503)):
        here.backends["a"].play(failure)
        here.backends["b"].play(failure)
        await ask(here, repeatable(body=body()))
    assert sum(here.calls().values()) == 3


async def test_without_a_budget_nothing_is_repeated() -> None:
    here = world()
    here.backends["a"].play(status(503))
    assert await ask(here, repeatable()) == 503
    assert here.calls() == {"a": 1}


async def test_a_lone_backend_is_asked_again_after_a_pause() -> None:
    here = world({"a": 1}, running=1)
    here.earn(3)
    here.backends["a"].play(status(503), OK, CLOSED, OK, status(503), status(500))
    assert [await ask(here, repeatable()) for _ in range(3)] == [200, 200, 500]
    assert_idle(here)


async def test_a_lone_backend_that_asks_for_time_or_refuses_is_not_asked_again() -> None:
    here = world({"a": 1})
    here.earn(10)
    here.backends["a"].play(status(503, retry_after="1"), status(429), REFUSED)
    assert [await ask(here, repeatable()) for _ in range(3)] == [503, 429, UpstreamUnreachable]
    assert here.calls() == {"a": 3}


async def test_a_rate_limit_is_answered_by_another_backend_or_not_at_all() -> None:
    here = world()
    here.earn(10)
    here.backends["a"].play(status(429, retry_after="5"))
    assert await ask(here, repeatable()) == 200
    for backend in here.backends.values():
        backend.always(status(429))
    assert await ask(here, repeatable()) == 429


async def test_a_refused_connection_costs_no_budget_and_any_held_body_goes_elsewhere() -> None:
    here = world()
    here.backends["a"].always(REFUSED)
    assert {await ask(here, call()) for _ in range(30)} == {200}
    assert here.calls()["a"] == 5
    assert_idle(here)


async def test_when_the_second_fares_no_better_the_first_answer_is_the_answer() -> None:
    here = world()
    here.earn(10)
    here.backends["a"].play(status(503, x_from="a"))
    here.backends["b"].play(NONSENSE)
    answer = await here.pool.send(repeatable())
    async with answer:
        assert (answer.status, answer.headers) == (503, (("x-from", "a"),))
    assert_idle(here)


async def test_an_answer_that_breaks_off_is_never_continued_from_another_backend() -> None:
    here = world()
    here.earn(10)
    here.backends["a"].play(Told(steps=[b"half", UpstreamBroken("cut")]))
    async with await here.pool.send(repeatable()) as answer:
        chunks = answer.chunks()
        assert await anext(chunks) == b"half"
        with pytest.raises(UpstreamBroken):
            await anext(chunks)
    assert here.calls() == {"a": 1}
    assert_idle(here)


@pytest.mark.parametrize("turns", range(8))
async def test_cancelling_at_any_time_leaks_nothing(turns: int) -> None:
    never = asyncio.Event()
    here = world(running=1)
    here.earn(10)
    here.backends["a"].always(status(503))
    here.backends["b"].always(Told(before=[never]))
    tasks = [asyncio.create_task(ask(here, repeatable())) for _ in range(6)]
    for _ in range(turns):
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert_idle(here)
    assert {state.waiting for state in here.pool.states()} == {0}


async def test_half_of_all_answers_failing_costs_a_tenth_more_requests_at_most() -> None:
    here = world({"a": 1})
    here.backends["a"].play(*[status(503), OK] * 3000)
    for _ in range(3000):
        await ask(here, repeatable())
    assert here.calls()["a"] <= 3300


async def test_a_permit_is_held_until_the_answer_is_closed() -> None:
    here = world({"a": 1}, running=1, waiting=0)
    answer = await here.pool.send(call())
    assert await ask(here, call()) is UpstreamBusy
    async with answer:
        assert await ask(here, call()) is UpstreamBusy
    assert await ask(here, call()) == 200


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
