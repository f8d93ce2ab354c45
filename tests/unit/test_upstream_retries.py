"""Several backends: when a call is tried a second time, and when never."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from cacheproxy.errors import (
    UpstreamBroken,
    UpstreamBusy,
    UpstreamUnreachable,
)
from tests.support.backend import Told
from tests.support.upstream_pool import CLOSED, HANGS, NONSENSE, OK, REFUSED, ask, assert_idle, call, status, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cacheproxy.ports import Call


def repeatable(model: str = "m", **fields: Any) -> Call:
    return call(model, repeatable=True, **fields)


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
