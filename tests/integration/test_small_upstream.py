"""The small model as a backend: on a real port it gets nothing of a caller's, and nobody waits for one that is out."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from cacheproxy import serving, settings
from cacheproxy.augment.tokens import Estimated, Tokenised
from cacheproxy.embed.locate import locate
from cacheproxy.errors import ConfigError, UpstreamBusy, UpstreamTimeout, UpstreamUnreachable
from cacheproxy.ports import Call
from cacheproxy.query.scope import ACCOUNTS, CREDENTIALS
from cacheproxy.settings import Secret, Settings, Small
from cacheproxy.upstream.small import open_small
from tests.support.admin import ask_admin
from tests.support.clock import FakeClock
from tests.support.proxy import ENCODERS, chat, proxy_settings, started
from tests.support.upstream import Hold, ScriptedUpstream, Send, answer
from tests.support.virtual_keys import KeyFile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from cacheproxy.upstream.small import SmallUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

CALLERS = "callers-own-secret"
CALL = Call(method="POST", target="/v1/chat/completions", headers=(("content-type", "application/json"),), body=b"{}")
DOWN = "http://127.0.0.1:9/v1"


@asynccontextmanager
async def small_at(url: str, clock: FakeClock | None = None, **fields: Any) -> AsyncIterator[SmallUpstream]:
    chosen = Settings(small=Small(url=url, model="m", **fields))
    async with open_small(chosen, clock or FakeClock()) as small:
        yield small


async def status(small: SmallUpstream, call: Call = CALL) -> int:
    async with await small.send(call) as answered:
        async for _ in answered.chunks():
            pass
        return answered.status


@pytest.mark.parametrize("own", ["", "sk-small"])
async def test_no_credential_of_a_caller_reaches_the_small_model(upstream: ScriptedUpstream, own: str) -> None:
    named = [*(name.decode() for name in (*CREDENTIALS, *ACCOUNTS)), "Cookie", "X-Amz-Security-Token", "x-unheard-of"]
    call = Call(
        method="POST",
        target=f"/v1/chat/completions?key={CALLERS}",
        headers=(*CALL.headers, *((name, CALLERS) for name in named), ("Authorization", f"Bearer {CALLERS}")),
        body=b'{"model":"m"}',
        plain_body=CALLERS.encode(),
        upstream_key=Secret(CALLERS),
        tenant=CALLERS,
    )
    async with small_at(upstream.url, api_key=Secret(own)) as small:
        assert await status(small, call) == 200
    [received] = upstream.requests
    assert CALLERS not in f"{received.target} {received.headers} {received.body!r}"
    assert received.header("authorization") == (f"Bearer {own}" if own else None)
    assert (received.target, received.header("content-type")) == ("/v1/chat/completions", "application/json")


async def test_the_key_of_the_default_backend_is_not_sent_to_the_small_model(upstream: ScriptedUpstream) -> None:
    config = settings.Upstream(api_key=Secret("sk-large"))
    async with open_small(Settings(upstream=config, small=Small(url=upstream.url, model="m")), FakeClock()) as small:
        await status(small)
    assert upstream.requests[0].header("authorization") is None


async def test_after_five_failures_nobody_waits_for_it_until_it_is_tried_again(upstream: ScriptedUpstream) -> None:
    clock = FakeClock()
    upstream.always(answer({}, status=500))
    async with small_at(upstream.url, clock) as small:
        assert [await status(small) for _ in range(5)] == [500] * 5
        with pytest.raises(UpstreamBusy):
            await small.send(CALL)
        assert (upstream.calls, small.state().state) == (5, "ejected")
        upstream.always(None)
        clock.advance(30)
        assert await status(small) == 200
        assert small.state().state == "ok"


async def test_one_that_is_not_there_is_asked_once_and_said_so() -> None:
    async with small_at(DOWN) as small:
        with pytest.raises(UpstreamUnreachable):
            await small.send(CALL)
        assert (small.state().running, small.state().retries) == (0, 0)


async def test_its_own_deadline_ends_the_wait_for_its_first_byte(upstream: ScriptedUpstream) -> None:
    upstream.always([Hold(asyncio.Event())])
    async with small_at(upstream.url, total_timeout_s=0.2) as small:
        with pytest.raises(UpstreamTimeout):
            await small.send(CALL)
        assert small.state().running == 0


async def test_one_that_is_full_sends_callers_on(upstream: ScriptedUpstream) -> None:
    held = asyncio.Event()
    upstream.play([Hold(held), Send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")])
    async with small_at(upstream.url, max_concurrency=1, queue=0) as small:
        first = asyncio.create_task(status(small))
        await upstream.received(1)
        with pytest.raises(UpstreamBusy):
            await small.send(CALL)
        held.set()
        assert await first == 200


# Start


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"small": {"url": DOWN}}, r"^small\.model \(--small-model\): name"),
        ({"small": {"url": "http://u:p@small.test", "model": "m"}}, r"^small\.url"),
        ({"small": {"url": DOWN, "model": "m", "api_key": "two words"}}, r"^small\.api_key"),
        ({"small": {"url": "local", "context_tokens": 4096}}, r"^small\.context_tokens: .* 2048"),
        ({"small": {"url": DOWN, "model": "m"}, "upstreams": {"small": {"url": DOWN, "models": ["x"]}}}, r"^upstreams"),
    ],
)
async def test_a_small_model_that_cannot_work_stops_the_start_by_its_key(
    tmp_path: Path, sections: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        async with started(proxy_settings(DOWN, tmp_path, **sections)):
            pass


async def test_a_tokenizer_that_is_not_there_stops_the_start_by_its_path(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    with pytest.raises(ConfigError) as refusal:
        async with started(proxy_settings(DOWN, tmp_path, small={"url": DOWN, "model": "m", "tokenizer": str(file)})):
            pass
    assert str(file) in refusal.value.message


# In a proxy that runs


async def test_one_that_is_down_is_shown_and_leaves_the_proxy_ready(
    upstream: ScriptedUpstream, tmp_path: Path, key: str
) -> None:
    chosen = {"url": DOWN, "model": "m", "api_key": "s3cret-small"}
    async with started(proxy_settings(upstream.url, tmp_path, small=chosen)) as proxy:
        ready = await proxy.call("GET", "/readyz")
        assert (ready.status, ready.json()["upstreams"]) == (200, {"default": "ok", "small": "ok"})
        shown = (await ask_admin(proxy, "GET", "/upstreams")).json()["upstreams"]
        assert [(one["name"], one["limit"]) for one in shown] == [("default", 1024), ("small", 4)]
        assert (await proxy.ask(chat(), key=key)).status == 200
        config = await ask_admin(proxy, "GET", "/config")
        assert config.json()["small"]["api_key"] == "***"


async def test_without_one_there_is_none(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    async with serving.running(proxy_settings(upstream.url, tmp_path)) as live:
        assert live.house.pipeline.parts.small is None


async def test_its_tokens_are_counted_by_the_tokenizer_that_is_named(tmp_path: Path) -> None:
    told = {"url": DOWN, "model": "m", "tokenizer": str(locate("all-MiniLM-L6-v2").tokenizer)}
    for chosen, counter in ((told, Tokenised), ({"url": DOWN, "model": "m"}, Estimated)):
        async with serving.running(proxy_settings(DOWN, tmp_path, small=chosen)) as live:
            small = live.house.pipeline.parts.small
            assert small is not None
            assert (small.model, type(small.counter)) == ("m", counter)


async def test_its_tokens_are_charged_to_a_virtual_key(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    charged: list[int] = []
    KeyFile(tmp_path).add()
    upstream.play(answer({"usage": {"total_tokens": 7}}))
    chosen = proxy_settings(DOWN, tmp_path, small={"url": upstream.url, "model": "m"}, access={"mode": "keys"})
    async with serving.running(chosen) as live:
        small = live.house.pipeline.parts.small
        assert small is not None
        call = Call(method="POST", target=CALL.target, headers=(), body=b"{}", charge=charged.append)
        async with await small.upstream.send(call) as answered:
            async for _ in answered.chunks():
                pass
    assert charged == [7]


@pytest.mark.slow
async def test_backend_and_small_model_share_one_embedded_model(tmp_path: Path) -> None:
    local = {"url": "local", "local_cache_dir": str(ENCODERS.parent)}
    chosen = proxy_settings("local", tmp_path, upstream=local, small={"url": "local"})
    with capture_logs() as logged:
        async with started(chosen) as proxy:
            shown = (await ask_admin(proxy, "GET", "/upstreams")).json()["upstreams"]
            assert [one["name"] for one in shown] == ["default", "small"]
    assert [entry["event"] for entry in logged].count("local_model_starting") == 1


@pytest.mark.slow
async def test_an_embedded_small_model_that_is_not_loaded_is_not_waited_for(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    chosen = proxy_settings(upstream.url, tmp_path, small={"url": "local"})
    async with serving.running(chosen) as live:
        small = live.house.pipeline.parts.small
        assert small is not None
        with pytest.raises(UpstreamBusy, match="starting"):
            await small.upstream.send(CALL)
        assert (small.context_tokens, type(small.counter)) == (2048, Estimated)
        assert live.house.readiness().keys().isdisjoint({"local_model", "small"})
