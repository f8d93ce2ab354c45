"""The proxy under test, seen from outside: it is started with settings, asked, and its answers are read strictly."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from cacheproxy.configure import load
from tests.support import openai_wire
from tests.support.cachestatus import Member, parse_cache_status
from tests.support.polling import eventually_true
from tests.support.rawhttp import HOST, Connection, Exchange, Response, request_bytes
from tests.support.sse import fold, read_events

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from cacheproxy.settings import Settings

ENCODERS = Path(__file__).resolve().parents[2] / ".cacheproxy" / "encoders"
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"

QUESTION = "How do I reset my password?"
PARAPHRASE = "How can I reset my password?"
UNRELATED = "How long should I boil an egg?"


def complete(prompt: object = QUESTION, **fields: Any) -> dict[str, Any]:
    """Return a legacy completions request; `fields` are added."""
    return {"model": "gpt-3.5-turbo-instruct", "prompt": prompt, **fields}


def chat(text: str = QUESTION, **fields: Any) -> dict[str, Any]:
    """Return a chat request with one user message; `fields` are added."""
    return {"model": openai_wire.MODEL, "messages": [{"role": "user", "content": text}], **fields}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered(Response):
    """An answer of the proxy."""

    @property
    def outcome(self) -> str | None:
        """What the cache did."""
        return self.get("x-cacheproxy-outcome")

    @property
    def tier(self) -> str | None:
        """Which lookup found the entry."""
        return self.get("x-cacheproxy-tier")

    @property
    def reason(self) -> str:
        """Why."""
        return self.get("x-cacheproxy-reason") or ""

    @property
    def streamed(self) -> bool:
        """Whether the body is an event stream."""
        return (self.get("content-type") or "").startswith("text/event-stream")

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """The chunks of a well-formed stream."""
        return read_events(self.body)

    @property
    def whole(self) -> dict[str, Any]:
        """The answer a caller ends up with, in whichever form it came."""
        whole: dict[str, Any] = fold(self.chunks) if self.streamed else self.json()
        return whole

    @property
    def content(self) -> str:
        """The first choice's text."""
        return str(self.whole["choices"][0]["message"]["content"])

    @property
    def cache_status(self) -> Member:
        """Our own member of `Cache-Status`, which must be the last one."""
        member = parse_cache_status(", ".join(self.all("cache-status")))[-1]
        assert member.cache == "cacheproxy"
        return member

    def assert_problem(self, status: int, code: str | None = None) -> dict[str, Any]:
        """Assert an OpenAI-shaped error and return it."""
        assert self.status == status, (self.status, self.body[:300])
        return openai_error(self, code)


def openai_error(response: Response, code: str | None = None) -> dict[str, Any]:
    """Assert that a body is OpenAI's error object, whole, and return it."""
    assert response.complete
    assert (response.get("content-type") or "").startswith("application/json")
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert isinstance(error["param"], str | None)
    assert isinstance(error["code"], str | None)
    if code is not None:
        assert error["code"] == code
    return error


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """A running proxy."""

    url: str
    admin_url: str

    async def begin(
        self,
        body: Mapping[str, Any] | bytes,
        *,
        key: str | None,
        headers: Mapping[str, str] | None = None,
        target: str = CHAT,
    ) -> Exchange:
        """POST on a connection of its own and return once the answer's head has come."""
        connection = await self.post(body, key=key, headers=headers, target=target)
        return await connection.exchange()

    async def post(
        self,
        body: Mapping[str, Any] | bytes,
        *,
        key: str | None,
        headers: Mapping[str, str] | None = None,
        target: str = CHAT,
    ) -> Connection:
        """POST on a connection of its own and return without waiting for the answer."""
        data = body if isinstance(body, bytes) else openai_wire.encode(body)
        sent = {"content-type": "application/json", **(headers or {})}
        if key is not None:
            sent["authorization"] = f"Bearer {key}"
        connection = await Connection.open(self.url)
        connection.send(request_bytes("POST", target, sent.items(), data))
        return connection

    async def ask(
        self,
        body: Mapping[str, Any] | bytes,
        *,
        key: str | None,
        headers: Mapping[str, str] | None = None,
        target: str = CHAT,
    ) -> Answered:
        """POST and read the whole answer, clean or broken."""
        exchange = await self.begin(body, key=key, headers=headers, target=target)
        response = await exchange.rest()
        exchange.leave()
        return answered(response)

    async def call(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Answered:
        """Send any request and read the whole answer."""
        async with await Connection.open(self.url) as connection:
            connection.send(request_bytes(method, target, (headers or {}).items(), body))
            return answered(await connection.read_response(method))

    async def fill(
        self, body: Mapping[str, Any], *, key: str, headers: Mapping[str, str] | None = None, target: str = CHAT
    ) -> Answered:
        """Ask something new, wait until its answer is kept, and return that answer."""
        first = await self.ask(body, key=key, headers=headers, target=target)
        assert first.status == 200, first.body[:300]
        assert first.outcome == "miss", (first.outcome, first.reason)
        await eventually_true(lambda: self.cached(body, key=key, headers=headers, target=target), "the answer is kept")
        return first

    async def cached(
        self, body: Mapping[str, Any], *, key: str, headers: Mapping[str, str] | None = None, target: str = CHAT
    ) -> bool:
        """Whether the cache can answer by itself."""
        sent = {**(headers or {}), "cache-control": "only-if-cached"}
        return (await self.ask(body, key=key, headers=sent, target=target)).status == 200

    async def settled(self, key: str) -> None:
        """Return once everything asked before has been kept or refused: a later answer has been kept."""
        text = "Which planet in the solar system has the largest moon?"
        await self.fill(chat(text), key=key, headers={"x-cacheproxy-namespace": uuid4().hex})


def answered(response: Response) -> Answered:
    """Return a response with the proxy's own headers readable by name."""
    return Answered(status=response.status, headers=response.headers, body=response.body, complete=response.complete)


def proxy_settings(upstream_url: str, data_dir: Path, **sections: Mapping[str, object]) -> Settings:
    """Return settings for a proxy on free loopback ports; `sections` override."""
    flags: dict[str, dict[str, object]] = {
        "server": {"port": 0, "admin_port": 0, "max_lag_ms": 0},  # a busy machine is not what is tested
        "upstream": {"url": upstream_url},
        "data": {"dir": str(data_dir)},
        "encoder": {"cache_dir": str(ENCODERS)},
        "admin": {"hosts": HOST},
        "learn": {"shadow": False},
        "verifier": {"timeout_ms": 2000},  # a busy machine is not what is tested
    }
    for section, values in sections.items():
        flags.setdefault(section, {}).update(values)
    return load(None, environ={}, flags=flags)


@asynccontextmanager
async def started(settings: Settings) -> AsyncIterator[Proxy]:
    """Run a proxy in this loop until the block ends."""
    from cacheproxy.serving import running  # heavy: unit tests that share the conftest do without it

    async with running(settings) as live:
        yield Proxy(url=live.url, admin_url=live.admin_url)
