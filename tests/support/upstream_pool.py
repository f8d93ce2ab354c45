"""Several scripted backends behind one pool, on a clock that is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cacheproxy.configure import load
from cacheproxy.errors import (
    UpstreamBroken,
    UpstreamClosed,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from cacheproxy.ports import Call
from cacheproxy.upstream.backend import Backend
from cacheproxy.upstream.budget import RetryBudget
from cacheproxy.upstream.pool import UpstreamPool
from cacheproxy.upstream.queue import FairQueue, Limits
from cacheproxy.upstream.route import Routes
from tests.support import backend as inprocess
from tests.support.backend import Told
from tests.support.clock import FakeClock

REFUSED = Told(before=[UpstreamUnreachable("refused")])
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
