"""Several backends behind one proxy: who is asked, with whose key, and what callers see when one fails."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from cacheproxy.errors import ConfigError
from tests.support.openai_wire import DONE, MODEL, completion, encode, events
from tests.support.polling import eventually_true
from tests.support.ports import free_port
from tests.support.proxy import Proxy, proxy_settings, started
from tests.support.rawhttp import Connection, request_bytes
from tests.support.upstream import CUT, Hold, Received, ScriptedUpstream, Step, answer, stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

KEY = "sk-the-callers-own"
A_KEY, B_KEY = "sk-key-of-a", "sk-key-of-b"
CREDENTIALS = {
    "authorization": f"Bearer {KEY}",
    "api-key": KEY,
    "x-api-key": KEY,
    "x-goog-api-key": KEY,
    "openai-organization": "org-x",
    "openai-project": "proj-x",
    "cookie": f"session={KEY}",
}


@dataclass(frozen=True, kw_only=True)
class World:
    """One proxy before three backends: the default one, and `a` and `b` for the models `m*`."""

    proxy: Proxy
    default: ScriptedUpstream
    a: ScriptedUpstream
    b: ScriptedUpstream

    @property
    def calls(self) -> tuple[int, int, int]:
        return self.default.calls, self.a.calls, self.b.calls


@asynccontextmanager
async def world(
    tmp_path: Path, *, a: dict[str, Any] | None = None, b: dict[str, Any] | None = None, **sections: Any
) -> AsyncIterator[World]:
    async with ScriptedUpstream() as default, ScriptedUpstream() as first, ScriptedUpstream() as second:
        tables = {
            "a": {"url": first.url, "models": ["m*"], **(a or {})},
            "b": {"url": second.url, "models": ["m*"], **(b or {})},
        }
        sections = {"store": {"url": "memory://"}, **sections}
        settings = proxy_settings(default.url, tmp_path, upstreams=tables, **sections)
        async with started(settings) as proxy:
            yield World(proxy=proxy, default=default, a=first, b=second)


def asking(number: int, model: str = "m1", **fields: Any) -> dict[str, Any]:
    """Return a question that no other number's answer can serve: earlier messages are matched exactly."""
    apart = {"role": "system", "content": str(number)}
    return {"model": model, "messages": [apart, {"role": "user", "content": "What is its square root?"}], **fields}


# Routing


async def test_models_go_where_their_patterns_say(tmp_path: Path) -> None:
    async with world(tmp_path, b={"models": ["m2*", "exact"], "weight": 3}) as here:
        for number, model in enumerate(["gpt-4o", "m1", "m2-x", "exact", "exactly"]):
            assert (await here.proxy.ask(asking(number, model), key=KEY)).status == 200
        assert here.calls == (2, 1, 2)
        for kind, where in (("application/json; charset=utf-8", here.b), ("text/plain", here.default)):
            before = where.calls
            body = b'{ "model":"m2-y", "input": "\xc3\xa9" }'
            await here.proxy.call("POST", "/v1/moderations", {"content-type": kind}, body)
            assert where.calls == before + 1
            assert where.requests[-1].body == body


async def test_an_alias_is_asked_for_under_its_real_name_in_every_form(tmp_path: Path) -> None:
    async with world(tmp_path, aliases={"fast": "quick", "quick": "m1"}, b={"models": ["other"]}) as here:
        for form in ({}, {"stream": True}, {"tools": [{"type": "function", "function": {"name": "f"}}]}):
            assert (await here.proxy.ask(asking(1, "fast", **form), key=KEY)).status == 200
            assert here.a.requests[-1].json()["model"] == "m1"
        no_store = {"cache-control": "no-store"}
        assert (await here.proxy.ask(asking(2, "fast"), key=KEY, headers=no_store)).status == 200
        assert here.a.requests[-1].json() == asking(2, "m1")
        body = encode({"model": "fast", "input": "x"})
        await here.proxy.call("POST", "/v1/moderations", {"content-type": "application/json"}, body)
        assert here.a.requests[-1].json() == {"model": "m1", "input": "x"}


