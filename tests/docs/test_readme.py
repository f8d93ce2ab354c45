"""The README keeps its word: its snippet runs, its headers come, its table of refusals is what happens."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from typing import TYPE_CHECKING, Any

import pytest

from cacheproxy.policy.loader import find_pack, load_pack
from cacheproxy.query.controls import read_controls
from tests.support import embeddings_wire
from tests.support.markdown import read
from tests.support.openai_wire import completion
from tests.support.proxy import CHAT, COMPLETIONS, chat, complete
from tests.support.upstream import answer

if TYPE_CHECKING:
    from tests.support.proxy import Answered, Proxy
    from tests.support.upstream import ScriptedUpstream

LIVE = pytest.mark.asyncio(loop_scope="module")

README = read("README.md")
QUESTION = "What is the capital of France?"
REASON = "`x-cacheproxy-reason`"
REFUSALS = README.table("request", "treatment", REASON)


async def run_snippet(proxy: Proxy, key: str) -> str:
    """Run the README's Python as its reader would: the key comes from the environment, the port is this proxy's."""
    [snippet] = README.blocks("python")
    assert snippet.count("http://127.0.0.1:8080") == 1
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", snippet.replace("http://127.0.0.1:8080", proxy.url)),
        env={**kept, "OPENAI_API_KEY": key},
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await process.communicate()
    assert process.returncode == 0
    return printed.decode()


@LIVE
async def test_the_snippet_misses_once_and_then_hits(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    upstream.always(answer(completion("Paris.")))
    assert [await run_snippet(proxy, key) for _ in range(2)] == ["miss Paris.\n", "hit Paris.\n"]
    assert upstream.calls == 1
    assert (await proxy.ask(chat(QUESTION, stream=True), key=key)).outcome == "hit"


async def rephrased(proxy: Proxy, key: str) -> Answered:
    """Ask the rephrasing that the README promises a hit for."""
    [told] = {line for block in README.blocks("python") for line in block.splitlines() if '"content"' in line}
    assert QUESTION in told
    [text] = re.findall(r'cacheproxy explain "([^"]+)"', README.text)
    assert f'or ask "{text}"' in README.text
    await proxy.fill(chat(QUESTION), key=key)
    return await proxy.ask(chat(text), key=key)


@LIVE
async def test_the_rephrasing_is_a_semantic_hit(proxy: Proxy, key: str) -> None:
    hit = await rephrased(proxy, key)
    assert (hit.outcome, hit.tier) == ("hit", "semantic")


@LIVE
async def test_the_headers_shown_are_those_of_that_hit(proxy: Proxy, key: str) -> None:
    [block] = [block for block in README.blocks("") if "x-cacheproxy-outcome" in block]
    fields = [field for line in block.splitlines() for field in re.split(r"\s{2,}", line)]
    shown = dict(field.split(": ", 1) for field in fields)
    hit = await rephrased(proxy, key)
    for name, form in (
        ("x-cacheproxy-entry", "[0-9a-f]{32}"),
        ("cache-status", 'cacheproxy; hit; ttl=[0-9]+; detail="semantic"'),
    ):
        assert re.fullmatch(form, shown.pop(name))
        assert re.fullmatch(form, hit.get(name) or "")
    for name, near in (("x-cacheproxy-similarity", 5e-4), ("x-cacheproxy-probability", 5e-3)):  # processors differ
        assert float(hit.get(name) or 0) == pytest.approx(float(shown.pop(name)), abs=near)
    assert {name: hit.get(name) for name in shown} == shown


LETTER = " ".join("Line 90 is about {}." if n == 90 else f"Line {n}." for n in range(180))
IMAGE = [
    {"type": "text", "text": "What is this?"},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
]
AUDIO = [{"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def with_parts(parts: list[Any]) -> dict[str, Any]:
    return {**chat(), "messages": [{"role": "user", "content": parts}]}


# What makes each reason that the README names, and the outcome it must have. `None` stands for no key.
PROVOKED: dict[str, tuple[str, dict[str, Any], dict[str, str] | None]] = {
    "anonymous": ("bypass", chat(), None),
    "temperature": ("bypass", chat(temperature=0.71), {}),
    "audio": ("bypass", with_parts(AUDIO), {}),
    "stateful": ("bypass", chat(store=True), {}),
    "live_search": ("bypass", chat(web_search_options={}), {}),
    "tools": ("miss", chat(tools=[TOOL]), {}),
    "image": ("miss", with_parts(IMAGE), {}),
    "asked_again": (
        "miss",
        chat(messages=[{"role": role, "content": QUESTION} for role in ("user", "assistant", "user")]),
        {},
    ),
    "prompts": ("miss", complete([QUESTION, "And why?"]), {}),
    "no_text": ("miss", complete([1, 2, 3]), {}),
    "best_of": ("miss", complete(best_of=2), {}),
    "echo": ("miss", complete(echo=True), {}),
    "suffix": ("miss", complete(suffix="."), {}),
    "unrecognised_shape": ("bypass", embeddings_wire.request(["a", [1]]), {}),
    "request_no_cache": ("miss", chat(), {"cache-control": "no-cache"}),
    "unseen_text_differs": ("miss", chat(LETTER.format("the rent")), {}),
}


def test_every_reason_that_is_named_is_provoked_here() -> None:
    named = {reason for row in REFUSALS for reason in re.findall(r"`(\w+)`", row[2])}
    assert named == PROVOKED.keys()


@LIVE
@pytest.mark.parametrize("reason", PROVOKED)
async def test_every_reason_that_is_named_is_given(proxy: Proxy, key: str, reason: str) -> None:
    outcome, body, headers = PROVOKED[reason]
    await proxy.fill(chat(LETTER.format("the roof")), key=key)
    target = COMPLETIONS if "prompt" in body else embeddings_wire.PATH if "input" in body else CHAT
    told = await proxy.ask(body, key=None if headers is None else key, headers=headers, target=target)
    assert (told.outcome, told.reason) == (outcome, reason)
    [treatment] = [row[1] for row in REFUSALS if f"`{reason}`" in row[2]]
    assert treatment.startswith("bypass") is (outcome == "bypass")


def test_the_temperature_limit_is_the_packs() -> None:
    category = load_pack(find_pack("balanced")).categories["default"]
    [row] = [row for row in REFUSALS if "`temperature`" in row[2]]
    assert re.findall(r"\((.+)\)", row[0]) == [f"{category.max_temperature:g}"]


def test_every_control_that_is_named_is_understood() -> None:
    [listed] = re.findall(r"`Cache-Control` \((.+?)\)", README.text, re.DOTALL)
    directives = re.findall(r"`([a-z-]+)`", listed)
    assert directives
    for directive in directives:
        assert read_controls([(b"cache-control", f"{directive}=1".encode())]) != read_controls([])
    [names] = re.findall(r"`x-cacheproxy-\{(.+)\}`", README.text)
    values = {"ttl": "1", "threshold": "1", "tier": "exact", "augment": "off"}
    for name in names.split(","):
        header = (f"x-cacheproxy-{name}".encode(), values.get(name, "a").encode())
        assert read_controls([header]) != read_controls([])
