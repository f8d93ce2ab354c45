"""Every sequence of tests/sequences, against a real proxy and a scripted backend, with time under the test's hand."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import pytest_asyncio

from tests.support import openai_wire
from tests.support.cachestatus import parse_cache_status
from tests.support.clock import FakeClock
from tests.support.packs import changed_pack
from tests.support.polling import eventually
from tests.support.proxy import Answered, answered, proxy_settings
from tests.support.rawhttp import Connection, request_bytes
from tests.support.sequences import sequences

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cacheproxy.serving import Running
    from tests.support.sequences import Expect, Run, Turn
    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

RUNS = sequences()
ALWAYS = ("outcome", "category", "reason", "lookup-ms", "saved-usd", "model", "coalesced")
ON_HITS = ("tier", "entry")

Rooms = dict[tuple[tuple[str, float], ...], "Room"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A proxy with a pack, and the clock that it goes by."""

    live: Running
    clock: FakeClock


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rooms(module_upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rooms]:
    """One proxy for each pack that the sequences ask for. Cases are kept apart by their keys: a key is a tenant."""
    from cacheproxy.serving import running  # heavy

    async with AsyncExitStack() as stack:
        found: Rooms = {}
        for pack in sorted({run.pack for run in RUNS}):
            policies = {"pack": str(changed_pack(tmp_path_factory.mktemp("pack"), **dict(pack)))}
            data_dir, clock = tmp_path_factory.mktemp("data"), FakeClock()
            settings = proxy_settings(module_upstream.url, data_dir, policies=policies)
            live = await stack.enter_async_context(running(settings, clock))
            found[pack] = Room(live=live, clock=clock)
        yield found


@pytest.mark.parametrize("run", RUNS, ids=[run.name for run in RUNS])
async def test_sequence(rooms: Rooms, upstream: ScriptedUpstream, run: Run) -> None:
    room, keys = rooms[run.pack], uuid4().hex
    answers: list[Answered] = []
    for number, turn in enumerate(run.case.steps, start=1):
        room.clock.advance(turn.advance_s)
        before = upstream.calls
        upstream.always(lambda request, turn=turn: turn.backend.steps(request, upstream.calls))
        answers.append(await ask(room, turn, key=f"sk-{keys}-{turn.request.tenant}", streamed=run.streamed))
        await eventually(lambda: room.live.pipeline.flights.aloft == 0, "every exchange has settled")
        try:
            assert_sound(answers[-1], turn)
            assert_met(turn.expect, answers, upstream.calls - before)
        except AssertionError as exc:
            raise AssertionError(f"step {number}: {exc}\n{answers[-1].status} {answers[-1].headers}") from exc


async def ask(room: Room, turn: Turn, *, key: str, streamed: bool) -> Answered:
    headers = [("content-type", "application/json"), ("authorization", f"Bearer {key}"), *turn.request.sent()]
    body = openai_wire.encode(turn.request.body(streamed))
    async with await Connection.open(room.live.url) as connection:
        connection.send(request_bytes("POST", turn.request.path, headers, body))
        return answered(await connection.read_response())


def assert_sound(got: Answered, turn: Turn) -> None:
    """What every answer promises, whatever the step is about."""
    for name in ALWAYS:
        assert got.get(f"x-cacheproxy-{name}") is not None, f"x-cacheproxy-{name} is missing"
    members = parse_cache_status(", ".join(got.all("cache-status")))
    assert [member.cache for member in members].count("cacheproxy") == 1
    own, hit = members[-1], got.outcome == "hit"
    assert own.cache == "cacheproxy"
    stands_in = own.parameters.get("detail") == "stale-if-error"
    assert own.hit is (hit and not stands_in)
    assert (own.forwarded is not None) or own.hit or got.status >= 400
    assert hit or "age" in turn.backend.headers or got.get("age") is None
    if hit:
        assert re.fullmatch("[0-9]+", got.get("age") or "")
        assert all(got.get(f"x-cacheproxy-{name}") for name in ON_HITS)
        assert isinstance(own.parameters.get("ttl"), int) is not stands_in
        assert got.get("cache-control") == "private"
        assert got.all("set-cookie") == []
        assert got.status == 200
    if got.tier == "semantic":
        assert float(got.get("x-cacheproxy-similarity") or 0) >= float(got.get("x-cacheproxy-threshold") or 2)


def assert_met(expect: Expect, answers: list[Answered], calls: int) -> None:
    got = answers[-1]
    assert got.complete is not expect.broken
    assert got.status == expect.status
    if expect.code is not None:
        assert got.json()["error"]["code"] == expect.code
    for name in ("outcome", "tier", "reason"):
        wanted = getattr(expect, name)
        assert wanted is None or getattr(got, name) == wanted, f"{name}: {getattr(got, name)!r}"
    assert expect.age is None or int(got.get("age") or -1) == expect.age
    told = got.cache_status.parameters
    assert {name: told.get(name) for name in expect.cache_status} == expect.cache_status
    assert [name for name in expect.without if name in told] == []
    for name, value in expect.headers.items():
        assert got.all(name) == ([value] if isinstance(value, str) else value), f"{name}: {got.all(name)}"
    assert [name for name in expect.no_headers if got.all(name)] == []
    if expect.same_as is not None:
        assert got.content == answers[expect.same_as - 1].content
    assert expect.calls is None or calls == expect.calls, f"calls: {calls}"