async def test_answers_of_different_routes_are_never_exchanged(tmp_path: Path) -> None:
    """The same question to one name before and after it means another model: what was kept for the old is not found."""
    key = "sk-same"
    async with ScriptedUpstream() as backend:
        flat = proxy_settings(backend.url, tmp_path)
        async with started(flat) as proxy:
            await proxy.fill(asking(1, "fast"), key=key)
            assert (await proxy.ask(asking(1, "fast"), key=key)).outcome == "hit"
        for sections in (
            {"aliases": {"fast": "other"}},
            {"upstreams": {"a": {"url": backend.url, "models": ["fast"]}}},
            {"upstreams": {"b": {"url": backend.url, "models": ["fast"]}}},
        ):
            async with started(proxy_settings(backend.url, tmp_path, **sections)) as proxy:
                assert (await proxy.ask(asking(1, "fast"), key=key)).outcome == "miss"
        async with started(flat) as proxy:
            assert (await proxy.ask(asking(1, "fast"), key=key)).outcome == "hit"


async def test_the_list_of_models_is_merged(tmp_path: Path) -> None:
    async with world(tmp_path, aliases={"fast": "m1"}) as here:
        here.a.play(answer({"object": "list", "data": [{"id": "m1", "object": "model"}, {"id": "zzz"}]}))
        here.b.play([CUT])
        listed = await here.proxy.call("GET", "/v1/models", {"authorization": f"Bearer {KEY}"})
        assert [entry["id"] for entry in listed.json()["data"]] == [MODEL, "m1", "fast"]
        assert here.calls == (1, 1, 1)
        head = await here.proxy.call("HEAD", "/v1/models")
        assert (head.status, head.body, here.calls) == (200, b"", (2, 1, 1))
        here.default.play(answer({"error": "no"}, status=401))
        assert (await here.proxy.call("GET", "/v1/models")).status == 401


# Keys (row 25)


def credentials(received: Received) -> dict[str, str]:
    return {name.lower(): value for name, value in received.headers if name.lower() in CREDENTIALS}


@pytest.mark.parametrize("target", ["/v1/chat/completions", "/v1/moderations"])
@pytest.mark.parametrize(
    ("keys", "sent"),
    [
        ({}, {}),
        ({"api_key": A_KEY}, {"authorization": f"Bearer {A_KEY}"}),
        ({"pass_key": True}, CREDENTIALS),
    ],
    ids=["no key", "its own", "the caller's"],
)
async def test_a_backend_gets_its_own_key_or_the_callers_only_where_that_is_said(
    tmp_path: Path, keys: dict[str, Any], sent: dict[str, str], target: str
) -> None:
    async with world(tmp_path, a=keys, b={"models": ["other"], "api_key": B_KEY}) as here:
        for headers in (CREDENTIALS, {**CREDENTIALS, "cache-control": "no-store"}):
            response = await here.proxy.ask(asking(1), key=None, headers=headers, target=target)
            assert response.status == 200
        await here.proxy.ask(asking(2, "gpt-4o"), key=None, headers=CREDENTIALS, target=target)
        assert [credentials(one) for one in here.a.requests] == [sent] * len(here.a.requests)
        assert here.a.requests
        assert credentials(here.default.requests[0]) == CREDENTIALS


async def test_a_failover_takes_no_key_along(tmp_path: Path) -> None:
    async with world(tmp_path, a={"api_key": A_KEY}, b={"api_key": B_KEY}) as here:
        for number in range(60):
            await here.proxy.ask(asking(number), key=KEY)
        here.a.always(answer({}, status=503))
        for number in range(60, 70):
            assert (await here.proxy.ask(asking(number), key=KEY)).status == 200
        assert {one.header("authorization") for one in here.a.requests} == {f"Bearer {A_KEY}"}
        assert {one.header("authorization") for one in here.b.requests} == {f"Bearer {B_KEY}"}
        listing = await here.proxy.call("GET", "/v1/models", CREDENTIALS)
        assert listing.status == 200
        for backend, key in ((here.a, A_KEY), (here.b, B_KEY), (here.default, KEY)):
            assert backend.requests[-1].header("authorization") == f"Bearer {key}"


