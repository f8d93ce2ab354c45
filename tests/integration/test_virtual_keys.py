"""Virtual keys, from outside: who is let in, under which tenant, with what to the backend, and how much."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import date
from typing import TYPE_CHECKING, Any

import openai
import pytest
import pytest_asyncio

from cacheproxy.access.keeper import read_spent
from cacheproxy.app import assemble
from cacheproxy.errors import ConfigError
from tests.support import openai_wire
from tests.support.polling import eventually_true
from tests.support.proxy import CHAT, QUESTION, Answered, Proxy, chat, proxy_settings, started
from tests.support.rawhttp import Connection, request_bytes
from tests.support.upstream import Hold, answer, stream
from tests.support.virtual_keys import KeyFile, keyed_proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from cacheproxy.flight import Flight
    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

BACKEND_KEY = "sk-backend-of-the-operator"
Headers = Mapping[str, str]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keyed")


@pytest.fixture(scope="module")
def keys(data_dir: Path) -> KeyFile:
    return KeyFile(data_dir)


@pytest.fixture(scope="module")
def made(keys: KeyFile) -> dict[str, str]:
    """Keys of every kind, by what is special about them."""
    return {
        "good": keys.add(),
        "other": keys.add(),
        "expired": keys.add(expires=date(2020, 1, 1)),
        "revoked": keys.add(revoked=True),
        "restricted": keys.add(models=("gpt-4o-mini", "text-*")),
        "keyed": keys.add(upstream_key_env="TEST_UPSTREAM_KEY"),
        "rpm": keys.add(requests_per_minute=3),
        "tpm": keys.add(tokens_per_minute=10),
        "day": keys.add(tokens_per_day=10),
        "roomy": keys.add(requests_per_minute=600, tokens_per_minute=100_000),
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def keyed(module_upstream: ScriptedUpstream, data_dir: Path, made: dict[str, str]) -> AsyncIterator[Proxy]:
    assert made
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_UPSTREAM_KEY", "sk-backend-of-one-caller")
        async with keyed_proxy(module_upstream.url, data_dir, upstream={"api_key": BACKEND_KEY}) as live:
            yield live


def bearer(key: str) -> Headers:
    return {"authorization": f"Bearer {key}"}


ROUTES: dict[str, tuple[str, str, Any]] = {
    "chat": ("POST", CHAT, chat()),
    "chat stream": ("POST", CHAT, chat(stream=True)),
    "chat, not cacheable": ("POST", CHAT, chat(n=2)),
    "completions": ("POST", "/v1/completions", {"model": "gpt-4o-mini", "prompt": "Hi"}),
    "responses": ("POST", "/v1/responses", {"model": "gpt-4o-mini", "input": "Hi"}),
    "embeddings": ("POST", "/v1/embeddings", {"model": "text-embedding-3-small", "input": "Hi"}),
    "feedback": ("POST", "/v1/cache/feedback", {"id": "chatcmpl-1", "verdict": "bad"}),
    "models": ("GET", "/v1/models", None),
    "passed through": ("POST", "/v1/moderations", {"model": "omni", "input": "Hi"}),
    "no such route": ("DELETE", "/v1/nothing/here?api_key=x", None),
    "trailing slash": ("POST", f"{CHAT}/", chat()),
    "method of no use": ("PUT", CHAT, chat()),
}


async def send(proxy: Proxy, route: str, headers: Headers) -> Answered:
    method, target, body = ROUTES[route]
    sent = {**headers, **({"content-type": "application/json"} if body is not None else {})}
    return await proxy.call(method, target, sent, None if body is None else openai_wire.encode(body))


REFUSED: dict[str, Any] = {
    "no key": lambda made: {},
    "an empty key": lambda made: {"authorization": "Bearer "},
    "an unknown key": lambda made: bearer("sk-cp-" + "A" * 43),
    "the backend's key": lambda made: bearer(BACKEND_KEY),
    "an expired key": lambda made: bearer(made["expired"]),
    "a revoked key": lambda made: bearer(made["revoked"]),
    "a key in upper case": lambda made: bearer(made["good"].upper()),
    "a key cut short": lambda made: bearer(made["good"][:-1]),
    "a key as a user": lambda made: {"authorization": f"Basic {made['good']}"},
    "a tenant's name": lambda made: {"x-tenant": "key1", "x-cacheproxy-tenant": "key1"},
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("carried", REFUSED)
async def test_without_a_key_in_force_nothing_is_served(
    keyed: Proxy, upstream: ScriptedUpstream, made: dict[str, str], route: str, carried: str
) -> None:
    response = await send(keyed, route, REFUSED[carried](made))
    error = response.assert_problem(401, "invalid_api_key")
    assert error["type"] == "invalid_request_error"
    assert response.get("www-authenticate") == "Bearer"
    assert upstream.calls == 0
    for key in (*made.values(), BACKEND_KEY):
        assert key not in response.body.decode()


@pytest.mark.parametrize("route", ROUTES)
async def test_two_keys_or_two_headers_are_a_bad_request(
    keyed: Proxy, upstream: ScriptedUpstream, made: dict[str, str], route: str
) -> None:
    method, target, body = ROUTES[route]
    data = None if body is None else openai_wire.encode(body)
    for pairs in (
        [*bearer(made["good"]).items(), ("api-key", made["other"])],
        [*bearer(made["good"]).items(), *bearer(made["good"]).items()],
    ):
        async with await Connection.open(keyed.url) as connection:
            connection.send(request_bytes(method, target, [("content-type", "application/json"), *pairs], data))
            response = await connection.read_response(method)
        assert response.status == 400
        assert "sk-cp" not in response.body.decode()
    assert upstream.calls == 0


@pytest.mark.parametrize("route", [name for name in ROUTES if name != "feedback"])
@pytest.mark.parametrize("carrier", ["authorization", "Authorization", "api-key", "x-api-key", "lower-case scheme"])
async def test_a_good_key_is_let_in_and_only_the_backends_own_goes_on(
    keyed: Proxy, upstream: ScriptedUpstream, made: dict[str, str], route: str, carrier: str
) -> None:
    key = made["good"]
    forms = {"api-key": key, "x-api-key": key}
    carried = {carrier: forms.get(carrier, f"Bearer {key}")}
    if carrier == "lower-case scheme":
        carried = {"authorization": f"bearer {key}"}
    more = {"openai-organization": "org-caller", "openai-project": "proj-caller", "cache-control": "no-cache"}
    response = await send(keyed, route, {**carried, **more})
    assert response.status < 400 or route in ("no such route", "method of no use"), response.body[:300]
    assert upstream.calls == 1
    received = upstream.requests[0]
    assert [value for name, value in received.headers if name.lower() == "authorization"] == [f"Bearer {BACKEND_KEY}"]
    names = {name.lower() for name, _ in received.headers}
    assert not names & {"api-key", "x-api-key", "openai-organization", "openai-project"}
    assert key not in repr(received)


async def test_a_callers_own_upstream_key_comes_before_the_backends(
    keyed: Proxy, upstream: ScriptedUpstream, made: dict[str, str]
) -> None:
    for route in ("chat", "chat stream", "models", "passed through"):
        await send(keyed, route, {**bearer(made["keyed"]), "cache-control": "no-cache"})
    sent = {request.header("authorization") for request in upstream.requests}
    assert sent == {"Bearer sk-backend-of-one-caller"}
    assert upstream.calls == 4


async def test_without_any_upstream_key_none_is_sent(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    key = KeyFile(tmp_path).add()
    async with keyed_proxy(upstream.url, tmp_path) as proxy:
        assert (await proxy.ask(chat(), key=key)).status == 200
        assert (await proxy.call("GET", "/v1/models", bearer(key))).status == 200
    assert [request.header("authorization") for request in upstream.requests] == [None, None]


async def test_health_needs_no_key(keyed: Proxy) -> None:
    assert (await keyed.call("GET", "/healthz")).status == 200
    assert (await keyed.call("GET", "/readyz")).status == 200


async def test_the_official_client_raises_its_own_errors(keyed: Proxy, made: dict[str, str]) -> None:
    async with openai.AsyncOpenAI(api_key="sk-cp-nobody", base_url=f"{keyed.url}/v1", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()
    restricted = openai.AsyncOpenAI(api_key=made["restricted"], base_url=f"{keyed.url}/v1", max_retries=0)
    async with restricted as client:
        with pytest.raises(openai.PermissionDeniedError):
            await client.chat.completions.create(model="o1", messages=[{"role": "user", "content": "Hi"}])


# Tenants


async def test_a_rotated_key_keeps_its_hits_and_the_old_one_is_refused(
    keyed: Proxy, upstream: ScriptedUpstream, keys: KeyFile
) -> None:
    old = keys.add(id="rotated", tenant="rotating")
    await eventually_admitted(keyed, old)
    await keyed.fill(chat("What rotates?"), key=old)
    new = keys.add(tenant="rotating")
    keys.revoke("rotated")
    await eventually_admitted(keyed, new)
    hit = await keyed.ask(chat("What rotates?"), key=new)
    assert (hit.outcome, hit.tier) == ("hit", "exact")
    assert (await keyed.ask(chat("What rotates?"), key=old)).status == 401
    assert upstream.calls >= 1


async def test_keys_of_different_tenants_share_nothing(
    keyed: Proxy, upstream: ScriptedUpstream, made: dict[str, str]
) -> None:
    question = chat("Who shares?")
    await keyed.fill(question, key=made["good"])
    upstream.reset()
    for more in ({}, {"x-tenant": "key1"}, {"x-cacheproxy-namespace": ""}, {"x-forwarded-user": "key1"}):
        probe = {**more, "cache-control": "no-store"}
        response = await keyed.ask(question, key=made["other"], headers={n: v for n, v in probe.items() if v})
        assert response.outcome != "hit", more
    assert (await keyed.ask(question, key=made["good"], headers={"x-tenant": "key2"})).outcome == "hit"


async def test_pass_mode_ignores_headers_that_claim_a_tenant(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, other_key: str
) -> None:
    await proxy.fill(chat(), key=key)
    for claim in ({"x-tenant": key}, {"x-tenant-id": key}, {"x-forwarded-user": key}, {"x-consumer": key}):
        probe = {**claim, "cache-control": "no-store"}
        assert (await proxy.ask(chat(), key=other_key, headers=probe)).outcome == "miss"
        assert (await proxy.ask(chat(), key=key, headers=claim)).outcome == "hit"
        assert (await proxy.ask(chat(), key=None, headers=claim)).outcome == "bypass"
    assert upstream.calls


# Models


@pytest.mark.parametrize(
    ("method", "target", "headers", "body", "status"),
    [
        ("POST", CHAT, {}, chat("Restricted?"), 200),
        ("POST", CHAT, {}, chat("Restricted?", model="gpt-4o"), 403),
        ("POST", CHAT, {}, {"messages": []}, 403),
        ("POST", CHAT, {}, chat(model=["gpt-4o-mini"]), 403),
        ("POST", "/v1/embeddings", {}, {"model": "text-embedding-3-small", "input": "Hi"}, 200),
        ("POST", "/v1/embeddings", {}, {"model": "other", "input": "Hi"}, 403),
        ("POST", "/v1/moderations", {}, {"model": "text-moderation-latest", "input": "Hi"}, 200),
        ("POST", "/v1/moderations", {}, {"model": "omni-moderation-latest", "input": "Hi"}, 403),
        ("POST", "/v1/moderations", {}, {"input": "Hi"}, 403),
        ("POST", f"{CHAT}/", {}, chat(model="gpt-4o"), 403),
        ("PUT", CHAT, {}, chat(model="gpt-4o"), 403),
        ("POST", CHAT, {}, chat(models=["gpt-4o-mini", "o3"]), 403),
        ("POST", CHAT, {}, chat(models="o3"), 403),
        ("POST", CHAT, {}, chat(fallbacks=[{"model": "o3"}]), 403),
        ("POST", CHAT, {}, chat(tools=[{"type": "image_generation", "model": "gpt-image-1"}]), 403),
        ("POST", CHAT, {}, chat(Model="o3"), 403),
        ("POST", "/v1/moderations", {}, {"model": "text-a", "MODEL": "o3"}, 403),
        ("POST", CHAT, {}, chat(model="gpt-4o-mini\x00"), 403),
        ("POST", f"{CHAT}?model=o3", {}, chat(), 403),
        ("GET", "/v1/realtime?model=o3", {}, None, 403),
        ("POST", "/v1/engines/o3/completions", {}, {"model": "text-a", "prompt": "x"}, 403),
        ("POST", "/v1/batches", {}, {"model": "text-a", "input_file_id": "f"}, 403),
        ("POST", "/v1/moderations", {}, b'{"model": "text-moderation-latest", "model": "omni"}', 403),
        ("POST", "/v1/moderations", {}, b'{"model": "text-moderation-latest", ', 403),
        ("POST", "/v1/moderations", {"content-type": "text/plain"}, {"model": "text-a"}, 403),
        ("POST", "/v1/moderations", {"content-encoding": "gzip"}, {"model": "text-a"}, 403),
        ("POST", "/v1/moderations", {}, {"model": "text-a", "input": "x" * 1_100_000}, 403),
        ("POST", "/v1/files", {"content-type": "multipart/form-data; boundary=b"}, b"--b--", 403),
        ("GET", "/v1/models", {}, None, 200),
        ("GET", "/v1/models", {}, {"model": "gpt-4o"}, 403),
        ("DELETE", "/v1/models/mine", {}, None, 403),
    ],
)
async def test_a_key_for_certain_models_reaches_no_other(
    keyed: Proxy,
    upstream: ScriptedUpstream,
    made: dict[str, str],
    method: str,
    target: str,
    headers: Headers,
    body: Any,
    status: int,
) -> None:
    data = body if isinstance(body, bytes | None) else openai_wire.encode(body)
    typed = {"content-type": "application/json"} if data is not None else {}
    response = await keyed.call(method, target, {**typed, **headers, **bearer(made["restricted"])}, data)
    assert response.status == status, response.body[:300]
    if status == 403:
        response.assert_problem(403, "model_not_allowed")
        assert upstream.calls == 0
    else:
        assert upstream.calls == 1
        assert data is None or upstream.requests[0].body == data


async def test_a_model_that_is_not_allowed_is_not_served_from_the_cache_either(keyed: Proxy, keys: KeyFile) -> None:
    wide, narrow = keys.add(tenant="wide"), keys.add(tenant="wide", models=("small-*",))
    await eventually_admitted(keyed, narrow)
    await keyed.fill(chat("Cached?"), key=wide)
    assert (await keyed.ask(chat("Cached?"), key=narrow)).status == 403


# Limits


def rates(response: Answered) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers if name.lower().startswith("x-ratelimit-")}


async def test_requests_over_the_limit_are_told_when_to_come_back(
    keyed: Proxy, upstream: ScriptedUpstream, made: dict[str, str]
) -> None:
    key = made["rpm"]
    assert (await keyed.ask(chat("Rate?"), key=key)).status == 200
    assert (await keyed.ask(chat("Rate?"), key=key)).status == 200
    third = await keyed.call("GET", "/v1/models", bearer(key))
    assert rates(third)["x-ratelimit-remaining-requests"] == "0"
    calls = upstream.calls
    for route in ("chat", "chat stream", "models", "passed through", "feedback"):
        response = await send(keyed, route, bearer(key))
        error = response.assert_problem(429, "rate_limit_exceeded")
        assert error["type"] == "requests"
        assert 0 < int(response.get("retry-after") or 0) <= 20
        assert 0 < int(response.get("retry-after-ms") or 0) <= 20_000
        assert rates(response)["x-ratelimit-limit-requests"] == "3"
    assert upstream.calls == calls


@pytest.mark.parametrize("limit", ["tpm", "day"])
@pytest.mark.parametrize("wire", ["body", "stream"])
async def test_spent_tokens_stop_the_backend_but_not_the_cache(
    keyed: Proxy, upstream: ScriptedUpstream, keys: KeyFile, limit: str, wire: str
) -> None:
    name = {"tpm": "tokens_per_minute", "day": "tokens_per_day"}[limit]
    key = keys.add(**{name: 10})
    await eventually_admitted(keyed, key)
    question = chat(QUESTION, stream=wire == "stream")
    usage = {"prompt_tokens": 40, "completion_tokens": 60, "total_tokens": 100}
    events = [*openai_wire.events("A lot.")[:-1], openai_wire.event(openai_wire.chunk([], usage=usage))]
    upstream.play(
        stream(*events, openai_wire.DONE) if wire == "stream" else answer(openai_wire.completion("A lot.", usage=usage))
    )
    first = await keyed.ask(question, key=key)
    assert (first.status, first.content) == (200, "A lot.")
    assert rates(first)["x-ratelimit-limit-tokens"] == "10"

    async def refused() -> bool:
        return (await keyed.ask(chat("And more?"), key=key)).status == 429

    await eventually_true(refused, "the tokens are spent")
    refusal = await keyed.ask(chat("And yet more?"), key=key)
    assert refusal.assert_problem(429, "rate_limit_exceeded")["type"] == "tokens"
    assert refusal.outcome == "miss"
    assert int(refusal.get("retry-after") or 0) >= 1
    assert (await send(keyed, "passed through", bearer(key))).status == 429
    assert (await send(keyed, "models", bearer(key))).status == 200
    hit = await keyed.ask(question, key=key)
    assert (hit.status, hit.outcome) == (200, "hit")
    assert rates(hit)["x-ratelimit-remaining-tokens"] == "0"


async def test_a_flight_is_charged_to_its_leader_alone(keyed: Proxy, upstream: ScriptedUpstream, keys: KeyFile) -> None:
    leader = keys.add(tenant="flying", tokens_per_minute=1000)
    follower = keys.add(tenant="flying", tokens_per_minute=1000)
    await eventually_admitted(keyed, follower)
    upstream.reset()
    hold = asyncio.Event()
    usage = {"prompt_tokens": 40, "completion_tokens": 60, "total_tokens": 100}
    upstream.play([Hold(hold), *answer(openai_wire.completion("Once.", usage=usage))])
    first = asyncio.create_task(keyed.ask(chat("Who pays?"), key=leader))
    await upstream.received(1)
    second = asyncio.create_task(keyed.ask(chat("Who pays?"), key=follower))
    for _ in range(2):  # what is looked up later tells that what was sent before has been
        await keyed.ask(chat(), key=follower, headers={"cache-control": "only-if-cached"})
    hold.set()
    assert (await first).status == (await second).status == 200
    assert (await second).get("x-cacheproxy-coalesced") == "true"
    assert upstream.calls == 1
    paid = {
        name: int(rates(await keyed.ask(chat("Who pays?"), key=key))["x-ratelimit-remaining-tokens"])
        for name, key in (("leader", leader), ("follower", follower))
    }
    assert paid["leader"] <= 910
    assert paid["follower"] >= 985


async def test_the_backends_own_limits_are_replaced_only_where_ours_stand(
    keyed: Proxy, upstream: ScriptedUpstream, made: dict[str, str]
) -> None:
    theirs = [("x-ratelimit-limit-requests", "500"), ("x-ratelimit-limit-tokens", "9")]
    for key, expected in (("roomy", ("600", "100000")), ("good", ("500", "9"))):
        for question in (chat(f"Limits of {key}?"), chat(f"Limits of {key}?", stream=True, n=2)):
            upstream.play(answer(openai_wire.completion("Yes."), headers=theirs))
            response = await keyed.ask(question, key=made[key])
            found = rates(response)
            assert response.all("x-ratelimit-limit-requests") == [expected[0]]
            assert found["x-ratelimit-limit-tokens"] == expected[1]


async def test_a_stream_passes_at_once_while_it_is_metered(
    keyed: Proxy, upstream: ScriptedUpstream, made: dict[str, str]
) -> None:
    hold = asyncio.Event()
    events = openai_wire.events("one two")
    for fields in ({}, {"n": 2}):
        hold.clear()
        upstream.play(stream(*events[:2], Hold(hold), *events[2:]))
        exchange = await keyed.begin(chat("Slow?", stream=True, **fields), key=made["roomy"])
        await exchange.until(b"\n\n")
        hold.set()
        assert (await exchange.rest()).complete
        exchange.leave()


async def test_answers_of_metered_keys_are_asked_for_uncompressed(
    keyed: Proxy, upstream: ScriptedUpstream, made: dict[str, str]
) -> None:
    asked = {"accept-encoding": "gzip, br"}
    await keyed.call("GET", "/v1/models", {**bearer(made["roomy"]), **asked})
    await keyed.call("GET", "/v1/models", {**bearer(made["good"]), **asked})
    assert [request.header("accept-encoding") for request in upstream.requests] == ["identity", "gzip, br"]


# Changes of the file, and starts


async def test_a_broken_file_keeps_the_old_keys(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path)
    key = keys.add()
    async with keyed_proxy(upstream.url, tmp_path) as proxy:
        good = keys.path.read_text()
        replace_text(keys.path, "{")
        # Longer than any look at the file takes: the keys from before stay in force.
        for _ in range(12):
            assert (await proxy.ask(chat(), key=key)).status == 200
            await asyncio.sleep(0.1)
        replace_text(keys.path, good)
        keys.revoke("key1")

        async def refused() -> bool:
            return (await proxy.ask(chat(), key=key)).status == 401

        await eventually_true(refused, "the file counts again")


@pytest.mark.parametrize(
    ("text", "said"), [(None, "keys new"), ("{", "not valid JSON"), ('{"version": 1, "keys": []}', "install.key")]
)
async def test_a_start_without_good_keys_is_refused(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        replace_text(tmp_path / "keys.json", text)
    settings = proxy_settings("http://127.0.0.1:1/v1", tmp_path, access={"mode": "keys"})
    with pytest.raises(ConfigError, match=said):
        async with started(settings):
            pass


@pytest.mark.parametrize(
    "sections",
    [
        {"upstream": {"api_key": "sk-x"}},
        {"upstreams": {"eu": {"url": "http://x/v1", "models": ["m"], "api_key": "s"}}},
        {"small": {"url": "http://x/v1", "model": "m", "api_key": "s"}},
    ],
)
async def test_an_operators_key_is_not_open_to_a_network(tmp_path: Path, sections: dict[str, Any]) -> None:
    settings = proxy_settings("http://127.0.0.1:1/v1", tmp_path, **sections, server={"host": "0.0.0.0"})
    with pytest.raises(ConfigError, match=r"api_key: anybody who reaches 0\.0\.0\.0"):
        async with started(settings):
            pass


async def test_on_loopback_an_operators_key_replaces_the_callers_in_pass_mode(
    upstream: ScriptedUpstream, tmp_path: Path, key: str, other_key: str
) -> None:
    settings = proxy_settings(upstream.url, tmp_path, upstream={"api_key": BACKEND_KEY})
    async with started(settings) as proxy:
        await proxy.fill(chat(), key=key)
        assert (await proxy.ask(chat(), key=other_key, headers={"cache-control": "no-store"})).outcome == "miss"
        await proxy.call("GET", "/v1/models", {"api-key": key})
    assert {request.header("authorization") for request in upstream.requests} == {f"Bearer {BACKEND_KEY}"}
    assert key not in repr(upstream.requests)


async def test_explain_knows_the_tenant_of_a_virtual_key(keyed: Proxy, made: dict[str, str]) -> None:
    question = chat("Explained?")
    await keyed.fill(question, key=made["good"])

    async def explained(key: str) -> tuple[int, Any]:
        body = openai_wire.encode({"request": question, "key": key})
        async with await Connection.open(keyed.admin_url) as connection:
            headers = [("content-type", "application/json")]
            connection.send(request_bytes("POST", "/admin/v1/explain", headers, body))
            response = await connection.read_response("POST")
        return response.status, json.loads(response.body)

    status, told = await explained(made["good"])
    assert (status, told["outcome"]) == (200, "hit")
    status, told = await explained(made["other"])
    assert (status, told["outcome"]) == (200, "miss")
    status, told = await explained("sk-cp-unknown")
    assert (status, told["error"]["code"]) == (401, "invalid_api_key")


def replace_text(path: Path, text: str) -> None:
    path.write_text(text)


async def eventually_admitted(proxy: Proxy, key: str) -> None:
    """Wait until a running proxy knows a new key."""

    async def known() -> bool:
        return (await proxy.call("GET", "/v1/models", bearer(key))).status == 200

    await eventually_true(known, "the key is known")


async def test_calls_that_the_end_of_the_proxy_cuts_off_are_charged_for_the_day(tmp_path: Path) -> None:
    settings = proxy_settings("http://127.0.0.1:9/v1", tmp_path, access={"mode": "keys"})
    key = KeyFile(tmp_path).add(tokens_per_day=100)
    async with assemble(settings) as house:
        assert house.keeper is not None
        charge = house.keeper.gate.admit([(b"authorization", b"Bearer " + key.encode())]).charge
        assert charge is not None
        begun = asyncio.Event()

        async def exchange(flight: Flight) -> None:
            try:
                begun.set()
                await asyncio.Event().wait()
            finally:
                charge(60)

        flights = house.pipeline.flights
        flights.leave_alone(flights.open(None, None, exchange))
        await begun.wait()
    spent = read_spent(tmp_path / "keys.json")
    assert spent is not None
    assert list(spent.tokens.values()) == [60]
