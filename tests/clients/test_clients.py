"""Real clients, each a small program of its own, cannot tell the proxy from the backend: asked first, and asked again.

Every program runs three times: against the backend, through the proxy, and through the proxy once more, when the cache
may answer. What it prints must be the same three times, step by step, and what can be kept must not be asked twice.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
import pytest_asyncio

from tests.support.openai_backend import OpenAIBackend, Trouble, step_of
from tests.support.polling import eventually
from tests.support.proxy import Proxy, proxy_settings, started
from tests.support.upstream import ScriptedUpstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CURRENT, OPENAI2 = (ROOT / ".venv-clients" / name / "bin" for name in ("requirements", "requirements-openai2"))
LIMIT_S = 180.0
CACHED_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
FAILING = {Trouble.SERVER_ERROR, Trouble.BAD_REQUEST, Trouble.SLOW, Trouble.ENDLESS, "unauthorized"}

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A program, and what of it the cache must leave to the backend each time."""

    command: tuple[str, ...]
    asked_again: frozenset[str] = field(default_factory=frozenset)
    fewest: int = 5
    """Steps that must be answered from the cache in the second round."""


def python(name: str, *asked_again: str, venv: Path = CURRENT, fewest: int = 5) -> Client:
    command = (str(venv / "python"), str(HERE / "python" / f"{name}.py"))
    return Client(command=command, asked_again=frozenset(asked_again), fewest=fewest)


def node(name: str, *asked_again: str, fewest: int = 5) -> Client:
    command = ("node", str(HERE / "node" / f"{name}.mjs"))
    return Client(command=command, asked_again=frozenset(asked_again), fewest=fewest)


TOOLS = ("tools", "tools-stream")
CLIENTS = {
    "openai Python": python("openai_client", *TOOLS, "hot", "responses-tools", "responses-chained", fewest=30),
    "LangChain": python("langchain_client", *TOOLS, "structured-tools", fewest=15),
    "LlamaIndex": python("llamaindex_client", *TOOLS, venv=OPENAI2, fewest=12),
    "instructor": python("instructor_client", "tools", "partial-tools", venv=OPENAI2),
    "pydantic-ai": python("pydantic_ai_client", *TOOLS, "shaped-by-tool", fewest=8),
    "llm": python("llm_client", "tools", fewest=8),
    "curl": python("curl_client", fewest=10),
    "openai Node": node("openai", *TOOLS, fewest=15),
    "Vercel AI SDK": node("ai", *TOOLS, "responses-tools", fewest=10),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as upstream:
        yield upstream


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def proxied(backend: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Proxy]:
    async with started(proxy_settings(backend.url, tmp_path_factory.mktemp("data"))) as live:
        yield live


async def told(client: Client, url: str, key: str, home: Path) -> dict[str, Any]:
    """Run a program and return what it printed, by step."""
    assert shutil.which(client.command[0]), f"{client.command[0]} is not there: run `make install` first"
    environ = {"PATH": os.environ["PATH"], "HOME": str(home), "OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": key}
    process = await asyncio.create_subprocess_exec(
        *client.command, env=environ, cwd=home, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            out, errors = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0, (out[-2000:], errors[-4000:])
    lines = [json.loads(line) for line in out.decode().splitlines() if line.startswith("{")]
    return {line.pop("step"): line for line in lines}


def asked_steps(backend: ScriptedUpstream) -> list[str]:
    """Steps whose requests to cached routes reached the backend, in order, since the last reset."""
    return [
        step_of(request)
        for request in backend.requests
        if request.method == "POST" and request.target.partition("?")[0] in CACHED_PATHS and step_of(request)
    ]


@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)
async def test_a_client_sees_no_difference(
    client: Client, backend: ScriptedUpstream, proxied: Proxy, tmp_path: Path
) -> None:
    key = f"sk-client-{uuid4().hex}"
    rounds: dict[str, dict[str, Any]] = {}
    asked: dict[str, list[str]] = {}
    for name, url in (("direct", backend.url.removesuffix("/v1")), ("first", proxied.url), ("second", proxied.url)):
        backend.reset()
        backend.always(OpenAIBackend())
        rounds[name] = await told(client, url, key, tmp_path)
        await eventually(
            lambda: all(one.client_left_s or one.answered for one in backend.requests), "abandoned answers end"
        )
        asked[name] = asked_steps(backend)
    broken = {name: line for name, line in rounds["direct"].items() if "raised" in line and name not in FAILING}
    assert set(broken) <= {"not-found"}, broken
    for name in ("first", "second"):
        assert rounds[name].keys() == rounds["direct"].keys()
        for step, line in rounds["direct"].items():
            assert rounds[name][step] == line, (name, step)
    cacheable = {step for step in asked["direct"] if step not in FAILING | client.asked_again}
    assert len(cacheable) >= client.fewest
    assert set(asked["second"]) & cacheable == set(), "asked twice"