async def test_keys_appear_nowhere_callers_or_operators_can_see(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with world(
        tmp_path, a={"api_key": A_KEY, "url": f"http://127.0.0.1:{free_port()}"}, b={"api_key": B_KEY}
    ) as here:
        here.b.always([CUT])
        told = [(await here.proxy.ask(asking(number), key=KEY)).body for number in range(6)]
        async with await Connection.open(here.proxy.admin_url) as connection:
            connection.send(request_bytes("GET", "/metrics"))
            told.append((await connection.read_response("GET")).body)
        told.append((await here.proxy.call("GET", "/readyz")).body)
        shown = capsys.readouterr()
        whole = b"".join(told) + shown.out.encode() + shown.err.encode()
        assert not [key for key in (KEY, A_KEY, B_KEY) if key.encode() in whole]


# Failing backends


@pytest.mark.parametrize("body", [{}, {"stream": True}], ids=["whole", "streamed"])
async def test_a_dead_backend_is_made_up_for_by_the_other(tmp_path: Path, body: dict[str, Any]) -> None:
    async with world(tmp_path, a={"url": f"http://127.0.0.1:{free_port()}"}) as here:
        for number in range(20):
            assert (await here.proxy.ask(asking(number, **body), key=KEY)).status == 200
        for number in range(20):
            response = await here.proxy.call(
                "POST", "/v1/x", {"content-type": "application/json"}, encode(asking(number))
            )
            assert response.status == 200
        assert here.calls == (0, 0, 40)
        ready = await here.proxy.call("GET", "/readyz")
        assert (ready.status, ready.json()["upstreams"]) == (200, {"default": "ok", "a": "ejected", "b": "ok"})


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ({"temperature": 1}, {}),
        ({}, {"cache-control": "no-store"}),
        ({}, {"x-cacheproxy-tier": "off"}),
        ({"stream": True, "temperature": 1}, {}),
    ],
    ids=repr,
)
async def test_what_is_not_cached_is_made_up_for_as_well(
    tmp_path: Path, body: dict[str, Any], headers: dict[str, str]
) -> None:
    async with world(tmp_path) as here:
        for number in range(20):
            assert (await here.proxy.ask(asking(number), key=KEY)).status == 200
        here.a.play(answer({"error": {}}, status=503))
        for number in (20, 21):
            assert (await here.proxy.ask(asking(number, **body), key=KEY, headers=headers)).status == 200
        assert sum(here.calls) == 23


async def test_a_stream_that_breaks_off_is_never_continued_by_another_backend(tmp_path: Path) -> None:
    """Row 52: cut at every event, the caller gets one backend's bytes or none."""
    parts = events("one two three")
    async with world(tmp_path) as here:
        here.b.always(stream(*events("OTHER")))
        for number in range(1, len(parts)):
            here.a.play(stream(*parts[:number], CUT))
        cut = 0
        for number in range(2 * len(parts) - 2):
            live = await here.proxy.ask(asking(number, stream=True), key=KEY)
            if not live.complete:
                cut += 1
                assert live.body == b"".join(parts[: live.body.count(b"data:")])
                assert DONE not in live.body
            else:
                assert live.content == "OTHER"
        assert cut == len(parts) - 1


