"""The demo: questions, rephrasings and traps through the proxy, by the official client, to a small local model."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from cacheproxy.settings import Settings

_QUESTIONS = Path(__file__).with_name("demo_questions.toml")
_MODEL = "smollm2-135m-instruct"
_WAIT_S = 180.0
_POLL_S = 0.25
GOAL_SPEEDUP = 20.0
"""A hit must be at least this many times faster than a miss for the demo to succeed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request of the demo and what must come of it."""

    kind: str
    text: str
    stream: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What came back."""

    ask: Ask
    outcome: str
    tier: str
    similarity: str
    category: str
    ms: float


async def run_demo(settings: Settings, running: Callable[[Settings], AbstractAsyncContextManager[Any]]) -> bool:
    """Run the demo and print its table. Returns whether everything came out as it must: see `verdict`."""
    script = tomllib.loads(_QUESTIONS.read_text(encoding="utf-8"))
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    with tempfile.TemporaryDirectory(prefix="cacheproxy-demo-") as scratch:
        console.print(
            "Starting the proxy with the embedded encoder and small model (the first start prepares both) ..."
        )
        async with running(_own(settings, Path(scratch))) as proxy:
            await _until_ready(proxy)
            told = await _ask_all(proxy.url, script, console)
    console.print(_table(told))
    problems = verdict(told)
    for line in [*summary(told), *problems]:
        console.print(line)
    return not problems


def asks(script: dict[str, Any]) -> Iterator[Ask]:
    """Yield the requests: each question first, then what should and should not be served from it."""
    for number, topic in enumerate(script["topics"]):
        stream = bool(number % 2)
        yield Ask(kind="new", text=topic["question"], stream=stream)
    for number, topic in enumerate(script["topics"]):
        yield Ask(kind="repeat", text=topic["question"], stream=not number % 2)
        yield Ask(kind="rephrased", text=topic["paraphrase"], stream=bool(number % 2))
        if "trap" in topic:
            yield Ask(kind="trap", text=topic["trap"], stream=bool(number % 2))


def verdict(told: list[Told]) -> list[str]:
    """Return what went wrong: a repeat that missed, a trap that was served, too few rephrasings or too little speed."""
    problems = [f"repeat was not a hit: {t.ask.text}" for t in told if t.ask.kind == "repeat" and t.tier != "exact"]
    problems += [
        f"trap was served from the cache: {t.ask.text}" for t in told if t.ask.kind == "trap" and t.outcome == "hit"
    ]
    rephrased = [t for t in told if t.ask.kind == "rephrased"]
    served = sum(t.outcome == "hit" for t in rephrased)
    if served * 2 < len(rephrased):
        problems.append(f"only {served} of {len(rephrased)} rephrasings were served")
    if (factor := speedup(told)) < GOAL_SPEEDUP:
        problems.append(f"hits were only {factor:.0f} times faster than misses, not {GOAL_SPEEDUP:.0f}")
    return problems


def speedup(told: list[Told]) -> float:
    """Return the median time of a miss over the median time of a hit, or 0 without both."""
    hits = [t.ms for t in told if t.outcome == "hit"]
    misses = [t.ms for t in told if t.outcome == "miss"]
    return statistics.median(misses) / statistics.median(hits) if hits and misses else 0.0


def summary(told: list[Told]) -> list[str]:
    """Return the figures under the table."""
    hits = [t for t in told if t.outcome == "hit"]
    misses = [t for t in told if t.outcome == "miss"]
    lines = [f"{len(told)} requests: {len(hits)} hits, {len(misses)} misses"]
    if hits and misses:
        hit_ms, miss_ms = statistics.median(t.ms for t in hits), statistics.median(t.ms for t in misses)
        lines.append(f"median hit {hit_ms:.1f} ms, median miss {miss_ms:.0f} ms: {speedup(told):.0f} times faster")
    return lines


def _own(settings: Settings, scratch: Path) -> Settings:
    """Keep the prepared models in the caller's directory, everything else in a scratch one."""
    replace = msgspec.structs.replace
    models = settings.data.path()
    return replace(
        settings,
        server=replace(settings.server, port=0, admin_port=0),
        upstream=replace(
            settings.upstream,
            url="local",
            local_cache_dir=settings.upstream.local_cache_dir or str(models),
            first_byte_timeout_s=_WAIT_S,
        ),
        encoder=replace(settings.encoder, cache_dir=settings.encoder.cache_dir or str(models / "encoders")),
        data=replace(settings.data, dir=str(scratch)),
    )


async def _until_ready(proxy: Any) -> None:
    """Wait until the small model has loaded, which is no answer's time. Raises ConfigError when it does not."""
    deadline_s = time.monotonic() + _WAIT_S
    while broken := {name: why for name, why in proxy.house.readiness().items() if why}:
        if time.monotonic() > deadline_s:
            raise ConfigError(f"not ready after {_WAIT_S:g} s: {broken}")
        await asyncio.sleep(_POLL_S)


async def _ask_all(url: str, script: dict[str, Any], console: Console) -> list[Told]:
    try:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient  # only the demo needs the client
    except ImportError as exc:
        raise ConfigError("the demo needs the official client: pip install 'cacheproxy[demo]'") from exc
    planned = list(asks(script))
    told = []
    direct = DefaultAsyncHttpxClient(trust_env=False)  # a proxy of the environment cannot reach this machine's port
    async with AsyncOpenAI(
        base_url=f"{url}/v1", api_key="demo", timeout=_WAIT_S, max_retries=0, http_client=direct
    ) as client:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("asking", total=len(planned))
            for ask in planned:
                told.append(await _ask(client, ask, script))
                progress.advance(task)
    return told


async def _ask(client: Any, ask: Ask, script: dict[str, Any]) -> Told:
    request = {
        "model": _MODEL,
        "max_tokens": script["max_tokens"],
        "messages": [{"role": "system", "content": script["system"]}, {"role": "user", "content": ask.text}],
    }
    began_s = time.perf_counter()
    raw = await client.chat.completions.with_raw_response.create(**request, stream=ask.stream)
    answer = raw.parse()
    if ask.stream:
        async for _ in answer:
            pass
    header = raw.headers.get
    return Told(
        ask=ask,
        ms=(time.perf_counter() - began_s) * 1000,
        outcome=header("x-cacheproxy-outcome", ""),
        tier=header("x-cacheproxy-tier", ""),
        similarity=header("x-cacheproxy-similarity", ""),
        category=header("x-cacheproxy-category", ""),
    )


def _table(told: list[Told]) -> Table:
    table = Table(title="cacheproxy demo", header_style="bold")
    for column in ("question", "outcome", "tier", "similarity", "category", "ms", "saved"):
        table.add_column(column, justify="right" if column in ("similarity", "ms", "saved") else "left")
    typical_ms = statistics.median([t.ms for t in told if t.outcome == "miss"] or [0.0])
    for t in told:
        saved = f"{(typical_ms - t.ms) / 1000:.1f} s" if t.outcome == "hit" else ""
        style = {"hit": "green", "miss": ""}.get(t.outcome, "yellow")
        table.add_row(t.ask.text, t.outcome, t.tier, t.similarity, t.category, f"{t.ms:.1f}", saved, style=style)
    return table
