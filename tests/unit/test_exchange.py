"""An exchange: work for a caller ends when the caller leaves, and leaves nothing behind in the task that did it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cacheproxy.errors import UpstreamBroken
from cacheproxy.http.door import Door
from cacheproxy.http.exchange import CallerGone, Exchange
from cacheproxy.settings import Server


class Caller:
    """A caller without a body, who leaves when told to."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self._asked = False
        self.exchange = Exchange({"headers": []}, self._receive, self._send, Door(Server(), 8))

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: object) -> None:
        raise AssertionError(message)


@pytest.fixture
async def caller() -> Caller:
    caller = Caller()
    assert await caller.exchange.body(0) == b""
    return caller


async def _later() -> str:
    await asyncio.sleep(0.001)
    return "done"


async def test_work_for_a_caller_who_stays_returns_what_it_returns(caller: Caller) -> None:
    assert await caller.exchange.while_caller_stays(_later()) == "done"


async def test_work_for_a_caller_who_leaves_is_cancelled_and_its_task_goes_on(caller: Caller) -> None:
    async def work() -> None:
        caller.gone.set()
        await asyncio.Event().wait()

    with pytest.raises(CallerGone):
        await caller.exchange.while_caller_stays(work())
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)  # and nothing cancels it once more


@pytest.mark.parametrize("answer", [UpstreamBroken("x"), "returned"], ids=["raises", "returns"])
async def test_whatever_work_makes_of_its_cancellation_the_caller_is_gone(
    caller: Caller, answer: Exception | str
) -> None:
    async def work() -> str:
        caller.gone.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if isinstance(answer, Exception):
                raise answer from None
        return "returned"

    with pytest.raises(CallerGone):
        await caller.exchange.while_caller_stays(work())


async def test_work_that_ends_as_its_caller_leaves_is_not_cancelled_afterwards(caller: Caller) -> None:
    async def work() -> str:
        await asyncio.sleep(0)
        caller.gone.set()
        return "done"

    assert await caller.exchange.while_caller_stays(work()) == "done"
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_is_cancelled_from_outside_is_cancelled_and_no_caller_left(caller: Caller) -> None:
    async def work() -> None:
        await asyncio.Event().wait()

    task = asyncio.ensure_future(caller.exchange.while_caller_stays(work()))
    await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_deadline_within_the_work_is_no_leaving(caller: Caller) -> None:
    async def work() -> None:
        async with asyncio.timeout(0.001):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await caller.exchange.while_caller_stays(work())
