"""Equal questions at the same time are one question to the backend."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
import pytest_asyncio

from tests.support.openai_wire import DONE, completion, events
from tests.support.polling import eventually, eventually_true
from tests.support.proxy import Answered, answered, chat, proxy_settings, started
from tests.support.rawhttp import Truncated
from tests.support.upstream import CUT, RESET, Hold, Step, answer, stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.proxy import Proxy
    from tests.support.rawhttp import Connection
    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

FORMS = pytest.mark.parametrize("form", [{}, {"stream": True}], ids=["whole", "streamed"])
LEAVING = pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
EVENTS = events("one two three four")
TEXT = "one two three four"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def proxy(module_upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Proxy]:
    """A proxy that never asks its backend a second time by itself: here, a leader that fails is to fail."""
    settings = proxy_settings(module_upstream.url, tmp_path_factory.mktemp("data"), upstream={"retry_percent": 0})
    async with started(settings) as live:
        yield live


async def read(connection: Connection) -> Answered:
    response = await connection.read_response()
    connection.leave()
    return answered(response)


async def arrived(proxy: Proxy) -> None:
    """Return once the proxy has looked up what was sent before: it has looked up something that was sent later."""
    for _ in range(2):
        later = await proxy.ask(chat(), key=f"sk-later-{uuid4().hex}", headers={"cache-control": "only-if-cached"})
        assert later.status == 504


async def test_a_thousand_equal_misses_make_one_call(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    release = asyncio.Event()
    upstream.always([Hold(release), *answer(completion(TEXT))])
    connections = await asyncio.gather(*(proxy.post(chat(), key=key) for _ in range(1000)))
    await upstream.received(1)
    await arrived(proxy)
    release.set()
    answers = await asyncio.gather(*map(read, connections))
    assert upstream.calls == 1
    assert {(one.status, one.content) for one in answers} == {(200, TEXT)}
    assert sum("collapsed" in one.cache_status.parameters for one in answers) >= 900


async def test_a_hundred_followers_of_a_stream_get_its_bytes_as_they_come(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    release = asyncio.Event()
    upstream.always(stream(*EVENTS[:3], Hold(release), *EVENTS[3:]))
    exchanges = await asyncio.gather(*(proxy.begin(chat(stream=True), key=key) for _ in range(100)))
    early = await asyncio.gather(*(exchange.until(EVENTS[2]) for exchange in exchanges))
    assert {bytes(one) for one in early} == {b"".join(EVENTS[:3])}
    release.set()
    answers = await asyncio.gather(*(exchange.rest() for exchange in exchanges))
    assert {(one.complete, one.body) for one in answers} == {(True, b"".join(EVENTS))}
    assert upstream.calls == 1


async def test_a_late_follower_gets_the_stream_from_its_start(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    release = asyncio.Event()
    upstream.always(stream(*EVENTS[:5], Hold(release), *EVENTS[5:]))
    leader = await proxy.begin(chat(stream=True), key=key)
    await leader.until(EVENTS[4])
    follower = await proxy.begin(chat(stream=True), key=key)
    assert await follower.until(EVENTS[4]) == b"".join(EVENTS[:5])
    name = "x-cacheproxy-coalesced"
    assert follower.head.get(name) != leader.head.get(name)
    release.set()
    assert (await leader.rest()).body == (await follower.rest()).body == b"".join(EVENTS)
    assert upstream.calls == 1


async def test_a_slow_reader_does_not_hold_up_the_others(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    release = asyncio.Event()
    told = events("word " * 20_000)
    whole = b"".join(told)
    upstream.always(stream(*told[:2], Hold(release), *told[2:]))
    slow, fast = [await proxy.begin(chat(stream=True), key=key) for _ in range(2)]
    for exchange in (slow, fast):
        await exchange.until(told[1])
    slow.connection.pause()
    release.set()
    quick = await fast.rest()
    assert (quick.complete, quick.body) == (True, whole)
    slow.connection.resume()
    late = await slow.rest()
    assert late.body == whole if late.complete else whole.startswith(late.body)
    assert upstream.calls == 1


@LEAVING
@FORMS
async def test_followers_are_served_when_the_leaders_client_leaves(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, form: dict[str, Any], reset: bool
) -> None:
    release = asyncio.Event()
    steps = stream(*EVENTS[:3], Hold(release), *EVENTS[3:]) if form else [Hold(release), *answer(completion(TEXT))]
    upstream.always(steps)
    leader = await proxy.post(chat(**form), key=key)
    await upstream.received(1)
    follower = await proxy.post(chat(**form), key=key)
    await arrived(proxy)
    leader.leave(reset=reset)
    await arrived(proxy)
    release.set()
    followed = await read(follower)
    assert (followed.status, followed.complete, followed.content) == (200, True, TEXT)
    assert upstream.calls == 1
    await eventually_true(lambda: proxy.cached(chat(), key=key), "the followers' answer is kept")


FAILURES: dict[str, tuple[list[Step], int]] = {
    "cut by FIN": ([CUT], 502),
    "cut by RST": ([RESET], 502),
    "500": (answer({"error": {"message": "no", "type": "t", "param": None, "code": None}}, status=500), 500),
    "429": (answer({"error": {"message": "no", "type": "t", "param": None, "code": None}}, status=429), 429),
}


@FORMS
@pytest.mark.parametrize(("failure", "status"), FAILURES.values(), ids=FAILURES)
async def test_a_failed_leader_hands_over_to_exactly_one_follower(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, failure: list[Step], status: int, form: dict[str, Any]
) -> None:
    release = asyncio.Event()
    upstream.play([Hold(release), *failure])
    upstream.always(stream(*EVENTS) if form else answer(completion(TEXT)))
    leader = await proxy.post(chat(**form), key=key)
    await upstream.received(1)
    followers = [await proxy.post(chat(**form), key=key) for _ in range(20)]
    await arrived(proxy)
    release.set()
    answers = await asyncio.gather(*map(read, [leader, *followers]))
    # The leader gets his own failure, or what a follower has brought home by the time he looks again.
    assert answers[0].status in (status, 200)
    assert [one.status for one in answers[1:]] == [200] * 20
    assert {one.content for one in answers[1:]} == {TEXT}
    assert upstream.calls == 2


async def test_a_stream_that_breaks_breaks_for_everyone_who_had_its_bytes(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    release = asyncio.Event()
    upstream.play(stream(*EVENTS[:3], Hold(release), CUT))
    exchanges = [await proxy.begin(chat(stream=True), key=key) for _ in range(5)]
    for exchange in exchanges:
        await exchange.until(EVENTS[2])
    release.set()
    answers = [await exchange.rest() for exchange in exchanges]
    assert {(one.complete, one.body) for one in answers} == {(False, b"".join(EVENTS[:3]))}
    assert upstream.calls == 1
    await proxy.settled(key)
    assert not await proxy.cached(chat(), key=key)


@FORMS
async def test_tenants_never_share_a_flight(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, other_key: str, form: dict[str, Any]
) -> None:
    release = asyncio.Event()
    for number in range(2):
        text = f"for {number}"
        upstream.play([Hold(release), *(stream(*events(text)) if form else answer(completion(text)))])
    mine = await proxy.post(chat(**form), key=key)
    await upstream.received(1)
    theirs = await proxy.post(chat(**form), key=other_key)
    await upstream.received(2)
    release.set()
    answers = [await read(mine), await read(theirs)]
    assert [one.content for one in answers] == ["for 0", "for 1"]
    assert not any("collapsed" in one.cache_status.parameters for one in answers)
    assert [request.header("authorization") for request in upstream.requests] == [
        f"Bearer {key}",
        f"Bearer {other_key}",
    ]


APART: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "another field": ({"seed": 1}, {}),
    "another namespace": ({}, {"x-cacheproxy-namespace": "n"}),
    "a refresh": ({}, {"cache-control": "no-cache"}),
}


@pytest.mark.parametrize(("fields", "headers"), APART.values(), ids=APART)
async def test_different_questions_fly_apart(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, fields: dict[str, Any], headers: dict[str, str]
) -> None:
    release = asyncio.Event()
    upstream.always([Hold(release), *answer(completion(TEXT))])
    first = await proxy.post(chat(), key=key)
    await upstream.received(1)
    second = await proxy.post(chat(**fields), key=key, headers=headers)
    await upstream.received(2)
    release.set()
    assert [(await read(connection)).status for connection in (first, second)] == [200, 200]


@LEAVING
@pytest.mark.parametrize("readers", [1, 3])
@FORMS
async def test_the_last_reader_leaving_cancels_the_backend_and_nothing_is_kept(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, form: dict[str, Any], readers: int, reset: bool
) -> None:
    release = asyncio.Event()
    steps = stream(*EVENTS[:3], Hold(release), *EVENTS[3:]) if form else [Hold(release), *answer(completion(TEXT))]
    upstream.play(steps)
    connections = [await proxy.post(chat(**form), key=key) for _ in range(readers)]
    request = await upstream.received(1)
    await arrived(proxy)
    if form:
        await (await connections[0].exchange()).until(EVENTS[2])
    for connection in connections[:-1]:
        connection.leave(reset=reset)
    await arrived(proxy)
    assert request.client_left_s is None
    left_s = time.monotonic()
    connections[-1].leave(reset=reset)
    await eventually(lambda: request.client_left_s is not None, "the backend is cancelled", within_s=1.0)
    assert (request.client_left_s or 0) - left_s < 1.0
    release.set()
    await proxy.settled(key)
    assert not await proxy.cached(chat(), key=key)
    assert upstream.calls == 2


@LEAVING
@pytest.mark.parametrize("after", range(1, len(EVENTS)))
async def test_a_client_leaving_after_any_event_cancels_the_backend(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, after: int, reset: bool
) -> None:
    upstream.play(stream(*EVENTS[:after], Hold(asyncio.Event())))
    exchange = await proxy.begin(chat(stream=True), key=key)
    await exchange.until(b"".join(EVENTS[:after]))
    exchange.leave(reset=reset)
    request = await upstream.received(1)
    await eventually(lambda: request.client_left_s is not None, "the backend is cancelled", within_s=1.0)
    assert not await proxy.cached(chat(), key=key)
    assert (await proxy.ask(chat(stream=True), key=key)).outcome == "miss"


async def test_a_client_that_leaves_after_the_answer_loses_nothing(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    exchange = await proxy.begin(chat(stream=True), key=key)
    await exchange.until(DONE)
    exchange.leave(reset=True)
    await proxy.settled(key)
    assert await proxy.cached(chat(), key=key)


@pytest.mark.parametrize("then", [{}, {"stream": True}], ids=["then whole", "then streamed"])
@FORMS
async def test_an_answer_that_was_read_to_its_end_is_a_hit_at_once(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, form: dict[str, Any], then: dict[str, Any]
) -> None:
    exact = {"x-cacheproxy-tier": "exact"}
    for number in range(20):
        live = await proxy.ask(chat(f"Question {number}", **form), key=key, headers=exact)
        again = await proxy.ask(chat(f"Question {number}", **then), key=key, headers=exact)
        assert (again.outcome, again.content) == ("hit", live.content)
    assert upstream.calls == 20


async def test_forms_in_one_flight_each_get_their_own(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    release = asyncio.Event()
    held = {True: stream(*EVENTS), False: answer(completion(TEXT))}
    upstream.always(lambda request: [Hold(release), *held[request.json().get("stream") is True]])
    asked: list[dict[str, Any]] = [{}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}]
    connections = [await proxy.post(chat(**fields), key=key) for fields in asked]
    await upstream.received(1)
    await arrived(proxy)
    release.set()
    answers = [await read(connection) for connection in connections]
    assert [(one.status, one.streamed, one.content) for one in answers] == [
        (200, False, TEXT),
        (200, True, TEXT),
        (200, True, TEXT),
    ]


async def test_a_broken_answer_is_never_a_clean_end_for_a_follower(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    release = asyncio.Event()
    upstream.play(stream(*EVENTS[:2], Hold(release), RESET))
    leader = await proxy.begin(chat(stream=True), key=key)
    await leader.until(EVENTS[1])
    follower = await proxy.begin(chat(stream=True), key=key)
    release.set()
    with pytest.raises(Truncated):
        await follower.until(DONE)
    leader.leave()
    follower.leave()


@FORMS
async def test_a_follower_gets_nothing_that_was_meant_for_the_leader_alone(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, form: dict[str, Any]
) -> None:
    own = [("set-cookie", "session=1"), ("x-request-id", "leader"), ("x-ratelimit-remaining-tokens", "7")]
    release = asyncio.Event()
    steps = stream(*EVENTS, headers=own) if form else answer(completion(TEXT), headers=own)
    upstream.play([Hold(release), *steps])
    connections = [await proxy.post(chat(**form), key=key) for _ in range(2)]
    await upstream.received(1)
    await arrived(proxy)
    release.set()
    leader, follower = sorted(
        [await read(one) for one in connections], key=lambda one: one.get("x-cacheproxy-coalesced") or ""
    )
    assert [leader.get(name) for name, _ in own] == [value for _, value in own]
    assert [follower.get(name) for name, _ in own] == [None, None, None]


async def test_a_follower_of_a_stream_that_stalls_at_its_head_goes_alone(
    upstream: ScriptedUpstream, tmp_path: Path, key: str
) -> None:
    settings = proxy_settings(upstream.url, tmp_path, flight={"coalesce_timeout_s": 0.2})
    async with started(settings) as proxy:
        upstream.play(stream(Hold(asyncio.Event())), stream(*EVENTS))
        leader = await proxy.begin(chat(stream=True), key=key)
        alone = await proxy.ask(chat(stream=True), key=key)
        assert (alone.status, alone.content, upstream.calls) == (200, TEXT, 2)
        leader.leave()