async def test_a_backend_that_closes_before_answering_is_made_up_for_within_the_budget(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.a.always([CUT])
        statuses = [(await here.proxy.ask(asking(number), key=KEY)).status for number in range(40)]
        assert statuses[:1] == [502]
        assert statuses.count(502) <= 5
        assert statuses[-20:] == [200] * 20
        assert sum(here.calls) <= 44


async def test_flapping_backends_cost_a_tenth_more_requests_at_most(tmp_path: Path) -> None:
    """Row 51."""
    asked = 500

    def flap(received: Received) -> list[Step]:
        number = int(received.json()["messages"][0]["content"])
        return answer({"error": {}}, status=503) if number % 2 else answer(completion("ok"))

    async with world(tmp_path) as here:
        for backend in (here.default, here.a, here.b):
            backend.always(flap)
        for model in ("m1", "gpt-4o"):
            before = sum(here.calls)
            for start in range(0, asked, 50):
                await asyncio.gather(*(here.proxy.ask(asking(start + number, model), key=KEY) for number in range(50)))
            assert asked <= sum(here.calls) - before <= 1.1 * asked


async def test_a_rate_limited_backend_is_left_alone_and_the_limit_is_told(tmp_path: Path) -> None:
    """Row 33."""
    async with world(tmp_path, a={"api_key": A_KEY}, b={"api_key": B_KEY}) as here:
        limited = answer({"error": {"message": "slow down"}}, status=429, headers=[("retry-after", "30")])
        here.a.always(limited)
        first = await here.proxy.ask(asking(0), key=KEY)
        assert (first.status, first.get("retry-after")) == (429, "30")
        assert [(await here.proxy.ask(asking(n), key=KEY)).status for n in range(1, 9)] == [200] * 8
        assert (here.a.calls, here.b.calls) == (1, 8)
        here.b.always(limited)
        assert (await here.proxy.ask(asking(9), key=KEY)).status == 429
        assert not await here.proxy.cached(asking(0), key=KEY)


# Queue


async def queued(proxy: Proxy, count: int) -> None:
    """Wait until so many wait for a place at the backend."""

    async def reached() -> bool:
        async with await Connection.open(proxy.admin_url) as connection:
            connection.send(request_bytes("GET", "/metrics"))
            told = (await connection.read_response("GET")).body.decode()
        return f'cacheproxy_upstream_waiting{{upstream="default"}} {count}.0\n' in told

    await eventually_true(reached, f"{count} wait")


async def test_a_hanging_backend_gives_its_place_back(tmp_path: Path) -> None:
    """Row 36."""
    limits = {"max_concurrency": 2, "first_byte_timeout_s": 0.3}
    async with ScriptedUpstream() as backend, started(proxy_settings(backend.url, tmp_path, upstream=limits)) as proxy:
        backend.play(*[[Hold(asyncio.Event())]] * 2)
        hung = [asyncio.create_task(proxy.ask(asking(n), key=KEY)) for n in range(2)]
        await backend.received(2)
        waited = await proxy.ask(asking(3), key=KEY)
        assert waited.status == 200
        assert {(await one).status for one in hung} == {504}


async def test_a_full_queue_sheds_quickly_and_says_when_to_come_back(tmp_path: Path) -> None:
    never = asyncio.Event()
    limits = {"max_concurrency": 1, "queue": 4}
    async with ScriptedUpstream() as backend, started(proxy_settings(backend.url, tmp_path, upstream=limits)) as proxy:
        backend.always([Hold(never), *answer(completion("late"))])
        waiting = [asyncio.create_task(proxy.ask(asking(n), key=f"sk-{n}")) for n in range(5)]
        await backend.received(1)
        await queued(proxy, 4)
        began_s = time.monotonic()
        for target in ("/v1/chat/completions", "/v1/moderations"):
            shed = await proxy.ask(asking(9), key="sk-9", target=target)
            shed.assert_problem(503, "upstream_busy")
            assert int(shed.get("retry-after") or 0) >= 1
        assert time.monotonic() - began_s < 5, "nobody waited"
        never.set()
        assert {(await one).status for one in waiting} == {200}


async def test_who_waits_too_long_in_the_queue_is_told(tmp_path: Path) -> None:
    limits = {"max_concurrency": 1, "queue_timeout_s": 0.2}
    async with ScriptedUpstream() as backend, started(proxy_settings(backend.url, tmp_path, upstream=limits)) as proxy:
        never = asyncio.Event()
        backend.play([Hold(never), *answer(completion("late"))])
        first = asyncio.create_task(proxy.ask(asking(1), key=KEY))
        await backend.received(1)
        late = await proxy.ask(asking(2), key=KEY)
        late.assert_problem(503, "upstream_busy")
        assert late.get("retry-after") is not None
        never.set()
        assert (await first).status == 200


async def test_a_caller_who_leaves_the_queue_is_never_sent_to_the_backend(tmp_path: Path) -> None:
    limits = {"max_concurrency": 1}
    async with ScriptedUpstream() as backend, started(proxy_settings(backend.url, tmp_path, upstream=limits)) as proxy:
        never = asyncio.Event()
        backend.play([Hold(never), *answer(completion("late"))])
        first = asyncio.create_task(proxy.ask(asking(1), key=KEY))
        await backend.received(1)
        leaver = await proxy.post(asking(2), key=KEY)
        stayer = asyncio.create_task(proxy.ask(asking(3), key=KEY))
        await queued(proxy, 2)
        leaver.leave()
        await queued(proxy, 1)
        never.set()
        assert [(await first).status, (await stayer).status] == [200, 200]
        assert [one.json()["messages"] for one in backend.requests] == [asking(n)["messages"] for n in (1, 3)]


async def test_a_tenant_who_floods_delays_anothers_request_by_its_share_only(tmp_path: Path) -> None:
    """Row 93: eighty of one tenant wait for two places; the other's request is answered as the next but few."""
    limits = {"max_concurrency": 2, "queue": 400}
    async with ScriptedUpstream() as backend, started(proxy_settings(backend.url, tmp_path, upstream=limits)) as proxy:
        gate = asyncio.Event()
        backend.always(lambda _: [Hold(gate), *answer(completion("x"))])
        flood = [asyncio.create_task(proxy.ask(asking(n), key="sk-flood")) for n in range(80)]
        await backend.received(2)
        await queued(proxy, 78)
        quiet = [asyncio.create_task(proxy.ask(asking(1000 + n), key="sk-quiet")) for n in range(3)]
        await queued(proxy, 81)
        gate.set()
        assert {one.status for one in await asyncio.gather(*flood, *quiet)} == {200}
        order = [one.header("authorization") for one in backend.requests]
        positions = [place for place, key in enumerate(order) if key == "Bearer sk-quiet"]
        assert positions[-1] <= 2 + 2 * 3


# Start


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"upstreams": {"b": {"url": "http://u:p@b.test", "models": ["m"]}}}, "upstreams.b.url"),
        ({"upstreams": {"b": {"url": "file:///x", "models": ["m"]}}}, "upstreams.b.url"),
        ({"upstreams": {"b": {"url": "http://b.test", "models": ["m"], "weight": 0}}}, "upstreams.b.weight"),
        ({"aliases": {"a": "b", "b": "a"}}, "aliases.a"),
    ],
)
async def test_a_configuration_that_cannot_work_stops_the_start_by_its_key(
    tmp_path: Path, sections: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        async with started(proxy_settings("http://127.0.0.1:9/v1", tmp_path, **sections)):
            pass
    assert named in refusal.value.message


async def test_a_backend_that_is_the_proxy_itself_stops_the_start(tmp_path: Path) -> None:
    port = free_port()
    tables = {"b": {"url": f"http://localhost:{port}/v1", "models": ["m"]}}
    settings = proxy_settings("http://127.0.0.1:9/v1", tmp_path, server={"port": port}, upstreams=tables)
    with pytest.raises(ConfigError, match=r"^upstreams\.b\.url"):
        async with started(settings):
            pass


async def test_every_backend_has_its_figures(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.proxy.ask(asking(1), key=KEY)
        async with await Connection.open(here.proxy.admin_url) as connection:
            connection.send(request_bytes("GET", "/metrics"))
            told = (await connection.read_response("GET")).body.decode()
        for name in ("default", "a", "b"):
            for metric in ("out", "running", "waiting", "shed_total", "ejections_total", "retries_total"):
                assert f'cacheproxy_upstream_{metric}{{upstream="{name}"}} 0.0' in told
        assert 'cacheproxy_upstream_first_byte_seconds_count{upstream="a"} 1.0' in told
